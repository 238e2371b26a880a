"""Fixtures for tests of the engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import run_folder
from tests.bench.tiny_suite import SUITE


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run_folder, "RUNS", tmp_path / "results" / "runs")
    monkeypatch.setenv("STYLEBENCH_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "tiny.toml"
    path.write_text(SUITE, encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def keep_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no command of a test shut the network for all tests after it: its audit hook would outlive the test."""
    for module in ("commands", "file_commands"):
        monkeypatch.setattr(f"bench.{module}.forbid_network", lambda: None)
