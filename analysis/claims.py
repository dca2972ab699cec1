"""Table `claims`: the paper's testable claims, the statistic that decides each, and the verdict of these runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from pobench.registry import register_table
from pobench.reporting import plot
from pobench.results import stats
from pobench.results.arms import Arm, Line, arms_of, difference, homes_of, judges_of, lines_of, mean_of, of_arm
from pobench.types import Estimate

BINS = 8  # of length difference, with equal numbers of pairs, as in the figure; the paper's are 100 tokens wide
RIVALS = ("rrhf", "slic_hf", "dpo", "ipo", "cpo", "kto", "orpo", "rdpo")  # the paper's Table 4
LC = "LC points, Mistral-Base"


@register_table("claims", title="The paper's claims on these runs", chapter="results", order=2, every_arm=True)
def claims(
    runs: pd.DataFrame,
    heldout: pd.DataFrame | None = None,
    answers: pd.DataFrame | None = None,
    verdicts: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One rule decides every claim. Supported: the whole 95 % interval lies inside the claimed range; contradicted: the
    whole interval lies outside; undecided: otherwise, or without an interval. Not measured: n = 0. Where a loss was
    trained with several values of its settings, the setting's own values count. Differences are paired, by prompt or held-
    out pair and by seed. A claim about the smallest of several numbers (the best rival, the lowest bin) is supported only if
    each of them supports it, and contradicted only if one does so after Bonferroni's correction. The paper measured
    other models with other judges: compare the side of a number, not its size. With so many claims, one verdict in
    twenty may be chance."""
    evidence = Evidence(runs, heldout, answers, verdicts)
    rows = []
    for claim in CLAIMS:
        ours = claim.measure(evidence)
        rows.append(
            {
                "Claim": claim.says,
                "Verdict": verdict(ours, claim.above, claim.below),
                "Ours": ours,
                "Unit": claim.unit,
                "Paper": "not published" if claim.paper is None else f"{number(claim.paper)}, {claim.where}",
                "Statistic": claim.statistic,
                "Name": claim.name,
            }
        )
    table = pd.DataFrame(rows)
    if (table["Verdict"] == NOT_MEASURED).all():
        raise plot.NothingToDraw("No run measures any of the paper's claims.")
    counts = table["Verdict"].value_counts()
    verdicts = [f"{counts[v]} {v}" for v in VERDICTS if v in counts]
    table.attrs["marks"] = {"supported": "up", "contradicted": "down"}
    table.attrs["notes"] = f"Of {len(table)} claims: {', '.join(verdicts)}."
    return table


NOT_MEASURED = "not measured"
VERDICTS = ("supported", "contradicted", "undecided", NOT_MEASURED)


def verdict(ours: Estimate, above: float, below: float) -> str:
    """The verdict of an estimate on the claim that the true value lies between `above` and `below`."""
    if ours.n == 0 or math.isnan(ours.value):
        return NOT_MEASURED
    if ours.low > above and ours.high < below:
        return "supported"
    # an interval that only touches the bound, as when a single pair differs, decides nothing
    if ours.high < above or ours.low > below:
        return "contradicted"
    return "undecided"


def number(value: float) -> str:
    return f"{value:g}".replace("-", "−")


# ---------------------------------------------------------------- the data of the statistics

Values = pd.Series  # of one arm; index (seed, prompt or pair)


