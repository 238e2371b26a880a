from __future__ import annotations

import sys
from pathlib import Path

import pytest

import kernels.dispatch
from bench.code_copies import CodeCopy, merge_base
from bench.errors import UserError
from tests.conftest import REPOSITORY


def package(folder: Path, name: str, **files: str) -> CodeCopy:
    (folder / "kernels").mkdir(parents=True)
    (folder / "kernels" / "__init__.py").write_text(f"NAME = {name!r}\n", encoding="utf-8")
    for stem, text in files.items():
        (folder / "kernels" / f"{stem}.py").write_text(text, encoding="utf-8")
    return CodeCopy(folder)


LATE = """
import importlib
from kernels import NAME

def name_found_late():
    from kernels.other import OTHER
    return NAME, OTHER, importlib.import_module("kernels.third").THIRD
"""


def test_imports_of_a_copy_find_the_copy_however_late(tmp_path: Path) -> None:
    copies = [
        package(tmp_path / name, name, late=LATE, other=f"OTHER = {name!r}", third=f"THIRD = {name!r}")
        for name in ("one", "two")
    ]
    loaded = [copy.load("kernels.late") for copy in copies]
    for _ in range(2):
        for copy, module, name in zip(copies, loaded, ("one", "two"), strict=True):
            with copy.active():
                assert module.name_found_late() == (name, name, name)


def test_copy_leaves_no_trace(tmp_path: Path) -> None:
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "kernels"}
    path = list(sys.path)
    copy = package(tmp_path, "one", alone="X = 1")
    assert copy.load("kernels.alone").X == 1
    with pytest.raises(ZeroDivisionError), copy.active():
        _ = 1 / 0
    after = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "kernels"}
    assert after == before
    assert sys.path == path
    assert sys.modules["kernels.dispatch"] is kernels.dispatch


def test_copies_of_the_real_kernels_share_nothing(tmp_path: Path) -> None:
    copies = [CodeCopy(REPOSITORY), CodeCopy(REPOSITORY)]
    registries = [copy.load("kernels.registry") for copy in copies]
    dispatches = [copy.load("kernels.dispatch") for copy in copies]
    assert registries[0].KERNELS is not registries[1].KERNELS
    for copy, registry, dispatch in zip(copies, registries, dispatches, strict=True):
        with copy.active():
            assert dispatch.KERNELS is registry.KERNELS
            assert dispatch.resolve("kernels.bias_act:bias_act_reference").__globals__["select"] is dispatch.select


def test_missing_package_is_not_taken_from_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ImportError):
        CodeCopy(tmp_path).load("kernels.registry")


def test_file_runs_with_the_copy_it_is_given(tmp_path: Path) -> None:
    copy = package(tmp_path / "one", "one")
    (tmp_path / "outside.py").write_text("from kernels import NAME\n", encoding="utf-8")
    assert copy.execute(tmp_path / "outside.py").NAME == "one"


def test_operators_of_the_whole_process_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"registers operators with torch\.library"):
        package(tmp_path, "one", ops="import torch\ntorch.library.custom_op\n")


def test_unknown_commit_is_an_error() -> None:
    with pytest.raises(UserError, match="--base takes a branch, tag or commit of"):
        merge_base("no-such-thing", REPOSITORY)
