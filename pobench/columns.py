"""The description of every frame: its columns with type, unit and meaning, its sort order, and a message for its absence.

A frame is a table in memory with one observation a row; `run` joins the frames. Writers and readers pass their rows
through `Frame.of` or `Frame.typed`, so every frame, even an empty one, has these columns with these types. docs/frames.md
prints this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pobench.errors import PobenchError

if TYPE_CHECKING:
    import pandas as pd

# A pair, list or answer is saturated at a step where Σ |∂loss/∂ log π| over its answers is below this, per nat.
SATURATED = 1e-6


class Column(NamedTuple):
    """One column. type: `JSON` is text that holds JSON. unit: "" if there is none. measured: the value differs between two runs
    of the same job (wall time, memory, the machine), so comparisons of two runs leave it out."""

    name: str
    type: Literal["text", "JSON", "int", "float", "bool"]
    unit: str
    meaning: str
    measured: bool = False


@dataclass(frozen=True)
class Frame:
    """One frame's description.

    sort: the columns by which its rows are ordered. absent: the message of a figure that needs the frame when it is absent,
    without full stop. made: it is computed from other frames (`pobench.results.derived`), not stored.
    """

    name: str
    meaning: str
    sort: tuple[str, ...]
    absent: str
    columns: tuple[Column, ...]
    made: bool = False

    @property
    def names(self) -> list[str]:
        """The columns' names, in order."""
        return [column.name for column in self.columns]

    @property
    def row(self) -> str:
        """What a row is, from `meaning`: of `One row a run: a start model …` it is `a run`."""
        return self.meaning.removeprefix("One row ").removesuffix(".").partition(". ")[0].partition(":")[0]

    def of(self, rows: pd.DataFrame | Iterable[Mapping[str, Any]] = ()) -> pd.DataFrame:
        """The rows with all columns of this frame, in order, each with its type, and any further columns after them.

        A column that the rows lack is filled with nan. Raises PobenchError for a value of another type.
        """
        frame = _as_frame(rows)
        further = [name for name in frame.columns if name not in self.names]
        return self.typed(frame.reindex(columns=[*self.names, *further]))

    def typed(self, rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> pd.DataFrame:
        """The rows with the columns that they have; columns of this frame get their types. Raises PobenchError as `of` does.

        A missing value is nan. An `int` column with missing values is float, a `bool` column object, so that pandas keeps nan.
        """
        frame = _as_frame(rows)
        return frame.assign(**{c.name: self._cast(frame[c.name], c) for c in self.columns if c.name in frame})

    def _cast(self, values: pd.Series, column: Column) -> pd.Series:
        """The values with the column's type, unchanged if they have it already."""
        from pandas.api import types

        try:
            if column.type in ("text", "JSON"):
                if types.is_object_dtype(values.dtype) and values.notna().any():
                    return values  # broken Unicode stays an object
                return values if types.is_string_dtype(values.dtype) and len(values) else values.astype("str")
            if column.type == "bool":
                return values.astype(object if values.isna().any() else bool)
            if column.type == "float" and types.is_float_dtype(values.dtype):
                return values
            numbers = values.astype(float)
            if column.type == "float":
                return numbers
            if not (numbers.isna() | (numbers % 1 == 0)).all():
                raise ValueError("not all are whole numbers")
            return numbers if numbers.isna().any() else values.astype("int64")
        except (TypeError, ValueError, OverflowError) as error:
            raise PobenchError(
                f"frame {self.name!r}, column {column.name!r}: {column.type} is needed, got {values.dtype}: {error}"
            ) from error


def _as_frame(rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))


# ---------------------------------------------------------------- columns that several frames share
_RUN = Column("run", "text", "", "`<setting>/<folder>` of the run")
_SETTING = Column("setting", "text", "", "the setting's name")
_PAIR = Column("pair", "text", "", "the held-out pair's id")
_PROMPT = (
    Column("prompt", "text", "", "the prompt's id"),
    Column("sample", "int", "", "which of the answers to one prompt, from 0"),
)
_METRIC = Column("metric", "text", "", "the metric's name; `@<judge>` behind it where several judges gave verdicts")
_SETTINGS = Column("settings", "JSON", "", "the loss's settings")
_CHOSEN_LENGTH = Column("chosen_length", "int", "tokens", "length of the chosen answer, its end-of-turn token included")
_REJECTED_LENGTH = Column("rejected_length", "int", "tokens", "length of the rejected answer")
_BETTER = Column("better", "text", "", "`higher`, `lower`, or empty where neither is better")


