from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.golden_cases import GoldenFile, assert_close_to_golden, golden_files, load_golden, tolerance_of


@pytest.fixture
def case(tmp_path: Path) -> GoldenFile:
    path = tmp_path / "anywhere" / "a.safetensors"
    path.parent.mkdir()
    tensors = {"out/y": torch.tensor([1.0, -4.0]), "out/grad_x": torch.ones(2), "out/n": torch.tensor([3])}
    floors = '{"y": [4e-5, 4.0], "grad_x": [0.0, 1.0]}'
    save_file(tensors, path, {"system": "stylegan2-ada", "seed": "7", "torch": "2.15", "noise_floor": floors})
    return load_golden(golden_files(tmp_path, "stylegan2-ada")[0])


def test_load_golden_parses_what_is_json(case: GoldenFile) -> None:
    assert (case.meta["seed"], case.meta["torch"]) == (7, "2.15")
    assert case.meta["noise_floor"]["y"] == [4e-5, 4.0]
    assert set(case.group("out/")) == {"y", "grad_x", "n"}


def test_golden_files_are_chosen_by_system(case: GoldenFile) -> None:
    assert golden_files(case.path.parents[1], "stylegan3") == []


def test_tolerance_is_ten_noise_floors_and_never_below_the_least(case: GoldenFile) -> None:
    assert tolerance_of("y", case) == pytest.approx(1e-4)
    assert tolerance_of("grad_x", case) == 2e-5


@pytest.mark.parametrize(("name", "offset"), [("y", 3e-4), ("grad_x", 1.5e-5), ("n", 0)])
def test_assert_close_accepts_within_tolerance(case: GoldenFile, name: str, offset: float) -> None:
    assert_close_to_golden(name, case.tensors[f"out/{name}"] + offset, case)


@pytest.mark.parametrize(("name", "offset"), [("y", 5e-4), ("grad_x", 3e-5), ("y", float("nan")), ("n", 1)])
def test_assert_close_refuses_the_rest(case: GoldenFile, name: str, offset: float) -> None:
    with pytest.raises(AssertionError, match=f"a.safetensors: {name}: "):
        assert_close_to_golden(name, case.tensors[f"out/{name}"] + offset, case)


def test_assert_close_refuses_another_shape(case: GoldenFile) -> None:
    with pytest.raises(AssertionError, match=r"shape \(1, 2\), golden \(2,\)"):
        assert_close_to_golden("y", case.tensors["out/y"][None], case)
