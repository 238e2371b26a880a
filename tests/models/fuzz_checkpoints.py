"""Converts mutated checkpoints under an audit hook and a memory limit; `test_fuzzing` runs it as a program.

    python -m tests.models.fuzz_checkpoints COUNT SEED

Prints one JSON object: what became of the files, and everything that should not have happened.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import random
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from models.checkpoints import CheckpointError, convert, save_weights
from tests.models.official_networks import (
    biggan_deep,
    stylegan2_ada,
    stylegan2_discriminator,
    stylegan3_t,
    stylegan_t,
    stylegan_xl_superres,
    tensorflow_file,
)
from tests.models.official_pickles import Dialect, checkpoint, dill_discriminator, dumps, module_object

MEMORY_BYTES = 1 << 30  # beyond what the interpreter has mapped when the first mutated file is read
# what no reading of data does, whatever the arguments
_FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "os.startfile", "os.putenv", "os.chmod", "os.kill",
    "subprocess.", "exec", "compile", "import", "pickle.", "marshal.", "code.__new__", "function.__new__", "ctypes.",
    "socket.", "shutil.", "urllib.", "webbrowser.", "builtins.input", "signal.",
)  # fmt: skip


class Watch:
    """Remembers what happens once it is armed and should not."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.armed, self.seen = str(folder), False, Counter[str]()
        sys.addaudithook(self.hook)

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event == "open":
            reads = isinstance(args[1], str) and not set(args[1]) & set("wax+")
            is_fine = reads or str(args[0]).startswith(self.folder)
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"):
            is_fine = all(str(path).startswith(self.folder) for path in args if isinstance(path, str | Path))
        else:
            is_fine = not event.startswith(_FORBIDDEN)
        if not is_fine:
            self.seen[f"{event} {str(args)[:100]}"] += 1


def check_watch(watch: Watch) -> None:
    """A watch that sees nothing would prove nothing."""
    deeds: list[Callable[[], object]] = [
        lambda: os.system("true"),
        lambda: pickle.loads(b"cbuiltins\nabs\n."),
        lambda: eval("1"),
        lambda: Path(watch.folder).with_name("other").write_text("a", encoding="ascii"),
        lambda: Path(watch.folder).with_name("other").unlink(),
    ]
    for index, deed in enumerate(deeds):
        watch.armed = True
        deed()
        watch.armed = False
        assert watch.seen, f"the audit hook missed deed {index}"
        watch.seen.clear()


def seeds(folder: Path) -> dict[str, bytes]:
    """A whole file of each format, by name."""

    def written(make: Callable[[], Any], dialect: Dialect, network: str = "G_ema", **others: object) -> bytes:
        made = make()
        return dumps(
            {**checkpoint(**{"g_ema": None, **others}), network: module_object(made.network, made.official)}, dialect
        )

    deep = biggan_deep().state_dict()
    small = {name: deep[name] for name in list(deep)[:12]}
    files = {
        "stylegan2.pkl": written(stylegan2_ada, Dialect(4)),
        "stylegan2-protocol3.pkl": written(stylegan2_ada, Dialect(3, numpy_1=True)),
        "discriminator.pkl": written(stylegan2_discriminator, Dialect(4), "D"),
        "stylegan3.pkl": written(stylegan3_t, Dialect(4)),
        "stylegan-xl.pkl": written(stylegan_xl_superres, Dialect(4, dill=True), D=dill_discriminator()),
        "stylegan-t.pkl": written(stylegan_t, Dialect(4, dill=True)),
    }
    for as_zip in (False, True):
        buffer = io.BytesIO()
        torch.save(deep, buffer, _use_new_zipfile_serialization=as_zip)
        files[f"biggan-deep.{'bin' if as_zip else 'pth'}"] = buffer.getvalue()
        buffer = io.BytesIO()
        torch.save(small, buffer, _use_new_zipfile_serialization=as_zip)
        files[f"state-dict.{'pt' if as_zip else 'pth'}"] = buffer.getvalue()
    tensorflow_file(folder / "seed.pkl", "stylegan2_generator", Dialect(4))
    files["stylegan2-tensorflow.pkl"] = (folder / "seed.pkl").read_bytes()
    save_weights(stylegan2_ada().network, folder / "seed.safetensors")
    files["ours.safetensors"] = (folder / "seed.safetensors").read_bytes()
    return files


