"""Whole generators as rows of `bench kernels`: from latents to pixels, with every kernel in one form."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bench.kernel_speed.contenders import IMPLEMENTATIONS, Form, Outputs, Run
from bench.model_weights import load_model, model_named
from bench.verify import MIN_PSNR_DB, VerificationError, difference, draw_batch
from kernels.dispatch import use
from models.layers import labels_checked

GENERATOR = "generator"  # in the place of a kernel's name
CONDITION = ""  # what goes in beside the latents


@dataclass(frozen=True, slots=True)
class GeneratorCase:
    """What one row measures: a registered model with random weights, each layer in the dtype that it is run in."""

    model: str
    batch: int
    kernel: str = GENERATOR
    dtype: str = "float16"
    has_grouped: bool = True
    moved_bytes: int = 0
    against: str = ""

    @property
    def subject(self) -> str:
        """The name of the row."""
        return self.model

    @property
    def flops(self) -> int:
        """Not a floor: layers differ in dtype and in what bounds them."""
        return 0

    def fields(self) -> dict[str, Any]:
        """What tells this row from others of the same model, and what it is."""
        return {
            "batch_size": self.batch,
            "dtype": "float16 where published",
            "direction": "forward",
            "resolution": model_named(self.model).resolution,
        }

    def resources(self, device: torch.device) -> dict[str, float]:  # noqa: ARG002
        """Those of many kernels are no one's."""
        return {}

    def work(self, device: torch.device) -> GeneratorWork:
        """The generator and its latents."""
        return GeneratorWork(self, device)


@functools.lru_cache(maxsize=1)
def _generator(model: str, device: torch.device) -> Any:
    """The one that rows of other batch sizes use too."""
    return load_model(model, None, model_named(model).num_classes, 0, device).generator


class GeneratorWork:
    """A generator with a batch of latents; keeps the protocol `Work`."""

    def __init__(self, case: GeneratorCase, device: torch.device) -> None:
        self.case, self.device = case, device
        self.generator = _generator(case.model, device)
        latents, condition = draw_batch(self.generator, case.batch, device)
        self.inputs: dict[str, Tensor] = dict(latents)
        if isinstance(condition, Tensor):
            self.inputs[CONDITION] = condition

    def tensors(self, form: Form) -> Sequence[Tensor]:  # noqa: ARG002
        """The latents, and labels or features of texts."""
        return list(self.inputs.values())

    def prepared(self, form: Form, tensors: Sequence[Tensor]) -> Run:
        """A call that makes the pixels."""
        inputs = dict(zip(self.inputs, tensors, strict=True))
        condition = inputs.pop(CONDITION, None)

        def run() -> Outputs:
            with use(IMPLEMENTATIONS[form]), labels_checked():
                return [self.generator.sample(inputs, condition)]

        return run

    @cached_property
    def expected(self) -> Tensor:
        """The first image by a float64 copy."""
        exact = copy.deepcopy(self.generator).double()
        inputs = {name: value[:1] for name, value in self.inputs.items()}
        condition = inputs.pop(CONDITION, None)
        latents = {name: value.double() for name, value in inputs.items()}
        with use("reference"):
            image: Tensor = exact.sample(latents, condition)
        return image

    def check(self, outputs: Sequence[Tensor], form: Form) -> float:  # noqa: ARG002
        """The root mean square of what the first image is off by, in grey levels over 255.

        Raises `VerificationError` where that is less than `MIN_PSNR_DB`: networks run in part in half precision.
        """
        found = difference(outputs[0][:1], self.expected)
        if not found.psnr_db >= MIN_PSNR_DB:
            raise VerificationError(f"the image has {found.psnr_db:.1f} dB against float64; allowed are {MIN_PSNR_DB}")
        return float(10 ** (-found.psnr_db / 20))
