from __future__ import annotations

import pytest
import torch

from kernels.demodulation import demodulation, demodulation_reference
from kernels.demodulation_triton import PackedEnergy, demodulations_triton, packed_energy
from tests.kernels.interpreted.agreement import DTYPES, assert_agrees


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "o", "i", "k"), [(3, 7, 5, 3), (17, 70, 130, 1), (1, 32, 64, 3)])
def test_demodulation_agrees(n: int, o: int, i: int, k: int, dtype: torch.dtype) -> None:
    inputs = {"weight": draw(o, i, k, k), "styles": draw(n, i) + 1}
    assert_agrees(lambda t: demodulation(t["weight"], t["styles"]), inputs, dtype)


def test_demodulations_do_all_layers_in_one_launch() -> None:
    weights = [draw(o, i, k, k).float() for o, i, k in ((33, 70, 3), (5, 33, 1), (64, 5, 3))]
    styles = [draw(2, weight.shape[1]).float() + 1 for weight in weights]
    factors = demodulations_triton(PackedEnergy.of(weights), torch.cat(styles, 1))
    want = [demodulation_reference(w, s) for w, s in zip(weights, styles, strict=True)]
    torch.testing.assert_close(factors, torch.cat(want, 1))


def test_demodulations_names_wrong_styles() -> None:
    with pytest.raises(ValueError, match=r"styles \[2, 4\] for layers \(\(3, 5\),\); allowed is \[N, 5\]"):
        demodulation(torch.ones(3, 5, 1, 1), torch.ones(2, 4))


@torch.inference_mode()
def test_packed_energy_takes_weights_that_count_no_changes() -> None:
    weights = [draw(3, 5, 1, 1).float(), draw(4, 3, 3, 3).float()]
    before = packed_energy(weights).values
    weights[1].mul_(2)
    torch.testing.assert_close(packed_energy(weights).values, torch.cat([before[:15], 4 * before[15:]]))
