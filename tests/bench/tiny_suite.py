"""A run that takes a second: what tests of the engine run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bench.environment import choose_device
from bench.plan import PlanOptions, make_plan
from bench.records import Record, read_records
from bench.run import RunOptions, execute

CPU = torch.device("cpu")
SUITE = """\
schema = 1
name = "tiny"
[defaults]
dataset = "shapes"
resolution = 32
reference = "half"
models = ["stylegan2-shapes-32"]
protocols = ["fid50k_full@sg3", "kid50k_full@sg3", "is50k@sg3", "pr50k3@adm-inception", "clip@vit-b-32"]
num_images = 24
shard_size = 8
batch_size = 4
inversion_images = 1
inversion_steps = 3
latency_calls = 3
latency_budget_s = 1.0
max_batch_size = 2
[[entry]]
"""


def run_tiny(suite: Path, how: RunOptions, **changes: Any) -> tuple[Path, list[Record]]:
    options = PlanOptions(suite=str(suite), **changes)
    device = choose_device("cpu")  # as every command: it sets the flags that are a part of the run's identity
    result = execute(make_plan(options, device), options, how)
    return result.folder, read_records(result.folder / "records.jsonl") if result.complete else []


def quality(records: list[Record]) -> dict[tuple[str, str], float | None]:
    rows = (record.measurement for record in records if record.measurement.kind == "quality")
    return {(row.subject, row.metric): row.value for row in rows}
