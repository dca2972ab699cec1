"""Stand-ins for models and data that are not at hand: a tiny random model of the same architecture, generated rows."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pobench.data.chat import load_tokenizer, tokenizer_of
from pobench.data.published import DATASETS, MODELS, PublishedData
from pobench.data.rows import read_rows
from pobench.errors import PobenchError, nearest
from pobench.files import whole
from pobench.model.load import _config, count_parameters
from pobench.progress import without_bars
from pobench.registry import benchmarks, judges
from pobench.row_files import RowFiles
from pobench.settings.job import Job
from pobench.settings.schema import JudgeConfig, OnPolicyConfig, SftConfig, SourceConfig
from pobench.sources import cache_folder, cached_model, fetch_rows, is_hub_name, read_config

VERSION = 2  # of the stand-ins: part of their folder's name
PAIRS, HELD_OUT, PROMPTS, NEW_TOKENS, BATCH = 24, 8, 4, 12, 8
MICRO_TOKENS = 1024

NOTE = "A rehearsal: random weights, a few pairs. It shows that everything runs; its numbers say nothing."

SAMPLES = 4  # on policy, of each prompt
# A random model would never write the token that ends an answer, and a cut-off answer is in no pair: one in so many of the
# other tokens ends it as well.
ENDS_AN_ANSWER = 8

# Thin, but of the same kind: grouped heads, both kinds of layer where they alternate, a window that rows overrun.
_THIN = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
}
_WINDOW = 64


# ---------------------------------------------------------------- stand-ins
@dataclass(frozen=True)
class _Stage:
    """What a job's stand-ins are made from. config: the real model's, as plain values. tokenizer: its folder, if at hand.
    samples: whether pairs are sampled on policy, too."""

    job: Job
    config: Mapping[str, Any]
    tokenizer: Path | None
    samples: bool = False

    @classmethod
    def of(cls, job: Job, samples: bool = False) -> tuple[_Stage, list[str]]:
        """The stage, and faults: a model or data set that is neither at hand nor known. Of such a model, config is empty."""
        source = job.model.source
        folder = cached_model(source, revision=job.model.revision, sha256=job.model.sha256, base=job.model.base)
        faults = []
        config: Mapping[str, Any] = {}
        if folder is not None:
            config = read_config(folder)
        elif source in MODELS:
            config = MODELS[source].config
        else:
            faults.append(
                f"model {source!r} is not on this machine, and nothing is known of it"
                f"{nearest(source, MODELS)} Known: {', '.join(MODELS)}; or name a local folder with --model"
            )
        stage = cls(job, config, folder, samples)
        for key, name, split, _ in stage.sources():
            faults += [fault for part in split.split("+") for fault in _source_faults(key, name, part)]
        return stage, list(dict.fromkeys(faults))

    @property
    def parameters(self) -> int | None:
        """Parameters of the real model; None if transformers does not know its kind."""
        try:
            return count_parameters(self.config)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def length_faults(self) -> list[str]:
        """Faults of lengths: a pair, or a prompt with its answer, does not fit into the model's context."""
        data, answers, model = self.job.data, self.job.answers, self.job.model.source
        context = self.config.get("max_position_embeddings")
        if not isinstance(context, int):
            return []
        faults = []
        if self.job.sft is not None and self.job.sft.max_length > context:
            faults.append(
                f"sft.max_length: {self.job.sft.max_length} tokens do not fit; the context of {model} is {context}"
            )
        if data.max_length > context:
            faults.append(f"data.max_length: {data.max_length} tokens do not fit; the context of {model} is {context}")
        if answers.source is not None and data.max_prompt_length + answers.max_new_tokens > context:
            faults.append(
                f"answers.max_new_tokens: a prompt of {data.max_prompt_length} tokens (data.max_prompt_length) and an "
                f"answer of {answers.max_new_tokens} do not fit; the context of {model} is {context}"
            )
        return faults

    def sources(self) -> list[tuple[str, str, str, str | None]]:
        """(key, source, split, subset) of every source of rows, each once."""
        return _sources(self.job, self.samples)

    # -- building

    def build(self) -> Path:
        """Write the stand-ins, if they are not there yet: model/, one file a data split, verdicts.jsonl."""
        sources = self.sources()
        data = self.job.data
        made_from = [
            VERSION,
            self.job.model.source,
            dict(self.config),
            sources,
            data.max_length,
            data.max_prompt_length,
            self.job.model.chat_template,
        ]
        texts = [t for source in sources for t in _own_texts(*source[1:])]
        digest = hashlib.sha256(json.dumps([made_from, texts], sort_keys=True).encode()).hexdigest()[:12]
        folder = cache_folder() / "rehearsal" / digest
        if folder.is_dir():
            return folder
        with whole(folder) as partial:
            partial.mkdir(parents=True)
            tokenizer = self._tokenizer(partial / "model", texts)
            self._model(partial / "model", len(tokenizer))
            for _, name, split, _ in sources:
                if name in DATASETS:
                    lengths = (data.max_length, data.max_prompt_length)
                    parts = [generated_rows(DATASETS[name], part, tokenizer, *lengths) for part in split.split("+")]
                    pd.concat(parts, ignore_index=True).to_parquet(partial / _file_of(name, split), index=False)
            verdicts = _verdicts(self.job, partial)
            (partial / "verdicts.jsonl").write_text("".join(json.dumps(v) + "\n" for v in verdicts), encoding="utf-8")
        return folder

    def _tokenizer(self, folder: Path, texts: Sequence[str]) -> Any:
        """The model's own tokenizer, or a small one with its special tokens, its rules for them and its template."""
        if self.tokenizer is not None:
            own = tokenizer_of(self.tokenizer, self.job.model) if self.job.model.chat_template else None
            tokenizer = load_tokenizer(self.tokenizer) if own is None else own
        else:
            tokenizer = small_tokenizer(self.job.model.source, texts)
        tokenizer.save_pretrained(folder)
        return tokenizer

    def _model(self, folder: Path, vocabulary: int) -> None:
        """A model of the real configuration, with thin layers and random weights."""
        from transformers import AutoModelForCausalLM, GenerationConfig

        published = MODELS.get(self.job.model.source) if self.tokenizer is None else None
        thin = {k: v for k, v in _THIN.items() if k in self.config or k not in ("head_dim", "query_pre_attn_scalar")}
        size = vocabulary if published else max(vocabulary, int(self.config["vocab_size"]))
        window = {"sliding_window": _WINDOW} if self.config.get("sliding_window") else {}
        settings = {k: v for k, v in self.config.items() if k not in ("layer_types", "quantization_config")}
        tokens: dict[str, Any] = {}
        if published:
            ids = _special_ids(published.special)
            tokens = {"bos_token_id": ids[published.bos], "eos_token_id": ids[published.eos]}
            tokens["pad_token_id"] = ids.get(published.pad or published.eos)
        try:
            config = _config({**settings, **thin, **window, **tokens, "vocab_size": size})
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PobenchError(f"no stand-in can be made for {self.job.model.source!r}: {error}") from error
        if published:
            stops = [tokens["eos_token_id"], *(_special_ids(published.special)[s] for s in published.stops)]
        else:
            stops = np.atleast_1d(self.config.get("eos_token_id") or []).tolist()
        ends = sorted({*stops, *range(ENDS_AN_ANSWER - 1, size, ENDS_AN_ANSWER)})
        model.generation_config = GenerationConfig(**{**tokens, "eos_token_id": ends})
        with without_bars():  # a model this small is written at once
            model.save_pretrained(folder)

    # -- the jobs over them

    def stand_in(self, job: Job, folder: Path) -> Job:
        """`job` with every source replaced by a stand-in, and with small sizes."""
        data, answers, train = job.data, job.answers, job.train
        local: dict[str, Any] = {"sources": [_smaller_source(part, folder) for part in data.sources]}
        if not data.sources:
            local = {"source": _replaced(data.source, data.split, folder)}
        if data.held_out is not None or (data.held_out_split is not None and not data.sources):
            held_out = data.held_out or data.source
            local["held_out"] = _replaced(held_out, data.held_out_split or data.split, folder)
            local["held_out_split"] = None if held_out in DATASETS else data.held_out_split
        if data.source in DATASETS:
            local["split"] = local["revision"] = None
        pairs = min(data.max_pairs or PAIRS, PAIRS)
        held = min(data.max_held_out or HELD_OUT, HELD_OUT)
        answer_settings: dict[str, Any] = {}
        judge = job.judge
        if answers.source is not None:
            answer_settings = {"source": _replaced(answers.source, answers.split, folder)}
            answer_settings["split"] = None if answers.source in DATASETS else answers.split
            answer_settings["max_prompts"] = min(answers.max_prompts or PROMPTS, PROMPTS)
            answer_settings["max_new_tokens"] = min(answers.max_new_tokens, NEW_TOKENS)
            answer_settings["samples"] = min(answers.samples, 2)
            if judge.name is None or not judges.get(judge.name).offline:
                replayed = {"name": "replay", "settings": {"file": str(folder / "verdicts.jsonl")}}
                compares = judge.name is not None and judges.get(judge.name).compares
                judge = judge.model_copy(update={"name": "rehearsed", "settings": {}} if compares else replayed)
        smaller: dict[str, Any] = {
            "batch_size": min(train.batch_size, BATCH),
            "epochs": min(train.epochs, 2),
            "micro_tokens": train.micro_tokens
            if train.micro_tokens == "auto"
            else min(train.micro_tokens, MICRO_TOKENS),
            "checkpoint_seconds": 0.0,  # after every step: saving and clearing are part of the play
            "trackers": [],
        }
        model = {"source": str(folder / "model"), "revision": None, "sha256": None, "note": NOTE}
        origin = {**job.origin, **{f"train.{key}": "rehearsal" for key in ("batch_size", "epochs")}}
        return replace(
            job,
            setting=f"{job.setting}-rehearsal",
            sft=None if job.sft is None else _smaller_sft(job.sft, folder),
            model=job.model.model_copy(update=model),
            data=data.model_copy(update={**local, "max_pairs": pairs, "max_held_out": held, "prompt_embedder": None}),
            train=train.model_copy(update=smaller),
            answers=answers.model_copy(update=answer_settings),
            judge=judge,
            origin=origin,
            onpolicy=_smaller_sampling(job, folder) if self.samples else job.onpolicy,
            rounds=job.rounds.model_copy(update={"prompts": "all"}),  # a part of so few would be none
            benchmarks={name: _smaller_benchmark(name, settings) for name, settings in job.benchmarks.items()},
        )


