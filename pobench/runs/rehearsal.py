"""The rehearsal: a setting's whole pipeline, offline and in minutes, on a tiny random model of the same family.

    jobs of a setting → stand-ins (model, tokenizer, rows, verdicts) → the same jobs over the stand-ins

Everything that decides whether the real run works stays as the setting has it: the chat template, the maximum lengths,
the policy for bad rows, every loss with its values, layout, attention, arithmetic, decoding. What costs time is small:
two thin layers with random weights, a few pairs in the columns of the real data set, a few prompts, short answers.

The model's own configuration and tokenizer are used where they are at hand; else its published sizes, special tokens
and template (`published.py`). Rows are generated in the columns of a published data set, or read from a local file.

Before anything runs, five kinds of fault are looked for, each of which would cost a real run its hours: columns that
are not recognised, a template that writes another family's tokens, lengths beyond the model's context, a template
that closes an answer with no token to stop at, and a value more than ten times outside what has been published.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import TemplateError

from pobench.data.chat import Chat, load_tokenizer
from pobench.data.rows import Message
from pobench.errors import PobenchError
from pobench.registry import get_loss
from pobench.runs.stand_ins import _Stage
from pobench.settings.job import Job

BIG = 1_000_000_000  # parameters from which on the printed range of learning rates applies
LEARNING_RATES = (3e-7, 1e-6)  # arXiv 2405.14734, Appendix B: the search range, every method
SFT_LEARNING_RATE = 2e-5  # arXiv 2405.14734, Appendix B


def rehearse(jobs: Sequence[Job], stages: Sequence[str] = ()) -> list[Job]:
    """Return the same jobs over stand-ins; their setting is called `<setting>-rehearsal`.

    stages: those that will be played through. Stand-ins are written into the cache folder; nothing else is written. Raises
    PobenchError that lists every fault found in the setting's template, lengths, values and data source.
    """
    stage, faults = _Stage.of(jobs[0], samples="onpolicy" in stages)
    known = not faults
    faults += [fault for job in jobs for fault in value_faults(job, stage.parameters)]
    faults += stage.length_faults()
    if known:
        try:
            folder = stage.build()
            faults += template_faults(jobs[0], folder / "model")
        except PobenchError as error:
            faults += str(error).splitlines()
    if faults:
        raise PobenchError("\n".join(dict.fromkeys(faults)))
    return [stage.stand_in(job, folder) for job in jobs]


# ---------------------------------------------------------------- faults
def value_faults(job: Job, parameters: int | None) -> list[str]:
    """Faults of values more than ten times outside their published range. Zero switches a term off and is no fault."""
    faults = []
    loss = get_loss(job.loss)
    for name, value in job.loss_settings.items():
        tried = [v for v in loss.ranges.get(name) or () if isinstance(v, int | float) and v > 0]
        if tried and isinstance(value, int | float) and value > 0 and not min(tried) / 10 < value < max(tried) * 10:
            faults.append(
                f"{loss.key(name)}: {value:g} is more than ten times outside the published range "
                f"({min(tried):g} to {max(tried):g}); its unit: {loss.units.get(name) or 'none'}"
            )
    low, high = LEARNING_RATES
    if parameters is not None and parameters >= BIG and not low / 10 < job.train.lr < high * 10:
        faults.append(
            f"train.lr: {job.train.lr:g} (for {job.loss}) is more than ten times outside the published range "
            f"({low:g} to {high:g}) for a model of {parameters / 1e9:.1f} billion parameters"
        )
    rate = job.sft.lr if job.sft is not None else SFT_LEARNING_RATE
    if parameters is not None and parameters >= BIG and not SFT_LEARNING_RATE / 10 < rate < SFT_LEARNING_RATE * 10:
        faults.append(f"sft.lr: {rate:g} is more than ten times outside the published {SFT_LEARNING_RATE:g}")
    return faults


_MARK = re.compile(r"<[|/]?[A-Za-z_][\w:]*\|?>|\[/?[A-Z]{2,}\]")  # what templates use to mark turns


def template_faults(job: Job, folder: Path) -> list[str]:
    """Faults of the template: it writes tokens that the model lacks, or closes an answer without a stop token.

    folder: a model whose tokenizer has the model's special tokens and own template.
    """
    setting = f"model.chat_template ({job.model.chat_template or 'its own'})"
    try:
        renderer = Chat.of(folder, job.model)
    except PobenchError as error:
        return [f"{setting}: {error}"]
    own_template: Chat | None = None
    with contextlib.suppress(PobenchError):  # a base model has no template
        own_template = Chat(load_tokenizer(folder))
    special = {t.content for t in renderer.tokenizer.added_tokens_decoder.values() if t.special}
    special |= set(renderer.tokenizer.all_special_tokens)
    own_marks = _marks(own_template) if own_template else set()
    # An SFT stage teaches whatever marks its template writes.
    if job.sft is None and (foreign := sorted(_marks(renderer) - special - own_marks)):
        return [
            f"{setting}: wrong template: it writes {', '.join(foreign)}, which {job.model.source} has no token for. "
            f"The model's own marks are {', '.join(sorted(own_marks)) or 'none'}"
        ]
    if renderer.adds_end:
        end = (
            own_template.tokenizer.convert_ids_to_tokens(own_template.end)
            if own_template and not own_template.adds_end
            else None
        )
        return [
            f"{setting}: missing stop token: it closes an assistant's turn with no special token, so a model trained with "
            "it would not learn where an answer ends" + (f"; the model's own template writes {end}" if end else "")
        ]
    return []


def _marks(renderer: Chat) -> set[str]:
    """What a template writes around the turns of a conversation."""
    question = (Message("user", "Q"),)
    text = renderer.conversation(question, "A") + renderer.after + renderer.prompt(question)
    with contextlib.suppress(TemplateError):  # not every family has a system's turn
        text += renderer.prompt((Message("system", "S"), *question))
    return set(_MARK.findall(text))
