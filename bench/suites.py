"""Suites: what is run, as data. A suite is a TOML file; an unknown key is an error that names the nearest one."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from bench.errors import UserError, did_you_mean
from bench.inversion import inversion_protocol_named
from bench.probes import probe_protocol_named
from bench.protocols import protocol_named
from bench.speed_conditions import check_condition

SUITES_DIR = Path(__file__).parent / "suites"
SCHEMA_VERSION = 1
Reference = Literal["half", "full"]
Labels = Literal["dataset", "uniform"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A data set at a resolution, the models that run on it, and how they are measured."""

    dataset: str
    resolution: int
    models: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()
    num_images: int = 50_000  # per subject; of "half" no more than a half has
    repeats: int = 1  # sample sets of different seeds; a number is then their mean, with an interval
    reference: Reference = "full"  # "half": one half of the images; the other half is the real-against-real row
    shard_size: int = 500  # samples that a killed run loses at most
    batch_size: int = 32
    inversion_images: int = 0
    inversion_steps: int = 1000
    inversion_batch: int = 4  # targets at once; a killed run loses at most these
    inversion_tracks: tuple[str, ...] = ("inversion@sgxl",)
    probes: tuple[str, ...] = ()  # metrics that drive the generator: path length, equivariance
    probe_samples: int = 50_000
    labels: Labels = "dataset"  # classes of samples: those of random images (StyleGAN), or each as likely (ADM, XL)
    speed_conditions: tuple[str, ...] = ("eager",)
    latency_calls: int = 700  # enough for a 99th percentile
    latency_budget_s: float = 60.0
    max_batch_size: int = 64  # the search for the best throughput stops here

    def __post_init__(self) -> None:
        for name in self.protocols:
            protocol_named(name)
        for name in self.inversion_tracks:
            inversion_protocol_named(name)
        for name in self.probes:
            probe_protocol_named(name)
        for name in self.speed_conditions:
            check_condition(name)
        counts = ("num_images", "repeats", "shard_size", "batch_size", "latency_calls", "max_batch_size")
        for name in ("resolution", "inversion_steps", "inversion_batch", "probe_samples", *counts):
            if getattr(self, name) < 1:
                raise UserError(f"suite entry {self.title}: {name} = {getattr(self, name)}; it must be 1 or more")

    @property
    def title(self) -> str:
        """The name that progress shows and folders have; of a path its last part."""
        return f"{Path(self.dataset).name.removesuffix('.zip')}-{self.resolution}"


@dataclass(frozen=True, slots=True)
class Suite:
    """A named list of entries with one seed."""

    name: str
    summary: str
    version: int
    seed: int
    defaults: dict[str, Any]
    entries: tuple[Entry, ...]


def _unknown_key(where: str, key: str, allowed: list[str]) -> UserError:
    hint = did_you_mean(key, allowed, cutoff=0.4)
    return UserError(f"{where}: unknown key {key!r}.{hint} Allowed: {', '.join(allowed)}.")


def _coerce(where: str, key: str, value: Any, hint: Any) -> Any:
    """Check a TOML value against the type of its field."""
    if get_origin(hint) is tuple:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise UserError(f"{where}: {key} = {value!r}; it must be a list of strings")
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise UserError(f"{where}: {key} = {value!r}; allowed: {', '.join(map(repr, get_args(hint)))}")
    allowed = (int, float) if hint is float else (hint,)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise UserError(f"{where}: {key} = {value!r}; it must be of type {hint.__name__}")
    return value


def _entry(where: str, table: dict[str, Any]) -> Entry:
    hints = get_type_hints(Entry)
    values = {}
    for key, value in table.items():
        if key not in hints:
            raise _unknown_key(where, key, list(hints))
        values[key] = _coerce(where, key, value, hints[key])
    missing = {"dataset", "resolution"} - values.keys()
    if missing:
        raise UserError(f"{where}: {' and '.join(sorted(missing))} missing; each entry needs both")
    return Entry(**values)


def _check_titles(where: str, entries: tuple[Entry, ...]) -> None:
    """Refuse two entries that would write into one folder."""
    titles = [entry.title for entry in entries]
    if twice := [title for i, title in enumerate(titles) if title in titles[:i]]:
        raise UserError(f"{where}: two entries are called {twice[0]}. Put their models and protocols into one entry.")


def parse_suite(where: str, text: str) -> Suite:
    """Read a suite from TOML; `where` names the source in messages."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where}: not valid TOML: {error}") from error
    allowed = ["schema", "name", "summary", "version", "seed", "defaults", "entry"]
    for key in document:
        if key not in allowed:
            raise _unknown_key(where, key, allowed)
    if document.get("schema") != SCHEMA_VERSION:
        raise UserError(f"{where}: schema = {document.get('schema')!r}; this program reads schema = {SCHEMA_VERSION}")
    defaults, tables = document.get("defaults", {}), document.get("entry", [])
    if not tables:
        raise UserError(f"{where}: no [[entry]]; a suite needs at least one")
    entries = tuple(_entry(f"{where}, entry {i}", defaults | table) for i, table in enumerate(tables, start=1))
    _check_titles(where, entries)
    header = {k: document.get(k, d) for k, d in (("name", where), ("summary", ""), ("version", 1), ("seed", 0))}
    return Suite(**header, defaults=defaults, entries=entries)


def entry_for(suite: Suite, dataset: str, resolution: int, models: list[str]) -> Entry:
    """An entry with the suite's defaults, for a data set that the suite does not list."""
    named = {"dataset": dataset, "resolution": resolution, "models": models}
    return _entry(f"{suite.name}, {dataset}-{resolution}", suite.defaults | named)


def suite_names() -> list[str]:
    """The suites that come with the program."""
    return sorted(path.stem for path in SUITES_DIR.glob("*.toml"))


def load_suite(name: str) -> Suite:
    """Load a suite by name, or from a TOML file of the user's."""
    path = Path(name) if name.endswith(".toml") else SUITES_DIR / f"{name}.toml"
    if not path.is_file():
        hint = did_you_mean(name, suite_names())
        raise UserError(f"no suite {name!r}.{hint} Suites: {', '.join(suite_names())}, or a path to a .toml file.")
    return parse_suite(str(name), path.read_text(encoding="utf-8"))


def select_entries(suite: Suite, pattern: str) -> Suite:
    """Keep what matches a glob: whole entries by "ffhq-256", single models by "stylegan2-*"."""
    kept = []
    for entry in suite.entries:
        models = tuple(model for model in entry.models if fnmatch(model, pattern))
        if fnmatch(entry.title, pattern):
            kept.append(entry)
        elif models:
            kept.append(dataclasses.replace(entry, models=models))
    if not kept:
        names = [entry.title for entry in suite.entries] + [m for entry in suite.entries for m in entry.models]
        raise UserError(f"--only {pattern!r} matches nothing in suite {suite.name}: {', '.join(dict.fromkeys(names))}")
    return dataclasses.replace(suite, entries=tuple(kept))
