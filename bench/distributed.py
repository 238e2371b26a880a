"""Several processes at one run: parts given by hand (`--shard 2/8`), or handed out by torchrun on one node.

Each makes its share of the features. What a sample looks like does not depend on who makes it.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from bench.errors import UserError

PATIENCE = datetime.timedelta(days=7)  # of the first process, until the slowest has made its features


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of the feature shards that this process makes: `index` of `count`, counted from 1."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "2/8"."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise UserError(f"--shard {text}: write it as I/N with 1 <= I <= N, for example --shard 2/8")
        return cls(int(index), int(count))

    def mine(self, shards: Sequence[int]) -> list[int]:
        """The shards of features that fall to this process."""
        return [shard for shard in shards if shard % self.count == self.index - 1]


@dataclass(frozen=True, slots=True)
class World:
    """The processes that torchrun started; rank 0 makes the plan, and the numbers once all features are there."""

    rank: int
    size: int
    local_rank: int  # the GPU

    @property
    def shard(self) -> Shard:
        """What this process makes."""
        return Shard(self.rank + 1, self.size)

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Connect the processes."""
        dist.init_process_group("gloo", timeout=PATIENCE)
        try:
            yield
        finally:
            dist.destroy_process_group()

    def agree(self, value: str) -> str:
        """The value that rank 0 has."""
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Wait until all processes have come here."""
        dist.barrier()


def world_of_torchrun() -> World | None:
    """The processes that torchrun started beside this one; None where it did not start this one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    if int(os.environ["WORLD_SIZE"]) != int(os.environ["LOCAL_WORLD_SIZE"]):
        raise UserError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, {os.environ['LOCAL_WORLD_SIZE']} of them here; "
            "it can be used on one node. On several, give each process --shard I/N (README: scaled out)."
        )
    return World(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


def device_name(name: str) -> str:
    """The device of this process: under torchrun, "auto" and "cuda" are the GPU of its own, as far as there are."""
    world = world_of_torchrun()
    if world is None or name not in {"auto", "cuda"} or not torch.cuda.is_available():
        return name
    return f"cuda:{world.local_rank % torch.cuda.device_count()}"
