from __future__ import annotations

import dataclasses
import weakref
from functools import partial
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from bench.verify import draw_batch
from kernels.dispatch import use
from models.cuda_graphs import GraphedGenerator, Recording, Run, record_cuda_graph
from models.layers import initialise
from models.registry import build_target
from models.spec import SamplingSettings

CPU = torch.device("cpu")
SMALL: dict[str, dict[str, Any]] = {
    "stylegan2": {"resolution": 16, "num_classes": 3, "channel_base": 128, "channel_max": 16},
    "stylegan3": {"resolution": 16, "channel_base": 64, "channel_max": 8, "num_layers": 4},
    "stylegan_xl": {
        "resolution": 32,
        "num_classes": 10,
        "stem": {"resolution": 16, "channel_base": 64, "channel_max": 8, "num_layers": 4, "conv_kernel": 1},
        "stages": [{"up_factor": 2, "head_layers": 4}],
    },
    "stylegan_t": {
        "resolution": 16,
        "channel_base": 128,
        "channel_max": 16,
        "num_res_blocks": 1,
        "text_dim": 8,
        "gn_groups": 4,
    },
}


class Tape(TorchDispatchMode):
    """Stands in for a GPU: what a call does to tensors is written down once, and done again without its Python.

    As in a capture, a call that looks at a value fails.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "_local_scalar_dense" not in str(func), "a value was looked at"
        out = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, out))
        return out

    def play(self, wanted: Tensor) -> Tensor:
        made: dict[int, Tensor] = {}
        for func, args, kwargs, out in self.steps:
            inputs = tree_map(partial(_latest, made), (args, kwargs))
            again = func(*inputs[0], **inputs[1])
            made |= {id(a): b for a, b in zip(tree_leaves(out), tree_leaves(again), strict=True)}
        return made[id(wanted)]


def _latest(made: dict[int, Tensor], value: Any) -> Any:
    return made.get(id(value), value)


class Recorder:
    """What a GPU's recorder is to a generator."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, run: Run) -> Recording[Tensor]:
        self.recorded += 1
        run()  # weights are laid out, as a warm-up does
        with Tape() as tape:
            found = run()
        output = found.clone()

        def replay() -> None:
            with torch.inference_mode():
                output.copy_(tape.play(found))

        return Recording(replay, output)


def generator_of(family: str) -> Any:
    generator: Any = build_target(f"models.{family}:build", SMALL[family])
    initialise(generator, 0)
    return generator.requires_grad_(requires_grad=False).eval()


@pytest.fixture(scope="module")
def small() -> Any:
    return generator_of("stylegan2")


def batch(generator: Any, count: int, first: int = 0) -> tuple[dict[str, Tensor], Any]:
    latents, condition = draw_batch(generator, first + count, CPU)
    return {name: value[first:] for name, value in latents.items()}, None if condition is None else condition[first:]


@pytest.mark.parametrize("family", SMALL)
def test_replay_makes_the_images_of_the_generator(family: str) -> None:
    generator, record = generator_of(family), Recorder()
    graphed = GraphedGenerator(generator, record=record)
    for first in (0, 2):  # the second one is a replay on other numbers
        latents, condition = batch(generator, 2, first)
        assert torch.equal(graphed.sample(latents, condition), generator.sample(latents, condition))
    assert record.recorded == 1


def test_images_of_a_batch_outlive_the_next_one(small: Any) -> None:
    graphed = GraphedGenerator(small, record=Recorder())
    first = graphed.sample(*batch(small, 2))
    kept = first.clone()
    second = graphed.sample(*batch(small, 2, first=5))
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)


def test_unrounded_images_have_a_graph_of_their_own(small: Any) -> None:
    graphed = GraphedGenerator(small, record=Recorder())
    latents, condition = batch(small, 1)
    assert graphed.sample(latents, condition).dtype == torch.uint8
    torch.testing.assert_close(graphed.images(latents, condition), small.images(latents, condition))


def test_settings_and_kernels_have_graphs_of_their_own(small: Any) -> None:
    record = Recorder()
    graphed = GraphedGenerator(small, record=record)
    latents, condition = batch(small, 2)
    graphed.sample(latents, condition)
    with use("naive"):
        graphed.sample(latents, condition)
    assert record.recorded == 2
    settings = small.settings
    try:
        graphed.settings = SamplingSettings(truncation_psi=0.0, noise_mode="none")
        flat = graphed.sample({"z": latents["z"]}, condition)
        assert torch.equal(flat, small.sample({"z": latents["z"]}, condition))
        assert record.recorded == 3
    finally:
        small.settings = settings


def test_only_the_graphs_used_last_are_kept(small: Any) -> None:
    record = Recorder()
    graphed = GraphedGenerator(small, max_graphs=2, record=record)
    for count, recorded in ((1, 1), (2, 2), (1, 2), (3, 3), (1, 3), (2, 4)):
        graphed.sample(*batch(small, count))
        assert record.recorded == recorded


def test_wrong_labels_are_refused_though_a_graph_looks_at_none(small: Any) -> None:
    graphed = GraphedGenerator(small, record=Recorder())
    latents, condition = batch(small, 2)
    graphed.sample(latents, condition)
    with pytest.raises(ValueError, match="labels 0 to 3; allowed are 0 to 2"):
        graphed.sample(latents, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="no labels"):
        graphed.sample(latents)


def test_protocol_is_that_of_the_generator(small: Any) -> None:
    graphed = GraphedGenerator(small, record=Recorder())
    for field in ("resolution", "conditioning", "num_classes", "nfe", "settings"):
        assert getattr(graphed, field) == getattr(small, field)
    graphed.settings = dataclasses.replace(small.settings)


def test_a_recording_keeps_the_memory_that_its_graph_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", MagicMock())
    weight = torch.ones(2)
    alive = weakref.ref(weight)
    recording = record_cuda_graph(partial(torch.mul, weight, 2))
    del weight
    assert alive() is not None
    assert recording.output.tolist() == [2.0, 2.0]


def test_a_generator_on_a_cpu_is_refused(small: Any) -> None:
    with pytest.raises(ValueError, match="on the device cpu, and CUDA graphs run on a GPU only"):
        GraphedGenerator(small)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", SMALL)
def test_cuda_graph_makes_the_images_of_the_generator(family: str) -> None:
    device = torch.device("cuda:0")
    generator = generator_of(family).to(device)
    graphed = GraphedGenerator(generator)
    for count in (2, 2, 3):
        latents, condition = draw_batch(generator, count, device)
        assert (
            int((graphed.sample(latents, condition).int() - generator.sample(latents, condition).int()).abs().max())
            <= 1
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_waits_for_the_gpu_is_refused_before_it_is_captured() -> None:
    x = torch.ones(3, device="cuda:0")
    with pytest.raises(RuntimeError, match="waits for the GPU"):
        record_cuda_graph(lambda: x * float(x.sum()))
    recording = record_cuda_graph(lambda: x * 2)  # the allocator is none the worse
    x.fill_(4)
    recording.replay()
    assert recording.output.tolist() == [8.0] * 3