def _estimate(unit: str, of: str) -> tuple[Column, ...]:
    return (
        Column("value", "float", unit, "the estimate; nan where nothing was measured"),
        Column("low", "float", unit, "lower end of its 95 % interval"),
        Column("high", "float", unit, "upper end of its 95 % interval"),
        Column("n", "int", of, "how many it rests on; 0 where nothing was measured"),
    )


# ---------------------------------------------------------------- the frames
_RUNS = Frame(
    "runs",
    "One row a run: a start model or a trained one, finished or not.",
    ("run",),
    "There are no runs",
    (
        _RUN,
        _SETTING,
        Column("kind", "text", "", "`start` or `loss`"),
        Column("loss", "text", "", "the loss's registered name; `start` for a start model"),
        Column("title", "text", "", "the loss as a table prints it"),
        Column("seed", "int", "", "the seed; -1 for a start model"),
        _SETTINGS,
        Column("lr", "float", "", "peak learning rate; nan for a start model, as are the next two"),
        Column("epochs", "float", "", "passes over the training pairs"),
        Column("batch_size", "int", "pairs", "pairs of one optimiser step"),
        Column("start", "text", "", "the run of its start model"),
        Column("round", "int", "", "the round of iterative training (`--rounds`); 1 for all other runs"),
        Column("begins", "text", "", "the last round's run, from whose model it was trained; empty in round 1"),
        Column(
            "rounds_reference",
            "text",
            "",
            "from round 2 on, what a loss with a reference was trained against: `last`, the model it began from, or `start`",
        ),
        Column(
            "recipe",
            "text",
            "",
            "from round 2 on, a digest of how its pairs were made, without the model that answered",
        ),
        Column("pairs", "int", "pairs", "pairs, lists or answers it was trained on; nan until it has finished"),
        Column(
            "trained_on",
            "text",
            "",
            "what those are: `pairs`, `pairs from all` or `pairs from adjacent` (another `data.pairs_from` than the default), "
            "the data's own `lists` or `answers`, or `pairs read as lists` or `pairs read as answers` by a loss of these; "
            "empty until it has finished",
        ),
        Column("seconds", "float", "s", "wall time of the training steps", measured=True),
        Column(
            "waited",
            "float",
            "s",
            "of that, time in which other work had the processor; nan where the system does not count it",
            measured=True,
        ),
        Column(
            "reference",
            "text",
            "",
            "`cached`: sums of one stored pass; `every_step`: computed in every step; empty where the loss reads no reference",
        ),
        Column(
            "reference_seconds",
            "float",
            "s",
            "wall time of that stored pass, which `seconds` leaves out; 0 without one; nan where it is not known",
            measured=True,
        ),
        Column("peak_memory", "int", "bytes", "most memory that training held", measured=True),
        Column("tokens", "int", "tokens", "tokens it was trained on, without padding"),
        Column("status", "text", "", "`finished`, `failed` or `unfinished`"),
        Column("reason", "text", "", "why it failed; empty otherwise"),
        Column(
            "density_ratio",
            "JSON",
            "",
            "of a loss that asks for it, on single answers: their numbers, the quality of the classifier of prompts, quantiles "
            "of the ratios of undesirable answers, and who embedded the prompts (empty: the start model); else {}",
        ),
        Column("order", "text", "", "digest of the order of the training pairs"),
        Column("protocol", "int", "", "version of the protocol; results of two versions are not compared"),
        Column("note", "text", "", "what to know about the start weights"),
        Column(
            "environment",
            "JSON",
            "",
            "versions, machine, devices, threads and cores, and how many jobs the machine had at a time",
            measured=True,
        ),
        Column("sources", "JSON", "", "setting → where its value comes from"),
        Column("length_bias", "float", "", "share of training labels decided by length; nan for a start model"),
        Column("others", "int", "", "finished results of other settings that are stored beside those shown"),
        Column(
            "values",
            "text",
            "",
            "where learning rate and the loss's own settings come from: `tuned` (a search chose them), `paper` (the paper's), "
            "`default` (the loss's and the setting's own) or `set` (by `--set` or a study); empty for a start model and "
            "where it is not stored",
        ),
        Column("trials", "float", "", "trials of the search that chose them; nan unless tuned"),
        Column("tuned", "JSON", "", "what the search reached: metric, value, low, high, n, study; {} unless tuned"),
    ),
)

