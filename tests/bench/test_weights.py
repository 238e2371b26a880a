from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import re
from pathlib import Path

import open_clip
import pytest
import safetensors.torch
import timm
import torch
import torch_fidelity.feature_extractor_inceptionv3
import torch_fidelity.sample_similarity_lpips
from torchvision.models import VGG16_Weights

import bench.weights
from bench.errors import UserError
from bench.fetch import UnreachableError
from bench.weights import (
    WEIGHTS,
    LocalWeights,
    MissingWeights,
    WeightsOptions,
    fetch_weights,
    find_weights,
    read_tensors,
    resolve_weights,
)

CONTENT = b"not really weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the official Inception file is CONTENT."""
    monkeypatch.setitem(WEIGHTS, "inception", dataclasses.replace(WEIGHTS["inception"], sha256=SHA256))


@pytest.mark.parametrize("name", [name for name, spec in WEIGHTS.items() if spec.url])
def test_weights_are_pinned_by_their_hash(name: str) -> None:
    spec = WEIGHTS[name]
    in_name = re.search(r"-([0-9a-f]{8})\.pth$", spec.filename)
    assert spec.url.startswith("https://")
    assert spec.licence
    assert (len(spec.sha256) == 64 and spec.size_bytes > 0) or (in_name and spec.sha256 == in_name[1])
    assert in_name is None or spec.sha256.startswith(in_name[1])


def test_weights_are_those_of_the_libraries() -> None:
    assert WEIGHTS["inception"].url == torch_fidelity.feature_extractor_inceptionv3.URL_INCEPTION_V3
    assert WEIGHTS["vgg16-lpips"].url == torch_fidelity.sample_similarity_lpips.URL_VGG16_LPIPS
    assert WEIGHTS["vgg16"].url == VGG16_Weights.IMAGENET1K_V1.url
    dinov2 = timm.get_pretrained_cfg("vit_large_patch14_dinov2.lvd142m")
    assert dinov2 is not None
    assert WEIGHTS["dinov2-vit-l-14"].url == dinov2.url
    for name, (architecture, tag) in {
        "clip-vit-b-32": ("ViT-B-32-quickgelu", "openai"),
        "clip-vit-g-14": ("ViT-g-14", "laion2b_s12b_b42k"),
    }.items():
        assert open_clip.get_pretrained_cfg(architecture, tag)["hf_hub"] in WEIGHTS[name].url


def test_a_random_inception_is_only_the_users_own_and_never_official(tmp_path: Path) -> None:
    options = WeightsOptions(cache=tmp_path)
    assert find_weights("inception-random", options) is None
    with pytest.raises(MissingWeights, match=r"published as data; `--inception-random-weights FILE`"):
        resolve_weights("inception-random", options)
    with pytest.raises(UserError, match="can't be fetched"):
        fetch_weights("inception-random")
    own = tmp_path / "own.pth"
    own.write_bytes(CONTENT)
    found = resolve_weights("inception-random", WeightsOptions({"inception-random": own}, tmp_path))
    assert found == LocalWeights("inception-random", own, SHA256, official=False)


def test_find_weights_takes_the_cached_file(pinned: None, tmp_path: Path) -> None:
    options = WeightsOptions(cache=tmp_path)
    assert find_weights("inception", options) is None
    path = tmp_path / WEIGHTS["inception"].filename
    path.write_bytes(CONTENT)
    expected = LocalWeights("inception", path, SHA256, official=True)
    assert find_weights("inception", options) == resolve_weights("inception", options) == expected
    path.write_bytes(CONTENT + b"damaged")
    assert find_weights("inception", options) is None


@pytest.mark.parametrize(("content", "official"), [(CONTENT, True), (b"another file", False)])
def test_resolve_weights_judges_the_users_own_file_by_its_hash(
    pinned: None, tmp_path: Path, content: bytes, official: bool
) -> None:
    own = tmp_path / "own.pth"
    own.write_bytes(content)
    weights = resolve_weights("inception", WeightsOptions({"inception": own}, tmp_path))
    assert weights == LocalWeights("inception", own, hashlib.sha256(content).hexdigest(), official)


