from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoints import (
    CheckpointError,
    convert,
    load_generator,
    load_weights,
    names_configuration,
    save_weights,
    weights_sha256,
)
from models.layers import initialise
from models.stylegan2 import StyleGAN2Generator
from models.stylegan2_config import StyleGAN2Config, official_config
from tests.conftest import REPOSITORY
from tests.models.official_pickles import Official, checkpoint, dumps, module_object

TINY = StyleGAN2Config(resolution=8, num_classes=2, z_dim=8, w_dim=8, mapping_layers=2, channel_base=64, channel_max=8)


def make(seed: int) -> StyleGAN2Generator:
    generator = StyleGAN2Generator(TINY)
    initialise(generator, seed)
    return generator


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_weights(make(1), path)
    return path


def test_saved_generator_loads_without_naming_its_configuration(path: Path) -> None:
    generator, sha256 = load_generator(path)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = cast("StyleGAN2Generator", generator)
    assert loaded.config == TINY
    assert weights_sha256(loaded) == weights_sha256(make(1))


def test_save_leaves_one_file_and_returns_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "new" / "weights.safetensors"
    sha256 = save_weights(make(1), path)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(path.parent.iterdir()) == [path]
    assert load_weights(make(2), path) == sha256


def test_load_weights_replaces_all_weights(path: Path) -> None:
    generator = make(2)
    load_weights(generator, path)
    assert weights_sha256(generator) == weights_sha256(make(1))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors: no such file"):
        load_weights(make(0), tmp_path / "gone.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 400, -1])
def test_truncated_file_is_refused(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_generator(path)


def test_web_page_in_place_of_weights_is_refused(path: Path) -> None:
    path.write_text("<!DOCTYPE html><title>404</title>")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_weights(make(0), path)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1 / 0",)


def torch_file(*, as_zip: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"bomb": Bomb()}, buffer, _use_new_zipfile_serialization=as_zip)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".pkl", ".pt", ".pth", ".bin"])
@pytest.mark.parametrize(
    "content",
    [pickle.dumps(Bomb(), 2), pickle.dumps(Bomb(), 4), torch_file(as_zip=True), torch_file(as_zip=False)],
    ids=["protocol 2", "protocol 4", "torch zip", "torch legacy"],
)
def test_pickle_is_read_as_data_and_code_in_it_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    for call in (load_generator, names_configuration, lambda path: load_weights(make(0), path)):
        with pytest.raises(CheckpointError, match=r"a\..*: refused: (__builtin__|builtins)\.eval"):
            cast("Callable[[Path], object]", call)(path)


def test_pickle_under_the_name_of_weights_is_refused(path: Path) -> None:
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_weights(make(0), path)


def mapped_ranges(path: Path) -> list[range]:
    """Where the file is mapped into the memory of this process."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith(str(path))]
    return [range(int(start, 16), int(end, 16)) for start, end in spans]


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="only Linux tells what is mapped")
def test_tensors_of_a_loaded_generator_stay_in_the_file(path: Path) -> None:
    generator = cast("StyleGAN2Generator", load_generator(path)[0])
    mapped = mapped_ranges(path)
    assert all(any(tensor.data_ptr() in span for span in mapped) for tensor in generator.state_dict().values())
    before = path.read_bytes()
    with torch.no_grad():
        generator.synthesis.b4.const += 1  # type: ignore[operator, union-attr]
    assert path.read_bytes() == before


def test_parts_that_are_in_no_file_are_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer outside of the state dict would stay without values where the network is built without memory."""

    def build(**kwargs: object) -> StyleGAN2Generator:
        generator = make(1)
        generator.register_buffer("helper", torch.ones(2), persistent=False)
        return generator

    monkeypatch.setattr("models.stylegan2.build", build)
    assert cast("StyleGAN2Generator", load_generator(path)[0]).get_buffer("helper").tolist() == [1, 1]


