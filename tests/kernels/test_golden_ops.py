"""Every sub-case of every golden operator file: values, gradients and gradients of gradients."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import COMMITTED_GOLDEN, golden_root
from tests.golden_cases import golden_meta, load_golden
from tests.golden_operators import RUNNERS, check_operator, is_operator


def operator_files(root: Path) -> list[Path]:
    return [path for path in sorted(root.rglob("*.safetensors")) if is_operator(golden_meta(path))]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "sub_case" in metafunc.fixturenames:
        found = [
            pytest.param(path, index, id=f"{path.parent.name}/{path.stem}-{index:03d}")
            for path in operator_files(golden_root(metafunc.config))
            for index in range(len(golden_meta(path).get("cases", [])) or 1)  # a file without cases must fail
        ]
        metafunc.parametrize(("golden_path", "sub_case"), found)


def test_operator_matches_golden(golden_path: Path, sub_case: int) -> None:
    check_operator(load_golden(golden_path), sub_case)


@pytest.mark.parametrize("fused_modconv", [True, False])
def test_modulated_conv_formulations_both_match_golden(golden_dir: Path, fused_modconv: bool) -> None:
    files = [path for path in operator_files(golden_dir) if golden_meta(path)["class"].endswith("modulated_conv2d")]
    for case in map(load_golden, files):
        for index in range(len(case.meta["cases"])):
            check_operator(case, index, fused_modconv=fused_modconv)


def test_committed_core_has_every_operator() -> None:
    assert {golden_meta(path)["class"] for path in operator_files(COMMITTED_GOLDEN)} == set(RUNNERS)
