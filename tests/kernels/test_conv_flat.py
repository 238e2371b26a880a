from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.conv_flat import choose_flat_tile, flat_limit, flat_pays, offset_of, reciprocal_of
from kernels.conv_geometry import Geometry
from kernels.conv_plan import NO_FUSION, Colours, Fusion
from kernels.flat_image import pitch_of
from kernels.launch import recording

SAME = Geometry.of((64, 64), (3, 3), (1, 1, 1, 1))
META = torch.device("meta")


def image(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


X = image(16, 512, 64, 64)


@pytest.mark.parametrize(
    ("x", "geometry", "outputs", "fusion", "words"),
    [
        (X.float(), SAME, 512, NO_FUSION, "float16 and bfloat16, and not torch.float32"),
        (X, Geometry.upsampling((64, 64), (3, 3), 2, flipped=True), 512, NO_FUSION, "up by 2 and down by 1"),
        (X, Geometry.of((64, 64), (5, 5), (2, 2, 2, 2)), 512, NO_FUSION, "and not 5x5"),
        (X, Geometry.of((64, 64), (3, 3), (0, 0, 0, 0)), 512, NO_FUSION, "(0, 0) makes (62, 62) of (64, 64)"),
        (X, Geometry.of((64, 64), (3, 3), (1, 0, 1, 1)), 512, NO_FUSION, "makes (64, 63) of"),
        (image(16, 323, 64, 64), SAME, 512, NO_FUSION, "not 323 and 512; pad them with zeros"),
        (X, SAME, 3, NO_FUSION, "not 512 and 3"),
        (X, SAME, 512, Fusion(against=X), "gradient of styles"),
        (X, SAME, 512, Fusion(moments=True), "moments of the output"),
        (X, SAME, 512, Fusion(colours=Colours(X, X)), "no colours"),
        (X, SAME, 512, Fusion(keep=False), "always stores"),
        (X, replace(SAME, in_size=(1600, 1600), out_size=(1600, 1600)), 1024, NO_FUSION, "counts in 32 bits"),
    ],
)
def test_flat_limit_says_what_the_flat_form_does_not_take(
    x: torch.Tensor, geometry: Geometry, outputs: int, fusion: Fusion, words: str
) -> None:
    with recording(90):
        reason = flat_limit(x, geometry, outputs, fusion)
    assert reason is not None
    assert words in reason


def test_flat_limit_takes_same_and_wider_convolutions_from_hopper_on() -> None:
    wider = Geometry.of((36, 36), (3, 3), (2, 2, 2, 2))
    pointwise = Geometry.of((64, 64), (1, 1), (0, 0, 0, 0))
    for architecture, reason in ((90, None), (100, None), (80, "it needs the copy engine of sm_90 and later")):
        with recording(architecture):
            found = [flat_limit(X, geometry, 256, Fusion(scale=X, unscaled=X)) for geometry in (SAME, pointwise, wider)]
        assert [text and text.partition(",")[0] for text in found] == [reason] * 3
    assert (offset_of(SAME), offset_of(pointwise), offset_of(wider)) == ((0, 0), (0, 0), (1, 1))


@pytest.mark.parametrize(
    ("shape", "outputs", "architecture", "pays"),
    [
        ((16, 512, 64, 64), 512, 90, True),
        ((16, 512, 64, 64), 512, 80, False),
        ((16, 512, 64, 64), 512, 100, False),
        ((16, 512, 32, 32), 512, 90, True),
        ((64, 512, 16, 16), 512, 90, False),
        ((16, 256, 128, 128), 256, 90, True),
        ((16, 128, 256, 256), 128, 90, False),
        ((16, 256, 128, 128), 128, 90, False),
        ((1, 512, 32, 32), 512, 90, False),
    ],
)
def test_flat_pays_for_layers_that_wait_for_tensor_cores(
    shape: tuple[int, int, int, int], outputs: int, architecture: int, pays: bool
) -> None:
    with recording(architecture):
        geometry = Geometry.of(shape[2:], (3, 3), (1, 1, 1, 1))
        assert flat_pays(image(*shape), geometry, outputs) is pays


@pytest.mark.parametrize(
    ("batch", "size", "channels", "tile"),
    [
        (16, 64, (512, 512), (128, 256, 64)),
        (16, 64, (512, 128), (128, 128, 64)),
        (16, 148, (336, 336), (128, 128, 32)),
        (16, 148, (336, 208), (128, 256, 32)),
        (16, 148, (80, 64), (128, 64, 16)),
        (1, 64, (512, 512), (128, 128, 64)),
        (1, 32, (512, 512), (128, 64, 64)),
    ],
)
def test_choose_flat_tile_fills_channels_and_processors(
    batch: int, size: int, channels: tuple[int, int], tile: tuple[int, int, int]
) -> None:
    with recording(90):
        chosen = choose_flat_tile(batch, (size, size), channels, META)
    assert (chosen.m, chosen.n, chosen.k) == tile
    assert chosen.options.num_warps == 4  # which Triton needs for roles of warps


@pytest.mark.parametrize("size", [(16, 1), (13, 11), (64, 64), (1024, 1024), (1288, 1289), (3, 20000)], ids=str)
def test_reciprocal_of_divides_every_row_that_flat_limit_lets_through(size: tuple[int, int]) -> None:
    rows = torch.arange(pitch_of(size))
    assert pitch_of(size) * (size[1] + 1) < 2**31
    assert torch.equal(rows * reciprocal_of(size[1]) >> 32, rows // (size[1] + 1))


@pytest.mark.parametrize(
    ("architecture", "dtype", "fusion", "flat"),
    [
        (90, torch.float16, NO_FUSION, True),
        (90, torch.bfloat16, Fusion(style=image(16, 512)), True),
        (90, torch.float32, NO_FUSION, False),
        (90, torch.float16, Fusion(against=X), False),
        (80, torch.float16, NO_FUSION, False),
        (100, torch.float16, NO_FUSION, False),
    ],
)
def test_convolve_takes_the_flat_form_where_it_pays(
    architecture: int, dtype: torch.dtype, fusion: Fusion, flat: bool
) -> None:
    pytest.importorskip("triton", reason="needs the package triton, which has wheels for Linux only")
    from kernels.conv_triton import convolve

    with recording(architecture) as launches:
        y, _ = convolve(X.to(dtype), image(512, 512, 3, 3), SAME, fusion)
    names = [launch.kernel.__name__ for launch in launches]
    assert names == (["_lay_flat_kernel", "_conv_flat_kernel"] if flat else ["_conv_kernel"])
    assert y.shape == X.shape
    assert y.is_contiguous(memory_format=torch.channels_last)
