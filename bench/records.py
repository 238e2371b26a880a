"""The record of one measurement, and the only code that writes under `results/`.

A record is one row of JSON Lines. Rows are appended and never edited; a failure is a row with a status.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from bench.errors import StorageError, UserError

SCHEMA_VERSION = 1
Kind = Literal["quality", "speed", "size", "kernel"]
Status = Literal["ok", "missing", "skipped", "error"]


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where and with what a row was measured; the same for all rows of one process."""

    run_id: str
    commit: str | None
    dirty: bool | None
    source_sha256: str  # of the program's own files, so that a copy without git is named too
    machine: str  # "cpu-x86_64-2-cores", "nvidia-h100-80gb-hbm3"
    environment: Mapping[str, Any]  # versions, GPU, driver, clocks, flags


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured; `metric` is the honest name that tables print: "FID", "FID [n=9]", "FD-standin-v1 [n=9]"."""

    kind: Kind
    subject: str  # a registry name, or "real"
    weights: str  # "random seed 0", "official", "file stylegan2.safetensors", "real images"
    weights_sha256: str | None
    case: Mapping[str, Any]  # dataset, resolution, n_reference, extractor, device, dtype, batch_size, ...
    protocol: str  # "fid50k_full@sg3"
    metric: str
    unit: str
    higher_is_better: bool | None  # None: neither is better
    value: float | None
    n: int | None = None
    interval: tuple[float, float] | None = None
    seed: int | None = None
    status: Status = "ok"
    error: str | None = None  # why there is no value, and the command that mends it
    caveats: tuple[str, ...] = ()  # why it is not a full number of its protocol; empty: it is
    details: Mapping[str, float] = field(default_factory=dict)  # further figures of the same measurement: baseline_ms

    def __post_init__(self) -> None:
        if (self.value is None) == (self.status == "ok"):
            raise ValueError(f"{self.metric}: value {self.value} with status {self.status!r}; only 'ok' has a value")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"{self.metric}: value {self.value} is not finite; record a failure with status 'error'")


@dataclass(frozen=True, slots=True)
class Record:
    """One row: a measurement with its provenance."""

    measurement: Measurement
    provenance: Provenance
    timestamp_utc: str
    task: str = ""
    schema_version: int = field(default=SCHEMA_VERSION)

    def to_json(self) -> str:
        """The row as one line of JSON, keys in the order of the schema."""
        row = {"schema_version": self.schema_version, "timestamp_utc": self.timestamp_utc, "task": self.task}
        row |= dataclasses.asdict(self.provenance) | dataclasses.asdict(self.measurement)
        return json.dumps(row, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """Read a row back; a row of another schema version is refused."""
        row = json.loads(line)
        version = row.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise UserError(
                f"record schema {version}; this program reads {SCHEMA_VERSION}. Use the version that wrote it."
            )
        row["caveats"] = tuple(row["caveats"])
        row["interval"] = None if row["interval"] is None else tuple(row["interval"])
        timestamp_utc, task = row.pop("timestamp_utc"), row.pop("task")
        names = {f.name for f in dataclasses.fields(Provenance)}
        provenance = Provenance(**{k: v for k, v in row.items() if k in names})
        measurement = Measurement(**{k: v for k, v in row.items() if k not in names})
        return cls(measurement, provenance, timestamp_utc, task)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that a cut or a full disk leaves the old content or the new, never half of it."""
    data = content.encode() if isinstance(content, str) else content
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write {path}: {error.strerror}. Earlier results are untouched; "
            "free some space or choose another folder with --output DIR."
        ) from error


def remove_parts(folder: Path) -> None:
    """Remove what a killed process left half written below `folder`; nobody else may be writing there."""
    for part in folder.rglob(".*.part"):
        part.unlink(missing_ok=True)


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write rows as JSON Lines, atomically."""
    write_atomic(path, "".join(record.to_json() + "\n" for record in records))


def append_records(path: Path, records: Iterable[Record]) -> None:
    """Append rows to a JSON Lines file, so that a cut loses at most these rows and never one that was there."""
    data = "".join(record.to_json() + "\n" for record in records).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            size = _end_of_rows(stream)
            try:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            except OSError:
                stream.truncate(size)
                raise
    except OSError as error:
        raise StorageError(
            f"cannot append to {path}: {error.strerror}. Earlier rows are untouched; free some space and measure again."
        ) from error


def _end_of_rows(stream: BinaryIO) -> int:
    """Make the file end with a whole row: a row of which a cut left a part is removed. Returns the size."""
    stream.seek(0)
    content = stream.read()
    whole = content.rfind(b"\n") + 1
    if whole < len(content) and _is_record(content[whole:]):
        stream.write(b"\n")
        return len(content) + 1
    stream.truncate(whole)
    return whole


def _is_record(line: bytes) -> bool:
    try:
        Record.from_json(line.decode())
    except (ValueError, KeyError, TypeError):
        return False
    return True


def read_records(path: Path, *, appended: bool = False) -> list[Record]:
    """Read the rows of a JSON Lines file; of one that is `appended` to, a cut may have left part of a last row."""
    text = path.read_text(encoding="utf-8")
    if appended and not text.endswith("\n"):
        whole = text.rfind("\n") + 1
        text = text if _is_record(text[whole:].encode()) else text[:whole]
    records = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            records.append(Record.from_json(line))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}: not a record ({error}). Restore the file, or remove that line."
            ) from error
    return records
