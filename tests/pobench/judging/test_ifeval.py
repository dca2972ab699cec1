"""The verifiable judge beside lm-eval's `ifeval`: every check that has a twin there, on all answers of the shipped pairs.

`python tests/pobench/judging/test_ifeval.py` writes the table into docs/judges.md and prints every difference. It needs
langdetect and immutabledict (`pip install 'lm-eval[ifeval]'`) and NLTK's sentence tokenizer (`nltk.download("punkt_tab")`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pobench.judging.verifiable import meets

ROOT = Path(__file__).parents[3]
DATA = ROOT / "experiments" / "data" / "smollm2"
PAGE = ROOT / "docs" / "judges.md"
Compared = dict[str, list[tuple[str, dict[str, Any], bool, bool]]]

# For each check its parameters: those of the shipped prompts, or examples where no prompt has the check.
WORDS = ("always", "good", "people", "today", "very", "they", "it", "and", "can")
PARAMETERS: dict[str, list[dict[str, Any]]] = {
    "at_most_words": [{"n": n} for n in (15, 20, 25, 30)],
    "at_least_words": [{"n": n} for n in (20, 25, 30)],
    "between_words": [{"low": 10, "high": 25}, {"low": 15, "high": 30}, {"low": 20, "high": 40}],
    "exact_sentences": [{"n": 1}, {"n": 2}],
    "bullet_points": [{"n": 2}, {"n": 3}],
    "one_bold": [{}],
    "json_keys": [{"keys": ["answer"]}],
    "no_commas": [{}],
    "lowercase": [{}],
    "uppercase": [{}],
    "quoted": [{}],
    "ends_with": [{"phrase": p} for p in ("world", "them", "day")],
    "contains_words": [{"all_of": [w]} for w in WORDS],
    "avoids_words": [{"none_of": [w]} for w in WORDS],
    "word_times": [{"word": w, "n": 1} for w in WORDS],
}


def twins() -> dict[str, Callable[..., list[tuple[str, dict[str, Any]]]]]:
    """check → from its parameters to the instructions of `ifeval` that say the same together."""
    less, least = "less than", "at least"

    def count(kind: str, name: str, low: int | None, high: int | None, **more: Any) -> list[tuple[str, dict[str, Any]]]:
        bounds = [(least, low), (less, None if high is None else high + 1)]
        return [(kind, {"relation": r, name: n, **more}) for r, n in bounds if n is not None]

    words = ("length_constraints:number_words", "num_words")
    sentences = ("length_constraints:number_sentences", "num_sentences")
    return {
        "at_most_words": lambda n: count(*words, None, n),
        "at_least_words": lambda n: count(*words, n, None),
        "between_words": lambda low, high: count(*words, low, high),
        "exact_sentences": lambda n: count(*sentences, n, n),
        "bullet_points": lambda n: [("detectable_format:number_bullet_lists", {"num_bullets": n})],
        "one_bold": lambda: [("detectable_format:number_highlighted_sections", {"num_highlights": 1})],
        "json_keys": lambda keys: [("detectable_format:json_format", {})],
        "no_commas": lambda: [("punctuation:no_comma", {})],
        "lowercase": lambda: [("change_case:english_lowercase", {})],
        "uppercase": lambda: [("change_case:english_capital", {})],
        "quoted": lambda: [("startend:quotation", {})],
        "ends_with": lambda phrase: [("startend:end_checker", {"end_phrase": phrase})],
        "contains_words": lambda all_of: [("keywords:existence", {"keywords": all_of})],
        "avoids_words": lambda none_of: [("keywords:forbidden_words", {"forbidden_words": none_of})],
        "word_times": lambda word, n: count("keywords:frequency", "frequency", n, n, keyword=word),
    }


def answers() -> list[str]:
    """All different answers of the shipped pairs."""
    lines = [line for name in ("pairs", "heldout_pairs") for line in (DATA / f"{name}.jsonl").open(encoding="utf-8")]
    return sorted({json.loads(line)[side] for line in lines for side in ("chosen", "rejected")})


def compared() -> Compared:
    """check → (answer, parameters, whether it meets ours, whether it meets the twin's)."""
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    def twin_meets(text: str, instructions: list[tuple[str, dict[str, Any]]]) -> bool:
        for kind, arguments in instructions:
            instruction = INSTRUCTION_DICT[kind](kind)
            instruction.build_description(**arguments)
            if not instruction.check_following(text):
                return False
        return True

    return {
        check: [
            (text, p, meets(text, {"kind": check, **p}), twin_meets(text, twin(**p)))
            for p in PARAMETERS[check]
            for text in answers()
        ]
        for check, twin in twins().items()
    }


# Why the two differ, for the table.
WHY = {
    "at_most_words": "`ifeval` counts `It's` and `well-known` as two words each",
    "at_least_words": "as above",
    "between_words": "as above",
    "exact_sentences": "ours wants a closing mark, three words a sentence and no list; a line break ends a sentence",
    "bullet_points": "ours knows `•` and other marks, and wants different items and no numbers; `ifeval` knows `*` and `-`",
    "one_bold": "ours wants exactly one `**bold**`; `ifeval` also takes `*italics*`, and more than one",
    "json_keys": "ours wants an object with the keys; `ifeval` takes any JSON, also a quoted sentence",
    "no_commas": "ours also knows `，`, `、` and their kind",
    "lowercase": "`ifeval` also asks langdetect whether it is English, which short texts fail",
    "uppercase": "as above",
    "quoted": "ours also takes `“…”`, and wants no quotation mark inside",
    "ends_with": "ours takes a mark behind the phrase, and wants whole words and five before them",
    "contains_words": "`ifeval` finds `it` in `with`; ours wants a whole word",
    "avoids_words": "ours also sees a word in `_emphasis_`",
    "word_times": "`ifeval` counts `very` in `every`; ours counts whole words",
}
HEAD = "| check | verdicts | both pass | only ours | only `ifeval` | why they differ |"


def table(found: Compared) -> str:
    """The table of docs/judges.md."""
    rows = [HEAD, "|---|---|---|---|---|---|"]
    for check, verdicts in found.items():
        counts = Counter((ours, twin) for *_, ours, twin in verdicts)
        shown = (counts[True, True], counts[True, False], counts[False, True])
        rows.append(f"| `{check}` | {len(verdicts):,} | {' | '.join(f'{n:,}' for n in shown)} | {WHY[check]} |")
    return "\n".join(rows) + "\n"


@pytest.mark.slow
def test_the_docs_say_where_our_checks_differ_from_ifeval():
    pytest.importorskip("langdetect")
    pytest.importorskip("immutabledict")
    try:
        pytest.importorskip("nltk").data.find("tokenizers/punkt_tab")
    except LookupError:
        pytest.skip("NLTK has no punkt_tab")
    found = compared()
    assert set(found) == set(WHY) == set(PARAMETERS)
    assert table(found) in PAGE.read_text(encoding="utf-8")


def main() -> None:
    found = compared()
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(HEAD)
    PAGE.write_text(before + table(found) + "\n" + rest.partition("\n\n")[2], encoding="utf-8")
    for check, verdicts in found.items():
        for text, parameters, ours, twin in verdicts:
            if ours != twin:
                print(check, parameters, "only ours:" if ours else "only ifeval:", repr(text))


if __name__ == "__main__":
    main()
