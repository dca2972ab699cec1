"""Makes setting `tiny-long` from a seed: prompts, demonstrations, start model, preference pairs by two authors each.

    python experiments/recipes/tiny_long.py            writes experiments/models/tiny-long and experiments/data/tiny-long
    python experiments/recipes/tiny_long.py --longer 1 --richer 0 --data FOLDER    other pairs, for the stored start model

The judge (`pobench/judging/tiny_long_world.py`) defines the world; this file draws from it:

1. prompts, without repetition: for evaluation, for tuning, for training pairs and for held-out pairs.
2. demonstrations by authors. An author has a skill, a verbosity and a richness of wording (`Author`). The first
   demonstrations are by careful authors, the last by fallible ones; none has a prompt of 1.
3. a word-level tokenizer, and a Llama trained from scratch on the demonstrations: it has learned the truths and the myths.
4. pairs: two authors of different skill answer a prompt, and the better answer wins by its quality with some noise
   (`NOISE`). Answers of equal quality are written again. Two dials say what goes with skill beside truth:

       --longer V    verbosity is V × skill + (1 − V) × chance: at 1 the skilled write more, at 0 as much as others
       --richer F    richness is F × skill + (1 − F) × chance: at 1 the skilled use rare words, which a model finds less likely

`recipe.json` records every number, the digests of the files written, and figures of the start model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from pobench.data.chat import Chat
from pobench.files import write_text
from pobench.judging.tiny_long_world import BELIEFS, END, SUBJECTS, TAIL, VALUES, WORDING, find, quality
from pobench.model.generate import Decoding, generate
from pobench.model.layouts import get_layout
from pobench.model.logps import ResponseLogps
from pobench.model.word_level import small_llama, word_tokenizer
from pobench.progress import progress
from pobench.training.sft import sft
from pobench.types import Group

SEED = 20240523
HERE = Path(__file__).resolve().parents[1]
MODEL, DATA = HERE / "models" / "tiny-long", HERE / "data" / "tiny-long"

# ---------------------------------------------------------------- prompts and authors
OPENINGS = ("tell me about", "what of", "describe", "say how are")
KINDS = {2: "two", 3: "three", 4: "four"}  # animals of a prompt → its kind


def draw_prompt(rng: random.Random) -> dict[str, Any]:
    """A row without id: kind, prompt, check."""
    asked = rng.sample(list(BELIEFS), rng.choice(list(KINDS)))
    return {
        "kind": KINDS[len(asked)],
        "prompt": f"{rng.choice(OPENINGS)} {', '.join(asked)}",
        "check": {"asked": asked},
    }


OMITS, ERRS = 0.5, 0.8  # probability that an author of no skill leaves an animal out, or states what is false
MYTHS = 0.9  # share of errors that are the myth
SHUFFLES = 0.3  # probability that an answer takes the animals in another order
# Probability that a word of a remark is chosen as a fact's is, and not the most common one. The smaller it is, the likelier
# remarks are by the token, and with them long answers.
FREE = 0.4

BEGINNING = ("adverb", "determiner", "verb", "degree")  # the slots of a fact, and of a remark before its TAIL


@lru_cache(maxsize=64)  # an author has few slots of different sizes
def _weights(richness: float, count: int) -> tuple[float, ...]:
    """The weights of the first 1, 2, … count wordings together."""
    return tuple(accumulate(1 / k ** (3 - 3 * richness) for k in range(1, count + 1)))


def _sentence(*words: str) -> str:
    return " ".join(word for word in words if word) + "."


class Author(NamedTuple):
    """skill, in [0, 1]: 1 makes no mistakes. remarks: mean number before and behind each fact. richness, in [0, 1]: of two
    wordings 0 nearly always takes the more common one, 1 takes all alike."""

    skill: float
    remarks: float
    richness: float

    def word(self, rng: random.Random, slot: str) -> str:
        """A wording of the slot: the k-th with a weight of 1 / k^(3 − 3 × richness)."""
        return rng.choices(WORDING[slot], cum_weights=_weights(self.richness, len(WORDING[slot])))[0]

    def fact(self, rng: random.Random, animal: str) -> str:
        adverb, determiner, verb, degree = (self.word(rng, slot) for slot in BEGINNING)
        return _sentence(adverb, determiner, animal, verb, degree, self.value(rng, animal))

    def remarks_here(self, rng: random.Random) -> list[str]:
        """Remarks about subjects drawn with replacement, their number geometric."""
        written = []
        while rng.random() < self.remarks / (1 + self.remarks):
            free = (self.word(rng, s) if rng.random() < FREE else WORDING[s][0] for s in (*BEGINNING, *TAIL))
            adverb, determiner, verb, degree, *tail = free
            written.append(_sentence(adverb, determiner, rng.choice(SUBJECTS), verb, degree, *tail, *END))
        return written

    def value(self, rng: random.Random, animal: str) -> str:
        """What the author states of the animal."""
        truth, myth = BELIEFS[animal]
        if rng.random() >= ERRS * (1 - self.skill):
            return truth
        return myth if rng.random() < MYTHS else rng.choice([value for value in VALUES if value != truth])

    def write(self, rng: random.Random, asked: Sequence[str]) -> str:
        """The author's answer."""
        order = rng.sample(asked, len(asked)) if rng.random() < SHUFFLES else list(asked)
        kept = [animal for animal in order if rng.random() >= OMITS * (1 - self.skill)] or order[:1]
        sentences = self.remarks_here(rng)
        for animal in kept:
            sentences += [self.fact(rng, animal), *self.remarks_here(rng)]
        return " ".join(sentences)


