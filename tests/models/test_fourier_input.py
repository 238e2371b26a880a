from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from models.fourier_input import SynthesisInput
from models.layers import initialise

SIZE, RATE, BANDWIDTH, MARGIN = 28, 16.0, 2.5, 6


def make(channels: int = 7, w_dim: int = 5) -> SynthesisInput:
    """Features whose style rotates and shifts them."""
    made = SynthesisInput(w_dim, channels, SIZE, RATE, BANDWIDTH)
    initialise(made, 0)
    with torch.no_grad():
        made.affine.weight.copy_(torch.randn(4, w_dim, generator=torch.Generator().manual_seed(1)))
    return made


def styles(number: int = 2) -> Tensor:
    return torch.randn(number, 5, generator=torch.Generator().manual_seed(2))


def one_feature(made: SynthesisInput, w: Tensor, row: int, column: int) -> list[float]:
    """Section 3.2 written out for one pixel of one sample, in Python's own float64."""
    cos, sin, x, y = (
        sum(a * b for a, b in zip(weights, w.tolist(), strict=True)) / math.sqrt(len(w)) + bias
        for weights, bias in zip(made.affine.weight.tolist(), made.affine.bias.tolist(), strict=True)
    )
    length = math.hypot(cos, sin)
    cos, sin, x, y = cos / length, sin / length, x / length, y / length
    at = [(column + 0.5 - SIZE / 2) / RATE, (row + 0.5 - SIZE / 2) / RATE, 1.0]
    user = made.transform.tolist()
    at = [sum(user[i][j] * at[j] for j in range(3)) for i in range(2)]
    at = [cos * (at[0] - x) - sin * (at[1] - y), sin * (at[0] - x) + cos * (at[1] - y)]
    waves = []
    for (fx, fy), phase in zip(made.freqs.tolist(), made.phases.tolist(), strict=True):
        styled = [fx * cos + fy * sin, -fx * sin + fy * cos]
        turned = [styled[0] * user[0][j] + styled[1] * user[1][j] for j in range(2)]
        fade = 1 - (math.hypot(*turned) - BANDWIDTH) / (RATE / 2 - BANDWIDTH)
        waves.append(math.sin(2 * math.pi * (fx * at[0] + fy * at[1] + phase)) * min(max(fade, 0), 1))
    mix = made.weight.tolist()
    return [sum(m * wave for m, wave in zip(row_of, waves, strict=True)) / math.sqrt(len(waves)) for row_of in mix]


def test_features_are_the_waves_of_the_paper() -> None:
    made, w = make(), styles()
    angle = 0.3
    shrink = torch.tensor([[1.4 * math.cos(angle), 1.4 * math.sin(angle), 0.2], [-1.2 * math.sin(angle), 1.2, 0.1]])
    made.transform[:2] = shrink  # frequencies rise, and some of them fade
    features = made(w)
    assert features.shape == (2, 7, SIZE, SIZE)
    for sample, row, column in [(0, 0, 0), (0, 3, 20), (1, 27, 1), (1, 14, 13)]:
        expected = one_feature(made, w[sample], row, column)
        assert features[sample, :, row, column].tolist() == pytest.approx(expected, abs=2e-6)


def test_users_shift_by_whole_pixels_moves_the_features() -> None:
    made, w = make(), styles()
    with torch.no_grad():
        still = made(w)
        made.transform[0, 2], made.transform[1, 2] = 2 / RATE, -3 / RATE
        moved = made(w)
    assert torch.allclose(moved[:, :, 3:, :-2], still[:, :, :-3, 2:], atol=1e-5)
    assert (moved - still).abs().max() > 0.1


def test_users_quarter_turn_turns_the_features() -> None:
    made, w = make(), styles()
    with torch.no_grad():
        still = made(w)
        made.transform.copy_(torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]))
        turned = made(w)
    assert torch.allclose(turned, still.rot90(-1, (2, 3)), atol=1e-5)


def test_start_of_training_draws_frequencies_of_the_disc_and_leaves_them_in_place() -> None:
    made = SynthesisInput(5, 4000, SIZE, RATE, BANDWIDTH)
    initialise(made, 3)
    radii = made.freqs.norm(dim=1)
    assert radii.max() <= BANDWIDTH
    assert (radii < BANDWIDTH / 2).float().mean() == pytest.approx(0.25, abs=0.03)  # uniform over the disc
    assert made.phases.abs().max() <= 0.5
    assert torch.equal(made.transform, torch.eye(3))
    placed = made.affine(styles())
    assert torch.equal(placed, torch.tensor([[1.0, 0, 0, 0]] * 2, dtype=torch.float64))


def test_float64_copy_stays_float64_and_agrees() -> None:
    made, w = make(), styles()
    single, exact = made(w), copy.deepcopy(made).double()(w.double())
    assert (single.dtype, exact.dtype) == (torch.float32, torch.float64)
    assert (single - exact).abs().max() < 1e-6
