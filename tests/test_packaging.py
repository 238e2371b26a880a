"""A fresh clone holds what the README promises, and nothing that may not be published."""

from __future__ import annotations

import subprocess
import tempfile
import tomllib
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FIXED_BY_THE_USER = {
    "torch",
    "open_clip_torch",
    "torch-fidelity",
    "clean-fid",
    "pandas",
    "matplotlib",
    "pytest-benchmark",
    "triton",
}
IMAGES = {".jpg", ".jpeg", ".zip", ".pkl"}


def tracked_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [REPOSITORY / name for name in done.stdout.split("\0") if name and (REPOSITORY / name).exists()]


def test_dependencies_hold_what_the_user_fixed() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {line.split(">")[0].split("=")[0].split("<")[0].split(";")[0].strip() for line in project["dependencies"]}
    assert names == FIXED_BY_THE_USER | {"torchvision"}
    assert set(project["optional-dependencies"]) == {"diffusion", "gpu"}


def test_no_wheel_ships_the_generic_names() -> None:
    assert "build-system" not in tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert not any((REPOSITORY / name).exists() for name in ("setup.py", "setup.cfg"))


def test_licence_is_apache() -> None:
    assert "Apache License" in (REPOSITORY / "LICENSE").read_text(encoding="utf-8")


def test_tracked_files_are_small_and_publishable() -> None:
    files = tracked_files()
    assert [str(f) for f in files if f.stat().st_size > 2 * 2**20] == []
    assert [str(f) for f in files if f.suffix.lower() in IMAGES] == []
    golden = sum(f.stat().st_size for f in files if f.is_relative_to(REPOSITORY / "tests" / "golden"))
    assert golden < 10 * 2**20


def test_tracked_text_names_no_path_of_a_machine() -> None:
    # examples write into the folder for temporary files, which is where a checkout may lie too
    is_temporary = REPOSITORY.parent == Path(tempfile.gettempdir())
    here = str(REPOSITORY if is_temporary else REPOSITORY.parent) + "/"
    named = [str(f) for f in tracked_files() if here.encode() in f.read_bytes()]
    assert named == []
