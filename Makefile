# `make` lists the targets. Everything runs in the virtual environment .venv; VENV=… names another.

VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
LOSSES ?= simpo,dpo,ipo,kto,orpo
# Jobs of `make run` at one time: two use two cores better than one does. Each takes 3.3 GB; PARALLEL=1 is for less memory.
PARALLEL ?= 2
COUNT  ?= 200
# Tests start many processes, each of which would compile pobench again where Python may not write what it has compiled.
unexport PYTHONDONTWRITEBYTECODE
TESTS  := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: help run report tuning tuning-tiny-long tuning-smollm2 example-tiny example-tiny-long example-smollm2 test test-all faults determinism long campaigns against-trl check audit docs site clean
.DEFAULT_GOAL := help

help:       ## list the targets
	@sed -n 's/^\([a-z0-9-]*:\)[^#]*## /\1  /p' Makefile | expand -t 4

run: $(VENV)/.installed       ## install, then train SimPO and DPO, evaluate them and write the report
	$(BIN)/pobench run --losses simpo,dpo --setting smollm2 --parallel $(PARALLEL)

report: $(VENV)/.installed    ## draw the report again from the stored runs
	$(BIN)/pobench analyze

# Trials that the setting's tuning.csv holds are not made again; an interrupted search continues in runs-tuning. A trial
# whose values break is stored too, and makes the command fail.
TUNE = OMP_NUM_THREADS=1 $(BIN)/pobench tune --runs runs-tuning --trials 8

tuning: $(VENV)/.installed    ## search the values of every loss on tiny; trials and choice are stored beside the setting
	$(TUNE) --setting tiny --losses all --parallel 2 --into experiments/settings/tiny.yaml; status=$$?; \
	cp runs-tuning/tiny/tuning/trials.csv experiments/data/tiny/tuning.csv && exit $$status

tuning-tiny-long: $(VENV)/.installed ## the same on tiny-long, for the losses of the paper; an hour
	$(TUNE) --setting tiny-long --losses paper --parallel 2 --into experiments/settings/tiny-long.yaml; status=$$?; \
	cp runs-tuning/tiny-long/tuning/trials.csv experiments/data/tiny-long/tuning.csv && exit $$status

tuning-smollm2: $(VENV)/.installed ## the same on smollm2, for the losses in LOSSES; an hour
	$(TUNE) --setting smollm2 --losses $(LOSSES) --into experiments/settings/smollm2.yaml; status=$$?; \
	cp runs-tuning/smollm2/tuning/trials.csv experiments/data/smollm2/tuning.csv && exit $$status

# The reports of reports/examples, world by world. A run that runs-examples holds is not made again, so an interrupted command
# goes on. Two jobs at one time, a thread each. Studies stand in an order: runs that are added after a report count as another
# look at the comparison, so `seeds`, which has most, comes first; and `kl-vs-beta` measures in training what others do not.
STUDIES := seeds kl-vs-beta main-table length-normalisation dpo-variants margin learning-rate sft-regularisation efficiency \
           batch-and-epochs length-bias
STUDY = OMP_NUM_THREADS=1 $(BIN)/pobench study --runs runs-examples --parallel 2
KEPT := claims.csv who-beats-whom.csv pass-rate.png gains-over-dpo.png length-bias.png

define studies # $(1): the world. Where a job fails (status 1), the other studies run; the report names it
	for study in $(STUDIES); do $(STUDY) $$study --setting $(1) || [ $$? -eq 1 ] || exit 1; done
endef

define example # $(1): the world
	rm -rf runs-examples/report/$(1)
	$(BIN)/pobench analyze --runs runs-examples --setting $(1) --out runs-examples/report/$(1) --format html,md,csv,png,parquet
	mkdir -p reports/examples/$(1)
	cd runs-examples/report/$(1) && cp -r report.html summary.md frames $(KEPT:%=$$(find . -name %)) ../../../reports/examples/$(1)
endef