# ---------------------------------------------------------------- the recipe
PROMPTS = {"eval": 600, "tune": 200}
PAIRS = {"train": 3_000, "heldout": 600}
CURRICULUM = {"careful": 8_000, "fallible": 8_000}  # demonstrations, in this order
REMARKS = {"demonstrations": 0.7, "pairs": 1.2}  # of an author of verbosity 1, before and behind each fact
NOISE = 0.25  # standard deviation of what decides a pair beside quality
LONGER, RICHER = 0.2, 0.4  # the dials of the shipped pairs
TRAINING = {"lr": 2e-3, "batch_size": 16, "warmup_ratio": 0.05, "adam_beta2": 0.98, "seed": SEED, "shuffle": False}
DECODING = {"samples": 1, "temperature": 0.8, "top_p": 1.0, "max_new_tokens": 192, "seed": SEED}
CONTEXT = 320  # tokens


def fresh(rng: random.Random, taken: set[str]) -> dict[str, Any]:
    """A prompt that is not in `taken`, which learns it."""
    while True:
        row = draw_prompt(rng)
        if row["prompt"] not in taken:
            taken.add(row["prompt"])
            return row


def prompts(rng: random.Random, taken: set[str]) -> dict[str, list[dict[str, Any]]]:
    """Split → rows of PROMPTS."""
    return {
        split: [{"id": f"{split}-{i:03d}", **fresh(rng, taken)} for i in range(count)]
        for split, count in PROMPTS.items()
    }


def draw_author(rng: random.Random, of: str, longer: float = 0, richer: float = 0) -> Author:
    """An author of any skill. of: a key of REMARKS. longer, richer: the dials, how far verbosity and richness are skill."""
    skill, verbosity, richness = (rng.random() for _ in range(3))
    verbosity = longer * skill + (1 - longer) * verbosity
    richness = richer * skill + (1 - richer) * richness
    return Author(skill, REMARKS[of] * verbosity, richness)


def two_answers(
    rng: random.Random, asked: Sequence[str], longer: float, richer: float
) -> tuple[tuple[float, str], tuple[float, str]]:
    """The winner and the loser of two authors, each with its quality; they write until their qualities differ."""
    while True:
        texts = [draw_author(rng, "pairs", longer, richer).write(rng, asked) for _ in range(2)]
        first, second = ((quality(asked, text), text) for text in texts)
        if first[0] != second[0]:
            chosen, rejected = sorted((first, second), key=lambda a: a[0] + rng.gauss(0, NOISE), reverse=True)
            return chosen, rejected


