"""Bring together what several machines made of one run, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.errors import UserError
from bench.records import write_atomic
from bench.run_folder import Identity, differences, run_facts

# Where parts of a run were made may differ. What they were made of, and with which versions, may not.
FREE = {"machine", "environment.system", "environment.cpu", "environment.threads"}


def check_parts(sources: Sequence[Path], identity: Identity) -> None:
    """Raise `UserError`, with what differs, unless all folders hold parts of the run with this identity."""
    for source in sources:
        known = run_facts(source).get("identity")
        if known is None:
            raise UserError(f"{source}: no run there. Give folders that `run --shard I/N --output DIR` made.")
        if differ := [name for name in differences(known, identity) if name not in FREE]:
            raise UserError(
                f"{source} holds a part of another run: {', '.join(differ)} differ. Only parts of one plan, made of "
                "the same data and weights with the same versions, can be merged."
            )


def copy_parts(sources: Sequence[Path], folder: Path) -> None:
    """Copy the shards that `folder` lacks, the first found of each."""
    for source in sources:
        for path in sorted(source.rglob("*.safetensors")):
            target = folder / path.relative_to(source)
            if not target.exists():
                write_atomic(target, path.read_bytes())
