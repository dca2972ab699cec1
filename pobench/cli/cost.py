"""The cost of a plan, as run, study and tune print it with --dry-run."""

from __future__ import annotations

from typing import Any

from pobench.cli.terminal import escape, out
from pobench.printing import size


def print_cost(plan: dict[str, Any], before: str) -> None:
    """Print time, memory on each device, disk and judge, behind the text `before`."""
    cost = plan["cost"]
    parts = []
    if cost["seconds"] is not None:
        many = f" on {cost['devices']} devices" if cost.get("devices", 1) > 1 else ""
        minutes, hours = cost["seconds"] / 60, cost["seconds"] / 3600
        parts.append(f"time: about {f'{minutes:.1f} min' if minutes < 90 else f'{hours:.1f} h'}{many}")
        if (cost.get("device_hours") or 0) >= 1:
            parts[0] += f", {cost['device_hours']:.1f} device hours in all"
        parts[0] += f" ({cost['basis']})"
    elif cost["memory"] is None:
        out.print(f"{before}cost: not known ({escape(cost['basis'])})", highlight=False)
        return
    else:
        parts.append(f"time: not known ({cost['basis']})")
    if cost["memory"] is not None:
        over = not cost.get("sharded") and cost["memory"] > 80 * 1024**3
        apart = " (pobench plan --hardware 8x80 says what fits where)" if over else ""
        apart = ", weights split over them" if cost.get("sharded") else apart
        parts.append(f"memory on each device: about {size(cost['memory'])}{apart}")
    if cost["disk"] is not None:
        parts.append(f"disk: about {size(cost['disk'])}")
    calls = cost.get("judge_calls", 0)
    price = f", {calls} calls, up to {cost['judge_tokens'] / 1e6:.1f} million tokens" if calls else ", free"
    parts.append(f"judge: {plan['judge'] or 'none'}{price}")
    out.print(before + escape(" · ".join(parts)), highlight=False)
    for line in memory_lines(cost):
        out.print(escape(line), highlight=False)
    for row in plan.get("benchmarks", ()):
        out.print(escape(_benchmark_cost(row)), highlight=False)


WORDS = {
    "masters": "weights",
    "copies": "weights in the type of the product",
    "logits": "logits and the head",
    "layer": "a layer at work",
    "buckets": "gradients on their way",
    "start_model": "start model",
    "staged": "copy for a checkpoint",
    "cache": "keys and values",
    "reading": "prompts being read",
}


def memory_lines(cost: dict[str, Any]) -> list[str]:
    """A line on the memory of training, part by part, and one on that of answering, where the estimate has them."""
    lines = []
    if cost.get("parts"):
        shared = f", split over {cost['devices']} devices" if cost["sharded"] else ""
        how = f"training (micro-batches of {cost['micro_tokens']} tokens{shared})"
        at_work = ("logits", "layer", "buckets")
        stays = {name: value for name, value in cost["parts"].items() if name not in at_work}
        works = {name: cost["parts"][name] for name in at_work}
        lines.append(f"{how}: {_amounts(stays)}; the largest of {_amounts(works)}")
    if cost.get("answering"):
        whole = sum(cost["answering"].values())
        lines.append(f"answering (a full batch at its longest): {_amounts(cost['answering'])}; {size(whole)} in all")
    return lines


def _amounts(parts: dict[str, float]) -> str:
    return ", ".join(f"{WORDS.get(name, name)} {size(value)}" for name, value in parts.items() if value)


def _benchmark_cost(row: dict[str, Any]) -> str:
    part = f", {row['part']}" if row["part"] else ""
    head = f"{row['benchmark']}: {row['models']} models{part}"
    if row["spoken_tokens"]:
        head += f", up to {row['spoken_tokens'] / 1e6:.2g} million tokens generated"
    if not row["requests"]:
        return head
    price = "price not known" if row["dollars"] is None else f"at most about ${row['dollars']:.2f}"
    read = f"{row['prompt_tokens'] / 1e6:.2g} million tokens read and {row['reply_tokens'] / 1e6:.2g} written"
    return f"{head} · {row['judge']}: {row['requests']} requests, up to {read}, {price}"
