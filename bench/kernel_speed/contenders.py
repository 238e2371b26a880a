"""Who is timed: our kernels, and everything that they have to beat, on the same numbers.

The strong eager form scales, convolves and scales in channels_last, as the references do; the grouped form is that of
the papers' code. Both are compiled too, and everything is also replayed from a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from kernels.dispatch import Implementation
from models.cuda_graphs import record_cuda_graph

Form = Literal["triton", "eager", "grouped"]
IMPLEMENTATIONS: dict[Form, Implementation] = {"triton": "triton", "eager": "reference", "grouped": "naive"}
GROUPS = ("eager", "grouped", "compiled")  # of baselines
COMPILE_MODE = "max-autotune-no-cudagraphs"  # graphs are captured here, for all contenders alike

Outputs = list[Tensor]
Run = Callable[[], Outputs]


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to compute something."""

    form: Form
    compiled: bool = False
    graphed: bool = False

    @property
    def name(self) -> str:
        """Such as "compiled_eager_graph": keys of a record's details begin with it."""
        return "compiled_" * self.compiled + self.form + "_graph" * self.graphed

    @property
    def title(self) -> str:
        """The name in words."""
        return self.name.replace("_", " ")


class Work(Protocol):
    """Something with inputs in place, that every form computes from tensors."""

    def tensors(self, form: Form) -> Sequence[Tensor]:
        """The inputs, laid out as the form wants them."""
        ...

    def prepared(self, form: Form, tensors: Sequence[Tensor]) -> Run:
        """A call that computes all that is wanted of them."""
        ...


def baselines(groups: Sequence[str], *, has_grouped: bool, graphs: bool) -> list[Contender]:
    """The contenders of these groups, the cheap ones first; without `has_grouped` that form is the eager one."""
    forms: list[Form] = ["eager", "grouped"] if has_grouped else ["eager"]
    plain = [Contender(form) for form in forms if form in groups]
    compiled = [Contender(form, compiled=True) for form in forms] if "compiled" in groups else []
    modes = (False, True) if graphs else (False,)
    return [Contender(one.form, one.compiled, graphed) for one in [*plain, *compiled] for graphed in modes]


class Binder:
    """Makes the calls of all contenders of one piece of work; each form is compiled once."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._compiled: dict[Form, Callable[..., Outputs]] = {}

    def bind(self, contender: Contender) -> Run:
        """What is timed of a contender. Compiling and capturing happen here."""
        form = contender.form
        tensors = tuple(self._work.tensors(form))
        run = self._work.prepared(form, tensors)
        if contender.compiled:
            if form not in self._compiled:
                self._compiled[form] = compiled(partial(_compute, self._work, form), tensors)
            run = partial(self._compiled[form], *tensors)
        return _replayed(run) if contender.graphed else run


def _compute(work: Work, form: Form, *tensors: Tensor) -> Outputs:
    return work.prepared(form, tensors)()


def _replayed(run: Run) -> Run:
    recording = record_cuda_graph(run)

    def replay() -> Outputs:
        recording.replay()
        return recording.output

    return replay


def compiled(function: Callable[..., Outputs], tensors: Sequence[Tensor], **options: Any) -> Callable[..., Outputs]:
    """Compile a function for these tensors; `options` replace those of `torch.compile`.

    Its Python is run once, and the compiler gets the operations, those of a backward pass among them: no part of it is
    left to the interpreter, which is the best that compiling can do.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    torch.compiler.reset()
    with torch.no_grad():
        operations = make_fx(function)(*tensors)
        # without the writes into tensors that are there already, which the compiler doesn't take
        traced = make_fx(torch.func.functionalize(operations))(*tensors)
    how: dict[str, Any] = {"mode": COMPILE_MODE, "dynamic": False} | options
    run: Callable[..., Outputs] = torch.compile(traced, **how)

    def without_gradients(*inputs: Tensor) -> Outputs:
        with torch.no_grad():
            return list(run(*inputs))

    return without_gradients
