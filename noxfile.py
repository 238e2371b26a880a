"""Sessions of Stylebench: `nox -s bench` runs the main job, `nox -l` lists the rest.

All sessions share one environment, since torch alone is several gigabytes. If the interpreter that runs nox has torch
already, the shared environment sees that one and does not install another.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import nox

ROOT = Path(__file__).parent
ENVIRONMENT = ROOT / ".nox" / "stylebench"
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
OUTER_HAS_TORCH = importlib.util.find_spec("torch") is not None

nox.options.default_venv_backend = "none"  # the sessions run in ENVIRONMENT, made by `python_of_environment`
nox.options.sessions = ["lint", "typecheck", "tests"]


def requirements() -> list[str]:
    """Everything that the sessions need, from pyproject.toml, which is the one place that says so."""
    groups = nox.project.dependency_groups(PROJECT, "test", "lint", "typecheck")
    outer_torch = [f"torch=={importlib.metadata.version('torch')}"] if OUTER_HAS_TORCH else []
    return [*PROJECT["project"]["dependencies"], *groups, *outer_torch]


def create_environment(session: nox.Session, python: Path) -> None:
    """Make the shared environment, and let it see the packages of the interpreter that runs nox if torch is there."""
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    if OUTER_HAS_TORCH:
        inner = subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        )
        Path(inner.strip(), "outer.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    session.log("Installing the shared environment: about 6 GB and two minutes where torch is not there yet, once.")
    session.run(str(python), "-m", "pip", "install", "--quiet", *requirements(), external=True)


def python_of_environment(session: nox.Session) -> str:
    """The interpreter of the shared environment, installed once; a stamp says for which requirements."""
    python = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = ENVIRONMENT / "requirements.sha256"
    digest = hashlib.sha256("\n".join([sys.version, *requirements()]).encode()).hexdigest()
    if not python.exists() or not stamp.exists() or stamp.read_text(encoding="utf-8") != digest:
        create_environment(session, python)
        stamp.write_text(digest, encoding="utf-8")
    return str(python)


def run_module(session: nox.Session, *command: str) -> None:
    """Run `python -m COMMAND` in the shared environment."""
    session.run(python_of_environment(session), "-m", *command, external=True)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the main job: doctor, plan, run, report. Arguments pass through: nox -s bench -- --data DIR."""
    run_module(session, "bench", *session.posargs)


@nox.session
def report(session: nox.Session) -> None:
    """Write the tables and plots of a run again: nox -s report -- results/runs/NAME."""
    run_module(session, "bench", "report", *session.posargs)


@nox.session
def kernels(session: nox.Session) -> None:
    """Check, then time the kernels of this machine: nox -s kernels -- --budget 60."""
    run_module(session, "bench", "kernels", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests: nox -s tests -- -m 'not slow'."""
    run_module(session, "pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    run_module(session, "ruff", "check", *session.posargs)
    run_module(session, "ruff", "format", "--check")


@nox.session
def typecheck(session: nox.Session) -> None:
    """Check types, strictly."""
    run_module(session, "mypy", *session.posargs)
