# `make` lists what there is. Everything runs in a virtual environment of its own: VENV=… takes another place.

VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
TESTS  := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2

.PHONY: help run report test test-all check docs clean
.DEFAULT_GOAL := help

help:       ## this list
	@sed -n 's/^\([a-z-]*:\)[^#]*## /\1  /p' Makefile | expand -t 4

run: $(VENV)/.installed       ## install, then SimPO against DPO from training to the report, on this machine
	$(BIN)/pobench run --losses simpo,dpo --setting smollm2
	$(BIN)/pobench analyze

report: $(VENV)/.installed    ## draw the report again from the stored runs
	$(BIN)/pobench analyze

test: $(VENV)/.installed-test ## the fast tests, minutes
	$(TESTS)

test-all: $(VENV)/.installed-test ## the slow ones too
	$(TESTS) -m ""

check: $(VENV)/.installed-test ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.installed      ## write docs/losses.md from the losses and docs/frames.md from pobench/columns.py
	@mkdir -p docs
	$(BIN)/pobench list losses --markdown > docs/losses.md.part
	mv docs/losses.md.part docs/losses.md
	$(BIN)/python -m pobench.reporting.frame_page > docs/frames.md.part
	mv docs/frames.md.part docs/frames.md

clean:      ## remove what building and testing left; runs and the environment stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# A stamp marks a finished installation, so that the next `make` starts at once; new dependencies renew it.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@ $(VENV)/.installed

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