_STEPS = Frame(
    "steps",
    "One row an optimiser step of a run. Each number is a mean over the pairs of the batch unless it says otherwise. A run on "
    "lists has means over lists, of which the best-ranked answer is the chosen one and the worst-ranked the rejected one, and "
    "the mean of those that tie; a run on single answers means over the desirable ones (chosen) and over the others "
    "(rejected), each over their own count in the batch. `heldout/*` are means over held-out pairs, at the steps of "
    "`train.evaluate_every`; nan at the others.",
    ("run", "step"),
    "No run has logged a training step",
    (
        _RUN,
        Column("step", "int", "", "the step, from 1"),
        Column("epoch", "float", "", "passes over the training pairs so far"),
        Column("loss", "float", "own unit", "the objective"),
        Column("lr", "float", "", "learning rate of the step"),
        Column("grad_norm", "float", "", "length of the gradient by all weights, before clipping"),
        Column(
            "value",
            "float",
            "rating",
            "V of the prompts, by the value model of a loss that trains one; else nan",
        ),
        Column("value_grad_norm", "float", "", "length of the value model's gradient, before clipping; else nan"),
        Column("rewards/chosen", "float", "own unit", "the loss's own reward of the chosen answer"),
        Column("rewards/rejected", "float", "own unit", "the same of the rejected answer"),
        Column("rewards/margins", "float", "own unit", "chosen minus rejected reward"),
        Column(
            "rewards/accuracies",
            "float",
            "",
            "share of pairs whose chosen answer has the higher reward, ties half; nan for single answers, which meet no other",
        ),
        Column("logps/chosen", "float", "nats", "summed log-probability of the chosen answer"),
        Column("logps/rejected", "float", "nats", "the same of the rejected answer"),
        Column("logps/chosen_per_token", "float", "nats/token", "log-probability per token of the chosen answer"),
        Column("logps/rejected_per_token", "float", "nats/token", "the same of the rejected answer"),
        Column(
            "saturated",
            "float",
            "",
            f"share of pairs that hardly pull: |∂loss/∂ log π| of both answers together is below {SATURATED:.0e} per nat; of a "
            "list, of all its answers; of a single answer, of itself",
        ),
        Column("kl", "float", "nats", "mean log-ratio over mismatched pairs or answers; nan unless the loss uses it"),
        Column("seconds", "float", "s", "wall time of training so far", measured=True),
        Column("heldout/kl", "float", "nats/token", "estimate of KL(reference ‖ policy) on held-out winners"),
        Column("heldout/chosen_per_token", "float", "nats/token", "log-probability per token of held-out winners"),
        Column("heldout/accuracy", "float", "", "share of held-out pairs with the higher reward on the chosen answer"),
        Column("heldout/margin", "float", "own unit", "chosen minus rejected reward"),
    ),
)

_HELDOUT = Frame(
    "heldout",
    "One row a held-out pair of a run: what policy and reference give its answers, and the run's own loss. Each `…_logp` "
    "is summed over the answer's tokens.",
    ("run", "pair"),
    "No run has held-out log-probabilities",
    (
        _RUN,
        _PAIR,
        Column("chosen_logp", "float", "nats", "log-probability of the chosen answer"),
        Column("rejected_logp", "float", "nats", "log-probability of the rejected answer"),
        _CHOSEN_LENGTH,
        _REJECTED_LENGTH,
        Column("reference_chosen_logp", "float", "nats", "the chosen answer's under the reference"),
        Column("reference_rejected_logp", "float", "nats", "the rejected answer's under the reference"),
        Column("loss", "float", "own unit", "the run's own loss; nan for a start model, as are both rewards"),
        Column("chosen_reward", "float", "own unit", "the run's own reward of the chosen answer"),
        Column("rejected_reward", "float", "own unit", "the same of the rejected answer"),
        Column("mismatched_logp", "float", "nats", "of an answer to another prompt; nan where it is not stored"),
        Column("reference_mismatched_logp", "float", "nats", "the same under the reference"),
        Column(
            "chosen_score", "float", "", "the data's rating of the chosen answer; nan unless the run's loss asks for it"
        ),
        Column("rejected_score", "float", "", "the data's rating of the rejected answer, likewise"),
        Column("source", "text", "", "the name of the pair's data set; missing where there is one (`data.sources`)"),
    ),
)

_TRAINPAIRS = Frame(
    "trainpairs",
    "One row a training pair of a run, at most `data.max_trainpairs` a run: as `heldout`, of pairs that it was trained on.",
    ("run", "pair"),
    "No run has log-probabilities of its training pairs (`--stages trainpairs`)",
    (_RUN, _PAIR._replace(meaning="the training pair's id"), *_HELDOUT.columns[2:]),
)

