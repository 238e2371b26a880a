"""Where a generator's weights come from: fetched and converted, shipped, given, random."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.errors import UserError
from bench.model_weights import converted_path, fetch_model, load_file, load_model, model_file
from models.checkpoints import save_weights, weights_sha256
from models.layers import initialise
from models.registry import MODELS, find
from models.spec import CheckpointSpec, ModelSpec
from models.stylegan2 import StyleGAN2Generator
from models.stylegan2_config import StyleGAN2Config
from tests.bench.test_fetch import Server, server

__all__ = ["server"]  # a fixture
CPU = torch.device("cpu")
TINY = StyleGAN2Config(8, z_dim=8, w_dim=8, mapping_layers=2, channel_base=64, channel_max=8)


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STYLEBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tiny(seed: int = 0) -> StyleGAN2Generator:
    generator = StyleGAN2Generator(TINY)
    initialise(generator, seed)
    return generator


def published(monkeypatch: pytest.MonkeyPatch, url: str, **changed: Any) -> ModelSpec:
    """A registered model `tiny-8` whose official file is at this address."""
    template = ModelSpec("tiny-8", "StyleGAN2", "models.stylegan2:build", "ffhq", 8)
    spec = dataclasses.replace(template, checkpoint=CheckpointSpec(url, "none"), **changed)
    monkeypatch.setitem(MODELS, "tiny-8", spec)
    return spec


def test_fetched_model_is_converted_once_and_found_then(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(monkeypatch, server.url)
    save_weights(tiny(), tmp_path / "official.safetensors")
    server.body = (tmp_path / "official.safetensors").read_bytes()
    assert model_file("tiny-8") is None
    path = fetch_model("tiny-8")
    assert path == model_file("tiny-8") == converted_path("tiny-8", tmp_path / "cache")
    assert fetch_model("tiny-8") == path
    assert len(server.ranges) == 1
    model = load_model("tiny-8", path, 0, 0, CPU)
    assert model.weights == "official"
    assert weights_sha256(model.generator) == weights_sha256(tiny())  # type: ignore[arg-type]


def test_checkpoint_in_an_archive_of_a_folder_is_taken_out(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private_cache: Path
) -> None:
    published(monkeypatch, server.url)
    save_weights(tiny(), tmp_path / "official.safetensors")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("run/G_optim.pth", b"not this one")
        archive.write(tmp_path / "official.safetensors", "run/G_ema.pth")
    server.body = packed.getvalue()
    assert load_file(fetch_model("tiny-8"), CPU).generator.resolution == 8
    assert sorted(path.name for path in private_cache.iterdir()) == [".lock", "models", "pins.json", "tiny-8.pth"]


def test_archive_that_would_unpack_to_far_more_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    published(monkeypatch, server.url)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("G_ema.pth", bytes(10**6))
    server.body = packed.getvalue()
    with pytest.raises(UserError, match="would unpack to 1000000 bytes"):
        fetch_model("tiny-8")


@pytest.mark.parametrize(("body", "message"), [(b"\x80\x04cos\nsystem\n.", "can't be used"), (b"", "can't be used")])
def test_fetched_file_that_is_none_leaves_nothing_behind(
    server: Server, monkeypatch: pytest.MonkeyPatch, private_cache: Path, body: bytes, message: str
) -> None:
    published(monkeypatch, server.url)
    server.body = body
    with pytest.raises(UserError, match=message):
        fetch_model("tiny-8")
    assert not list((private_cache / "models").glob("*.safetensors"))
    assert model_file("tiny-8") is None


def test_fetched_file_of_another_model_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(monkeypatch, server.url, resolution=16)
    save_weights(tiny(), tmp_path / "official.safetensors")
    server.body = (tmp_path / "official.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"a generator of 8 px.*tiny-8 has 16 px"):
        fetch_model("tiny-8")
    assert model_file("tiny-8") is None


def test_model_without_published_weights_can_only_run_untrained() -> None:
    with pytest.raises(UserError, match="no weights were published"):
        fetch_model("stylegan2-f-32")
    assert model_file("stylegan2-f-32") is None


def test_offline_fetch_says_how_to_get_the_weights() -> None:
    with pytest.raises(UserError, match="python -m bench fetch stylegan2-ffhq-256"):
        fetch_model("stylegan2-ffhq-256", offline=True)


def test_shipped_weights_are_found_and_named_so() -> None:
    path = model_file("stylegan2-shapes-32")
    assert path == find("stylegan2-shapes-32").shipped_weights
    assert load_model("stylegan2-shapes-32", path, 10, 0, CPU).weights == "self-trained, shipped"


def test_random_weights_are_those_of_the_seed() -> None:
    first, again, other = (load_model("stylegan2-shapes-32", None, 10, seed, CPU) for seed in (0, 0, 1))
    assert first.weights == "random weights, seed 0"
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256


def test_given_file_of_another_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(monkeypatch, "http://nowhere.invalid/x.pkl", resolution=16)
    save_weights(tiny(), tmp_path / "mine.safetensors")
    with pytest.raises(UserError, match=r"8 px.*16 px"):
        load_model("tiny-8", tmp_path / "mine.safetensors", 0, 0, CPU)
    assert load_file(tmp_path / "mine.safetensors", CPU).generator.resolution == 8


def test_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_file(tmp_path / "none.pkl", CPU)