def test_resolve_weights_says_what_is_missing_and_what_gets_it(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights) as caught:
        resolve_weights("inception", WeightsOptions(cache=tmp_path))
    for part in ("inception", "95.6 MB", "Apache-2.0", "python -m bench fetch inception", "--inception-weights"):
        assert part in str(caught.value)


def test_resolve_weights_tells_why_the_network_did_not_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> Path:
        raise UnreachableError("404 of nowhere")

    monkeypatch.setattr("bench.weights.fetch", unreachable)
    with pytest.raises(MissingWeights, match=r"404 of nowhere.*python -m bench fetch vgg16"):
        resolve_weights("vgg16", WeightsOptions(cache=tmp_path, offline=False))


def test_resolve_weights_does_not_take_wrong_content_for_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Path:
        raise UserError("wrong content")

    monkeypatch.setattr(bench.weights, "fetch", refuse)
    with pytest.raises(UserError, match="wrong content") as caught:
        resolve_weights("inception", WeightsOptions(cache=tmp_path, offline=False))
    assert not isinstance(caught.value, MissingWeights)


def test_resolve_weights_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--vgg16-lpips-weights .*absent\.pth: no such file"):
        resolve_weights("vgg16-lpips", WeightsOptions({"vgg16-lpips": tmp_path / "absent.pth"}, tmp_path))


def test_find_weights_refuses_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are inception, inception-random, vgg16"):
        find_weights("resnet", WeightsOptions(cache=tmp_path))


def test_fetch_weights_says_where_the_file_is(pinned: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STYLEBENCH_CACHE", str(tmp_path))
    path = tmp_path / WEIGHTS["inception"].filename
    path.write_bytes(CONTENT)
    line = fetch_weights("inception")
    assert str(path) in line
    assert SHA256 in line


def weights_at(path: Path) -> LocalWeights:
    return LocalWeights("inception", path, "0" * 64, official=False)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_read_tensors_reads_each_form_as_float32(tmp_path: Path, form: str) -> None:
    tensors = {"a": torch.randn(3, 4), "half": torch.randn(5).half(), "count": torch.tensor(7)}
    path = tmp_path / ("x.safetensors" if form == "safetensors" else "x.pth")
    if form == "safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form == "zip")
    read = read_tensors(weights_at(path))
    assert {name: tensor.dtype for name, tensor in read.items()} == {
        "a": torch.float32,
        "half": torch.float32,
        "count": torch.int64,
    }
    for name, tensor in tensors.items():
        torch.testing.assert_close(read[name], tensor.to(read[name].dtype), rtol=0, atol=0)


def test_read_tensors_keeps_its_values_when_the_file_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1000)}, path)
    read = read_tensors(weights_at(path))
    with path.open("r+b") as stream:
        stream.seek(-2000, os.SEEK_END)
        stream.write(b"\x55" * 2000)
    assert read["a"].count_nonzero() == 0


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


def test_read_tensors_executes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Payload()}, "x.pth")
    Path("raw.pth").write_bytes(pickle.dumps({"a": Payload()}))
    for name in ("x.pth", "raw.pth"):
        with pytest.raises(UserError, match="can't be read as the weights inception"):
            read_tensors(weights_at(Path(name)))
    assert not Path("executed").exists()


@pytest.mark.filterwarnings("ignore:`torch.jit.")  # they make the program here
def test_read_tensors_refuses_a_torchscript_program(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "x.pt"))
    with pytest.raises(UserError, match="TorchScript"):
        read_tensors(weights_at(tmp_path / "x.pt"))


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_read_tensors_refuses_a_file_that_is_cut_short(tmp_path: Path, name: str, keep: float) -> None:
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save({"a": torch.randn(300)}, path)
    else:
        safetensors.torch.save_file({"a": torch.randn(300)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(UserError, match="python -m bench fetch inception"):
        read_tensors(weights_at(path))


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"state_dict": {"a": torch.zeros(1)}}, {"a": 1}])
def test_read_tensors_refuses_what_is_no_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match="not a mapping of names to tensors"):
        read_tensors(weights_at(tmp_path / "x.pth"))


def test_read_tensors_refuses_text(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_text("<html>Sign in to the network</html>")
    with pytest.raises(UserError, match=r"x\.pth can't be read"):
        read_tensors(weights_at(tmp_path / "x.pth"))
