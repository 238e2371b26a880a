from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bench.kernel_calls import Inputs, bind
from bench.kernel_speed.checks import LayerCase
from bench.kernel_speed.generators import GeneratorCase
from bench.kernel_speed.plan import BATCHES, NETWORKS, CheckCase, KernelOptions, kind_of, ordered, plan
from bench.verify import VerificationError
from bench.workloads import Workload
from kernels.costs import LayerShape
from kernels.registry import KERNELS
from tests.bench.kernel_speed.rows import CEILINGS, CPU, small_calls

GPU = KernelOptions(torch.device("cuda:0"))


def test_a_cpu_measures_the_layers_of_one_network_against_the_grouped_form() -> None:
    options = KernelOptions(CPU)
    cases = plan(options, CEILINGS)
    assert len(cases) == 20
    assert options.chosen_groups == ("grouped",)
    assert {(case.kernel, case.dtype) for case in cases} == {("modulated_conv2d", "float32")}
    assert [case.subject.rpartition("/")[2] for case in cases][:3] == ["b4.conv1", "b4.torgb", "b8.conv0"]
    assert [case.batch for case in cases if isinstance(case, LayerCase)] == [4] * 20
    assert len(plan(KernelOptions(CPU, batches=(1, 2), only="*/b4.*"), CEILINGS)) == 4


def test_a_gpu_measures_every_layer_at_every_batch_size_in_both_directions() -> None:
    cases = plan(GPU, CEILINGS)
    layers = [case for case in cases if isinstance(case, LayerCase)]
    for network in NETWORKS:
        uses = {case.call.signature for case in layers if any(use.startswith(network) for use in case.call.uses)}
        assert uses
        for batch in BATCHES:
            for backward in (False, True):
                found = [c for c in layers if c.call.signature in uses and (c.batch, c.backward) == (batch, backward)]
                assert len(found) == len(uses)
    generators = {(case.model, case.batch) for case in cases if isinstance(case, GeneratorCase)}
    assert generators == {(name, batch) for name in NETWORKS for batch in BATCHES}
    assert GPU.chosen_groups == ("eager", "grouped", "compiled")


def test_every_kernel_is_checked_in_every_dtype_before_anything_is_timed() -> None:
    cases = plan(GPU, CEILINGS)
    checks = [case for case in cases if isinstance(case, CheckCase)]
    assert cases[: len(checks)] == checks
    assert {case.kernel for case in checks} == {name for name, spec in KERNELS.items() if spec.triton}
    dtypes = {case.dtype for case in checks if case.kernel == "modulated_conv2d"}
    assert dtypes == {"float16", "bfloat16", "tf32", "float32"}
    assert {case.workload.backward for case in checks} == {False, True}


def test_the_most_telling_rows_come_first() -> None:
    timed = [case for case in plan(GPU, CEILINGS) if not isinstance(case, CheckCase)]
    first_generator = next(i for i, case in enumerate(timed) if isinstance(case, GeneratorCase))
    telling = timed[:first_generator]
    assert 15 < len(telling) < 40
    assert all(isinstance(case, LayerCase) and case.batch == 16 and not case.backward for case in telling)
    kinds = {(case.call.network, kind_of(case, CEILINGS)) for case in telling if isinstance(case, LayerCase)}
    assert {kind for _, kind in kinds} >= {
        *("memory-bound convolution", "compute-bound convolution", "up-convolution"),
        *("filtered_lrelu", "demodulation", "upfirdn2d"),
    }
    assert ("stylegan2-ffhq-1024", "memory-bound convolution") in kinds
    subjects = [case.subject for case in telling]
    assert "modulated_conv2d/stylegan2-ffhq-1024/b1024.conv1" in subjects
    generators = timed[first_generator : first_generator + len(NETWORKS)]
    assert [case.subject for case in generators] == list(NETWORKS)


def test_order_keeps_every_row_and_starts_with_the_first_batch_and_dtype() -> None:
    calls = small_calls().values()
    layers = [
        LayerCase(call, batch, dtype, backward)
        for call in calls
        for dtype in ("float16", "bfloat16")
        for batch in (4, 16)
        for backward in (False, True)
    ]
    generators = [GeneratorCase("stylegan2-shapes-32", 16)]
    found = ordered(layers, generators, CEILINGS)
    assert len(found) == len(layers) + 1
    assert set(map(id, found)) == {*map(id, layers), id(generators[0])}
    assert (found[0].batch, found[0].dtype) == (4, "float16")


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "tf32", "float16"])
def test_check_holds_a_kernel_against_float64(dtype: str, backward: bool) -> None:
    case = CheckCase(Workload("modulated_conv2d", LayerShape(2, 8, 8, 8, 8), dtype, backward))
    assert 0 < case.error(CPU, "reference") < 1e-2


def test_check_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CheckCase(Workload("bias_act", LayerShape(2, 8, 8, 8, 8), "float32"))

    def broken(workload: Workload, inputs: Inputs, implementation: str) -> Callable[[], list[torch.Tensor]]:
        run = bind(workload, inputs, "reference")
        return run if implementation == "reference" else lambda: [out * 1.01 for out in run()]

    monkeypatch.setattr("bench.kernel_speed.plan.bind", broken)
    with pytest.raises(VerificationError, match="the output differs from float64 by"):
        case.error(CPU, "triton")