def draw_pairs(
    rng: random.Random, taken: set[str], longer: float = LONGER, richer: float = RICHER
) -> dict[str, list[dict[str, Any]]]:
    """Split → the pairs of PAIRS, with the answers' qualities in `meta`. longer, richer: the dials; they change no prompt."""
    writing = random.Random(rng.getrandbits(64))  # apart from the prompts
    splits: dict[str, list[dict[str, Any]]] = {}
    for split, count in PAIRS.items():
        pairs = splits[split] = []
        for _ in range(count):
            row = fresh(rng, taken)
            chosen, rejected = two_answers(writing, row["check"]["asked"], longer, richer)
            pairs.append(
                {
                    "id": f"{split}-{len(pairs):04d}",
                    "prompt": [{"role": "user", "content": row["prompt"]}],
                    "chosen": chosen[1],
                    "rejected": rejected[1],
                    "meta": {
                        "kind": row["kind"],
                        "chosen_quality": round(chosen[0], 4),
                        "rejected_quality": round(rejected[0], 4),
                    },
                }
            )
    return splits


def demonstrations(rng: random.Random, taken: set[str]) -> Iterator[dict[str, str]]:
    """Rows for `pobench.training.sft`, in the order of CURRICULUM; none has a prompt of `taken`."""
    for stage, count in CURRICULUM.items():
        for _ in range(count):
            row = draw_prompt(rng)
            while row["prompt"] in taken:
                row = draw_prompt(rng)
            author = draw_author(rng, "demonstrations")
            if stage == "careful":
                author = author._replace(skill=1)
            yield {"prompt": row["prompt"], "response": author.write(rng, row["check"]["asked"])}


def words() -> list[str]:
    """Every text of prompts and answers."""
    return [*OPENINGS, *BELIEFS, *VALUES, *SUBJECTS, *END, *(word for slot in WORDING.values() for word in slot), ". ,"]


# ---------------------------------------------------------------- figures of the start model
def token_pairs(chat: Chat, pairs: Sequence[Mapping[str, Any]]) -> list[Group]:
    """The pairs as token ids: the prompt, the chosen answer and the rejected one, each with its end-of-turn token."""
    answers = [(*ids, chat.end) for ids in chat.ids([pair[side] for pair in pairs for side in ("chosen", "rejected")])]
    prompts = [chat.prompt_ids(pair["prompt"]) for pair in pairs]
    return [Group(prompt, (answers[2 * i], answers[2 * i + 1])) for i, prompt in enumerate(prompts)]


