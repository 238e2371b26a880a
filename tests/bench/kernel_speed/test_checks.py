from __future__ import annotations

import pytest
import torch

from bench.kernel_speed import checks
from bench.kernel_speed.checks import LayerCase, LayerWork, dtypes_of, poisoned, relative_error
from bench.verify import VerificationError
from tests.bench.kernel_speed.rows import CPU, small_calls


def work_of(layer: str = "b4.conv1", batch: int = 2, backward: bool = False) -> LayerWork:
    return LayerWork(LayerCase(small_calls()[layer], batch, "float32", backward), CPU)


@pytest.mark.parametrize("layer", ["b4.conv1", "b8.conv0", "b4.torgb", "b8"])
@pytest.mark.parametrize("backward", [False, True])
def test_kernels_are_right_at_the_sizes_of_layers(layer: str, backward: bool) -> None:
    work = work_of(layer, batch=5, backward=backward)
    with poisoned():
        outputs = work.prepared("eager", work.tensors("eager"))()
    assert len(outputs) == 1 + len(work.wanted) == len(work.expected)
    assert 0 < work.check(outputs, "eager") < 1e-5


@pytest.mark.parametrize("wrong", [1.001, float("nan")])
@pytest.mark.parametrize("output", [0, 1, 2])
def test_a_wrong_output_or_gradient_is_found(wrong: float, output: int) -> None:
    work = work_of(backward=True)
    outputs = work.prepared("eager", work.tensors("eager"))()
    outputs[output] = outputs[output] * wrong
    what = ("the output", "the gradient of x", "the gradient of weight")[output]
    with pytest.raises(VerificationError, match=rf"{what} differs from float64 by .*; allowed is"):
        work.check(outputs, "eager")


def test_an_output_of_another_size_is_found() -> None:
    work = work_of()
    (out,) = work.prepared("eager", work.tensors("eager"))()
    with pytest.raises(VerificationError, match=r"the output is \[1, 64, 4, 4\]; expected is \[2, 64, 4, 4\]"):
        work.check([out[:1]], "eager")


def test_both_ends_of_a_batch_are_looked_at_and_every_sample_counts_for_sums() -> None:
    work = work_of(batch=9, backward=True)
    assert work.checked == [0, 1, 7, 8]
    outputs = work.prepared("eager", work.tensors("eager"))()
    outputs[0][8, -1, -1, -1] += 1
    with pytest.raises(VerificationError, match="the output differs"):
        work.check(outputs, "eager")
    # the gradient of the weight without the sample in the middle, which is none of those
    fewer = work_of(batch=9, backward=True)
    fewer.cotangent[4] = 0
    partial = fewer.prepared("eager", fewer.tensors("eager"))()
    with pytest.raises(VerificationError, match="the gradient of weight differs"):
        work.check(partial, "eager")


def test_oracle_is_float64_as_far_as_that_can_be_afforded(monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_of(batch=3)
    assert [dtype for _, dtype in work._chunks()] == [torch.float64] * 3
    monkeypatch.setitem(checks.FLOAT64_FLOPS, "cpu", work.case.flops * 2 / 3)
    assert [dtype for _, dtype in work._chunks()] == [torch.float64, torch.float64, torch.float32]
    monkeypatch.setitem(checks.FLOAT64_FLOPS, "cpu", 0.0)
    assert [dtype for _, dtype in work._chunks()] == [torch.float64, torch.float32, torch.float32]


def test_inputs_are_laid_out_as_each_form_hands_them_on() -> None:
    work = work_of()
    x, grouped = work.tensors("eager")[0], work.tensors("grouped")[0]
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert not x.is_contiguous()
    assert grouped.is_contiguous()
    assert torch.equal(x, grouped)


def test_half_precision_is_of_the_image_alone() -> None:
    inputs = LayerWork(LayerCase(small_calls()["b4.conv1"], 2, "float16"), CPU).inputs
    assert inputs["x"].dtype == torch.float16
    assert {tensor.dtype for name, tensor in inputs.items() if name != "x"} == {torch.float32}


def test_poisoned_memory_shows_what_is_not_written() -> None:
    with poisoned():
        assert torch.empty(3).isnan().all()
        assert torch.empty_like(torch.ones(2, 2)).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_relative_error() -> None:
    assert relative_error(torch.tensor([3.0, 4.4]), torch.tensor([3.0, 4.0])) == pytest.approx(0.08)
    assert relative_error(torch.ones(2), torch.zeros(2)) > 1


def test_least_work_of_a_backward_pass() -> None:
    call = small_calls()["b4.conv1"]
    forward, backward = LayerCase(call, 2, "float16"), LayerCase(call, 2, "float16", backward=True)
    assert forward.flops == 2 * 2 * 16 * 64 * 64 * 9
    assert backward.flops == 3 * forward.flops
    image, rest, written = call.elements(2)
    assert forward.moved_bytes == 2 * (image + written) + 4 * rest
    assert backward.moved_bytes == 2 * (3 * image + 2 * written) + 4 * 3 * rest


def test_kernels_that_generators_run_in_float32_are_measured_in_it() -> None:
    assert dtypes_of("demodulation", ["float16", "bfloat16"]) == ["float32"]
    assert dtypes_of("modulated_conv2d", ["float16", "bfloat16"]) == ["float16", "bfloat16"]
