"""The folder of a run: which plan it holds, and that no two processes write into it at once."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.environment import ROOT, environment_facts, machine_slug, source_sha256
from bench.errors import UserError
from bench.fetch import file_sha256
from bench.plan import Plan, PlanOptions

RUNS = ROOT / "results" / "runs"
LOCK = ".lock"
Identity = dict[str, Any]  # everything that a number of a run depends on, by name


def identify(plan: Plan, options: PlanOptions, networks: Mapping[str, str]) -> Identity:
    """Everything that a number of the run depends on; runs with equal ones may share shards.

    `networks` are the SHA-256 of the weights of those that look at images, by name.
    """
    weights = {name: file_sha256(path) for name, path in options.model_weights.items()}
    facts = {
        "source": source_sha256(),
        "suite": [plan.suite.name, plan.suite.version, plan.suite.seed],
        "entries": [repr(stage.entry) for stage in plan.stages],
        "data": [stage.dataset.content_sha256() for stage in plan.stages],
        "networks": dict(networks),
        "weights": weights,
        "prompts": [stage.prompts.sha256 for stage in plan.stages if stage.prompts is not None],
        "references": [file_sha256(path) for path in options.references],
        "machine": machine_slug(plan.device),
        "environment": {k: v for k, v in environment_facts(plan.device).items() if k != "gpu"},  # clocks move
    }
    as_read: Identity = json.loads(json.dumps(facts, default=str))
    return as_read


def fingerprint(identity: Identity) -> str:
    """The hash of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def differences(known: Identity, now: Identity) -> list[str]:
    """The names of what differs between two identities; of dictionaries those of their entries."""
    names = []
    for name in sorted(known.keys() | now.keys()):
        before, after = known.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            names += [
                f"{name}.{key}" for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)
            ]
        elif before != after:
            names.append(name)
    return names


def run_facts(folder: Path) -> dict[str, Any]:
    """What a run wrote of itself; nothing where there is no run, or none that can be read."""
    try:
        facts: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts


def choose_folder(identity: Identity, plan: Plan, output: Path | None, *, fresh: bool) -> Path:
    """The folder of this run: the one asked for, the newest unfinished run of the same plan, or a new one."""
    if output is not None:
        _check_folder(output, identity, fresh=fresh)
        return output
    if not fresh:
        for folder in sorted(RUNS.glob("*"), reverse=True):
            facts = run_facts(folder)
            if facts.get("identity") == identity and not facts.get("complete"):
                return folder
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S%fZ")
    return RUNS / f"{now}-{machine_slug(plan.device)}-{plan.suite.name}-{fingerprint(identity)[:8]}"


def _check_folder(output: Path, identity: Identity, *, fresh: bool) -> None:
    facts = run_facts(output)
    if not facts:
        if output.is_dir() and any(not path.name.startswith(".") for path in output.iterdir()):
            raise UserError(f"{output} is not empty and not a run. Choose another folder with --output DIR.")
        return
    if fresh:
        raise UserError(f"--fresh: {output} holds a run already. Remove it, or choose another --output DIR.")
    known = facts.get("identity", {})
    if known != identity:
        raise UserError(
            f"{output} holds a run of another plan, or of another version of the program or its packages: "
            f"{', '.join(differences(known, identity))} differ.\n"
            "Choose another folder with --output DIR, or remove this one."
        )


@contextlib.contextmanager
def locked(folder: Path, *, shared: bool) -> Iterator[None]:
    """Keep two processes from writing one run; several may make shards of features side by side."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / LOCK).open("w")
    except OSError as error:
        raise UserError(
            f"cannot write into {folder}: {error.strerror}. Choose another folder with --output DIR."
        ) from error
    with stream:
        try:
            fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is at work in {folder}. Wait for it, or choose --output DIR.") from error
        yield
