"""`TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted` runs the kernels on the CPU, without a GPU.

Triton reads the variable when it is imported, so without it there is nothing to collect here.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kernels.dispatch import INTERPRETED, use

collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items if INTERPRETED else ():  # without it these are the items of a session that this folder is part of
        item.add_marker(pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"))  # of Triton 3.6


@pytest.fixture(autouse=True)
def triton_writes_all_of_its_outputs() -> Iterator[None]:
    """Every test runs in Triton, and what a kernel leaves unwritten is NaN."""
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    with use("triton"):
        assert torch.empty(8).isnan().all()
        yield
    torch.use_deterministic_algorithms(False)