_NORMS = Frame(
    "norms",
    "One row a held-out pair of a run, at most 64 a run: how far each answer's log-probability can move the weights.",
    ("run", "pair"),
    "No run has gradient norms (`--stages gradient_norms`)",
    (
        _RUN,
        _PAIR,
        Column("chosen_norm", "float", "per nat", "length of ∇ log π(chosen) by all weights"),
        Column("rejected_norm", "float", "per nat", "length of ∇ log π(rejected) by all weights"),
        Column("product", "float", "per nat²", "scalar product of the two gradients"),
    ),
)

_ANSWERS = Frame(
    "answers",
    "One row an answer of a run to an evaluation prompt.",
    ("run", "prompt", "sample"),
    "No run has written answers",
    (
        _RUN,
        *_PROMPT,
        Column("kind", "text", "", "the kind of demand; empty where prompts have no kinds"),
        Column("topic", "text", "", "what the prompt is about; empty where it does not say"),
        Column("instruction", "text", "", "the prompt's last message"),
        Column("text", "text", "", "the answer; a model's text is not to be trusted. Frames as files leave it out"),
        Column("characters", "int", "characters", "length of the text"),
        Column("repeated", "float", "", "share of its words' 4-grams that stood earlier in it; nan below four words"),
        Column("tokens", "int", "tokens", "length of the answer, its end-of-turn token included"),
        Column("finished", "bool", "", "whether the model ended the answer itself"),
    ),
)

_VERDICTS = Frame(
    "verdicts",
    "One row a judge's verdict on an answer. A judge that compares sees the start model's answer to the same prompt beside "
    "it, in both orders; `against` and the columns behind it are its. Verdicts on two losses' answers are in `comparisons`.",
    ("run", "prompt", "sample", "judge"),
    "No answer has been judged",
    (
        _RUN,
        *_PROMPT,
        Column("judge", "text", "", "the judge's name"),
        Column(
            "score",
            "float",
            "",
            "in [0, 1]; of a judge that compares, P(better than the other answer); nan: no verdict",
        ),
        Column(
            "grade", "float", "", "in [0, 1]: how far a pass or fail was; nan where the judge gives no grade beside it"
        ),
        Column("against", "text", "", "`start` where the start model's answer stood beside it; missing otherwise"),
        Column("forward", "float", "", "P(better) with the start model's answer shown first"),
        Column("backward", "float", "", "P(better) with the start model's answer shown last"),
        Column("flipped", "float", "", "1 where the order decided, else 0"),
        Column("longer", "float", "", "1 where this answer has more characters, 0.5 where both have as many, else 0"),
        Column("reason", "text", "", "what the judge wrote beside its verdict; missing where it gives no reason"),
    ),
)

_COMPARISONS = Frame(
    "comparisons",
    "One row a judge's verdict on two losses' answers to one prompt, seen in both orders (`pobench run --opponents`). A pair "
    "of losses is judged once: `run` is the one whose name comes first.",
    ("run", "opponent", "prompt", "sample", "judge"),
    "No loss was judged against another (`--opponents all`)",
    (
        _RUN,
        Column("opponent", "text", "", "the run whose answer stood beside it"),
        *_PROMPT,
        Column("judge", "text", "", "the judge's name"),
        Column("score", "float", "", "P(the run's answer is better than the opponent's); nan: no verdict"),
        Column("forward", "float", "", "P(better) with the opponent's answer shown first"),
        Column("backward", "float", "", "P(better) with the opponent's answer shown last"),
        Column("flipped", "float", "", "1 where the order decided, else 0"),
        Column(
            "longer", "float", "", "1 where the run's answer has more characters, 0.5 where both have as many, else 0"
        ),
        Column("reason", "text", "", "what the judge wrote beside its verdicts; missing where it gives no reason"),
        Column("tokens", "int", "tokens", "length of the run's answer"),
        Column("opponent_tokens", "int", "tokens", "length of the opponent's"),
    ),
)

_SCORES = Frame(
    "scores",
    "One row a metric of a run, or of all runs of a loss that differ in the seed alone. Rates are in [0, 1]; tables print %.",
    ("run", "metric"),
    "No run has been scored",
    (_RUN, _METRIC, *_estimate("the metric's", "prompts or pairs"), _BETTER),
)

