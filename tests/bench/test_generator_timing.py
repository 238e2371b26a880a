from __future__ import annotations

from typing import Any

import pytest
import torch

from bench import generator_timing
from bench.generator_timing import CPU, format_row, generator_measurement, time_generators
from bench.kernel_speed.timing import WALL
from bench.model_weights import load_model
from bench.verify import VerificationError, draw_batch
from kernels.dispatch import implementation
from models.cuda_graphs import GraphedGenerator

MODEL = "stylegan2-shapes-32"
CUDA = torch.device("cuda:0")


class FakeGraphs(GraphedGenerator):
    """Replays by running."""

    def __init__(self, generator: Any) -> None:
        self.generator, self.used = generator, set[str]()

    def sample(self, latents: Any, condition: Any = None) -> Any:
        self.used.add(implementation())
        return self.generator.sample(latents, condition)


def test_generator_is_timed_beside_its_naive_formulation() -> None:
    (row,) = time_generators([MODEL], 0.0, 2)
    assert (row.model, row.batch_size, row.device, row.graphs) == (MODEL, 2, "cpu", False)
    assert row.num_pairs == generator_timing.MIN_PAIRS
    assert min(row.baseline_ms, row.latency_ms, row.ratio) > 0
    assert row.max_grey_levels <= 1
    assert "without graphs" not in format_row(row)


def timed_on_a_gpu(monkeypatch: pytest.MonkeyPatch, graphs: Any) -> Any:
    """A row of a generator whose device is called a GPU, but is none."""
    monkeypatch.setattr(generator_timing, "load_model", lambda name, *_: load_model(name, None, 10, 0, CPU))
    monkeypatch.setattr(generator_timing, "draw_batch", lambda generator, count, _: draw_batch(generator, count, CPU))
    monkeypatch.setattr(generator_timing, "GraphedGenerator", graphs)
    return generator_timing._time(MODEL, 0.0, 2, WALL, CUDA)


def test_graphs_of_both_formulations_are_a_declared_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[FakeGraphs] = []

    def graphs(generator: Any) -> FakeGraphs:
        made.append(FakeGraphs(generator))
        return made[-1]

    row = timed_on_a_gpu(monkeypatch, graphs)
    assert (row.device, row.graphs) == ("cuda", True)
    assert made[0].used == {"auto", "naive"}
    case = generator_measurement(row).case
    assert (case["graphs"], case["device"], case["dtype"]) == (True, "cuda", "float16 where published")


def test_a_generator_that_cannot_be_captured_is_timed_without(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoGraphs(FakeGraphs):
        def sample(self, latents: Any, condition: Any = None) -> Any:
            raise RuntimeError("this can't be a CUDA graph")

    row = timed_on_a_gpu(monkeypatch, NoGraphs)
    assert row.graphs is False
    assert format_row(row).endswith("without graphs")
    assert generator_measurement(row).case["graphs"] is False


def test_images_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator_timing, "MAX_GREY_LEVELS", -1)
    monkeypatch.setattr(generator_timing, "time_pairs", lambda *_, **__: pytest.fail("it was timed"))
    with pytest.raises(VerificationError, match=r"differ by \d grey levels. It is not timed"):
        list(time_generators([MODEL], 0.0, 1))