class Evidence:
    """The frames, and each arm's values by seed and by prompt or held-out pair."""

    def __init__(
        self,
        runs: pd.DataFrame,
        heldout: pd.DataFrame | None,
        answers: pd.DataFrame | None,
        verdicts: pd.DataFrame | None,
    ) -> None:
        self.runs = runs
        seeds = {str(row["run"]): int(row["seed"]) for row in runs.to_dict("records")}
        self.lines = {(line.loss, line.setting): line for line in lines_of(runs)}
        self.homes = homes_of(runs)
        self.start = next((arm for arm in arms_of(runs) if arm.is_start), None)

        def placed(frame: pd.DataFrame | None) -> pd.DataFrame | None:
            return None if frame is None else frame.assign(seed=frame["run"].map(seeds))

        self.heldout, self.answers, self.verdicts = placed(heldout), placed(answers), placed(verdicts)
        if self.verdicts is not None:
            self.verdicts = self.verdicts[self.verdicts["judge"].isin(judges_of(self.verdicts)[:1])]

    def arm(self, loss: str) -> Arm | None:
        """The loss's arm with the setting's own values."""
        return self.homes.get(loss)

    def line(self, loss: str, setting: str, points: int = 2) -> Line | None:
        """The loss's line along a setting, if it has at least this many points."""
        line = self.lines.get((loss, setting))
        return line if line is not None and len(line.points) >= points else None

    def held(self, arm: Arm | None) -> pd.DataFrame:
        """The held-out pairs of an arm; empty where there are none."""
        if arm is None or self.heldout is None:
            return pd.DataFrame(columns=["run", "seed", "pair"])
        return of_arm(self.heldout, arm)

    def cost(self, loss: str, column: str) -> pd.Series:
        """seed → a number of the `runs` frame, of the loss's arm."""
        arm = self.arm(loss)
        rows = self.runs.iloc[:0] if arm is None else of_arm(self.runs, arm)
        return pd.to_numeric(rows[column], errors="coerce").groupby(rows["seed"]).mean()

    # -- values of an arm

    def score(self, arm: Arm | None) -> Values:
        """The main judge's mean score of a prompt, in points (0 to 100)."""
        return self._prompts(self.verdicts, arm, "score", 100.0)

    def tokens(self, arm: Arm | None) -> Values:
        """The mean length of a prompt's answers."""
        return self._prompts(self.answers, arm, "tokens", 1.0)

    @staticmethod
    def _prompts(frame: pd.DataFrame | None, arm: Arm | None, column: str, scale: float) -> Values:
        if frame is None or arm is None:
            return pd.Series(dtype=float)
        rows = of_arm(frame, arm)
        return (
            scale * pd.to_numeric(rows[column], errors="coerce").groupby([rows["seed"], rows["prompt"]]).mean().dropna()
        )

    def pairs(self, arm: Arm | None, value: Callable[[pd.DataFrame], pd.Series]) -> Values:
        """A number of every held-out pair."""
        held = self.held(arm)
        if held.empty:
            return pd.Series(dtype=float)
        return value(held).astype(float).groupby([held["seed"], held["pair"]]).mean().dropna()


def accuracy(held: pd.DataFrame) -> pd.Series:
    """100 where the chosen answer has the higher reward, 50 for a tie, else 0."""
    return pd.Series(100 * stats.outcomes(held["chosen_reward"], held["rejected_reward"]), held.index)


def winner(held: pd.DataFrame) -> pd.Series:
    """The winner's log-probability, nats per token."""
    return held["chosen_logp"] / held["chosen_length"]


def kl(held: pd.DataFrame) -> pd.Series:
    """The winner's log-probability under the start model minus the policy's, nats per token."""
    return (held["reference_chosen_logp"] - held["chosen_logp"]) / held["chosen_length"]


minus = difference
SCALE = (-100.0, 100.0)  # ends of a difference of two shares, in points


def points(values: Values) -> Estimate:
    """The mean of differences of two shares. The interval allows for unseen differences even where all values agree."""
    return mean_of(values, SCALE)


# ---------------------------------------------------------------- the statistics

Measure = Callable[[Evidence], Estimate]


def score_gap(loss: str, rival: str) -> Measure:
    return lambda e: points(minus(e.score(e.arm(loss)), e.score(e.arm(rival))))


def least(gaps: Sequence[Values]) -> Estimate:
    """The smallest of several mean differences of shares, in points."""
    return stats.least([(g, g.index.get_level_values(1), g.index.get_level_values(0)) for g in gaps], bounds=SCALE)


def best_rival(e: Evidence) -> Estimate:
    gaps = [minus(e.score(e.arm("simpo")), s) for loss in RIVALS if len(s := e.score(e.arm(loss)))]
    return least([gap for gap in gaps if len(gap)])


def ends_gap(
    loss: str,
    setting: str,
    values: Callable[[Evidence, Arm], Values],
    over: Callable[[Values], Estimate] = mean_of,
) -> Measure:
    """The value at the largest value of a setting minus that at the smallest."""

    def measure(e: Evidence) -> Estimate:
        line = e.line(loss, setting)
        return over(minus(values(e, line.ends[1]), values(e, line.ends[0]))) if line else Estimate.missing()

    return measure


def peak_between(e: Evidence) -> Estimate:
    line = e.line("simpo", "gamma", points=3)
    if line is None:
        return Estimate.missing()
    inner = [s for _, arm in line.points[1:-1] if len(s := e.score(arm))]
    ends = [s for arm in line.ends if len(s := e.score(arm))]
    if len(ends) < 2 or not inner:
        return Estimate.missing()
    between = pd.concat(inner).groupby(level=[0, 1]).mean()
    return least([gap for end in ends if len(gap := minus(between, end))])