def _smaller_source(part: SourceConfig, folder: Path) -> SourceConfig:
    """One of several sources, replaced by its stand-in, which has no splits."""
    split = None if part.source in DATASETS else part.split
    return part.model_copy(
        update={"source": _replaced(part.source, part.split, folder), "split": split, "revision": None}
    )


def _smaller_benchmark(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the same benchmark with a few short answers, on made-up questions if the real ones are not at hand."""
    smaller = benchmarks.get(name)(**settings).rehearsed(cache_folder() / "rehearsal", PROMPTS, NEW_TOKENS)
    return dict(smaller.model_dump(mode="json"))


def _smaller_sampling(job: Job, folder: Path) -> OnPolicyConfig:
    """The same sampling with a few short answers, ranked by chance: a random model's answers are all alike to a real ranker.
    Human answers are the stand-in data's, and their prompts are sampled."""
    config, data = job.onpolicy, job.data
    source, split = config.prompts or data.source, config.prompts_split or data.split
    changes: dict[str, Any] = {
        "prompts": _replaced(source, split, folder),
        "prompts_split": None if source in DATASETS else config.prompts_split,
        "max_prompts": min(config.max_prompts or PAIRS + HELD_OUT, PAIRS + HELD_OUT),
        "samples": min(config.samples, SAMPLES),
        "max_new_tokens": min(config.max_new_tokens or job.answers.max_new_tokens, NEW_TOKENS),
        "ranker": JudgeConfig(name="rehearsed"),
    }
    if config.pairs == "human_over_own":
        changes |= {"prompts": None, "prompts_split": None, "human_answers": None, "human_answers_split": None}
    return config.model_copy(update=changes)


def _smaller_sft(sft: SftConfig, folder: Path) -> SftConfig:
    published = sft.source in DATASETS
    changes: dict[str, Any] = {
        "source": _replaced(sft.source, sft.split, folder),
        "split": None if published else sft.split,
        "revision": None if published else sft.revision,
        "max_conversations": min(sft.max_conversations or PAIRS, PAIRS),
        "batch_size": min(sft.batch_size, 2 if sft.packing else BATCH),  # rows, which hold several
        "epochs": min(sft.epochs, 2),
        "checkpoint_seconds": 0.0,
    }
    return sft.model_copy(update=changes)


# ---------------------------------------------------------------- tokenizers
def _special_ids(special: Sequence[str]) -> dict[str, int]:
    return {token: i for i, token in enumerate(special)}


def small_tokenizer(source: str, texts: Sequence[str] = ()) -> Any:
    """A byte-level tokenizer of at most 4096 tokens with the special tokens, their rules and the template of a
    published model. texts: what it learns from, beside texts of pobench's own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    published = MODELS[source]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=2,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in published.special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([*_OPENINGS, *_SENTENCES, *_ODDITIES, *texts], trainer)
    if published.adds_bos:
        ids = [(published.bos, _special_ids(published.special)[published.bos])]
        inner.post_processor = processors.TemplateProcessing(
            single=f"{published.bos} $A", pair=f"{published.bos} $A $B:1", special_tokens=ids
        )
    special_tokens = {"bos_token": published.bos, "eos_token": published.eos, "pad_token": published.pad}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        **{k: v for k, v in special_tokens.items() if v is not None},
        chat_template=published.template,
        clean_up_tokenization_spaces=False,
    )


# ---------------------------------------------------------------- rows
_OPENINGS = (
    "Explain to a child how {} works.",
    "Write a short letter to a friend about {}.",
    "List three reasons why people like {}, and one against it.",
    "Translate this into plain English: {} was never meant to be easy.",
    "Q: What is the history of {}?\nA:",
    "Compare {} with its closest rival. Use a table.",
)
_TOPICS = (
    "tide mills",
    "sourdough",
    "chess clocks",
    "binary search",
    "glaciers",
    "night trains",
    "origami",
    "bee hives",
)
_SENTENCES = (
    "It begins with something small that everybody has seen once.",
    "The first part matters most, and it is the part that people skip.",
    "There are two common mistakes: to hurry, and to stop too early.",
    "Older books describe it in another way, but they mean the same.",
    "In practice you measure, you wait, and you measure again.",
    "A good rule is to change one thing at a time.",
    "If it fails, look at the simplest cause before you look anywhere else.",
    "That is why it has hardly changed in a hundred years.",
)
_ODDITIES = (  # what real answers hold, and templates and tokenizers stumble over
    "Sure! Here it is:\n\n1. **Begin** with care.\n2. Go on.\n\n```python\nprint('done')\n```",
    "  Spaces in front, and a line end behind.\n",
    "Naïve façade, 数学, Ωμέγα, 🙂: all of it is text.",
)


def generated_rows(
    data: PublishedData, split: str, tokenizer: Any, max_length: int, max_prompt_length: int
) -> pd.DataFrame:
    """Rows in the columns of a published data set, among them what the real one holds: a tie, a pair close below the
    maximum length, one beyond it, odd white space and characters. Prompts differ between splits."""
    rng = random.Random(split)
    test = "test" in split
    unit = _words_of(tokenizer)
    rows = []
    for i in range((HELD_OUT if test else PAIRS) + 2):  # two of them cannot be used
        topic = f"{_TOPICS[i % len(_TOPICS)]} ({split} {i})"
        prompt = _OPENINGS[i % len(_OPENINGS)].format(topic)
        good = " ".join(rng.sample(_SENTENCES, rng.randint(2, 6)))
        bad = " ".join(rng.sample(_SENTENCES, rng.randint(1, 7))) + f" So much for {topic}."
        if i < len(_ODDITIES):
            good = _ODDITIES[i]
        elif i == 4:  # near the limit: prompt and answers together
            prompt = _long(unit, 0.85 * max_prompt_length) + prompt
            good = _long(unit, 0.85 * (max_length - max_prompt_length)) + good[:40]
        elif i == 5:  # beyond it
            bad = _long(unit, 1.5 * max_length) + bad
        elif i == 6:  # a tie: the best and the worst of five equal answers
            bad = good
        rows.append(_row(data.columns, prompt, good, bad, split, i))
    return pd.DataFrame(rows, columns=list(data.columns))


def _words_of(tokenizer: Any) -> tuple[str, float]:
    """A text to repeat, and how many tokens it has."""
    text = _SENTENCES[1] + " "
    return text, len(tokenizer(text * 20, add_special_tokens=False)["input_ids"]) / 20


def _long(unit: tuple[str, float], tokens: float) -> str:
    text, each = unit
    return text * int(tokens / each)


def _row(columns: Mapping[str, str], prompt: str, good: str, bad: str, split: str, number: int) -> dict[str, Any]:
    question = {"role": "user", "content": prompt}

    def answered(text: str) -> list[dict[str, str]]:
        return [question, {"role": "assistant", "content": text}]

    identity = hashlib.sha256(prompt.encode()).hexdigest()
    tie = good == bad
    more = [{"role": "user", "content": "And then?"}, {"role": "assistant", "content": bad}]
    values = {
        "prompt": prompt,
        "prompt_id": identity,
        "chosen": answered(good),
        "rejected": answered(bad),
        "messages": answered(good) if "chosen" in columns else answered(good) + more,
        "score_chosen": 8.0,
        "score_rejected": 8.0 if tie else 4.5,
        "all_generated_responses": [bad, good, good, bad, good],
        "all_rm_scores": [0.1, 0.1, 0.1, 0.1, 0.1] if tie else [0.08, 0.17, 0.15, 0.09, 0.12],
    }
    return {name: values[name] for name in columns}


def _verdicts(job: Job, folder: Path) -> list[dict[str, Any]]:
    """A score for every prompt that may be asked; each fifth verdict could not be read."""
    from pobench.data.prompts import prompt_rows

    if job.answers.source is None:
        return []
    source, split, subset = job.answers.source, job.answers.split, job.answers.subset
    prompts = prompt_rows(_replaced(source, split, folder), split, "answers.source", subset)
    ranks = [int(hashlib.sha256(row["id"].encode()).hexdigest()[:4], 16) / 0xFFFF for row in prompts]
    return [
        {"prompt": row["id"], "score": None if i % 5 == 4 else round(rank, 2)}
        for i, (row, rank) in enumerate(zip(prompts, ranks, strict=True))
    ]


# ---------------------------------------------------------------- sources
def _sources(job: Job, samples: bool) -> list[tuple[str, str, str, str | None]]:
    """(key, source, split, subset) of every source of rows, each once."""
    data, answers, drawn = job.data, job.answers, job.onpolicy
    sources = [("data.split", part.source, part.split or "train", part.subset) for part in data.parts]
    if data.held_out is None and data.held_out_split and any(part.source in DATASETS for part in data.sources):
        raise PobenchError(
            "data.held_out_split: a rehearsal has no splits of several published data sets; leave it out"
        )
    for part in data.held_out_parts:
        sources.append(("data.held_out_split", part.source, part.split or "train", part.subset))
    if answers.source is not None:
        sources.append(("answers.split", answers.source, answers.split or "train", answers.subset))
    if job.sft is not None:
        sources.append(("sft.split", job.sft.source, job.sft.split or "train", job.sft.subset))
    if samples and drawn.prompts is not None:
        sources.append(("onpolicy.prompts_split", drawn.prompts, drawn.prompts_split or data.split or "train", None))
    return list({source[1:]: source for source in reversed(sources)}.values())[::-1]


def _source_faults(key: str, name: str, split: str) -> list[str]:
    if name in DATASETS:
        splits = DATASETS[name].splits
        base = split.partition("[")[0]  # `train[:100]` slices a split
        return (
            []
            if base in splits
            else [f"{key}: {name} has no split {split!r}{nearest(base, splits)} It has {', '.join(splits)}"]
        )
    if name.startswith("builtin:") or not is_hub_name(name) or Path(name).expanduser().exists():
        return []
    return [
        f"data {name!r}: a rehearsal does not know its columns{nearest(name, DATASETS)} Known: {', '.join(DATASETS)}; "
        f"or give a local file with some of its rows: {_option(key)}"
    ]


def _option(key: str) -> str:
    """The command-line option of the source to which the key of a split belongs."""
    if key == "data.split":
        return "--data FILE"
    own = {"data.held_out_split": "data.held_out", "onpolicy.prompts_split": "onpolicy.prompts"}
    source = own.get(key) or key.replace("split", "source")
    return f"--set {source}=FILE"


def _file_of(name: str, split: str) -> str:
    return re.sub(r"[^\w.\-]", "_", f"{name}-{split}") + ".parquet"


def _replaced(source: str, split: str | None, folder: Path) -> str:
    return str(folder / _file_of(source, split or "train")) if source in DATASETS else source


def _own_texts(name: str, split: str, subset: str | None) -> list[str]:
    """Texts of a local source; [] of a published one, whose rows are made up."""
    return [] if name in DATASETS else _texts(fetch_rows(name, split=split, subset=subset))


def _texts(files: RowFiles, rows: int = 500) -> list[str]:
    """Texts of a data set's first rows, for a stand-in tokenizer to learn from."""
    values = [row for _, row in read_rows(files)[:rows]]
    return [t for row in values if isinstance(row, dict) for v in row.values() for t in _strings(v)]


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value.encode("utf-8", "replace").decode()]
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in _strings(v)]
    if isinstance(value, list):
        return [t for v in value for t in _strings(v)]
    return [] if value is None or (isinstance(value, float) and math.isnan(value)) else [str(value)]
