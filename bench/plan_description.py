"""A plan in lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from bench.model_weights import model_named
from bench.plan import REAL, Plan, PlanOptions, needed_weights
from bench.progress import format_duration
from bench.weights import WEIGHTS, find_weights


def describe(plan: Plan, options: PlanOptions) -> Iterator[str]:
    """The plan in lines for the terminal."""
    yield f"suite     {plan.suite.name}: {plan.suite.summary}"
    yield f"chosen    {plan.reason}"
    for stage in plan.stages:
        entry = stage.entry
        subjects = ", ".join([REAL, *entry.models])
        yield f"  {entry.title:<14} {len(stage.dataset):>6,} images, {stage.num_images:,} a subject: {subjects}"
    for line in plan.skipped:
        yield f"  left out: {line}"
    for model in dict.fromkeys(model for stage in plan.stages for model in stage.entry.models):
        yield f"  weights {model:<14} {_weights_state(model, options)}"
    for name in needed_weights(plan):
        found = find_weights(name, options.network_weights)
        state = f"here, sha256 {found.sha256[:8]}" if found else "not here"
        yield f"  weights {name:<14} {state}; {format_megabytes(WEIGHTS[name].size_bytes)}"
    yield f"expected  {len(plan.tasks)} tasks, about {format_duration(plan.estimate_s)} on {plan.device}"


def format_megabytes(size_bytes: int) -> str:
    """ "96 MB", and "-" where the size is not known."""
    return f"{size_bytes / 1e6:,.0f} MB" if size_bytes else "-"


def _weights_state(model: str, options: PlanOptions) -> str:
    if path := options.model_weights.get(model):
        return f"here, {path.name}"
    if model_named(model).checkpoint is None:
        return "random: none were published"
    return f"random; `python -m bench fetch {model}` gets the official ones"
