"""Names, aliases, what a signature declares, and what a typo is told."""

from __future__ import annotations

import pytest

import pobench.registry as registry
from pobench.errors import PobenchError, UnknownNameError
from pobench.registry import (
    INPUTS_OF,
    SUPPLIED,
    Registry,
    get_loss,
    list_losses,
    load_plugin,
    register_figure,
    register_loss,
)
from pobench.types import AnswerInputs, Inputs, ListInputs

PAPER = ["simpo", "dpo", "ipo", "cpo", "kto", "orpo", "rdpo", "rrhf", "slic_hf", "simpo_no_ln", "dpo_ln", "dpo_gamma"]


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The registry of losses, empty for one test, so that nothing of it stays behind."""
    for place, value in {"_items": {}, "_aliases": {}, "_loaded": True}.items():
        monkeypatch.setattr(registry.losses, place, value)
    return registry.losses


def test_the_thirteen_losses_are_found() -> None:
    assert set(list_losses()) >= {*PAPER, "simpo_sft"}
    assert {n for n in list_losses() if get_loss(n).in_paper} == set(PAPER)
    assert list_losses() == sorted(list_losses())


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("SimPO", "simpo"),
        ("r-dpo", "rdpo"),
        ("R-DPO", "rdpo"),
        ("r_dpo", "rdpo"),
        ("slic-hf", "slic_hf"),
        ("SLiC-HF", "slic_hf"),
        ("SLiC", "slic_hf"),
        ("SimPO w/o LN", "simpo_no_ln"),
        ("simpo  w/o-ln", "simpo_no_ln"),
        ("simpo-no-ln", "simpo_no_ln"),
        ("DPO w/ LN", "dpo_ln"),
        ("DPO w/ γ", "dpo_gamma"),
        ("DPO w/ gamma", "dpo_gamma"),
        ("SimPO w/ SFT", "simpo_sft"),
    ],
)
def test_case_spaces_dashes_and_underscores_do_not_matter(said, name) -> None:
    assert get_loss(said).name == name


def test_a_typo_is_told_the_nearest_name_and_all_names() -> None:
    with pytest.raises(UnknownNameError) as caught:
        get_loss("simp0")
    message = str(caught.value)
    assert message.startswith("unknown loss 'simp0'; did you mean 'simpo'? Known: ")
    assert all(name in message for name in list_losses())


def test_a_name_like_nothing_known_is_told_all_names_only() -> None:
    with pytest.raises(UnknownNameError) as caught:
        get_loss("zzzzzz")
    assert "did you mean" not in str(caught.value) and f"Known: {', '.join(list_losses())}" in str(caught.value)


def test_two_typos_are_told_together() -> None:
    from pobench.settings.resolve import resolve_names

    names, faults = resolve_names("simp0, dpo, dppo")
    assert names == ["dpo"]
    assert ["'simpo'" in faults[0], "'dpo'" in faults[1], len(faults)] == [True, True, 2]


def test_the_signature_is_the_declaration(empty) -> None:
    @register_loss("mine", source="here", aliases=("my own",))
    def mine(policy, reference, kl, *, beta=0.3, kind="sum"):
        return policy, reference, kl, beta, kind

    loss = get_loss("My-Own")
    assert (loss.name, loss.needs, dict(loss.settings)) == ("mine", {"reference", "kl"}, {"beta": 0.3, "kind": "sum"})
    assert (loss.title, loss.source, loss.in_paper) == ("mine", "here", False)
    assert loss("p", "r", "k", beta=2) == ("p", "r", "k", 2, "sum")
    assert mine("p", "r", "k") == ("p", "r", "k", 0.3, "sum")  # the decorator hands the function back


@pytest.mark.parametrize(
    ("function", "faults"),
    [
        (
            lambda policy, refrence: 0,
            [
                "refrence: the harness supplies policy, responses, response, label, reference, ",
                "did you mean 'reference'?",
            ],
        ),
        (lambda policy, beta=0.1: 0, [f"beta: the harness supplies {', '.join(SUPPLIED)}; a setting goes behind '*'"]),
        (lambda policy, *, beta: 0, ["beta: a setting needs a default value"]),
        (lambda policy, *rest: 0, ["rest: the harness cannot fill a catch-all parameter"]),
        (lambda policy, **rest: 0, ["rest: the harness cannot fill a catch-all parameter"]),
        (lambda reference: 0, ["policy: a loss needs the policy's log-probabilities"]),
        (lambda reference, policy: 0, [f"the order {', '.join(SUPPLIED)}; got reference, policy"]),
        (
            lambda policy, responses: 0,
            ["policy, responses: a loss takes one of `policy` of pairs, `responses` of lists, "],
        ),
        (
            lambda responses, kl: 0,
            ["kl: this is a loss of lists, which is given responses, reference, tokens, scores, "],
        ),
        (lambda policy, label: 0, ["label: this is a loss of pairs, which is given policy, reference, kl, tokens, "]),
        (lambda policy, *, scores=1: 0, ["scores: is an input, which the harness supplies; it goes before '*'"]),
        (lambda polcy, *, beta: 0, ["polcy", "did you mean 'policy'?", "beta: a setting needs a default"]),
    ],
)
def test_a_signature_that_cannot_be_served_is_refused_with_every_reason(function, faults, empty) -> None:
    with pytest.raises(PobenchError) as caught:
        register_loss("bad", source="here")(function)
    assert str(caught.value).startswith("loss 'bad' cannot be registered:\n")
    assert [f for f in faults if f not in str(caught.value)] == []
    assert empty.names() == []


def test_the_names_of_the_inputs_are_those_of_their_record() -> None:
    fields = {"pairs": Inputs._fields, "lists": ListInputs._fields, "answers": AnswerInputs._fields}
    assert fields == INPUTS_OF
    assert all(list(names) == [name for name in SUPPLIED if name in names] for names in INPUTS_OF.values())
    assert {name for names in INPUTS_OF.values() for name in names} == set(SUPPLIED)


def test_the_first_input_says_what_a_loss_has_one_value_of() -> None:
    assert [get_loss(name).unit for name in ("dpo", "plackett_luce", "kto_unpaired")] == ["pairs", "lists", "answers"]
    assert get_loss("plackett_luce").needs == {"responses", "reference"}
    assert get_loss("kto_unpaired").needs == {"response", "label", "reference", "kl"}


@pytest.mark.parametrize("text", ["plackett_luce + sft", "label_smoothing(kto_unpaired)", "dpo + 0.5*kto_unpaired"])
def test_expressions_are_of_losses_of_pairs(text) -> None:
    with pytest.raises(PobenchError, match=r"is a loss of (lists|answers); sums and modifiers are of losses of pairs"):
        get_loss(text)


def test_an_input_that_is_missing_is_named(empty) -> None:
    register_loss("scored", source="here")(lambda policy, reference, scores: 0)
    with pytest.raises(PobenchError, match="loss 'scored' needs reference and scores, which it was not given"):
        get_loss("scored").evaluate("p", kl="k")
    given = Inputs("p", "r", scores="s")
    assert get_loss("scored").arguments(*given) == ["p", "r", "s"]
    assert get_loss("scored").reads_reference and not get_loss("scored").lacks(*given)


def test_units_and_ranges_speak_of_settings_only(empty) -> None:
    with pytest.raises(PobenchError) as caught:
        register_loss("bad", source="here", units={"bta": "per nat"}, ranges={"gamma": (1,)})(
            lambda policy, *, beta=1: 0
        )
    assert "units: 'bta' is no setting of it; did you mean 'beta'?" in str(caught.value)
    assert "ranges: 'gamma' is no setting of it" in str(caught.value)
    with pytest.raises(PobenchError) as caught:
        register_loss("bad", source="here", meanings={"bta": "scale"}, defaults={"gamma": "not published"})(
            lambda policy, *, beta=1: 0
        )
    assert "meanings: 'bta' is no setting of it; did you mean 'beta'?" in str(caught.value)
    assert "defaults: 'gamma' is no setting of it" in str(caught.value)


def test_a_taken_name_is_refused(empty) -> None:
    def one(policy): ...

    def other(policy): ...

    register_loss("one", source="here", aliases=("uno",))(one)
    register_loss("one", source="here", aliases=("uno",))(one)  # the same function again, as a reload does
    with pytest.raises(PobenchError, match="'one' is registered twice"):
        register_loss("one", source="here")(other)
    with pytest.raises(PobenchError, match="'other': the name 'U-N-O' belongs to 'one' already"):
        register_loss("other", source="here", aliases=("U-N-O",))(other)


def test_the_formula_is_the_indented_part_of_the_docstring(empty) -> None:
    @register_loss("mine", source="here")
    def mine(policy):
        """A sentence.

            loss = a
                 + b

        More words.
        """

    assert get_loss("mine").formula == "loss = a\n+ b"


def test_the_gradient_is_what_stands_indented_after_its_word(empty) -> None:
    @register_loss("mine", source="here")
    def mine(policy):
        """A sentence.

            loss = a

        Gradient: of which this line is not.

        Gradient:
            chosen = -1
            rejected = s

        Reward: none.
        """

    assert (get_loss("mine").formula, get_loss("mine").gradient) == ("loss = a", "chosen = -1\nrejected = s")


def test_a_plugin_file_registers_its_loss(tmp_path, empty) -> None:
    path = tmp_path / "my_loss.py"
    path.write_text(
        '"""Mine.\n\n    loss = -chosen\n\nNobody 2024.\n"""\n'
        "from pobench.registry import register_loss\n"
        "from pobench.types import LossOutput, Pair\n\n"
        '@register_loss("mine", source="here")\n'
        "def mine(policy: Pair, *, beta: float = 1.0) -> LossOutput:\n"
        "    return LossOutput(-beta * policy.chosen.total, policy.chosen.mean, policy.rejected.mean)\n"
    )
    load_plugin(path)
    assert empty.names() == ["mine"]
    assert (get_loss("mine").formula, get_loss("mine").gradient) == ("loss = -chosen", "")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone.py", None, "no file"),
        ("broken.py", "def f(:\n", "fails at import: SyntaxError"),
        ("failing.py", "1 / 0\n", "fails at import: ZeroDivisionError"),
        ("notes.txt", "loss", "is no Python file"),
        (
            "wrong.py",
            "from pobench.registry import *\nregister_loss('w', source='s')(lambda p: 0)\n",
            "cannot be registered",
        ),
    ],
)
def test_a_plugin_that_cannot_be_read_says_why(name, text, message, tmp_path, empty) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(PobenchError, match=message):
        load_plugin(tmp_path / name)


def test_a_figure_asks_for_frames_that_exist() -> None:
    with pytest.raises(PobenchError, match="figure 'f' asks for stepz; frames are runs, steps"):
        register_figure("f", title="F")(lambda stepz: None)


def test_a_figure_says_its_chapter() -> None:
    with pytest.raises(PobenchError, match="figure 'f': unknown chapter 'result'; did you mean 'results'"):
        register_figure("f", title="F", chapter="result")
    assert {f.chapter for f in map(registry.figures.get, registry.figures.names())} <= set(registry.CHAPTERS)


@pytest.mark.parametrize(
    ("look", "words"),
    [
        ({"colour": "#2a78d6"}, "colour and marker: a look is both of them"),
        ({"marker": "o"}, "colour and marker: a look is both of them"),
        ({"colour": "blue", "marker": "o"}, "colour: got 'blue'; six hexadecimal digits are needed"),
    ],
)
def test_a_look_that_cannot_be_drawn_is_refused(look, words, empty) -> None:
    with pytest.raises(PobenchError, match=words):
        register_loss("mine", source="here", **look)(lambda policy: 0)


def test_a_loss_of_a_users_own_may_declare_its_look(empty, monkeypatch) -> None:
    from pobench.reporting import looks

    monkeypatch.setattr(looks, "losses", empty)
    register_loss("mine", source="here", colour="#123456", marker=(5, 1, 0))(lambda policy: 0)
    assert looks.look_of("mine")[:2] == ("#123456", (5, 1, 0))
    assert looks.look_of("another").colour in looks.RESERVED_COLOURS


def test_a_judge_declares_what_others_must_know_of_it() -> None:
    def facts(name: str) -> tuple[bool, bool, bool]:
        judge = registry.judges.get(name)
        return judge.free, judge.compares, judge.offline

    assert {facts(n) for n in ("verifiable", "tiny_world", "replay")} == {(True, False, True)}
    assert {facts(n) for n in ("local", "reward_model", "pairrm", "armorm")} == {(True, True, False)}
    assert facts("endpoint") == (False, True, False)
    assert facts("rehearsed") == (True, True, True)
