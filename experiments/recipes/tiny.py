"""Makes setting `tiny` from a seed: instructions, demonstrations, tokenizer, start model, preference pairs.

    python experiments/recipes/tiny.py            writes experiments/models/tiny and experiments/data/tiny

The judge (`pobench/judging/tiny_world.py`) defines the world; this file draws from it, in this order:

1. instructions, without repetition: for the demonstrations, for training pairs, for held-out pairs, for tuning and for
   evaluation. Some combinations of topic and demands (`NOVEL`) occur in tuning and evaluation alone.
   The demonstrations exhaust the short instructions: all with a count alone, 96 % of those with an order or a style. So
   the held-out instructions drawn behind the demonstrations (`HELDOUT`) mostly have two or three extras.
2. demonstrations, in three stages (`CURRICULUM`): drills that teach to copy; answers by a careful author, who meets
   every demand; answers by a forgetful author, who forgets each demand with a probability of its own (`FORGETS`) and
   meets the others. The model learns the demands, and sometimes misses one.
3. a word-level tokenizer, and a Llama trained from scratch on the demonstrations (`pobench.training.sft`).
4. on-policy pairs: samples of that model are judged, and the best is paired with the worst; ties are dropped.
5. the samples for the training pairs once more, for `tiny-lists` and `tiny-unpaired`: all different answers to a prompt with
   their scores, and each answer by itself with its score and a label: every demand met, or not.

`recipe.json` records every number, the digests of the files written, and the start model's pass rates.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pobench.data.chat import Chat
from pobench.files import write_text
from pobench.judging.ranking import Sample, best_against_worst
from pobench.judging.tiny_world import GROUP_OF, ORDERS, STYLES, TOPIC_OF, TOPICS, TinyWorldJudge, write
from pobench.model.generate import Decoding, generate
from pobench.model.word_level import small_llama, word_tokenizer
from pobench.progress import progress
from pobench.results.stats import proportion
from pobench.training.sft import sft

SEED = 20240523
HERE = Path(__file__).resolve().parents[1]
MODEL, DATA = HERE / "models" / "tiny", HERE / "data" / "tiny"

# ---------------------------------------------------------------- instructions

EXTRAS = ("group", "order", "edge", "style")  # demands besides topic and count; a kind names those of an instruction
HOW_MANY_EXTRAS = (0.1, 0.3, 0.4, 0.2)  # probability of 0, 1, 2, 3
LONGEST = 6  # things in a demonstration
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
OPENINGS = ("list", "name", "give me", "please list", "please name")
# No two demands differ only in word order: a model this small learns words long before it learns syntax.
WORDING = {
    "without": ("no {}", "without any {}"),
    "only": ("only {}s", "just {}s"),
    "alphabetical": ("alphabetically", "in alphabetical order"),
    "reversed": ("backwards", "in reverse order"),
    "shortest": ("shortest first", "by length"),
    "first": ("starting with {}", "opening with {}"),
    "last": ("ending with {}", "closing with {}"),
    "commas": ("separated by commas", "with commas"),
    "and": ("joined by and", "with and"),
    "sentences": ("in sentences", "one sentence each"),
}


def kinds() -> list[tuple[str, ...]]:
    """Every kind: the subsets of EXTRAS with at most three members, small ones first."""
    return [kind for size in range(4) for kind in itertools.combinations(EXTRAS, size)]


# (topic, kind) that no demonstration and no training pair has: every fourth of those with two or three extras.
NOVEL = {
    (topic, kind)
    for i, topic in enumerate(TOPICS)
    for j, kind in enumerate(k for k in kinds() if len(k) > 1)
    if (i + 3 * j) % 4 == 0
}


def draw_instruction(rng: random.Random, novel: bool | None = False) -> dict[str, Any]:
    """A row without id: topic, kind, prompt, check. novel: whether from NOVEL; None: either."""
    while True:
        topic = rng.choice(list(TOPICS))
        size = rng.choices(range(4), HOW_MANY_EXTRAS)[0]
        kind = rng.choice([k for k in kinds() if len(k) == size])
        if novel is not None and ((topic, kind) in NOVEL) != novel:
            continue
        check: dict[str, Any] = {"topic": topic}
        bound = rng.choices(("exactly", "least", "most", "some"), (5, 2, 2, 2))[0]
        n = rng.randint(2, 5) if bound == "exactly" else rng.randint(2, 4) if bound == "least" else rng.randint(3, 5)
        check["least"] = {"exactly": n, "least": n, "most": 1, "some": 2}[bound]
        check["most"] = {"exactly": n, "least": None, "most": n, "some": None}[bound]
        if "group" in kind:
            check[rng.choices(("without", "only"), (2, 1))[0]] = rng.choice(list(TOPICS[topic]))
        if "order" in kind:
            check["order"] = rng.choice(list(ORDERS))
        if "style" in kind:
            check["style"] = rng.choice(STYLES)
        things = draw_things(rng, check)
        if things is None:
            continue
        if "edge" in kind:  # taken from an answer, so that the demands can be met together
            end = rng.choice(("first", "last"))
            check[end] = things[0 if end == "first" else -1]
        return {
            "topic": topic,
            "kind": "+".join(kind) or "count",
            "prompt": instruction(rng, check, bound, n),
            "check": check,
        }


def instruction(rng: random.Random, check: Mapping[str, Any], bound: str, n: int) -> str:
    """The demands in words, the extras in any order."""
    amount = {
        "exactly": (NUMBERS[n], f"exactly {NUMBERS[n]}"),
        "least": (f"at least {NUMBERS[n]}", f"{NUMBERS[n]} or more"),
        "most": (f"at most {NUMBERS[n]}", f"up to {NUMBERS[n]}"),
        "some": ("some", "a few"),
    }[bound]
    parts = []
    for key in ("without", "only", "first", "last"):
        if key in check:
            parts.append(rng.choice(WORDING[key]).format(check[key]))
    for key in ("order", "style"):
        if key in check:
            parts.append(rng.choice(WORDING[check[key]]))
    rng.shuffle(parts)
    return ", ".join([f"{rng.choice(OPENINGS)} {rng.choice(amount)} {check['topic']}", *parts])


# ---------------------------------------------------------------- demonstrations

# The probability that the author forgets a demand, where the instruction has it.
FORGETS = {"count": 0.10, "group": 0.15, "order": 0.15, "edge": 0.12, "style": 0.10}
REPEATS = 0.04  # names a thing twice
ERRS = 0.03  # puts a thing into a wrong group, per answer in sentences
# Within a group, the first thing is named most often, the last least often.
POPULARITY = {t: 4 / 2**i for groups in TOPICS.values() for things in groups.values() for i, t in enumerate(things)}
STYLE_SHARES = (5, 2, 3)  # weights of STYLES, where the instruction names none


def draw_things(rng: random.Random, check: Mapping[str, Any], miscount: bool = False) -> list[str] | None:
    """Distinct things that meet the check, drawn by POPULARITY; None where there are too few.

    miscount: miss the bounds by one or two; where there are two of them, more often the upper one.
    """
    pool = [thing for thing, topic in TOPIC_OF.items() if topic == check["topic"]]
    if "without" in check:
        pool = [thing for thing in pool if GROUP_OF[thing] != check["without"]]
    if "only" in check:
        pool = [thing for thing in pool if GROUP_OF[thing] == check["only"]]
    first, last = check.get("first"), check.get("last")
    pool = [thing for thing in pool if thing not in (first, last)]
    key, falls = ORDERS.get(check.get("order", ""), (None, False))
    if key is not None:
        sign = -1 if falls else 1

        def before(a: str | None, b: str | None) -> bool:
            return a is None or b is None or (key(a) > key(b)) - (key(a) < key(b)) != sign

        pool = [thing for thing in pool if before(first, thing) and before(thing, last)]
    ends = (first is not None) + (last is not None)
    most = min(check["most"] or max(check["least"] + 3, 5), LONGEST, len(pool) + ends)
    if most < max(check["least"], ends):
        return None
    n = rng.randint(max(check["least"], ends, 1), most)
    if miscount:
        if check["most"] is None:
            n = max(1, check["least"] - rng.choice((1, 1, 2)))
        elif check["least"] == 1:
            n = check["most"] + rng.choice((1, 1, 2))
        else:
            n = max(1, n + rng.choice((-1, 1, 1, 2)))
        n = max(min(n, len(pool) + ends), ends)
    middle: list[str] = []
    while len(middle) < n - ends:
        middle += rng.choices(pool, [POPULARITY[thing] for thing in pool])
        pool.remove(middle[-1])
    if key is not None:
        middle.sort(key=key, reverse=falls)
    return [*([first] if first else []), *middle, *([last] if last else [])]


def demonstrate(rng: random.Random, check: Mapping[str, Any], faults: float = 1.0) -> str:
    """An answer by the forgetful author. faults: multiplies the probability of every fault; 0 is the careful author."""
    forgotten = {name for name, p in FORGETS.items() if rng.random() < p * faults}
    keys = {"group": ("without", "only"), "edge": ("first", "last")}
    dropped = {k for name in forgotten for k in keys.get(name, (name,))}
    kept = {k: v for k, v in check.items() if k not in dropped}
    things = draw_things(rng, kept, miscount="count" in forgotten) or draw_things(rng, check)
    assert things is not None
    style = kept.get("style") or rng.choices(STYLES, STYLE_SHARES)[0]
    if rng.random() < REPEATS * faults and len(things) > 1:
        i = rng.randrange(1, len(things))
        things[i] = things[rng.randrange(i)]
    claims = dict(GROUP_OF)
    if rng.random() < ERRS * faults:
        claims[rng.choice(things)] = rng.choice(list(TOPICS[check["topic"]]))
    return write(things, style, claims)


def drill(rng: random.Random) -> tuple[str, str]:
    """(instruction, answer) of an exercise with one right answer: repeat these things.

    From drills the model learns to copy within a minute; from open lists, whose words are random, it would take hours.
    """
    things = rng.sample(list(TOPIC_OF), rng.randint(3, 6))
    style = rng.choice(STYLES)
    return f"repeat {', '.join(things)}, {rng.choice(WORDING[style])}", write(things, style)


# ---------------------------------------------------------------- the words
CONTEXT = 256  # tokens


def words() -> list[str]:
    """Every text of instructions and answers, with the words of all their forms."""
    forms = [form.replace("{}", "") for forms in WORDING.values() for form in forms]
    fixed = "repeat exactly at least or more at most up to some a few the is a . , and"
    lexicon = [
        word
        for topic, groups in TOPICS.items()
        for group, things in groups.items()
        for word in (topic, group, f"{group}s", *things)
    ]
    return [*OPENINGS, *NUMBERS, *forms, fixed, *lexicon]


# ---------------------------------------------------------------- the recipe

PROMPTS = {"eval": 300, "tune": 120, "train": 700, "heldout": 210}  # drawn before the demonstrations, which avoid them
HELDOUT = 1_395  # held-out instructions in all, which give 1,200 pairs; those not in PROMPTS are drawn last
CURRICULUM = {"drills": 4_000, "careful": 90_000, "forgetful": 24_000}  # demonstrations, in this order
TRAINING = {"lr": 2e-3, "batch_size": 16, "warmup_ratio": 0.05, "adam_beta2": 0.98, "seed": SEED, "shuffle": False}
LIST = 3  # different answers in a list, at least
DECODING = {"samples": 5, "temperature": 0.8, "top_p": 1.0, "max_new_tokens": 64, "seed": SEED}


def prompts(rng: random.Random) -> dict[str, list[dict[str, Any]]]:
    """Split → rows, as many as PROMPTS says; no instruction occurs twice."""
    taken: set[str] = set()
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in PROMPTS}
    for split, rows in splits.items():
        add_rows(rng, split, rows, PROMPTS[split], taken)
    return splits


def add_rows(rng: random.Random, split: str, rows: list[dict[str, Any]], count: int, taken: set[str]) -> None:
    """Append rows to `rows` until there are `count`. No instruction is one of `taken`, to which the new ones are added."""
    while len(rows) < count:
        row = draw_instruction(rng, None if split in ("eval", "tune") else False)
        if row["prompt"] not in taken:
            taken.add(row["prompt"])
            rows.append({"id": f"{split}-{len(rows):03d}", **row})


def draw_world() -> tuple[dict[str, list[dict[str, Any]]], list[dict[str, str]]]:
    """All instructions, by split, and the demonstrations; no instruction of a split is demonstrated."""
    splits = prompts(random.Random(SEED))
    taken = {row["prompt"] for rows in splits.values() for row in rows}
    shown = list(demonstrations(random.Random(SEED + 1), taken))
    add_rows(random.Random(SEED + 2), "heldout", splits["heldout"], HELDOUT, taken | {row["prompt"] for row in shown})
    return splits, shown


def demonstrations(rng: random.Random, held_back: set[str]) -> Iterator[dict[str, str]]:
    """Rows for `pobench.training.sft`, in the order of CURRICULUM; none has an instruction of `held_back`."""
    for stage, count in CURRICULUM.items():
        for _ in range(count):
            if stage == "drills":
                prompt, response = drill(rng)
            else:
                row = draw_instruction(rng)
                while row["prompt"] in held_back:
                    row = draw_instruction(rng)
                prompt = row["prompt"]
                response = demonstrate(rng, row["check"], faults=float(stage == "forgetful"))
            yield {"prompt": prompt, "response": response}


def answers(model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]], **decoding: Any) -> list[Sample]:
    """Samples of the model for each row, by row and sample."""
    chat = Chat(tokenizer)
    prompts = [chat.prompt_ids(row["prompt"]) for row in rows]
    generated = generate(model, chat, prompts, Decoding(**decoding), batch_size=250)
    return [Sample(rows[a.prompt]["id"], a.sample, a.text, a.tokens, a.finished) for a in generated]


def distinct(
    rows: Sequence[Mapping[str, Any]], samples: Sequence[Sample]
) -> Iterator[tuple[Mapping[str, Any], list[str]]]:
    """Each row with the different answers among its samples, in the order of sampling, without unfinished and empty ones."""
    by_id: dict[str, list[str]] = {row["id"]: [] for row in rows}
    for sample in sorted(samples, key=lambda s: s.sample):
        if sample.finished and sample.text.strip():
            by_id[sample.id].append(sample.text.strip())
    for row in rows:
        yield row, list(dict.fromkeys(by_id[row["id"]]))


def rated_lists(
    rows: Sequence[Mapping[str, Any]], samples: Sequence[Sample]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Lists of at least `LIST` different answers with the judge's scores, and counts. Equal scores tie; a list of nothing else
    is left out."""
    judge, lists, counts = (
        TinyWorldJudge(),
        [],
        {"prompts": len(rows), "short": 0, "tied": 0, "answers": Counter[int]()},
    )
    for row, texts in distinct(rows, samples):
        rated = [{"text": text, "score": judge.score(row, text)} for text in texts]
        if len(rated) < LIST:
            counts["short"] += 1
        elif len({answer["score"] for answer in rated}) == 1:
            counts["tied"] += 1
        else:
            counts["answers"][len(rated)] += 1
            lists.append({"id": row["id"], "prompt": row["prompt"], "answers": rated})
    return lists, {**counts, "answers": dict(sorted(counts["answers"].items())), "lists": len(lists)}


