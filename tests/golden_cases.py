"""Reader of golden files: numbers that official implementations gave, and how near to them a value must be.

Tensor names are `state/<name>`, `in/<name>` and `out/<name>`; a file of many sub-cases puts the number of the
sub-case first (`in/007/x`) and its parameters into `meta["cases"][7]`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

FORWARD_TOLERANCE, GRADIENT_TOLERANCE, EXACT_TOLERANCE = 1e-5, 2e-5, 1e-6
_GRADIENT = re.compile(r"(^|/)(d2/|grad|r\d+_|d(x|w|b|s|gy|img|weight|styles|feat\d+)(/|$))")


@dataclass(frozen=True, slots=True)
class GoldenFile:
    """One golden file; metadata that is JSON is parsed."""

    path: Path
    meta: dict[str, Any]
    tensors: dict[str, Tensor]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below `prefix` ("in/007/", "state/"), with the prefix taken off their names."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}


def load_golden(path: Path) -> GoldenFile:
    """Read one file whole."""
    with safe_open(path, "pt") as file:
        names = file.keys()
        return GoldenFile(path, _parse(file.metadata()), {name: file.get_tensor(name) for name in names})


def golden_files(root: Path, system: str) -> list[Path]:
    """All files below `root` whose metadata names `system` ("stylegan2-ada"), wherever they lie."""
    return [path for path in sorted(root.rglob("*.safetensors")) if golden_meta(path).get("system") == system]


def golden_meta(path: Path) -> dict[str, Any]:
    """Read the metadata of one file without its tensors."""
    with safe_open(path, "pt") as file:
        return _parse(file.metadata())


def tolerance_of(name: str, case: GoldenFile) -> float:
    """The bound of `max|x - ref| / max|ref|` of output `name` (without "out/"): 10x its measured noise floor."""
    floors = case.meta.get("noise_floor")
    if floors is None:
        return EXACT_TOLERANCE
    least = GRADIENT_TOLERANCE if _GRADIENT.search(name) else FORWARD_TOLERANCE
    noise, largest = floors.get(name, (0.0, 0.0))
    return max(10 * noise / largest if largest else 0.0, least)


def assert_close_to_golden(name: str, value: Tensor, case: GoldenFile) -> None:
    """Hold `value` against output `name` (without "out/"); integers and booleans must be equal."""
    want, got = case.tensors[f"out/{name}"], value.detach().cpu()
    where = f"{case.path.name}: {name}"
    assert got.shape == want.shape, f"{where}: shape {tuple(got.shape)}, golden {tuple(want.shape)}"
    if not want.is_floating_point():
        assert torch.equal(got, want), f"{where}: differs; golden integers and booleans must match exactly"
        return
    if want.numel() == 0:
        return
    finite = want[want.isfinite()].abs()
    scale = (finite.max().item() if finite.numel() else 0.0) or 1.0
    difference = torch.where(got == want, 0.0, got.double() - want.double())  # equal infinities differ by nothing
    error = difference.abs().max().item() / scale
    allowed = tolerance_of(name, case)
    assert error <= allowed, f"{where}: error {error:.2e}, allowed {allowed:.2e}"  # fails on NaN too


def _parse(metadata: dict[str, str] | None) -> dict[str, Any]:
    return {key: _parse_value(text) for key, text in (metadata or {}).items()}


def _parse_value(text: str) -> Any:
    # versions and commits stay text, even where they happen to look like a number
    is_json = text[:1] in ("{", "[") or re.fullmatch(r"-?\d{1,18}", text)
    return json.loads(text) if is_json else text
