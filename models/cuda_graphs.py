"""Whole generators as CUDA graphs: one launch a batch instead of hundreds, which is what small batches wait for."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from kernels.dispatch import implementation
from models.layers import labels_checked, one_hot
from models.spec import Condition, ImageGenerator, Latents, SamplingSettings

WARMUP_RUNS = 3  # cuDNN chooses algorithms, kernels are compiled, and weights are laid out before the capture
MAX_GRAPHS = 4  # each keeps the memory that its batch needs

Output = TypeVar("Output")
Run = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Recording(Generic[Output]):
    """A recorded call: `replay` does it again on what the inputs then hold, and writes `output` anew."""

    replay: Callable[[], object]
    output: Output
    run: object = None  # the call: while this is there, so is the memory that the graph reads


Recorder = Callable[[Run], Recording[Tensor]]


def record_cuda_graph(run: Callable[[], Output]) -> Recording[Output]:
    """Warm up on a stream of its own, as a capture asks for, and capture one call of `run` on the current GPU.

    Raises:
        RuntimeError: it waits for the GPU, to look at a value or to copy one: no graph can do that.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP_RUNS):
            run()
        _require_no_waiting(run)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()
    return Recording(graph.replay, output, run)


def _require_no_waiting(run: Callable[[], object]) -> None:
    """Find out before the capture: one that fails leaves the memory allocator in a state of its own."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode is a prototype, and says so
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        except RuntimeError as error:
            raise RuntimeError(f"this can't be a CUDA graph, as it waits for the GPU: {error}") from error
        finally:
            torch.cuda.set_sync_debug_mode(before)


class GraphedGenerator:
    """A generator on a GPU whose batches are replayed from CUDA graphs; keeps the protocol `ImageGenerator`.

    A graph is captured when a batch of its shapes, under its settings and kernels, is asked for first; the
    `max_graphs` used last are kept. A graph reads the weights where they were: after they have changed or moved, make
    a new one. All random numbers are among the latents, so a replay makes the images that the generator makes.

    Raises:
        ValueError: the generator is not on a GPU.
    """

    def __init__(
        self, generator: ImageGenerator, *, max_graphs: int = MAX_GRAPHS, record: Recorder | None = None
    ) -> None:
        self.generator = generator
        self.resolution, self.nfe = generator.resolution, generator.nfe
        self.conditioning, self.num_classes = generator.conditioning, generator.num_classes
        self.max_graphs = max_graphs
        self.device = next(cast("nn.Module", generator).parameters()).device
        if record is None and self.device.type != "cuda":
            raise ValueError(
                f"the generator is on the device {self.device}, and CUDA graphs run on a GPU only. Move it there, or "
                "call the generator itself"
            )
        self._record = record or record_cuda_graph
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()

    @property
    def settings(self) -> SamplingSettings:
        """Those of the generator; other ones make graphs of their own."""
        return self.generator.settings

    @settings.setter
    def settings(self, settings: SamplingSettings) -> None:
        self.generator.settings = settings

    def draw(self, rng: np.random.Generator) -> Latents:
        """Draw the random numbers of one sample, on the CPU."""
        return self.generator.draw(rng)

    def images(self, latents: Latents, condition: Condition = None) -> Tensor:
        """Generate images `[N, 3, H, W]` in [-1, 1]. Raises ValueError for labels that the generator refuses."""
        return self._run("images", latents, condition)

    def sample(self, latents: Latents, condition: Condition = None) -> Tensor:
        """Generate uint8 pixels `[N, 3, H, W]`. Raises ValueError for labels that the generator refuses."""
        return self._run("sample", latents, condition)

    def _run(self, method: str, latents: Latents, condition: Condition) -> Tensor:
        inputs = dict(latents)
        if condition is not None:
            inputs[""] = self._encoded(condition, latents)
        shapes = tuple((name, value.shape, value.dtype) for name, value in sorted(inputs.items()))
        key = (method, shapes, self.settings, implementation())
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            if key not in self._graphs:
                while len(self._graphs) >= self.max_graphs:
                    self._graphs.popitem(last=False)
                self._graphs[key] = self._captured(method, inputs)
            self._graphs.move_to_end(key)
            return self._graphs[key].replay(inputs)

    def _encoded(self, condition: Condition, latents: Latents) -> Tensor:
        """Labels, looked at here since a graph can't, or features of texts."""
        if self.conditioning == "class":
            one_hot(condition, self.num_classes, like=next(iter(latents.values())))
        if isinstance(condition, Tensor):
            return condition
        return cast("Tensor", cast("Any", self.generator).text_features(condition))

    def _captured(self, method: str, inputs: Latents) -> _Graph:
        static = {name: value.to(self.device, copy=True) for name, value in inputs.items()}
        latents = {name: value for name, value in static.items() if name}
        make = getattr(self.generator, method)

        def run() -> Tensor:
            images: Tensor = make(latents, static.get(""))
            return images

        with labels_checked():
            return _Graph(static, self._record(run))


@dataclass(frozen=True, slots=True)
class _Graph:
    """A recording and the tensors that it reads."""

    inputs: Latents
    recording: Recording[Tensor]

    def replay(self, inputs: Latents) -> Tensor:
        """Run on these numbers; the images are a copy, which the next replay leaves alone."""
        with torch.inference_mode():
            for name, value in inputs.items():
                self.inputs[name].copy_(value)
            self.recording.replay()
        return self.recording.output.clone()
