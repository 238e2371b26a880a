from __future__ import annotations

import pytest

from kernels.costs import LayerShape, conv_bytes, conv_flops, filtered_lrelu_flops, fir_flops, modulated_conv_bytes


def test_conv_flops_counts_each_multiply_add_twice() -> None:
    assert conv_flops(LayerShape(2, 3, 5, 4, 6)) == 2 * (2 * 5 * 4 * 6) * (3 * 9)


def test_conv_flops_of_a_transposed_convolution_is_per_input_pixel() -> None:
    up = LayerShape(1, 8, 8, 16, 16, up=2)
    assert conv_flops(up) - fir_flops(up) == conv_flops(LayerShape(1, 8, 8, 16, 16))


def test_conv_flops_of_stylegan2_1024_match_the_usual_figure() -> None:
    """74.2 GMAC an image (config F), without the filters."""
    channels = {r: min(32768 // r, 512) for r in (4, 8, 16, 32, 64, 128, 256, 512, 1024)}
    layers = [LayerShape(1, c, c, r, r) for r, c in channels.items()]
    layers += [LayerShape(1, c, 3, r, r, kernel=1) for r, c in channels.items()]
    ups = [LayerShape(1, channels[r // 2], channels[r], r // 2, r // 2, up=2) for r in channels if r > 4]
    total = sum(map(conv_flops, layers)) + sum(conv_flops(up) - fir_flops(up) for up in ups)
    assert total / 2e9 == pytest.approx(74.2, abs=0.1)


def test_conv_bytes_reads_and_writes_once() -> None:
    shape = LayerShape(2, 3, 5, 4, 6, down=2)
    assert conv_bytes(shape, 2) == 2 * (2 * 3 * 24 + 5 * 3 * 9 + 2 * 5 * 6)
    assert modulated_conv_bytes(shape, 2) == conv_bytes(shape, 2) + 2 * 2 * 3


def test_filtered_lrelu_flops_counts_both_filters_along_both_axes() -> None:
    """One sample of 2x3 pixels, up 4 to 8x12, down 2 to 4x6: six taps an output up, twelve down."""
    up, down = 6 * (2 * 12 + 8 * 12), 12 * (8 * 6 + 4 * 6)
    pointwise = 2 * 3 + 3 * 8 * 12
    one = filtered_lrelu_flops(LayerShape(1, 1, 1, 2, 3, up=4, down=2))
    assert one == 2 * (up + down) + pointwise
    assert filtered_lrelu_flops(LayerShape(3, 5, 5, 2, 3, up=4, down=2)) == 15 * one