def test_own_file_converts_to_itself(path: Path) -> None:
    done = convert(path, path.with_name("b.safetensors"))
    assert done.path.read_bytes() == path.read_bytes()
    assert done.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_written_file_is_what_the_library_reads(path: Path) -> None:
    loaded, made = load_file(path), make(1).state_dict()
    assert loaded.keys() == made.keys()
    assert all(torch.equal(loaded[name], made[name]) for name in made)


def test_destination_that_exists_is_only_replaced_on_demand(path: Path) -> None:
    destination = path.with_name("b.safetensors")
    destination.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"b\.safetensors: it is there already\. .* --force"):
        convert(path, destination)
    assert destination.read_bytes() == b"mine"
    convert(path, destination, force=True)
    assert destination.read_bytes() == path.read_bytes()
    with pytest.raises(FileExistsError):
        convert(path, path, force=True)
    with pytest.raises(CheckpointError, match=r"must be a \.safetensors file"):
        convert(path, path.with_name("b.pkl"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        convert(path.with_name("gone.pkl"), destination, force=True)


class FullDisk(io.BytesIO):
    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_leaves_nothing_behind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    destination, whole = path.with_name("b.safetensors"), path.read_bytes()
    destination.write_bytes(b"mine")
    opened = Path.open

    def open_full(self: Path, mode: str = "r", *args: object, **kwargs: object) -> object:
        return FullDisk() if "w" in mode else cast("Callable[..., object]", opened)(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(
        OSError, match=r"b\.safetensors: it can't be written: No space left on device\. It takes 0\.0 MB"
    ):
        convert(path, destination, force=True)
    monkeypatch.undo()
    assert sorted(path.parent.iterdir()) == [destination, path]
    assert (destination.read_bytes(), path.read_bytes()) == (b"mine", whole)


def test_interrupted_conversion_leaves_nothing_behind(path: Path) -> None:
    def interrupt(done: int, of: int) -> None:
        if done == of // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(path, path.with_name("b.safetensors"), on_tensor=interrupt)
    assert list(path.parent.iterdir()) == [path]


def test_configuration_can_not_ask_for_memory(path: Path) -> None:
    """What a file says is built without values, and held against the tensors that the file has."""
    for kwargs in (
        {"resolution": 2**20},
        {"resolution": 8, "z_dim": 2**21},
        {"resolution": 8, "mapping_layers": 10**9},
    ):
        made = json.dumps({"target": "models.stylegan2:build", "kwargs": kwargs})
        save_file(load_file(path), path, {"stylebench-generator-1": made})
        with pytest.raises(CheckpointError, match=r"of another model|can't be built: argument mapping_layers"):
            load_generator(path)


CONVERT = """
import pathlib, resource, sys, time
from models.checkpoints import convert
import models.stylegan2
small, big = (pathlib.Path(name) for name in sys.argv[1:])
convert(small, small.with_suffix(".safetensors"))  # imports what a first conversion imports
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
convert(big, big.with_suffix(".safetensors"))
print(time.process_time() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
def test_large_pickle_converts_fast_and_in_little_memory(tmp_path: Path) -> None:
    """300 MB in less than 10 s of computing; it takes a fraction of its size, where twice would be allowed."""
    arguments = {"z_dim": 8, "c_dim": 0, "w_dim": 8, "img_resolution": 64, "mapping_kwargs": {"num_layers": 2}}
    for name, width in (("small", 8), ("big", 976)):
        kwargs = {**arguments, "synthesis_kwargs": {"channel_base": 64 * width, "channel_max": width}}
        network = StyleGAN2Generator(official_config("training.networks.Generator", kwargs))
        content = checkpoint(module_object(network, Official("Generator", kwargs)))
        (tmp_path / f"{name}.pkl").write_bytes(dumps(content))
    size = (tmp_path / "big.pkl").stat().st_size
    assert size > 300e6
    command = [sys.executable, "-c", CONVERT, str(tmp_path / "small.pkl"), str(tmp_path / "big.pkl")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    seconds, growth = map(float, done.stdout.split())
    assert seconds < 10
    assert growth < 0.5 * size


def test_tensors_of_another_model_are_named(path: Path) -> None:
    tensors = load_file(path)
    tensors["extra"] = torch.zeros(1)
    del tensors["mapping.w_avg"]
    tensors["synthesis.b4.const"] = torch.zeros(9, 4, 4)
    tensors["mapping.fc0.bias"] = tensors["mapping.fc0.bias"].half()
    save_file(tensors, path)
    generator = make(2)
    with pytest.raises(CheckpointError) as caught:
        load_weights(generator, path)
    message = str(caught.value)
    assert "Missing (1): mapping.w_avg" in message
    assert "Unexpected (1): extra" in message
    assert "synthesis.b4.const is float32 [9, 4, 4], expected float32 [8, 4, 4]" in message
    assert "mapping.fc0.bias is float16 [8], expected float32 [8]" in message
    assert weights_sha256(generator) == weights_sha256(make(2))


def test_messages_are_one_line_whatever_the_names(path: Path) -> None:
    tensors = load_file(path)
    save_file({**tensors, "a\nerror: b" * 1000: torch.zeros(1)}, path)
    with pytest.raises(CheckpointError) as caught:
        load_weights(make(2), path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500


def test_only_the_first_wrong_tensors_are_named(path: Path) -> None:
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(
        CheckpointError, match=r"Missing \(39\): mapping\.embed\.bias; .* and 35 more\. Unexpected \(1\): a$"
    ):
        load_weights(make(0), path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(path: Path, value: float) -> None:
    tensors = load_file(path)
    tensors["synthesis.b8.conv1.weight"][0, 0, 0, 0] = value
    save_file(tensors, path)
    generator = make(2)
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in synthesis\.b8\.conv1\.weight\."):
        load_weights(generator, path)
    assert weights_sha256(generator) == weights_sha256(make(2))


def test_file_without_configuration_loads_only_into_a_given_model(path: Path) -> None:
    save_file(load_file(path), path)
    with pytest.raises(CheckpointError, match="does not name its configuration"):
        load_generator(path)
    load_weights(make(2), path)


@pytest.mark.parametrize(
    "configuration",
    [
        '{"target": "os:system", "kwargs": {}}',
        '{"target": "models.stylegan2:build", "kwargs": {"resolution": 7}}',
        '{"target": "models.stylegan2:build", "kwargs": {"depth": 7}}',
        '{"target": "models.stylegan2:build", "kwargs": "resolution"}',
        '{"target": "models.stylegan2:build"}',
        '"models.stylegan2:build"',
        "{",
    ],
)
def test_configuration_that_can_not_be_built_is_refused(path: Path, configuration: str) -> None:
    save_file(load_file(path), path, {"stylebench-generator-1": configuration})
    with pytest.raises(CheckpointError, match="its configuration can't be built"):
        load_generator(path)


def test_equal_weights_are_saved_as_equal_bytes(tmp_path: Path) -> None:
    assert len({save_weights(make(2), tmp_path / f"{i}.safetensors") for i in range(10)}) == 1


def test_weights_sha256_sees_names_types_shapes_and_values() -> None:
    def hashed(**tensors: torch.Tensor) -> str:
        module = torch.nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return weights_sha256(module)

    base = hashed(a=torch.zeros(2, 3), b=torch.ones(()))
    assert base == hashed(b=torch.ones(()), a=torch.zeros(2, 3))
    others = [
        hashed(a=torch.zeros(3, 2), b=torch.ones(())),
        hashed(a=torch.zeros(2, 3), c=torch.ones(())),
        hashed(a=torch.zeros(2, 3, dtype=torch.int32), b=torch.ones(())),
        hashed(a=torch.zeros(2, 3), b=torch.full((), 1.5)),
    ]
    assert len({base, *others}) == 5
