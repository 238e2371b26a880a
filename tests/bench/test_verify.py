from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.verify import VerificationError, verify_generator
from models.spec import Condition, Latents
from tests.bench.test_sampling import Stripes

CPU = torch.device("cpu")


class BatchDependent(Stripes):
    """Wrong on purpose: the image of a sample changes with the samples beside it."""

    def sample(self, latents: Latents, condition: Condition = None) -> Tensor:
        return super().sample({"z": latents["z"] - latents["z"].mean()}, condition)


class Imprecise(Stripes):
    """Wrong on purpose: float32 is far from float64."""

    def sample(self, latents: Latents, condition: Condition = None) -> Tensor:
        shift = 0.0 if self.gain.dtype == torch.float64 else 1.0
        return super().sample({"z": latents["z"] + shift}, condition)


class WrongShape(Stripes):
    def sample(self, latents: Latents, condition: Condition = None) -> Tensor:
        return super().sample(latents, condition)[:, :1]


def test_right_generator_is_verified() -> None:
    assert verify_generator(Stripes(), CPU).max_grey_levels <= 1


class SlightlyOff(Stripes):
    """Wrong on purpose: one pixel of the float32 image is off, which hardly moves the PSNR."""

    def sample(self, latents: Latents, condition: Condition = None) -> Tensor:
        images = super().sample(latents, condition)
        images[:, 0, 0, 0] += 3 if self.gain.dtype == torch.float32 else 0
        return images


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (SlightlyOff, "float64 copy"),
        (BatchDependent, "itself in a batch"),
        (Imprecise, "float64 copy"),
        (WrongShape, "is expected"),
    ],
)
def test_wrong_generator_is_never_timed(wrong: type[Stripes], message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        verify_generator(wrong(), CPU)