example-tiny: $(VENV)/.installed ## make every study on tiny and its report in reports/examples; two hours, resumable
	$(call studies,tiny)
	$(call example,tiny)

example-tiny-long: $(VENV)/.installed ## the same on tiny-long
	$(call studies,tiny-long)
	$(call example,tiny-long)

example-smollm2: $(VENV)/.installed ## the main table of the losses in LOSSES on smollm2, and its report
	$(STUDY) main-table --setting smollm2 --losses $(LOSSES) || [ $$? -eq 1 ]
	$(call example,smollm2)

test: $(VENV)/.installed-test ## run the fast tests, in minutes
	$(TESTS)

test-all: $(VENV)/.installed-test ## all tests, the slow ones too
	$(TESTS) -m ""

CAMPAIGNS_COUNT ?= 3150
CAMPAIGNS_SEED  ?= 0
campaigns: $(VENV)/.installed-test ## bad input of every class, the endpoint judge under load and fault, and a search for its key
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.campaigns.bad_input --count $(CAMPAIGNS_COUNT) --seed $(CAMPAIGNS_SEED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.campaigns.endpoint --seed $(CAMPAIGNS_SEED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.campaigns.planted_key

faults: $(VENV)/.installed-test ## kill commands and damage stored files, hundreds of times; hours (COUNT: how many kills)
	$(BIN)/python -m tests.faults.kills --count $(COUNT)
	$(BIN)/python -m tests.faults.damage
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.disks

determinism: $(VENV)/.installed-test ## one command under other circumstances, byte by byte, and as other processors compute; half an hour
	$(BIN)/python -m tests.faults.determinism
	$(BIN)/python -m tests.faults.determinism --setting tiny --seeds 42 --only threads,processor

long: $(VENV)/.installed-test ## 20,000 steps of training, with memory and disk watched, in fp32 and bf16; half an hour
	$(BIN)/python -m tests.faults.long_run
	$(BIN)/python -m tests.faults.long_run --precision bf16

check: $(VENV)/.installed-test ## check formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

AUDIT := build/audit/bin
audit:      ## look for known holes: bandit in the code, pip-audit in the versions of constraints.txt; needs a network
	$(PYTHON) -m venv build/audit
	$(AUDIT)/python -m pip install --quiet bandit pip-audit
	$(AUDIT)/bandit --quiet -c pyproject.toml -r pobench losses analysis experiments reports; status=$$?; \
	$(AUDIT)/pip-audit --strict -r constraints.txt --no-deps --disable-pip && exit $$status

against-trl: $(VENV)/.installed-test ## pobench beside every trainer of TRL; hours, resumable
	$(BIN)/python benchmarks/against_trl.py

docs: $(VENV)/.installed      ## write the pages of losses, keys, claims, frames and stages from the code
	@mkdir -p docs
	$(BIN)/pobench list losses --markdown > docs/losses.md.part
	mv docs/losses.md.part docs/losses.md
	$(BIN)/python -m pobench.reporting.loss_family > docs/losses-family.svg.part
	mv docs/losses-family.svg.part docs/losses-family.svg
	$(BIN)/pobench list keys --markdown > docs/keys.md.part
	mv docs/keys.md.part docs/keys.md
	$(BIN)/pobench list claims --markdown > docs/claims.md.part
	mv docs/claims.md.part docs/claims.md
	$(BIN)/python -m pobench.reporting.frame_page > docs/frames.md.part
	mv docs/frames.md.part docs/frames.md
	$(BIN)/pobench list stages --markdown > docs/stages.md.part
	mv docs/stages.md.part docs/stages.md

site: $(VENV)/.installed-test ## build the documentation's site in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean:      ## remove what building and testing left; keep runs and the environment
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# A stamp file marks a finished installation, so that the next `make` does not install again unless dependencies changed.
# Packages hold twenty-five thousand modules, of which a run reads four thousand: Python compiles those when it first does.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[test]'
	touch $@ $(VENV)/.installed

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
