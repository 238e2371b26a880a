from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels import conv2d_resample_triton
from kernels.conv2d_resample import ResampledConv, conv2d_resample
from kernels.conv_geometry import Geometry
from kernels.conv_plan import composes
from kernels.dispatch import KernelUnavailableError, use
from kernels.launch import recording
from kernels.upfirdn2d import setup_filter
from tests.kernels.interpreted.agreement import assert_agrees

Tensors = dict[str, Tensor]
FIRS = {"fir": setup_filter([1, 3, 3, 1]), "separable": setup_filter([1, 2, 4, 1, 3, 2, 1, 1]), "none": None}
CONVS = {
    "same": ResampledConv(padding=1),
    "true-convolution": ResampledConv(padding=(2, 1, 0, -1), flip_weight=False),
    "up": ResampledConv(up=2, padding=1, flip_weight=False),
    "up-3": ResampledConv(up=3, padding=(1, 0, 2, 1), flip_filter=True),
    "down": ResampledConv(down=2, padding=1),
    "up-down": ResampledConv(up=2, down=2, padding=1),
}


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def layer(conv: ResampledConv, fir: Tensor | None = FIRS["fir"]) -> Callable[[Tensors], Tensor]:
    return lambda t: conv2d_resample(t["x"], t["weight"], fir, conv)


@pytest.mark.parametrize(("name", "kernel"), [*((name, 3) for name in CONVS), ("up", 1), ("down", 1)])
def test_conv2d_resample_agrees(name: str, kernel: int) -> None:
    inputs = {"x": draw(2, 5, 4, 7), "weight": draw(7, 5, kernel, kernel)}
    assert_agrees(layer(CONVS[name]), inputs, torch.float32, orders=1)


@pytest.mark.parametrize("fir", ["separable", "none"])
@pytest.mark.parametrize("name", ["up", "down"])
def test_conv2d_resample_takes_any_filter(name: str, fir: str) -> None:
    inputs = {"x": draw(2, 5, 7, 8), "weight": draw(3, 5, 3, 3) / 7}
    assert_agrees(layer(CONVS[name], FIRS[fir]), inputs, torch.float16, orders=1)


def test_conv2d_resample_takes_slices() -> None:
    inputs = {"x": draw(2, 10, 7, 8), "weight": draw(3, 10, 3, 3)}
    assert_agrees(
        lambda t: conv2d_resample(t["x"][:, ::2], t["weight"][:, ::2], FIRS["fir"], CONVS["down"]),
        inputs,
        torch.float32,
        orders=1,
    )


def test_conv2d_resample_says_what_it_does_not_take() -> None:
    x, weight = torch.ones(1, 4, 4, 4), torch.ones(6, 2, 3, 3)
    with pytest.raises(KernelUnavailableError, match="all channels as one group, and not 2 groups"):
        conv2d_resample(x, weight, None, ResampledConv(padding=1, groups=2))
    with pytest.raises(KernelUnavailableError, match="up to 24 taps along an axis, and this one has 25"):
        conv2d_resample(x, weight[:, :1].expand(6, 4, 3, 3), torch.ones(25, 25), CONVS["up"])
    with use("auto"):
        assert conv2d_resample(x, weight, None, ResampledConv(padding=1, groups=2)).shape == (1, 6, 4, 4)


@pytest.mark.parametrize("fir", ["fir", "separable", "uneven"])
@pytest.mark.parametrize(
    "conv",
    [
        ResampledConv(up=2, padding=(2, 1, 0, 1), flip_weight=False, flip_filter=True),
        ResampledConv(up=3, padding=1),
        ResampledConv(up=2, down=2, padding=1),
    ],
    ids=str,
)
def test_conv2d_resample_of_weight_and_filter_in_one_agrees(
    conv: ResampledConv, fir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uneven = torch.tensor([[1.0, 2, 3], [0, 5, 4], [1, 7, 2], [3, 1, 1]])
    monkeypatch.setattr(conv2d_resample_triton, "composes", lambda *_: True)
    inputs = {"x": draw(2, 5, 4, 3), "weight": draw(3, 5, 3, 3)}
    with torch.no_grad():
        assert_agrees(layer(conv, FIRS.get(fir, uneven)), inputs, torch.float32, orders=0)


def test_conv2d_resample_sees_a_weight_or_filter_that_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv2d_resample_triton, "composes", lambda *_: True)
    x, weight, fir = draw(1, 3, 2, 2).float(), draw(2, 3, 3, 3).float(), setup_filter([1, 3, 3, 1])
    with torch.no_grad():
        before = conv2d_resample(x, weight, fir, CONVS["up"])
        assert torch.equal(conv2d_resample(x, weight, fir, CONVS["up"]), before)
        weight.mul_(2)
        torch.testing.assert_close(conv2d_resample(x, weight, fir, CONVS["up"]), 2 * before)
        fir.mul_(2)
        torch.testing.assert_close(conv2d_resample(x, weight, fir, CONVS["up"]), 4 * before)
        torch.testing.assert_close(conv2d_resample(x, weight, fir / 2, CONVS["up"]), 2 * before)


@pytest.mark.parametrize(("inputs", "wins"), [(32, True), (64, True), (128, False), (512, False)])
def test_weight_and_filter_become_one_where_memory_is_the_limit(inputs: int, wins: bool) -> None:
    geometry = Geometry.upsampling((64, 64), (3, 3), 2, flipped=True)
    x = torch.empty(1, inputs, 64, 64, dtype=torch.float16, device="meta")
    with recording(90):
        assert composes(x, geometry, inputs // 2, (4, 4)) is wins


@torch.no_grad()
def test_what_is_composed_for_a_cuda_graph_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv2d_resample_triton, "composes", lambda *_: True)
    x, weight, fir = draw(1, 3, 4, 4).float(), draw(2, 3, 3, 3).float(), setup_filter([1, 3, 3, 1])

    def composed(fir: Tensor) -> Tensor:
        return conv2d_resample_triton.begin_resampled(x, weight, fir, CONVS["up"])[1]

    assert composed(fir) is composed(fir)
    other = fir.clone()
    with monkeypatch.context() as capture:
        capture.setattr(conv2d_resample_triton, "is_captured", lambda _: True)
        assert composed(other) is not composed(other)
    assert composed(other) is composed(other)