def margin_at_zero(e: Evidence) -> Estimate:
    line, home = e.line("simpo", "gamma"), e.arm("simpo")
    without = next((arm for value, arm in line.points if value == 0), None) if line else None
    return Estimate.missing() if without in (None, home) else points(minus(e.score(home), e.score(without)))


def worst_bin(loss: str) -> Measure:
    def measure(e: Evidence) -> Estimate:
        held = e.held(e.arm(loss))
        if held.empty:
            return Estimate.missing()
        longer = (held["chosen_length"] - held["rejected_length"]).to_numpy(float)
        margin = (held["chosen_reward"] - held["rejected_reward"]).to_numpy(float)
        line = plot.binned(longer, margin, held["pair"], held["run"], bins=BINS)
        if len(line) < 2:
            return Estimate.missing()
        place = np.searchsorted(line["low_edge"], longer, side="right") - 1
        inside = [place == k for k in range(len(line))]
        return stats.least([(margin[i], held["pair"][i], held["run"][i]) for i in inside])

    return measure


def margin_of_shorter(e: Evidence) -> Estimate:
    held = e.held(e.arm("simpo_no_ln"))
    if held.empty:
        return Estimate.missing()
    held = held[held["chosen_length"] < held["rejected_length"]]
    return stats.mean(held["chosen_reward"] - held["rejected_reward"], held["pair"], held["run"])


def rho_gap(loss: str, rival: str) -> Measure:
    """Difference of two Spearman correlations of the winners' log-probability per token with their length."""

    def measure(e: Evidence) -> Estimate:
        a, b = e.held(e.arm(loss)), e.held(e.start if rival == "start" else e.arm(rival))
        if a.empty or b.empty:
            return Estimate.missing()
        sides = [f.assign(x=f["chosen_length"], y=winner(f))[["seed", "pair", "x", "y"]] for f in (a, b)]
        on = ["pair"] if rival == "start" or not set(a["seed"]) & set(b["seed"]) else ["seed", "pair"]
        both = sides[0].merge(
            sides[1].drop(columns=[c for c in ("seed",) if c not in on]), on=on, suffixes=("", "_rival")
        )
        both = both.sort_values(["seed", "pair"], kind="stable")
        first, second = (both["x"], both["y"]), (both["x_rival"], both["y_rival"])
        return stats.spearman_difference(first, second, both["seed"])

    return measure


def disagreement(loss: str) -> Measure:
    def measure(e: Evidence) -> Estimate:
        held = e.held(e.arm(loss))
        if held.empty:
            return Estimate.missing()
        held = held.dropna(subset=["chosen_reward", "rejected_reward", "chosen_logp", "rejected_logp"])
        reward = held["chosen_reward"] > held["rejected_reward"]
        likely = held["chosen_logp"] / held["chosen_length"] > held["rejected_logp"] / held["rejected_length"]
        return stats.mean(100.0 * (reward != likely), held["pair"], held["run"], bounds=(0.0, 100.0))

    return measure


def cost_ratio(column: str) -> Measure:
    """SimPO's cost over DPO's, seed by seed."""

    def measure(e: Evidence) -> Estimate:
        ratios = (e.cost("simpo", column) / e.cost("dpo", column)).replace([np.inf, -np.inf], np.nan).dropna()
        return stats.student(ratios)

    return measure


def at_bias(e: Evidence, losses: Sequence[str]) -> list[tuple[Arm, Arm]]:
    """For each loss its arms without and with the largest length bias that all were trained with; empty if none."""
    lines = [line for loss in losses if (line := e.line(loss, "length_bias"))]
    shared = set.intersection(*(({v for v, _ in line.points}) for line in lines)) if lines else set()
    if len(lines) < len(losses) or 0.0 not in shared or max(shared) <= 0:
        return []
    return [(dict(line.points)[0.0], dict(line.points)[max(shared)]) for line in lines]


def ln_under_bias(e: Evidence) -> Estimate:
    arms = at_bias(e, ("dpo_ln", "dpo"))
    return points(minus(e.score(arms[0][1]), e.score(arms[1][1]))) if arms else Estimate.missing()


def longer_by_bias(e: Evidence) -> Estimate:
    arms = at_bias(e, ("simpo", "dpo"))
    if not arms:
        return Estimate.missing()
    simpo, dpo = (minus(e.tokens(biased), e.tokens(plain)) for plain, biased in arms)
    return mean_of(minus(simpo, dpo))


def length_gap(loss: str, rival: str) -> Measure:
    return lambda e: mean_of(minus(e.tokens(e.arm(loss)), e.tokens(e.arm(rival))))


