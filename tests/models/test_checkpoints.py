from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoints import CheckpointError, load_generator, load_weights, save_weights, weights_sha256
from models.layers import initialise
from models.stylegan2 import StyleGAN2Generator
from models.stylegan2_config import StyleGAN2Config

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


@pytest.mark.parametrize(
    "content",
    [pickle.dumps(Bomb(), 2), pickle.dumps(Bomb(), 4), torch_file(as_zip=True), torch_file(as_zip=False)],
    ids=["protocol 2", "protocol 4", "torch zip", "torch legacy"],
)
def test_pickle_is_recognised_and_not_opened(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is a pickle; it is not opened because pickles execute code"):
        load_weights(make(0), path)


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