_BENCHMARKS = Frame(
    "benchmarks",
    "One row a metric of a benchmark's result for a run: of the result on most prompts, by each judge. Units are the "
    "benchmark's own: rates in %, MT-Bench 1 to 10.",
    ("run", "benchmark", "metric", "judge"),
    "No benchmark has been run (`--stages benchmarks`)",
    (
        _RUN,
        _SETTING,
        Column("loss", "text", "", "the loss's registered name; `start` for a start model"),
        Column("seed", "int", "", "the seed; -1 for a start model"),
        Column("benchmark", "text", "", "the benchmark's registered name"),
        Column(
            "metric",
            "text",
            "",
            "alpaca_eval: `lc_win_rate`, `win_rate`, `length_only_win_rate`, `length` (characters); arena_hard: `win_rate`, "
            "`position_flips`; arena_hard_v2: both for each category; mt_bench: `score`, `turn_1`, `turn_2` and one a "
            "category; downstream: its tasks; zeroeval: `gsm8k`, `mmlu_redux`, and `…_no_answer`",
        ),
        *_estimate("the benchmark's", "prompts"),
        Column("judge", "text", "", "the judge's name; empty where the benchmark asks none"),
        Column("name", "text", "", "what the result may be called: `AlpacaEval 2` only where it is that"),
        Column("limit", "int", "prompts", "how many were asked, where only a part was; nan: all"),
    ),
)

_QUESTIONS = Frame(
    "questions",
    "One row a question of a benchmark for a run: the numbers of `benchmarks` that are means over questions, question by "
    "question. AlpacaEval's length-controlled rate is none: it is fitted.",
    ("run", "benchmark", "metric", "judge", "question"),
    "No benchmark has stored its questions' scores (`--stages benchmarks`)",
    (
        _RUN,
        Column("benchmark", "text", "", "the benchmark's registered name"),
        Column(
            "metric",
            "text",
            "",
            "as in `benchmarks`: alpaca_eval and arena_hard: `win_rate`, arena_hard_v2: that of each category; mt_bench: "
            "`score`, of both turns; downstream: its tasks; zeroeval: `gsm8k`, `mmlu_redux`",
        ),
        Column("judge", "text", "", "the judge's name; empty where the benchmark asks none"),
        Column(
            "question",
            "text",
            "",
            "its id; alpaca_eval: its place among all, from 0; downstream: `<task of lm-eval>/<place>`",
        ),
        Column(
            "score",
            "float",
            "the metric's",
            "beside a baseline's answer: 100 won, 50 even, 0 lost; downstream, zeroeval: 100 right, 0 wrong; nan: no verdict",
        ),
        Column(
            "weight",
            "float",
            "",
            "how much it counts in the metric's mean: arena_hard: its battles; mt_bench: its grades; 1 elsewhere",
        ),
        Column(
            "group",
            "text",
            "",
            "what it shares with other questions: the passage it asks about; empty where nothing is known",
        ),
    ),
)

_BENCHMARK_ANSWERS = Frame(
    "benchmark_answers",
    "One row a question of a benchmark for a run whose answer a judge read beside a baseline's (AlpacaEval, Arena-Hard): both "
    "answers, and what the judge said of them.",
    ("run", "benchmark", "judge", "question"),
    "No benchmark has stored answers beside a baseline's (`--stages benchmarks`)",
    (
        _RUN,
        Column("benchmark", "text", "", "the benchmark's registered name"),
        Column("judge", "text", "", "the judge's name"),
        Column("question", "text", "", "its id, as in `questions`"),
        Column("kind", "text", "", "the question's category; empty where the benchmark has none"),
        Column("prompt", "text", "", "the question"),
        Column("text", "text", "", "the run's answer"),
        Column("baseline", "text", "", "the baseline's answer"),
        Column("score", "float", "", "in [0, 1]: 1 where the run's answer won, 0.5 for a tie; nan: no verdict"),
        Column("reason", "text", "", "what the judge wrote; missing where it wrote a letter alone"),
    ),
)

_LOOKS = Frame(
    "looks",
    "One row a run of a look: of a set of finished runs that a report was made of.",
    ("setting", "look", "run"),
    "No runs were added to a comparison after a report had shown it",
    (
        _SETTING,
        Column("look", "text", "", "digest of the look's runs"),
        Column("run", "text", "", "`<setting>/<folder>` of a finished run"),
    ),
)

