from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.kernel_speed import contenders as kernel_contenders
from bench.kernel_speed.checks import LayerCase, LayerWork
from bench.kernel_speed.contenders import Binder, Contender, Form, Outputs, Run, baselines, compiled
from bench.kernel_speed.generators import GeneratorCase
from models.cuda_graphs import Recording
from tests.bench.kernel_speed.rows import CPU, small_calls


class Doubling:
    """Work that counts how often its Python runs."""

    def __init__(self) -> None:
        self.runs: list[Form] = []

    def tensors(self, form: Form) -> Sequence[Tensor]:
        return [torch.ones(2)]

    def prepared(self, form: Form, tensors: Sequence[Tensor]) -> Run:
        def run() -> Outputs:
            self.runs.append(form)
            return [tensors[0] * 2]

        return run


def test_baselines_are_every_form_as_it_is_compiled_and_graphed() -> None:
    names = [one.name for one in baselines(("eager", "grouped", "compiled"), has_grouped=True, graphs=True)]
    assert names == [
        "eager",
        "eager_graph",
        "grouped",
        "grouped_graph",
        "compiled_eager",
        "compiled_eager_graph",
        "compiled_grouped",
        "compiled_grouped_graph",
    ]


@pytest.mark.parametrize(
    ("groups", "has_grouped", "graphs", "names"),
    [
        (("grouped",), True, False, ["grouped"]),
        (("grouped",), False, False, []),
        (("compiled",), False, True, ["compiled_eager", "compiled_eager_graph"]),
    ],
)
def test_baselines_are_those_asked_for(groups: Any, has_grouped: bool, graphs: bool, names: list[str]) -> None:
    assert [one.name for one in baselines(groups, has_grouped=has_grouped, graphs=graphs)] == names


def test_a_graph_runs_no_python(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(run: Callable[[], Outputs]) -> Recording[Outputs]:
        output = run()
        return Recording(lambda: output[0].add_(1), output)

    monkeypatch.setattr(kernel_contenders, "record_cuda_graph", record)
    work = Doubling()
    replay = Binder(work).bind(Contender("eager", graphed=True))
    assert replay()[0].tolist() == [3.0, 3.0]
    assert replay()[0].tolist() == [4.0, 4.0]
    assert work.runs == ["eager"]


def test_each_form_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    def compile_(function: Callable[..., Outputs], tensors: Sequence[Tensor]) -> Callable[..., Outputs]:
        made.append(function)
        return function

    monkeypatch.setattr(kernel_contenders, "compiled", compile_)
    monkeypatch.setattr(kernel_contenders, "record_cuda_graph", lambda run: Recording(lambda: None, run()))
    binder = Binder(Doubling())
    for contender in baselines(("compiled",), has_grouped=True, graphs=True):
        assert binder.bind(contender)()[0].tolist() == [2.0, 2.0]
    assert len(made) == 2


@pytest.mark.parametrize(("layer", "backward"), [("b4.conv1", False), ("b8.conv0", False), ("b8.conv0", True)])
def test_compiled_form_computes_the_same_and_leaves_nothing_to_python(layer: str, backward: bool) -> None:
    work = LayerWork(LayerCase(small_calls()[layer], 2, "float32", backward), CPU)
    tensors = work.tensors("eager")
    run = compiled(
        lambda *inputs: work.prepared("eager", inputs)(), tensors, mode=None, backend="aot_eager", fullgraph=True
    )
    assert work.check(run(*tensors), "eager") < 1e-5
    assert all(not out.requires_grad for out in run(*tensors))


def test_whole_generators_can_be_compiled_though_they_write_in_place() -> None:
    work = GeneratorCase("stylegan2-shapes-32", 2).work(CPU)
    tensors = work.tensors("eager")
    run = compiled(
        lambda *inputs: work.prepared("eager", inputs)(), tensors, mode=None, backend="aot_eager", fullgraph=True
    )
    assert work.check(run(*tensors), "eager") <= 1 / 255
