"""The conditions under which a generator is timed. Numbers of different conditions never share a column."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from bench.errors import UserError, did_you_mean
from bench.sampling import reads_prompts
from bench.verify import MAX_GREY_LEVELS, VerificationError, difference, draw_batch
from models.cuda_graphs import GraphedGenerator
from models.spec import Condition, ImageGenerator, Latents

CONDITIONS = {
    "eager": "as the program runs it, from latents (and text features) to pixels",
    "compiled": "torch.compile, max-autotune on a GPU; compiling is not in the times",
    "graphs": "CUDA graphs, one for each batch size; capturing is not in the times",
    "text": "eager, from latents and prompts: the text encoder is in the times",
}

Sample = Callable[[Latents, Condition], Tensor]
Compiler = Callable[[Sample, torch.device], Sample]


class UnfitConditionError(Exception):
    """A generator can't run under a condition; the message says why."""


@dataclass(frozen=True, slots=True)
class TimedSampler:
    """How a generator is called under one condition, and what it took to get there."""

    generator: ImageGenerator
    condition: str
    sample: Sample
    setup_s: float | None = None  # compiling or capturing, for the first batch

    def batch(self, batch_size: int, device: torch.device) -> Callable[[], Tensor]:
        """A call that makes a batch on the device, uint8 `[N, 3, H, W]`."""
        latents, condition = draw_batch(self.generator, batch_size, device)
        if self.condition == "text":
            condition = [f"a photo of sample {index}" for index in range(batch_size)]
        return lambda: self.sample(latents, condition)

    @property
    def label(self) -> str:
        """What tells the metric's names of this condition apart; nothing for the plain one."""
        return "" if self.condition == "eager" else f" ({self.condition})"

    def facts(self) -> dict[str, Any]:
        """What a row says of the condition."""
        facts: dict[str, Any] = {
            "execution": "eager" if self.condition == "text" else self.condition,
            "tf32": bool(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32),
            "num_gpus": 1,
        }
        if self.generator.conditioning == "text":
            facts["text_encoder"] = "included" if self.condition == "text" else "not included"
        return facts


def check_condition(name: str) -> None:
    """Raise `UserError`, with the nearest name, for an unknown condition."""
    if name not in CONDITIONS:
        hint = did_you_mean(name, CONDITIONS)
        raise UserError(f"unknown speed condition {name!r}.{hint} Allowed: {', '.join(CONDITIONS)}.")


def compile_sample(sample: Sample, device: torch.device) -> Sample:
    """torch.compile at its best; graphs are a condition of their own."""
    mode = "max-autotune-no-cudagraphs" if device.type == "cuda" else "default"
    return cast("Sample", torch.compile(sample, mode=mode, dynamic=False))


def prepare(
    generator: ImageGenerator, condition: str, device: torch.device, compiler: Compiler = compile_sample
) -> TimedSampler:
    """Make a generator ready to be timed under a condition, and hold its images against the eager ones.

    Raises:
        UnfitConditionError: it can't run so, or not here.
        VerificationError: its images are other ones.
    """
    if condition == "eager":
        return TimedSampler(generator, condition, generator.sample)
    if condition == "text":
        if not reads_prompts(generator):
            raise UnfitConditionError("the generator has no text encoder here")
        return TimedSampler(generator, condition, generator.sample)
    if condition == "graphs" and device.type != "cuda":
        raise UnfitConditionError("CUDA graphs run on a GPU only")
    started = time.perf_counter()
    run = GraphedGenerator(generator).sample if condition == "graphs" else compiler(generator.sample, device)
    latents, given = draw_batch(generator, 1, device)
    try:
        images = run(latents, given)
    except RuntimeError as error:
        raise UnfitConditionError(f"{condition} failed: {str(error).splitlines()[0][:200]}") from error
    setup_s = time.perf_counter() - started
    levels = difference(images, generator.sample(latents, given)).max_grey_levels
    if levels > MAX_GREY_LEVELS:
        raise VerificationError(f"{condition}: the image differs from the eager one by {levels} grey levels")
    return TimedSampler(generator, condition, run, setup_s)