def places(content: bytes) -> list[int]:
    """Where the structure of a file is: its opcodes, or its beginning and end."""
    at = content.find(b"\x80\x02") if content.startswith(b"PK") else 0
    found: list[int] = []
    while content[at : at + 1] == b"\x80":
        file = io.BytesIO(content[at:])
        found += [at + (pos or 0) for _, _, pos in pickletools.genops(file)]
        at += file.tell()
    return found + list(range(min(300, len(content)))) + list(range(max(len(content) - 300, 0), len(content)))


ATTACKS = [
    b"cposix\nsystem\nX\x0f\x00\x00\x00touch /tmp/MARK\x85R0",
    b"\x8c\x08builtins\x8c\x04exec\x93\x8c\x0dimport os;os.x\x85R0",
    b"ctorch.serialization\nload\nX\x01\x00\x00\x00a\x85R0",
    b"\x82\x01", b"\x83\x01\x01", b"\x84\x01\x00\x00\x00", b"r\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 7 + b"\x7f",
    b"\x95" + b"\xff" * 8, b"\x8b\xff\xff\xff\x7f", b"b", b"R", b"\x81", b"Q", b"2", b"(((((", b"}" * 200, b"0" * 9,
]  # fmt: skip
_OPCODES = [ord(op.code) for op in pickletools.opcodes]
_NUMBERS = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF]


def mutate(content: bytes, where: list[int], others: list[bytes], rng: random.Random) -> bytes:
    """One to three changes: bits, cuts, splices, opcodes, lengths, and pieces of attacks."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = min(rng.choice(where), max(len(data) - 1, 0))
        kind = rng.randrange(8)
        if kind == 0:
            at = rng.randrange(len(data)) if data and rng.random() < 0.5 else at
            data[at : at + 1] = bytes(byte ^ (1 << rng.randrange(8)) for byte in data[at : at + 1])
        elif kind == 1:
            del data[rng.randrange(len(data) + 1) if rng.random() < 0.5 else at :]
        elif kind == 2:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            data[at : at + rng.randrange(64)] = other[start : start + rng.randrange(1, 200)]
        elif kind == 3:
            data[at : at + 1] = bytes([rng.choice(_OPCODES)])
        elif kind == 4:
            width = rng.choice((1, 2, 4, 8))
            data[at + 1 : at + 1 + width] = struct.pack("<Q", rng.choice(_NUMBERS))[:width]
        elif kind == 5:
            data[at:at] = rng.choice(ATTACKS)
        elif kind == 6:
            del data[at : at + rng.randrange(1, 40)]
        else:
            data[at:at] = data[at : at + rng.randrange(1, 100)] * rng.randrange(1, 20)
    return bytes(data)


def resident_peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()


def run(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Convert `count` mutated files."""
    (folder / "out").mkdir()
    destination, files = folder / "out" / "a.safetensors", seeds(folder)
    positions = {name: places(content) for name, content in files.items()}
    for name, content in files.items():  # imports what conversions import, and shows that the seeds are whole
        source = folder / name
        source.write_bytes(content)
        if not name.startswith("state-dict"):  # these are of no network
            convert(source, destination, "D" if name.startswith("disc") else "G_ema", force=True)
    check_watch(watch := Watch(folder / "out"))
    others, rng, results, wrong = list(files.values()), random.Random(seed), Counter[str](), Counter[str]()
    before = resident_peak_bytes()
    resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes() + MEMORY_BYTES,) * 2)
    start, slowest_s = time.monotonic(), 0.0
    for index in range(count):
        name = rng.choice(list(files))
        source = folder / f"mutated{Path(name).suffix}"
        source.write_bytes(content := mutate(files[name], positions[name], others, rng))
        began = time.monotonic()
        watch.armed = True
        try:
            convert(source, destination, "D" if name.startswith("disc") else "G_ema", force=True)
            outcome = "converted"
        except BaseException as error:
            outcome = "refused"
            if type(error) is not CheckpointError or "\n" in str(error) or len(str(error)) > 1500:
                wrong[f"{index} {name}: {type(error).__name__}: {str(error)[:200]}"] += 1
        watch.armed = False
        slowest_s = max(slowest_s, time.monotonic() - began)
        results[f"{name} {outcome}"] += 1
        if source.read_bytes() != content:
            wrong[f"{index} {name}: the source was changed"] += 1
    left = sorted(path.name for path in (folder / "out").iterdir() if path != destination)
    return {
        "count": count,
        "results": dict(sorted(results.items())),
        "wrong": dict(wrong),
        "seen": dict(watch.seen),
        "left": left,
        "seconds": round(time.monotonic() - start, 1),
        "slowest_s": round(slowest_s, 2),
        "resident_growth_mb": round((resident_peak_bytes() - before) / 1e6),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]), Path(made).resolve()), indent=1))
