"""The house keeps its floors, its sizes and its light imports."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FLOORS = ("kernels", "models", "bench")
ALLOWED_BELOW = {"kernels": {"kernels"}, "models": {"kernels", "models"}, "bench": set(FLOORS)}
HEAVY = {"torch", "triton", "open_clip", "torch_fidelity", "cleanfid", "matplotlib"}
SOURCES = [path for floor in FLOORS for path in sorted((REPOSITORY / floor).rglob("*.py"))]


def imported_packages(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_floor_imports_nothing_from_above(path: Path) -> None:
    floor = path.relative_to(REPOSITORY).parts[0]
    above = imported_packages(path) & set(FLOORS) - ALLOWED_BELOW[floor]
    assert not above, f"{floor} must not import {above}"


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.parent.name == "kernels"], ids=lambda path: str(path.relative_to(REPOSITORY))
)
def test_kernels_import_torch_only(path: Path) -> None:
    foreign = imported_packages(path) - {"kernels", "torch"} - set(sys.stdlib_module_names)
    allowed = {"triton"} if path.stem.endswith("_triton") else set()
    assert foreign <= allowed


def functions() -> Iterator[tuple[str, int, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                yield f"{path.relative_to(REPOSITORY)}:{node.lineno} {node.name}", lines, node


def test_functions_are_short() -> None:
    found = list(functions())
    lengths = sorted(lines for _, lines, _ in found)
    assert statistics.median(lengths) <= 12
    assert lengths[int(0.9 * len(lengths))] <= 40
    jitted = {name for name, _, node in found if any("jit" in ast.unparse(d) for d in node.decorator_list)}
    assert [name for name, lines, _ in found if lines > (120 if name in jitted else 80)] == []


def test_files_and_classes_are_short() -> None:
    too_long = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        too_long += [str(path)] if text.count("\n") > 350 else []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno >= 200:
                too_long.append(f"{path}: {node.name}")
    assert too_long == []


def test_no_file_is_a_drawer_for_everything() -> None:
    assert {path.stem for path in SOURCES}.isdisjoint({"utils", "helpers", "common", "misc", "util"})


def test_package_inits_stay_light() -> None:
    code = f"import sys, bench, models, kernels; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert not hasattr(__import__("kernels"), "__version__")


def test_only_records_writes_under_results() -> None:
    writers = []
    for path in (p for p in SOURCES if p.parent.name != "models"):
        text = path.read_text(encoding="utf-8")
        names_results = any(name in text for name in ("RUNS", "run_dir", "bench.folder"))
        if names_results and re.search(r"\.write_(text|bytes)\(|\.to_csv\(|(?<!LOCK\))\.open\(\"[wa]", text):
            writers.append(path.name)
    assert writers == []


def test_diffusion_libraries_load_beside_our_kernels_package(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra `diffusion`")
    pytest.importorskip("diffusers", reason="needs the extra `diffusion`")
    code = (
        "from transformers import CLIPTextConfig, CLIPTextModel\n"
        "from diffusers import UNet2DModel\n"
        "CLIPTextModel(CLIPTextConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1,"
        " num_attention_heads=2))\n"
        "UNet2DModel(sample_size=8, block_out_channels=(32,), layers_per_block=1, down_block_types=('DownBlock2D',),"
        " up_block_types=('UpBlock2D',))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