def accuracy_gap(e: Evidence) -> Estimate:
    return points(minus(e.pairs(e.arm("simpo"), accuracy), e.pairs(e.arm("dpo"), accuracy)))


# ---------------------------------------------------------------- the claims


class Claim(NamedTuple):
    """A claim: the true value of the statistic that `measure` estimates lies between `above` and `below`.

    paper: the same statistic of the paper's printed numbers, None if there are none; where: their table or figure.
    """

    name: str
    says: str
    statistic: str
    unit: str
    measure: Measure
    above: float
    below: float
    paper: float | None
    where: str = ""


FAR = math.inf
POINTS, NATS, RHO = "points", "nats/token", "ρ"

CLAIMS = (
    Claim("simpo-above-dpo", "SimPO's answers score above DPO's", "mean score, SimPO − DPO", POINTS,
          score_gap("simpo", "dpo"), 0, FAR, 6.3, f"{LC}, Table 10"),
    Claim("simpo-above-best", "SimPO's answers score above those of its best rival",
          "mean score, SimPO − the best of the paper's other losses that were run", POINTS,
          best_rival, 0, FAR, 4.0, f"{LC}, Table 10 (R-DPO)"),
    Claim("margin-positive-everywhere", "SimPO's margin is positive whatever the length difference",
          f"mean reward margin in the lowest of {BINS} bins of length difference", "own unit",
          worst_bin("simpo"), 0, FAR, 0.32, "Mistral-Base, Fig. 2a at −200 tokens"),
    Claim("no-ln-margin-negative", "Without length normalisation the margin is negative where the winner is shorter",
          "mean reward margin of SimPO w/o LN over pairs with the shorter winner", "own unit",
          margin_of_shorter, -FAR, 0, -8.91, "Mistral-Base, Fig. 2a at −200 tokens"),
    Claim("rho-no-ln-above-dpo", "Likelihood follows length more without length normalisation than for DPO",
          "ρ(log-prob per token, length), SimPO w/o LN − DPO", RHO,
          rho_gap("simpo_no_ln", "dpo"), 0, FAR, 0.23, "Mistral-Base, Table 6"),
    Claim("rho-dpo-above-simpo", "Likelihood follows length more for DPO than for SimPO",
          "ρ(log-prob per token, length), DPO − SimPO", RHO,
          rho_gap("dpo", "simpo"), 0, FAR, 0.25, "Mistral-Base, Table 6"),
    Claim("rho-simpo-near-start", "SimPO leaves the start model's correlation with length as it was",
          "ρ(log-prob per token, length), SimPO − start; claimed: within ±0.1 (our bound)", RHO,
          rho_gap("simpo", "start"), -0.1, 0.1, 0.01, "Mistral-Base, Table 6 and Fig. 6a"),
    Claim("accuracy-rises-with-gamma", "A larger γ ranks more held-out pairs right",
          "reward accuracy of SimPO, largest γ − smallest", POINTS,
          ends_gap("simpo", "gamma", lambda e, arm: e.pairs(arm, accuracy), points), 0, FAR, 1.22, "Mistral-Base, Fig. 3a"),
    Claim("score-peaks-in-gamma", "Quality is best at a γ in between",
          "mean score of SimPO over the inner γ − the better of both ends", POINTS,
          peak_between, 0, FAR, 3.95, f"{LC}, Fig. 3a"),
    Claim("gamma-helps", "A margin above zero helps SimPO", "mean score, SimPO − SimPO at γ = 0", POINTS,
          margin_at_zero, 0, FAR, 4.7, f"{LC}, Table 5"),
    Claim("winners-fall-with-gamma", "A larger γ makes winners less likely",
          "log-probability of held-out winners under SimPO, largest γ − smallest", NATS,
          ends_gap("simpo", "gamma", lambda e, arm: e.pairs(arm, winner)), -FAR, 0, -1.33, "Mistral-Base, Fig. 3c"),
    Claim("ln-helps-simpo", "Length normalisation helps SimPO", "mean score, SimPO − SimPO w/o LN", POINTS,
          score_gap("simpo", "simpo_no_ln"), 0, FAR, 9.6, f"{LC}, Table 5"),
    Claim("ln-shortens-answers", "Length normalisation shortens SimPO's answers",
          "tokens of an answer, SimPO − SimPO w/o LN", "tokens",
          length_gap("simpo", "simpo_no_ln"), -FAR, 0, -152, "Arena-Hard, Mistral-Base, Table 11"),
    Claim("dpo-disagrees", "DPO's reward and likelihood disagree on about half of the pairs",
          "share of held-out pairs ranked differently by DPO's reward and by log-prob per token; "
          "claimed: between a third and two thirds (our bounds)", "%",
          disagreement("dpo"), 100 / 3, 200 / 3, 48.3, "Mistral-Base, Fig. 4b, on training pairs"),
    Claim("simpo-agrees", "SimPO's reward and likelihood never disagree",
          "share of held-out pairs ranked differently by SimPO's reward and by log-prob per token; "
          "claimed: below 5 % (our bound)", "%",
          disagreement("simpo"), -FAR, 5, 0, "Mistral-Base, Fig. 6b, on training pairs"),
    Claim("accuracy-simpo-above-dpo", "SimPO ranks more held-out pairs right than DPO",
          "reward accuracy, SimPO − DPO", POINTS, accuracy_gap, 0, FAR, 2.3, "Mistral-Base, Fig. 4c"),
    Claim("kl-falls-with-beta-dpo", "A larger β keeps DPO nearer to the start model",
          "KL on held-out winners, DPO's largest β − smallest", NATS,
          ends_gap("dpo", "beta", lambda e, arm: e.pairs(arm, kl)), -FAR, 0, -0.393, "Mistral-Base, Fig. 5a"),
    Claim("kl-falls-with-beta-simpo", "A larger β keeps SimPO nearer to the start model",
          "KL on held-out winners, SimPO's largest β − smallest", NATS,
          ends_gap("simpo", "beta", lambda e, arm: e.pairs(arm, kl)), -FAR, 0, -0.116, "Mistral-Base, Fig. 5a"),
    Claim("score-falls-with-beta-dpo", "DPO's answers score lower with a large β",
          "mean score, DPO's largest β − smallest", POINTS,
          ends_gap("dpo", "beta", Evidence.score, points), -FAR, 0, -5.3, f"{LC}, Fig. 5b"),
    Claim("score-falls-with-beta-simpo", "SimPO's answers score lower with a large β",
          "mean score, SimPO's largest β − smallest", POINTS,
          ends_gap("simpo", "beta", Evidence.score, points), -FAR, 0, -2.3, f"{LC}, Fig. 5b"),
    Claim("reference-free-is-faster", "SimPO trains faster than DPO",
          "seconds of all training steps, SimPO / DPO, over seeds; the reference's pass, done once and stored, not in it",
          "ratio", cost_ratio("seconds"), -FAR, 1, 0.82, "Llama-3-Base, Fig. 5c"),
    Claim("reference-free-is-smaller", "SimPO needs less memory than DPO", "peak memory, SimPO / DPO, over seeds",
          "ratio", cost_ratio("peak_memory"), -FAR, 1, 0.9, "Llama-3-Base, Fig. 5c"),
    Claim("ln-helps-dpo", "Length normalisation helps DPO", "mean score, DPO w/ LN − DPO", POINTS,
          score_gap("dpo_ln", "dpo"), 0, FAR, 5.9, f"{LC}, Table 15 (Mistral-Instruct: −5.1)"),
    Claim("gamma-no-help-dpo", "A margin gives DPO no gain to speak of",
          "mean score, DPO w/ γ − DPO; claimed: below one point (our bound)", POINTS,
          score_gap("dpo_gamma", "dpo"), -FAR, 1, 0.1, f"{LC}, Table 15 (Mistral-Instruct: −3.8)"),
    Claim("sft-term-hurts", "An SFT term costs SimPO quality", "mean score, SimPO w/ SFT − SimPO", POINTS,
          score_gap("simpo_sft", "simpo"), -FAR, 0, -12.3, "LC points, Llama-3-Instruct v0.2, Table 14"),
    Claim("score-rises-with-rate", "A larger learning rate scores higher", "mean score of SimPO, largest rate − smallest",
          POINTS, ends_gap("simpo", "lr", Evidence.score, points), 0, FAR, 14.9, "LC points, Llama-3-Instruct v0.2, Table 16"),
    Claim("ln-helps-dpo-under-bias", "Length normalisation helps DPO where labels prefer length",
          "mean score at the largest length bias, DPO w/ LN − DPO", POINTS, ln_under_bias, 0, FAR, None),
    Claim("bias-lengthens-dpo-more", "A length bias of the labels lengthens DPO's answers more than SimPO's",
          "tokens of an answer, what the largest length bias adds: SimPO − DPO", "tokens",
          longer_by_bias, -FAR, 0, None),
)  # fmt: skip
