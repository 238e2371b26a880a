"""The command `convert`: official checkpoints to safetensors files that name their configuration."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.errors import UserError
from models.checkpoints import CheckpointError, convert
from models.registry import DISCRIMINATORS, MODELS


def convert_checkpoint(source: Path, destination: Path, network: str, *, force: bool) -> str:
    """Convert a network of a file, and say in a line what was written.

    Raises `UserError` if the file can't be read as data, has no such network, or the destination can't be written.
    """
    try:
        if source.is_file():
            size_mb = source.stat().st_size / 1e6
            print(f"converting {network} of {source} ({size_mb:,.1f} MB)", file=sys.stderr, flush=True)
        done = convert(source, destination, network, force=force, on_tensor=_show)
    except (CheckpointError, OSError) as error:
        raise UserError(str(error)) from error
    family = next((spec.family for spec in MODELS.values() if spec.target == done.target), None)
    return (
        f"{done.path}: {network}, {family or DISCRIMINATORS[done.target]}, {done.resolution} px, "
        f"{done.num_parameters:,} parameters, sha256 {done.sha256}"
    )


def _show(done: int, of: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done}/{of} tensors" + ("\n" if done == of else ""))
