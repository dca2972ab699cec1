"""Writes docs/losses.md, the reference of all objectives: each loss's docstring, settings and source, and its gradient on
typical pairs, by autograd. `pobench list losses --markdown` prints it; `make docs` stores it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from pobench.registry import GRADIENT, READ_AS, SUPPLIED, Loss, Modifier, losses, modifiers
from pobench.reporting.loss_family import condition
from pobench.types import Inputs, Pair, SequenceLogps, TokenLogps, Vocabulary

INTRODUCTION = """\
# The objectives

<!-- Written by `make docs` from the docstrings and declarations in losses/; edit those. -->

Everything here is about one preference pair; the harness takes the mean over all pairs of an optimiser batch, however the
batch is split. `chosen` and `rejected` are the policy's log-probabilities of the two responses in nats, summed over the
response's tokens; `reference_chosen` and `reference_rejected` are the same under the frozen reference; `|chosen|` and
`|rejected|` are the lengths in tokens, at least 1: the data audit refuses an empty response. `kl` is the mean log-ratio
over mismatched prompts and responses of the batch.

Most objectives are functions of these numbers, so their gradient is `a_w ∇chosen + a_l ∇rejected` with two weights per
pair. Each section gives the two weights as expressions, which the tests compare with autograd, and their sizes at the
defaults on three pairs, with kl = 0. A negative weight raises the response.

