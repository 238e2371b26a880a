"""Several versions of the package `kernels` in one process, so that a drift of the machine meets all of them alike.

A copy has its own modules. They stand in `sys.modules` under their usual names while the copy is active, so that every
import in its code, however late, finds the copy's own modules; at other times they are put away.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.environment import ROOT
from bench.errors import UserError

PACKAGE, CALLS = "kernels", "kernel_calls.py"


class CodeCopy:
    """The package `kernels` of one folder, or its absence. Not for several threads at once."""

    def __init__(self, folder: Path) -> None:
        sources = [path.read_text(encoding="utf-8") for path in (folder / PACKAGE).glob("*.py")]
        if any("torch.library" in source for source in sources):
            raise UserError(
                "kernels registers operators with torch.library, of which a process has one by each name; "
                "two versions can't run side by side. Register them under a name that holds the version."
            )
        self.folder = folder
        self._modules: dict[str, Any] = {PACKAGE: None}  # an import of it fails, instead of finding another one
        if sources:
            self._modules[PACKAGE] = self.execute(folder / PACKAGE / "__init__.py", PACKAGE)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let `import kernels` mean this copy inside."""
        outer = _NAMES.take()
        sys.modules.update(self._modules)
        _NAMES.settle()
        try:
            yield
        finally:
            self._modules = _NAMES.take()
            sys.modules.update(outer)
            _NAMES.settle()

    def load(self, module: str) -> ModuleType:
        """Import a module of the copy: "kernels.registry"."""
        with self.active():
            return importlib.import_module(module)

    def execute(self, path: Path, name: str = f"{PACKAGE}._calls") -> ModuleType:
        """Run a file with this copy's kernels, as the module `name`."""
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise UserError(f"{path}: not a Python file")
        module = importlib.util.module_from_spec(spec)
        with self.active():
            spec.loader.exec_module(module)
        return module


class _Names:
    """The names of all modules of any copy. Thousands of modules are searched only when one was imported."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._num_modules = -1  # in `sys.modules` when the names were complete

    def take(self) -> dict[str, Any]:
        """Take the modules of the present copy out of `sys.modules`."""
        if len(sys.modules) != self._num_modules:
            self._names.update(name for name in sys.modules if name.partition(".")[0] == PACKAGE)
        return {name: sys.modules.pop(name) for name in self._names if name in sys.modules}

    def settle(self) -> None:
        """Remember that no module of `sys.modules` is unknown."""
        self._num_modules = len(sys.modules)


_NAMES = _Names()


def merge_base(reference: str, root: Path = ROOT) -> str:
    """The commit where the present branch left `reference`."""
    _git(root, "rev-parse", "--verify", "--quiet", f"{reference}^{{commit}}")
    return _git(root, "merge-base", reference, "HEAD").decode().strip()


def write_commit(commit: str, folder: Path, root: Path = ROOT) -> None:
    """Write `kernels` as of a commit into a folder, with its own way of calling them if it has one."""
    tracked = _git(root, "ls-tree", "--name-only", commit, "--", PACKAGE, f"bench/{CALLS}").decode().split()
    archive = _git(root, "archive", "--format=tar", commit, "--", *tracked) if tracked else b""
    folder.mkdir(parents=True)
    if archive:
        with tarfile.open(fileobj=io.BytesIO(archive)) as members:
            members.extractall(folder, filter="data")
    if (calls := folder / "bench" / CALLS).is_file():
        calls.replace(folder / CALLS)
        calls.parent.rmdir()


def write_working_tree(folder: Path, root: Path = ROOT) -> None:
    """Write `kernels` as it is now into a folder: an edit while the gate runs changes nothing."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / PACKAGE, folder / PACKAGE, ignore=ignored)
    shutil.copy(root / "bench" / CALLS, folder / CALLS)


def _git(root: Path, *arguments: str) -> bytes:
    try:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True).stdout
    except FileNotFoundError as error:
        raise UserError("git is not installed; the gate reads the other version of the code from it") from error
    except subprocess.CalledProcessError as error:
        raise UserError(
            f"`git {' '.join(arguments)}` failed: {error.stderr.decode().strip() or 'it found nothing'}. "
            f"--base takes a branch, tag or commit of {root} that shares history with HEAD; fetch it if it is not here."
        ) from None
