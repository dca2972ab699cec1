"""Every frame's columns: what they are called, their order, and which are measured."""

from __future__ import annotations

_SORTED_BY = {
    "runs": ["run"],
    "steps": ["run", "step"],
    "heldout": ["run", "pair"],
    "norms": ["run", "pair"],
    "answers": ["run", "prompt", "sample"],
    "verdicts": ["run", "prompt", "sample", "judge"],
    "scores": ["run", "metric"],
    "benchmarks": ["run", "benchmark", "metric", "judge"],
    "audit": ["setting", "fault"],
    "tuning": ["setting", "loss", "study", "trial"],
}
_RUN_COLUMNS = (
    *("run", "setting", "kind", "loss", "title", "seed", "settings", "lr", "epochs", "batch_size", "start", "pairs"),
    *("seconds", "peak_memory", "tokens", "status", "reason", "order", "protocol", "note", "environment", "sources"),
)

_WITHOUT = {
    "runs": "There are no runs",
    "steps": "No run has logged a training step",
    "heldout": "No run has held-out log-probabilities",
    "norms": "No run has gradient norms (`--stages norms`)",
    "answers": "No run has written answers",
    "verdicts": "No answer has been judged",
    "scores": "No run has been scored",
    "cross_loss": "No run has held-out log-probabilities",
    "gradients": "No run has held-out log-probabilities",
    "paper": "The paper's numbers are not there",
    "benchmarks": "No benchmark has been run (`--stages benchmarks`)",
    "audit": "There is no data audit",
    "tuning": "No search has been made (`pobench tune`)",
}

FRAMES = (
    *("runs", "steps", "heldout", "norms", "answers", "verdicts", "scores", "benchmarks", "audit", "tuning"),
    *("cross_loss", "gradients", "paper"),  # made from others, see `pobench.results.derived`
)

COLUMNS = {
    "runs": "run setting kind loss title seed settings lr epochs batch_size start pairs seconds peak_memory tokens status "
    "reason order protocol note environment sources length_bias",
    "steps": "run step epoch loss lr grad_norm rewards/chosen rewards/rejected rewards/margins rewards/accuracies logps/chosen "
    "logps/rejected logps/chosen_per_token logps/rejected_per_token saturated kl seconds "
    "heldout/kl heldout/chosen_per_token heldout/accuracy heldout/margin",
    "heldout": "run pair chosen_logp rejected_logp chosen_length rejected_length reference_chosen_logp reference_rejected_logp "
    "loss chosen_reward rejected_reward mismatched_logp reference_mismatched_logp",
    "norms": "run pair chosen_norm rejected_norm product",
    "answers": "run prompt sample kind topic instruction text tokens finished",
    "verdicts": "run prompt sample judge score",
    "scores": "run metric value low high n better",
    "audit": "setting fault count rows data",
    "benchmarks": "run setting loss seed benchmark metric value low high n judge name limit",
    "tuning": "setting loss study sampler trial lr settings metric better value low high n start chosen status reason runs",
}