An objective that needs `scores` reads `score_chosen` and `score_rejected` too, the data's ratings of the responses: `--losses
rated` names all of these. One that needs `batch` depends on the whole optimiser batch, one that needs `tokens` on the
log-probability of each token, and one that needs `collision`, `entropy` or `forward_kl` on the distribution over the whole
vocabulary before each token; [python.md](python.md#what-a-loss-may-ask-for) says what they are given. In a gradient,
`kl_chosen` and `kl_rejected` are the sums of `forward_kl`, and `entropy` is the reference's mean one as a share of the
largest; the examples have invented values of these. One that needs `value` is trained with a second model, which says V of the
prompt; in a gradient it is a number, in the examples the mean of the two ratings. One that needs
`responses` is about a list of answers, and one that needs `response` about a single answer. They train on the lists or single
answers of the data; of pairs each is a list of two, or two answers, a desirable and an undesirable one, whose mean loss is the
pair's. Gradients are given for pairs.

Values and gradients of objectives that TRL also has are tested against TRL's trainers: tests/losses/test_trl_parity.py.
[peers.md](peers.md) says which programs have which objective, and which published ones are
[not here, and why](peers.md#what-others-have)."""

FAMILY = """\
## Which is which

An arrow leads to what an objective is with its settings as the label says, in value and slopes; `other.setting` is a setting
of the other. The registrations declare these (`becomes`), and tests/losses/test_laws.py holds each of them.

![The family of the objectives](losses-family.svg)"""

EXPRESSIONS = """\
## Sums and modifiers

Wherever a loss is named, an expression may stand: terms with weights, joined by `+`. A term is a loss, or a modifier around a
term. `sft` is the mean negative log-probability of a chosen response's tokens; it has no reward, and stands in sums alone.

```
pobench run --losses "dpo, dpo + 0.2*sft, label_smoothing(simpo)" --set label_smoothing.rate=0.2 --set dpo.beta=0.05
pobench check "dpo + 0.8*bco_pair + sft"
```

A sum's loss and rewards are the weighted sums of its terms'. `dpo + 0.8*bco_pair + sft` is a mixed preference optimization
(arXiv 2411.10442). `--set dpo.beta=0.05` counts wherever `dpo` stands. A setting's values for `dpo` count in an expression too;
its learning rate does not, as it was chosen for DPO alone: `losses: {"dpo + 0.2*sft": {lr: 5e-7}}` gives one, and
`pobench tune --losses "dpo + 0.2*sft"` looks for it.

A modifier is a file like a loss's: a function `f(loss, …)` behind `@register_modifier`. `loss()` is the loss within,
`loss(policy=…)` that loss of other sums, and `loss.swapped()` that of the pair with its responses exchanged.

What stands outside comes first. A modifier that takes `tokens` changes them and their sums, and what it has made of them is
what the modifier within reads: `humanline(ld(dpo))` clamps each token's log-ratio and then weighs it, `ld(humanline(dpo))`
weighs and then clamps. A modifier of sums alone stands within those of tokens, as `ld(f_divergence(dpo))`; the other way round
it is refused, because `ld` would add the tokens up anew.

A modifier registered with `moves`, as `tr` and `bema`, moves the reference model. There is one for all terms, so each term that
reads it stands within `tr`: `tr(dpo) + 0.5*tr(kto)`. A second model computes the reference's sums in every step, which takes
time and the memory of its weights, and they are a part of each checkpoint. Held-out rewards and KL are against the start model,
as those of all losses. With an adapter it is refused: the mean of two adapters' factors is not the adapter of the mean of their
weights."""

MEANINGS = {  # of settings that several losses share; a loss declares other names in its own `meanings`
    "beta": "scale of the reward",
    "gamma": "target margin between the two rewards",
    "gamma_beta_ratio": "the same margin, divided by beta",
    "tau": "sets the target of the difference, 1 / (2 tau)",
    "average": "whether each log-ratio is divided by its response's length",
    "delta": "gap that the hinge asks for",
    "sft_weight": "weight of the likelihood term",
    "sft_reduction": "the likelihood term's tokens: `sum` or `mean` of each response",
    "odds_weight": "weight of the odds-ratio penalty",
    "desirable_weight": "weight of the chosen side",
    "undesirable_weight": "weight of the rejected side",
    "label_smoothing": "share of pairs taken to be labelled the wrong way round",
}

LABELS = (
    "Elsewhere",
    "Beware",
    "Reward",
)  # a docstring's paragraph that begins with one of these is printed with a bold label

PAPER = "2405.14734"


class Typical(NamedTuple):
    """An example pair: its name, summed log-probabilities in nats under policy and reference, lengths in tokens."""

    name: str
    chosen: float
    rejected: float
    reference_chosen: float
    reference_rejected: float
    chosen_length: int
    rejected_length: int


TYPICAL = (
    Typical("short chosen, long rejected", -30, -150, -30, -150, 30, 150),
    Typical("ranked rightly", -60, -100, -80, -80, 80, 80),
    Typical("ranked wrongly", -100, -60, -80, -80, 80, 80),
)


SCORES = (8.0, 5.0)  # the data's ratings of the example pairs


def loss_page() -> str:
    """The page as Markdown, the same bytes every time. The paper's losses come first, each part by title."""
    entries = sorted((losses.get(name) for name in losses.names()), key=lambda loss: loss.title.casefold())
    paper = [loss for loss in entries if loss.in_paper or PAPER in loss.source]
    further = [loss for loss in entries if loss not in paper]
    parts = [INTRODUCTION, _summary([*paper, *further]), FAMILY]
    for heading, group in (("Of the SimPO paper", paper), ("Further objectives", further)):
        if group:
            parts += [f"## {heading}", *map(_section, group)]
    parts += [EXPRESSIONS, *(_modifier(modifiers.get(name)) for name in modifiers.names())]
    return "\n\n".join(parts) + "\n"


def weights(loss: Loss, pair: Typical) -> tuple[float, float]:
    """(a_w, a_l): the loss's derivatives by the policy's two sums at its defaults, kl = 0 and `SCORES`, by autograd in
    float64."""

    def logps(total: float, length: int) -> SequenceLogps:
        return SequenceLogps(torch.tensor([total], dtype=torch.float64, requires_grad=True), torch.tensor([length]))

    policy = Pair(logps(pair.chosen, pair.chosen_length), logps(pair.rejected, pair.rejected_length))
    frozen = logps(pair.reference_chosen, pair.chosen_length), logps(pair.reference_rejected, pair.rejected_length)
    reference = Pair(*(SequenceLogps(f.total.detach(), f.length) for f in frozen))
    scores = torch.tensor([SCORES], dtype=torch.float64)
    batch = loss.batch_of(policy, reference, loss.settings)  # of this pair alone
    tokens = TokenLogps.spread(policy, reference if "reference" in loss.needs else None)
    kl = torch.tensor(0.0, dtype=torch.float64)
    value = scores.mean(1)
    output = loss.evaluate(*Inputs(policy, reference, kl, tokens, scores, batch, *Vocabulary.spread(policy), value))
    by = torch.autograd.grad(output.loss.sum(), (policy.chosen.total, policy.rejected.total), materialize_grads=True)
    return by[0].item(), by[1].item()


def _summary(group: Sequence[Loss]) -> str:
    rows = [
        (
            f"[{loss.title}](#{_anchor(loss.title)})",
            f"`{loss.name}`",
            _about(loss),
            _needs(loss),
            _defaults(loss),
            _source(loss),
        )
        for loss in group
    ]
    return _table(("objective", "name", "in a sentence", "needs", "settings", "source"), rows)


def _section(loss: Loss) -> str:
    parts = [f"### {loss.title}", f"`{loss.name}` · {_source(loss)} · needs {_needs(loss)}", _about(loss)]
    parts += [f"```\n{_dedented(loss)}\n```", *_prose(loss)]
    if loss.settings:
        parts.append(_settings_table(loss, loss.canonical(loss.settings), loss.ranges))
    if loss.gradient:
        parts += ["Gradient by the two sums:", f"```\n{loss.gradient}\n```"]
    for other in (losses.get(name) for name in loss.becomes if name in losses.names()):
        parts.append(f"At `{condition(loss, other.name)}` it is [{other.title}](#{_anchor(other.title)}).")
    if "batch" not in loss.needs:  # where a pair's weight depends on the pairs beside it, an example says nothing
        parts.append(_sizes(loss))
    return "\n\n".join(parts)


def _sizes(loss: Loss) -> str:
    """The two weights on each typical pair."""
    rows = [
        (
            pair.name,
            f"{pair.chosen_length} / {pair.rejected_length}",
            f"{pair.chosen:g} / {pair.rejected:g}",
            f"{pair.reference_chosen:g} / {pair.reference_rejected:g}" if "reference" in loss.needs else "–",
            *map(_rounded, weights(loss, pair)),
        )
        for pair in TYPICAL
    ]
    return _table(("pair", "tokens", "policy, nats", "reference, nats", "a_w", "a_l"), rows)


def _modifier(modifier: Modifier) -> str:
    fits = "every loss that reads no `batch`" + ("" if modifier.weighs else " and nothing of the whole vocabulary")
    if modifier.of_ratios:
        fits = "losses that read policy and reference by their difference alone"
    if modifier.moves is not None:
        fits = "every loss that reads a reference"
    needs = ", ".join(sorted(modifier.needs)) or "nothing more"
    parts = [
        f"### {modifier.name}",
        f"`{modifier.name}(loss)` · {_source(modifier)} · needs {needs} · fits {fits}",
        _about(modifier),
        f"```\n{_dedented(modifier)}\n```",
        *_prose(modifier),
    ]
    if modifier.settings:
        parts.append(_settings_table(modifier, modifier.settings, {}))
    return "\n\n".join(parts)


def _settings_table(part: Loss | Modifier, spelled_out: Mapping[str, Any], ranges: Mapping[str, Any]) -> str:
    rows = [
        (
            f"`{name}`",
            part.meanings.get(name, MEANINGS.get(name, "–")),
            part.units.get(name, "–"),
            _shown(default, spelled_out.get(name)),
            part.defaults.get(name, "–"),
            ", ".join(_plain(v) for v in ranges[name]) if name in ranges else "–",
        )
        for name, default in part.settings.items()
    ]
    columns = ("setting", "what it does", "unit", "default", "where the default comes from", "published range")
    return _table(columns, rows)


# ---------------------------------------------------------------- a docstring, taken apart
def _about(loss: Loss | Modifier) -> str:
    """The docstring's first line without the name that opens it, as a sentence."""
    first = loss.doc.partition("\n")[0]
    opening, colon, rest = first.partition(": ")
    text = rest if colon and len(opening.split()) < 4 else first
    return text[:1].upper() + text[1:]


def _dedented(loss: Loss | Modifier) -> str:
    """The formula with the indentation of its continuation lines kept."""
    lines = [line for line in loss.doc.partition(GRADIENT)[0].splitlines() if line.startswith("    ")]
    return "\n".join(line[4:].rstrip() for line in lines if line.strip())


def _prose(loss: Loss | Modifier) -> Iterator[str]:
    """The docstring's paragraphs after its first line, one line each, labels in bold; without formula and gradient."""
    paragraph: list[str] = []
    for line in [*loss.doc.splitlines()[1:], ""]:
        label = re.match(rf"({'|'.join(LABELS)}): ", line)
        if (label or not line.strip() or line == "Gradient:") and paragraph:
            yield " ".join(paragraph)
            paragraph = []
        if label:
            paragraph.append(f"**{label[1]}:** {line[label.end() :].strip()}")
        elif line.strip() and not line.startswith("    ") and line != "Gradient:":
            paragraph.append(line.strip())


# ---------------------------------------------------------------- cells
def _needs(loss: Loss) -> str:
    needs = ", ".join(name for name in SUPPLIED if name in loss.needs) or "the policy alone"
    return f"{needs}; {READ_AS[loss.unit]}" if READ_AS[loss.unit] else needs


def _defaults(loss: Loss) -> str:
    return ", ".join(f"`{k}` {_plain(v)}" for k, v in loss.canonical(loss.settings).items() if v is not None) or "–"


def _source(loss: Loss | Modifier) -> str:
    """The source, its arXiv number a link."""
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", loss.source)


def _shown(default: Any, spelled_out: Any) -> str:
    if default is not None:
        return _plain(default)
    return "none" if spelled_out is None else f"{_plain(spelled_out)}, from the others"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float | int) else str(value)


def _rounded(weight: float) -> str:
    """Three digits; no -0."""
    return f"{weight + 0.0:.3g}"


def _anchor(title: str) -> str:
    """How Markdown viewers name a heading: lower case, punctuation dropped, spaces to dashes."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; `|` within a cell is escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