_AUDIT = Frame(
    "audit",
    "One row a kind of fault in the preference data of a setting, and what was counted beside.",
    ("setting", "fault"),
    "There is no data audit",
    (
        _SETTING,
        Column("fault", "text", "", "the fault, or what was counted"),
        Column("count", "int", "rows", "how many rows have it"),
        Column("rows", "JSON", "", "list of their row numbers; of several files `FILE:ROW`"),
        Column("data", "text", "", "digest of the token pairs"),
    ),
)

_TUNING = Frame(
    "tuning",
    "One row a trial of a search (`pobench tune`).",
    ("setting", "loss", "study", "trial"),
    "No search has been made (`pobench tune`)",
    (
        _SETTING,
        Column("loss", "text", "", "the loss's registered name"),
        Column("study", "text", "", "the search: loss, sampler and a digest of data, weights, values, grid and metric"),
        Column("sampler", "text", "", "`grid`, `random` or `tpe`"),
        Column("trial", "int", "", "the trial's number in its search, from 0"),
        Column("lr", "float", "", "peak learning rate"),
        _SETTINGS,
        Column("metric", "text", "", "the objective"),
        _BETTER,
        *_estimate("the metric's", "prompts or pairs")[:3],
        Column("n", "int", "prompts or pairs", "how many it rests on; nan where the trial failed"),
        Column("start", "float", "the metric's", "the start model's value"),
        Column("chosen", "bool", "", "whether the search chose this trial"),
        Column("status", "text", "", "`finished` or `failed`"),
        Column("reason", "text", "", "why it failed"),
        Column("runs", "text", "", "its runs below runs/<setting>/tuning, with spaces between them"),
    ),
)

_CROSS_LOSS = Frame(
    "cross_loss",
    "One row a run, registered loss and metric: every loss evaluated on every model's held-out pairs.",
    ("run", "evaluated", "metric"),
    "No run has held-out log-probabilities",
    (
        _RUN,
        Column("trained", "text", "", "the loss it was trained with, or `start`"),
        Column("evaluated", "text", "", "the loss it is evaluated with"),
        Column("title", "text", "", "the evaluated loss as a table prints it"),
        Column("settings", "JSON", "", "those that the loss was evaluated with"),
        Column("metric", "text", "", "`loss`, `reward_accuracy` or `margin`"),
        *_estimate("the evaluated loss's", "pairs"),
    ),
    made=True,
)

_GRADIENTS = Frame(
    "gradients",
    "One row a held-out pair of a run and a loss: how hard the pair pulls under that loss.",
    ("run", "evaluated", "pair"),
    "No run has held-out log-probabilities",
    (
        _RUN,
        Column("evaluated", "text", "", "the loss: the run's own; of a start model, each that was trained from it"),
        _PAIR,
        _CHOSEN_LENGTH,
        _REJECTED_LENGTH,
        Column("chosen_weight", "float", "per nat", "∂loss/∂ log π(chosen)"),
        Column("rejected_weight", "float", "per nat", "∂loss/∂ log π(rejected)"),
        Column("norm", "float", "", "length of the pair's gradient by all weights; nan where the run has no `norms`"),
    ),
    made=True,
)

_PAPER = Frame(
    "paper",
    "One row a number of the tables of arXiv 2405.14734v3, as printed.",
    ("table", "setting", "label", "benchmark", "metric"),
    "The paper's numbers are not there",
    (
        Column("table", "int", "", "the paper's table"),
        Column("setting", "text", "", "our setting of that name; empty for a model that no setting trains"),
        Column("loss", "text", "", "the loss's registered name, or `start`"),
        Column("label", "text", "", "the paper's row"),
        Column("where", "text", "", "what sets the row apart from the setting's own values: `gamma=0`, `lr=5e-07`"),
        Column("benchmark", "text", "", "the benchmark's registered name"),
        Column("metric", "text", "", "the benchmark's metric"),
        Column("value", "float", "%", "the number; characters or tokens for lengths, 1 to 10 for MT-Bench"),
    ),
    made=True,
)

FRAMES = {
    frame.name: frame
    for frame in (
        *(_RUNS, _STEPS, _HELDOUT, _TRAINPAIRS, _NORMS, _ANSWERS, _VERDICTS, _COMPARISONS, _SCORES, _BENCHMARKS),
        *(_QUESTIONS, _BENCHMARK_ANSWERS, _LOOKS, _AUDIT, _TUNING, _CROSS_LOSS, _GRADIENTS, _PAPER),
    )
}
STORED = [frame for frame in FRAMES.values() if not frame.made]
