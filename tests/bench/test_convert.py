"""The command `convert` as a user meets it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.cli import main
from tests.models.official_networks import stylegan2_discriminator, stylegan3_t
from tests.models.official_pickles import checkpoint, dumps, module_object, module_source


@pytest.fixture
def source(tmp_path: Path) -> Path:
    generator, discriminator = stylegan3_t(), stylegan2_discriminator()
    parts = {"D": module_object(discriminator.network, discriminator.official)}
    path = tmp_path / "stylegan3.pkl"
    path.write_bytes(dumps(checkpoint(module_object(generator.network, generator.official), **parts)))
    return path


@pytest.mark.parametrize(("network", "family"), [("G_ema", "StyleGAN3"), ("D", "StyleGAN2 discriminator")])
def test_convert_says_what_it_wrote(
    network: str, family: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    destination = source.with_suffix(".safetensors")
    assert main(["convert", str(source), str(destination), "--network", network]) == 0
    shown = capsys.readouterr()
    digest = hashlib.sha256(destination.read_bytes()).hexdigest()
    assert re.search(rf"{network}, {family}, 16 px, [\d,]+ parameters, sha256 {digest}", shown.out)
    assert f"converting {network} of {source}" in shown.err
    assert main(["convert", str(source), str(destination), "--network", network]) == 1
    assert main(["convert", str(source), str(destination), "--force"]) == 0


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


BAD: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "missing": (lambda p: [str(p / "none.pkl"), str(p / "a.safetensors")], "no such file"),
    "suffix": (lambda p: [str(p / "stylegan3.pkl"), str(p / "a.pkl")], r"must be a \.safetensors file"),
    "network": (lambda p: [str(p / "stylegan3.pkl"), str(p / "a.safetensors"), "--network", "G"], "its networks are D"),
    "code": (lambda p: [str(p / "bomb.pkl"), str(p / "a.safetensors")], r"bomb\.pkl: refused: posix\.system"),
    "exists": (lambda p: [str(p / "stylegan3.pkl"), str(p / "there.safetensors")], "--force"),
    "folder": (lambda p: [str(p / "stylegan3.pkl"), str(p / "bomb.pkl" / "a.safetensors")], "bomb.pkl"),
    "not data": (lambda p: [str(p / "there.safetensors"), str(p / "a.safetensors")], "not a whole safetensors file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_can_not_be_converted_is_one_message(kind: str, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source.parent / "bomb.pkl").write_bytes(pickle.dumps(Bomb()))
    (source.parent / "there.safetensors").write_bytes(b"mine")
    arguments, message = BAD[kind]
    before = {path: path.read_bytes() for path in source.parent.iterdir()}
    assert main(["convert", *arguments(source.parent)]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("error:") == 1
    assert "Traceback" not in error
    assert {path: path.read_bytes() for path in source.parent.iterdir()} == before


def test_sources_of_classes_are_not_executed(tmp_path: Path) -> None:
    written, mark = stylegan3_t(), tmp_path / "executed"
    official = dataclasses.replace(written.official, source=module_source(mark))
    (tmp_path / "a.pkl").write_bytes(dumps(checkpoint(module_object(written.network, official))))
    assert str(mark).encode() in (tmp_path / "a.pkl").read_bytes()
    assert main(["convert", str(tmp_path / "a.pkl"), str(tmp_path / "a.safetensors")]) == 0
    assert not mark.exists()
