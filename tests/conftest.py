"""Fixtures shared by all tests, and the `--golden DIR` option."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"
COMMITTED_GOLDEN = REPOSITORY / "tests" / "golden"

pytest_plugins = ["bench.pytest_gpu"]

torch.set_num_threads(
    1
)  # the tests are many small calls, and threads that wait for each other cost more than they give


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=None,
        metavar="DIR",
        help="folder of golden cases; default: the full set beside the checkout if it is there, else tests/golden",
    )


def golden_root(config: pytest.Config) -> Path:
    """The folder whose cases are run: `--golden`, else the full set beside the checkout, else the committed core."""
    chosen = config.getoption("--golden")
    if chosen is not None:
        if not chosen.is_dir():
            raise pytest.UsageError(f"--golden {chosen}: no such folder")
        return Path(chosen)
    full = SHARED / "golden"
    return full if full.is_dir() else COMMITTED_GOLDEN


@pytest.fixture(scope="session")
def golden_dir(request: pytest.FixtureRequest) -> Path:
    return golden_root(request.config)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs the folder `shared` (real images, golden vectors) beside the checkout")
    return SHARED