def labelled(
    rows: Sequence[Mapping[str, Any]], samples: Sequence[Sample]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Single answers with the judge's score and a label, whether every demand is met, and counts."""
    judge = TinyWorldJudge()
    rated = [(row["prompt"], text, judge.score(row, text)) for row, texts in distinct(rows, samples) for text in texts]
    answers = [
        {"prompt": prompt, "completion": text, "label": score == 1, "score": score} for prompt, text, score in rated
    ]
    desirable = sum(answer["label"] for answer in answers)
    counts = {
        "prompts": len(rows),
        "desirable": desirable,
        "undesirable": len(answers) - desirable,
        "answers": len(answers),
    }
    return answers, counts


def pass_rates(rows: Sequence[Mapping[str, Any]], samples: Sequence[Sample]) -> dict[str, Any]:
    """Share of answers that meet every demand: over all, over novel combinations, and by kind; each with its n."""
    judge, by_id = TinyWorldJudge(graded=False), {row["id"]: row for row in rows}
    scored = [(by_id[s.id], judge.score(by_id[s.id], s.text, s.finished)) for s in samples]

    def share(passes: list[float]) -> dict[str, Any]:
        return {k: round(v, 3) for k, v in vars(proportion(sum(passes), len(passes))).items()}

    row_kinds = sorted({row["kind"] for row in rows})
    return {
        "all": share([p for _, p in scored]),
        "novel": share([p for row, p in scored if (row["topic"], tuple(row["kind"].split("+"))) in NOVEL]),
        "by_kind": {kind: share([p for row, p in scored if row["kind"] == kind]) for kind in row_kinds},
    }


def main() -> None:
    import torch
    import transformers

    parser = argparse.ArgumentParser(description="Makes setting `tiny`: prompts, start model, preference pairs.")
    parser.add_argument("--keep-model", action="store_true", help="keep the stored start model and make only the data")
    keep = parser.parse_args().keep_model
    torch.set_num_threads(1)  # with more, sums are added in another order, and the weights differ in their last bits
    splits, shown = draw_world()

    if keep:
        tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
        model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        training = json.loads((DATA / "recipe.json").read_text(encoding="utf-8"))["training"]
    else:
        tokenizer = word_tokenizer(words(), CONTEXT)
        model = small_llama(tokenizer, SEED)
        with progress("start model", -(-len(shown) // TRAINING["batch_size"]), "steps") as advance:
            trained = sft(model, tokenizer, shown, **TRAINING, progress=lambda step, steps: advance(done=step))
        training = {
            "demonstrations": CURRICULUM,
            "forgets": {**FORGETS, "repeats": REPEATS, "errs": ERRS},
            "settings": TRAINING,
            "tokens": trained.tokens,
            "loss_at_end": round(sum(trained.losses[-100:]) / 100, 4),  # nats per response token
        }
        model.save_pretrained(MODEL)
        tokenizer.save_pretrained(MODEL)
        for file in MODEL.iterdir():
            file.chmod(0o644)  # safetensors lets only the owner read its files, and a wheel would keep that

    judge, counts = TinyWorldJudge(), {}
    for split, name in (("train", "pairs"), ("heldout", "heldout_pairs")):
        samples = answers(model, tokenizer, splits[split], **DECODING)
        pairs, counts[name] = best_against_worst(splits[split], samples, judge)
        write_lines(DATA / f"{name}.jsonl", [pair.plain() for pair in pairs])
        if split == "train":
            lists, counts["lists"] = rated_lists(splits[split], samples)
            singles, counts["unpaired"] = labelled(splits[split], samples)
            write_lines(DATA / "lists.jsonl", lists)
            write_lines(DATA / "unpaired.jsonl", singles)
    for split, rows in splits.items():
        write_lines(DATA / f"{split}_prompts.jsonl", rows)
    start = pass_rates(splits["eval"], answers(model, tokenizer, splits["eval"], **DECODING))
    recipe = {
        "made_by": "python experiments/recipes/tiny.py",
        "seed": SEED,
        "prompts": {split: len(rows) for split, rows in splits.items()},
        "novel": sorted(f"{topic}: {'+'.join(kind)}" for topic, kind in NOVEL),
        "model": {"parameters": model.num_parameters(), "vocabulary": len(tokenizer)},
        "training": training,
        "decoding": DECODING,
        "judge": judge.name,
        **{name: counts.pop(name) for name in ("lists", "unpaired")},
        "pairs": counts,
        "start_model_passes": start,
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "sha256": {
            f"{folder.parent.name}/{folder.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
            for folder in (MODEL, DATA)
            for path in sorted(folder.iterdir())
            if path.name != "recipe.json"
        },
    }
    write_text(DATA / "recipe.json", json.dumps(recipe, indent=2) + "\n")
    print(json.dumps({"pairs": {k: v["pairs"] for k, v in counts.items()}, "passes": start}, indent=2))


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main()