def pair_figures(model: Any, chat: Chat, pairs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the model makes of the pairs: how many it ranks right, and whether it finds longer answers likelier.

    rho: Spearman's correlation of the winners' mean log-probability with their length. chosen_longer: share of winners that
    are longer than their loser.
    """
    import pandas as pd
    import torch

    groups = token_pairs(chat, pairs)
    policy, layout = ResponseLogps(model), get_layout("padded")
    with torch.no_grad():
        sums = torch.cat([policy(layout.collate(groups[i : i + 50], None)) for i in range(0, len(groups), 50)])
    lengths = torch.tensor([[len(response) for response in group.responses] for group in groups])
    means = sums.view(-1, 2) / lengths
    winners = pd.DataFrame({"mean": means[:, 0].tolist(), "length": lengths[:, 0].tolist()})
    return {
        "ranked_right_by_mean": round(float((means[:, 0] > means[:, 1]).float().mean()), 3),
        "rho": round(winners["mean"].rank().corr(winners["length"].rank()), 3),  # of ranks: Spearman's
        "chosen_tokens": round(float(lengths[:, 0].float().mean()), 1),
        "rejected_tokens": round(float(lengths[:, 1].float().mean()), 1),
        "chosen_longer": round(float((lengths[:, 0] > lengths[:, 1]).float().mean()), 3),
    }


def answer_figures(model: Any, chat: Chat, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of the model's answers to the prompts: tokens, quality, and counts of sentences an answer."""
    asked = [row["check"]["asked"] for row in rows]
    answers = generate(
        model, chat, [chat.prompt_ids(row["prompt"]) for row in rows], Decoding(**DECODING), batch_size=200
    )
    found = [find(asked[a.prompt], a.text) for a in answers]
    sums = {name: sum(values) for name, values in zip(found[0]._fields, zip(*found, strict=True), strict=True)}
    n = len(answers)
    return {
        "tokens": round(sum(a.tokens for a in answers) / n, 1),
        "quality": round(sum(quality(asked[a.prompt], a.text, a.finished) for a in answers) / n, 3),
        "finished": round(sum(a.finished for a in answers) / n, 3),
        **{name: round(total / n, 3) for name, total in sums.items()},
    }


# ---------------------------------------------------------------- the recipe, carried out
def make_model(taken: set[str]) -> tuple[Any, Any, dict[str, Any]]:
    """Train and store the start model; returns it with its tokenizer and what `recipe.json` says of its training."""
    tokenizer = word_tokenizer(words(), CONTEXT)
    model = small_llama(tokenizer, SEED)
    rows = list(demonstrations(random.Random(SEED + 2), taken))
    with progress("start model", -(-len(rows) // TRAINING["batch_size"]), "steps") as advance:
        trained = sft(model, tokenizer, rows, **TRAINING, progress=lambda step, steps: advance(done=step))
    model.save_pretrained(MODEL)
    tokenizer.save_pretrained(MODEL)
    for file in MODEL.iterdir():
        file.chmod(0o644)  # safetensors lets only the owner read its files, and a wheel would keep that
    loss = round(sum(trained.losses[-100:]) / 100, 4)  # nats per response token
    training = {"demonstrations": CURRICULUM, "settings": TRAINING, "tokens": trained.tokens, "loss_at_end": loss}
    return model, tokenizer, training


def main() -> None:
    import torch
    import transformers

    parser = argparse.ArgumentParser(description="Makes setting `tiny-long`: prompts, start model, preference pairs.")
    parser.add_argument("--keep-model", action="store_true", help="keep the stored start model and make only the data")
    parser.add_argument("--longer", type=float, default=LONGER, help="how far the skilled are the verbose: 0 to 1")
    parser.add_argument("--richer", type=float, default=RICHER, help="how far the skilled use rare words: 0 to 1")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of prompts and pairs")
    asked = parser.parse_args()
    if not (0 <= asked.longer <= 1 and 0 <= asked.richer <= 1):
        parser.error(f"--longer and --richer lie in [0, 1], got {asked.longer} and {asked.richer}")
    torch.set_num_threads(1)  # with more, sums are added in another order, and the weights differ in their last bits
    taken: set[str] = set()
    splits = prompts(random.Random(SEED), taken)
    pairs = draw_pairs(random.Random(SEED + 1), taken, asked.longer, asked.richer)
    if asked.keep_model or asked.data != DATA:
        tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
        model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        training = json.loads((DATA / "recipe.json").read_text(encoding="utf-8"))["training"]
    else:
        model, tokenizer, training = make_model(taken)

    for split, rows in splits.items():
        write_lines(asked.data / f"{split}_prompts.jsonl", rows)
    write_lines(asked.data / "pairs.jsonl", pairs["train"])
    write_lines(asked.data / "heldout_pairs.jsonl", pairs["heldout"])
    chat = Chat(tokenizer)
    recipe = {
        "made_by": "python experiments/recipes/tiny_long.py",
        "seed": SEED,
        "prompts": PROMPTS,
        "pairs": PAIRS,
        "dials": {"longer": asked.longer, "richer": asked.richer},
        "authors": {
            "omits": OMITS,
            "errs": ERRS,
            "myths": MYTHS,
            "shuffles": SHUFFLES,
            "free": FREE,
            "remarks": REMARKS,
        },
        "noise": NOISE,
        "model": {"parameters": model.num_parameters(), "vocabulary": len(tokenizer)},
        "training": training,
        "decoding": DECODING,
        "start_model": {
            "heldout_pairs": pair_figures(model.eval(), chat, pairs["heldout"]),
            "answers": answer_figures(model, chat, splits["eval"]),
        },
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "sha256": {
            f"{folder.parent.name}/{folder.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
            for folder in (MODEL, asked.data)
            for path in sorted(folder.iterdir())
            if path.name != "recipe.json"
        },
    }
    write_text(asked.data / "recipe.json", json.dumps(recipe, indent=2) + "\n")
    print(json.dumps(recipe["start_model"], indent=2))


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main()
