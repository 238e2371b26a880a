from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.kernel_speed.layers import KernelCall, network_calls
from kernels.costs import LayerShape
from kernels.filtered_lrelu import FilteredLReLU
from kernels.modulated_conv import Epilogue, ModulatedConv
from models.registry import build
from models.stylegan3 import SynthesisLayer

# multiply-adds of all convolutions for one image, in units of 1e9: of the published networks, and as others count them
GMAC = {
    "stylegan2-ffhq-1024": 74.2,
    "stylegan2-ffhq-256": 14.9,
    "stylegan2-cifar10-32": 4.0,
    "stylegan3-t-ffhq-1024": 285.2,
    "stylegan3-r-ffhq-1024": 123.8,
    "stylegan-t-full-512": 1321.7,
}


def calls_of(name: str, kernel: str) -> list[KernelCall]:
    return network_calls([name], [kernel])


@pytest.mark.parametrize("name", GMAC)
def test_layers_add_up_to_the_arithmetic_of_the_network(name: str) -> None:
    calls = calls_of(name, "modulated_conv2d")
    assert sum(call.flops(1) * len(call.uses) for call in calls) / 2e9 == pytest.approx(GMAC[name], abs=0.07)


def test_layers_are_those_of_the_256_generator_in_order() -> None:
    calls = calls_of("stylegan2-ffhq-256", "modulated_conv2d")
    names = [call.uses[0].partition("/")[2] for call in calls]
    assert names[:4] == ["b4.conv1", "b4.torgb", "b8.conv0", "b8.conv1"]
    assert len(names) == 20
    (up,) = (call for call in calls if call.uses == ("stylegan2-ffhq-256/b256.conv0",))
    assert up.shape(3) == LayerShape(3, 128, 64, 128, 128, up=2)
    assert up.subject == "modulated_conv2d/stylegan2-ffhq-256/b256.conv0"
    assert up.operands["epilogue.noise"].sized(3) == (3, 1, 256, 256)
    assert up.operands["weight"].sized(3) == (64, 128, 3, 3)


def test_a_call_is_that_of_the_layer_itself() -> None:
    (call,) = (c for c in calls_of("stylegan2-ffhq-256", "modulated_conv2d") if c.uses[0].endswith("b64.conv1"))
    arguments = call.filled({name: torch.zeros(operand.sized(2)) for name, operand in call.operands.items()})
    assert arguments["conv"] == ModulatedConv(padding=1)
    epilogue: Epilogue = arguments["epilogue"]
    assert (epilogue.activation.name, epilogue.activation.clamp) == ("lrelu", 256)
    assert epilogue.bias is not None
    assert epilogue.bias.shape == (256,)
    assert call.arguments["epilogue"].bias is None


def test_filters_have_their_values() -> None:
    name = "stylegan3-r-32"
    generator: Any = build(name)
    calls = {call.uses[0].partition("/")[2]: call for call in calls_of(name, "filtered_lrelu")}
    layers = [layer for layer in generator.synthesis.layers() if layer.spec.name in calls]
    assert len(layers) > 8
    for layer in layers:
        assert isinstance(layer, SynthesisLayer)
        operands = calls[layer.spec.name].operands
        for kind in ("up_filter", "down_filter"):
            designed = getattr(layer, kind)
            assert (designed is None) == (kind not in operands)
            if designed is not None:
                assert torch.equal(operands[kind].value, designed)  # type: ignore[arg-type]
        assert isinstance(calls[layer.spec.name].arguments["spec"], FilteredLReLU)


def test_equal_work_is_listed_once_with_all_its_layers() -> None:
    both = network_calls(["stylegan2-ffhq-1024", "stylegan2-ffhq-256"], ["modulated_conv2d"])
    apart = [calls_of(name, "modulated_conv2d") for name in ("stylegan2-ffhq-1024", "stylegan2-ffhq-256")]
    assert len(both) < sum(map(len, apart))
    assert sorted(use for call in both for use in call.uses) == sorted(
        u for calls in apart for c in calls for u in c.uses
    )
    shared = next(call for call in both if len(call.uses) > 1)
    assert shared.uses == ("stylegan2-ffhq-1024/b4.conv1", "stylegan2-ffhq-256/b4.conv1")
    assert len({call.signature for call in both}) == len(both)


def test_filters_of_other_values_are_other_work() -> None:
    calls = calls_of("stylegan3-t-ffhq-1024", "filtered_lrelu")
    shapes = [(call.operands["x"].shape, tuple(call.out_shape)) for call in calls]
    assert len(set(shapes)) < len(shapes)


def test_least_traffic_reads_and_writes_once() -> None:
    (call,) = (c for c in calls_of("stylegan2-ffhq-256", "modulated_conv2d") if c.uses[0].endswith("b256.torgb"))
    image, rest, written = call.elements(2)
    assert (image, written) == (2 * 64 * 256 * 256, 2 * 3 * 256 * 256)
    assert rest == 3 * 64 + 2 * 64 + 3  # weight, styles, bias
