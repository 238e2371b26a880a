"""Official files of every family, written by these tests: converted and loaded, they make the images of the network."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.checkpoints import CheckpointError, convert, load_generator, load_network, load_weights, names_configuration
from models.formats.module_tree import Module
from models.formats.official import find
from models.formats.torch_files import read_checkpoint
from models.layers import initialise
from models.stylegan2 import StyleGAN2Generator
from models.stylegan3 import StyleGAN3Generator
from tests.models.official_networks import (
    FAMILIES,
    SMALL,
    STATIC,
    TENSORFLOW,
    Written,
    biggan,
    biggan_deep,
    stylegan2_ada,
    stylegan2_discriminator,
    stylegan2_of_stylegan3,
    stylegan3_t,
    stylegan_xl_superres,
    tensorflow_file,
)
from tests.models.official_pickles import (
    Call,
    Dialect,
    EasyDict,
    checkpoint,
    dill_discriminator,
    dumps,
    module_object,
    module_source,
    persistent,
    tensorflow_network,
)

DIALECTS = {
    "protocol 4": Dialect(4),
    "protocol 3": Dialect(3),
    "numpy 1": Dialect(3, numpy_1=True),
    "dill": Dialect(4, dill=True),
    "dill, numpy 1": Dialect(4, dill=True, numpy_1=True),
}


def images(network: nn.Module) -> Tensor:
    """Two images of fixed latents."""
    generator = cast("Any", network)
    latents = [generator.draw(np.random.default_rng(seed)) for seed in range(2)]
    stacked = {name: torch.stack([one[name] for one in latents]) for name in latents[0]}
    condition = torch.tensor([0, generator.num_classes - 1]) if generator.num_classes else None
    if generator.conditioning == "text":
        condition = torch.nn.functional.normalize(torch.ones(2, generator.text_dim))
    drawn: Tensor = generator.sample(stacked, condition)
    assert drawn.unique().numel() > 10
    return drawn


PLAIN = Dialect()


def write(tmp_path: Path, written: Written, dialect: Dialect = PLAIN, key: str = "G_ema") -> Path:
    """A whole file, with another G and a D by reference; its module sources would leave a mark."""
    path = tmp_path / "official.pkl"
    official = dataclasses.replace(written.official, source=module_source(tmp_path / "executed"))
    parts: dict[str, Any] = {"G": None, "D": dill_discriminator() if dialect.dill else None}
    path.write_bytes(dumps(checkpoint(None) | parts | {key: module_object(written.network, official)}, dialect))
    return path


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_official_file_makes_the_images_of_its_network(family: str, dialect: str, tmp_path: Path) -> None:
    written = FAMILIES[family]()
    source = write(tmp_path, written, DIALECTS[dialect])
    content, expected = source.read_bytes(), images(written.network)
    converted = convert(source, tmp_path / "ours.safetensors")
    for path in (source, converted.path):
        generator, _ = load_generator(path)
        assert torch.equal(images(cast("nn.Module", generator)), expected)
    assert source.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["official.pkl", "ours.safetensors"]


def test_text_conditioned_file_has_a_temperature_that_is_not_needed(tmp_path: Path) -> None:
    written = FAMILIES["StyleGAN-T text"]()
    expected = images(written.network)
    clip = nn.Module()
    clip.model = nn.ParameterDict({"logit_scale": nn.Parameter(torch.tensor(4.6))})
    cast("Any", written.network).mapping.clip = clip
    source = write(tmp_path, written)
    generator, _ = load_generator(convert(source, tmp_path / "ours.safetensors").path)
    assert torch.equal(images(cast("nn.Module", generator)), expected)
    assert torch.equal(images(load_network(source)[0]), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_conversion_tells_what_it_wrote(family: str, tmp_path: Path) -> None:
    written = FAMILIES[family]()
    converted = convert(write(tmp_path, written), tmp_path / "ours.safetensors")
    network = cast("Any", written.network)
    assert converted.target == network.target
    assert converted.resolution == network.resolution
    assert converted.num_parameters == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("as_zip", [False, True])
@pytest.mark.parametrize("make", [biggan, biggan_deep])
def test_state_dict_of_biggan_makes_the_images_of_its_network(
    make: Callable[[], nn.Module], as_zip: bool, tmp_path: Path
) -> None:
    network, source = make(), tmp_path / "G_ema.pth"
    torch.save(network.state_dict(), source, _use_new_zipfile_serialization=as_zip)
    generator, _ = load_generator(convert(source, tmp_path / "ours.safetensors").path)
    assert torch.equal(images(cast("nn.Module", generator)), images(network))


@pytest.mark.parametrize("dialect", [Dialect(4), Dialect(2), Dialect(3, numpy_1=True)])
@pytest.mark.parametrize("maker", TENSORFLOW)
def test_tensorflow_file_makes_the_images_of_its_network(maker: str, dialect: Dialect, tmp_path: Path) -> None:
    source = tmp_path / "stylegan.pkl"
    network = tensorflow_file(source, maker, dialect)
    generator, _ = load_generator(convert(source, tmp_path / "ours.safetensors").path)
    # the variables count scales from 1, which rounds the biases of the styles once more
    difference = images(cast("nn.Module", generator)).int() - images(network).int()
    assert difference.abs().max() <= 1


@pytest.mark.parametrize(
    "variables",
    [
        [(("a",), np.ones(3, "f4"))],
        [("a", 3)],
        [["a"]],
        [3],
        {"a": np.ones(3, "f4")},
        None,
        [("4x4/Const/StyleMod/weight", np.ones(3, "f4"))],
    ],
    ids=range(7),
)
def test_broken_tensorflow_networks_are_refused(variables: object, tmp_path: Path) -> None:
    broken = tensorflow_network("Gs", STATIC, {})
    cast("dict[str, object]", broken.state)["variables"] = variables
    source = tmp_path / "stylegan.pkl"
    source.write_bytes(dumps((tensorflow_network("G", {}, {}), tensorflow_network("D", {}, {}), broken)))
    with pytest.raises(CheckpointError):
        convert(source, tmp_path / "ours.safetensors")


def test_discriminator_is_converted_and_loaded(tmp_path: Path) -> None:
    written = stylegan2_discriminator()
    converted = convert(write(tmp_path, written, key="D"), tmp_path / "d.safetensors", "D")
    discriminator, _ = load_network(converted.path)
    drawn = torch.Generator().manual_seed(0)
    batch, labels = torch.randn(2, 3, 16, 16, generator=drawn), torch.eye(3)[:2]
    assert torch.equal(discriminator(batch, labels), written.network(batch, labels))
    with pytest.raises(CheckpointError, match="makes no images"):
        load_generator(converted.path)


def test_network_is_chosen_by_its_name(tmp_path: Path) -> None:
    one, two = stylegan2_ada(), stylegan2_ada()
    initialise(two.network, 2)
    content = checkpoint(module_object(one.network, one.official), G=module_object(two.network, two.official))
    (tmp_path / "a.pkl").write_bytes(dumps(content))
    for network, expected in (("G_ema", one), ("G", two)):
        path = convert(tmp_path / "a.pkl", tmp_path / f"{network}.safetensors", network).path
        assert torch.equal(images(cast("nn.Module", load_generator(path)[0])), images(expected.network))
    with pytest.raises(CheckpointError, match="it has no network D; its networks are G, G_ema"):
        convert(tmp_path / "a.pkl", tmp_path / "d.safetensors", "D")
    with pytest.raises(CheckpointError, match="no network 'H'; there are G_ema, G, D"):
        convert(tmp_path / "a.pkl", tmp_path / "d.safetensors", "H")


def test_attributes_tell_what_arguments_leave_to_defaults(tmp_path: Path) -> None:
    """The same class name and arguments mean another clamp and another average in the two repositories."""
    written = stylegan2_of_stylegan3()
    generator, _ = load_generator(write(tmp_path, written))
    assert cast("StyleGAN2Generator", generator).config.conv_clamp == 256
    assert cast("StyleGAN2Generator", generator).config.w_avg_beta == 0.998

    def attributes(path: str, module: nn.Module) -> dict[str, Any]:
        found = written.official.attributes(path, module)
        return found | {name: {"conv_clamp": None, "w_avg_beta": 0.995, "use_fp16": False}[name] for name in found
                        if name in ("conv_clamp", "w_avg_beta", "use_fp16")}  # fmt: skip

    official = dataclasses.replace(written.official, attributes=attributes)
    generator, _ = load_generator(write(tmp_path, Written(written.network, official)))
    config = cast("StyleGAN2Generator", generator).config
    assert (config.conv_clamp, config.w_avg_beta, config.num_fp16_res) == (None, 0.995, 0)


def test_arguments_count_where_there_are_no_attributes(tmp_path: Path) -> None:
    written = stylegan2_ada()
    official = dataclasses.replace(written.official, attributes=lambda path, module: {})
    generator, _ = load_generator(write(tmp_path, Written(written.network, official)))
    assert cast("StyleGAN2Generator", generator).config == cast("StyleGAN2Generator", written.network).config


def test_arguments_without_names_are_understood(tmp_path: Path) -> None:
    written = stylegan3_t()
    given = {name: value for name, value in written.official.kwargs.items() if name not in SMALL}
    state = cast("Any", module_object(written.network, written.official)).args[0]["state"]
    state |= {"_init_args": (8, 3, 8, 16, 3), "_init_kwargs": EasyDict(given, mapping_kwargs={"num_layers": 2})}
    (tmp_path / "a.pkl").write_bytes(dumps(checkpoint(persistent(state, "Generator", ""))))
    generator, _ = load_generator(tmp_path / "a.pkl")
    assert cast("StyleGAN3Generator", generator).config == cast("StyleGAN3Generator", written.network).config


def test_stem_of_a_super_resolution_stage_comes_from_its_layers(tmp_path: Path) -> None:
    written = stylegan_xl_superres()
    converted = convert(write(tmp_path, written), tmp_path / "a.safetensors")
    loaded = cast("Any", load_generator(converted.path)[0])
    layers = loaded.config.layers
    assert layers == cast("Any", written.network).config.layers
    assert {layer.conv_kernel for layer in layers[:-1]} == {1, 3}
    official = dataclasses.replace(written.official, attributes=lambda path, module: {})
    with pytest.raises(CheckpointError, match="whose layers have no attributes"):
        load_generator(write(tmp_path, Written(written.network, official)))


class SmallEDM(nn.Module):
    """A few of the layers of a diffusion network."""

    def __init__(self) -> None:
        super().__init__()
        layers = {"map_layer0": nn.Linear(4, 4), "enc": nn.ModuleDict({"8x8_conv": nn.Conv2d(3, 4, 3)})}
        self.model = nn.ModuleDict(layers)


def edm() -> Call:
    """A diffusion network as EDM writes it: persistent, with containers of torch."""
    network = SmallEDM()
    kwargs = {"img_resolution": 8, "img_channels": 3, "model_type": "SongUNet", "channel_mult": [1, 2]}
    written = stylegan2_ada().official
    return module_object(network, dataclasses.replace(written, class_name="EDMPrecond", kwargs=kwargs))


def test_edm_file_is_read_and_not_converted_yet(tmp_path: Path) -> None:
    path = tmp_path / "edm.pkl"
    content = {"ema": edm(), "loss_fn": Call(dill_discriminator().function), "dataset_kwargs": EasyDict(path="a.zip")}
    path.write_bytes(dumps(content))
    module = find(read_checkpoint(path), "G_ema")
    assert isinstance(module, Module)
    assert module.arguments()["channel_mult"] == [1, 2]
    state = module.state()
    assert state.shapes["model.enc.8x8_conv.weight"] == (4, 3, 3, 3)
    assert state["model.map_layer0.bias"].shape == (4,)
    assert not names_configuration(path)
    with pytest.raises(CheckpointError, match=r"EDMPrecond with 4 tensors .* a diffusion network of EDM"):
        convert(path, tmp_path / "a.safetensors")
    network = SmallEDM()
    load_weights(network, path)
    assert torch.equal(network.state_dict()["model.map_layer0.bias"], state["model.map_layer0.bias"])


@pytest.mark.parametrize(
    "content",
    [
        {"G_ema": None}, {"G_ema": 3}, {}, [], 3, None, "G_ema", {"G_ema": {"a": 3}}, (1, 2, 3), {3: 4},
        {"training_set_kwargs": EasyDict(a=1)}, {"ema": None},
    ],
    ids=range(12),
)  # fmt: skip
def test_files_without_networks_are_refused(content: object, tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(dumps(content))
    with pytest.raises(CheckpointError):
        convert(tmp_path / "a.pkl", tmp_path / "a.safetensors")


BROKEN: dict[str, dict[str, Any]] = {
    "no arguments": {"_init_kwargs": None},
    "arguments of another kind": {"_init_kwargs": [1]},
    "unknown arguments": {"_init_kwargs": {"depth": 3}},
    "too many arguments": {"_init_args": (1,) * 6},
    "giant resolution": {"_init_kwargs": {**SMALL, "img_resolution": 2**40}},
    "giant count of layers": {"_init_kwargs": {**SMALL, "mapping_kwargs": {"num_layers": 10**9}}},
    "giant width": {"_init_kwargs": {**SMALL, "z_dim": 10**12}},
    "no number": {"_init_kwargs": {**SMALL, "z_dim": float("nan")}},
    "text for a number": {"_init_kwargs": {**SMALL, "z_dim": "8"}},
    "an object for a number": {"_init_kwargs": {**SMALL, "z_dim": dill_discriminator()}},
    "too many values": {"_init_kwargs": {**SMALL, "a": list(range(20_000))}},
    "parameters of another kind": {"_parameters": {"a": 3}},
    "tensors of another shape": {"_buffers": {"a": torch.ones(3)}},
    "no modules": {"_modules": None},
    "modules of another kind": {"_modules": {"synthesis": 3}},
}


@pytest.mark.parametrize("make", [stylegan2_ada, stylegan3_t])
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_networks_are_refused(kind: str, make: Callable[[], Written], tmp_path: Path) -> None:
    written = make()
    state = cast("Any", module_object(written.network, written.official)).args[0]["state"] | BROKEN[kind]
    (tmp_path / "a.pkl").write_bytes(dumps(checkpoint(persistent(state, "Generator", ""))))
    with pytest.raises(CheckpointError) as caught:
        convert(tmp_path / "a.pkl", tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pkl"]


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    written = stylegan2_ada()
    written.network.state_dict()["synthesis.b8.conv1.weight"][0, 0, 0, 0] = float("nan")
    source = write(tmp_path, written)
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in synthesis\.b8\.conv1\.weight"):
        convert(source, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        load_generator(source)
    assert list(tmp_path.iterdir()) == [source]


def test_tensors_that_a_file_names_again_and_again_are_refused(tmp_path: Path) -> None:
    big = torch.zeros(600, 600)
    state = {"_parameters": {f"p{i}": big for i in range(9)}, "_buffers": {}, "_modules": {}}
    (tmp_path / "a.pkl").write_bytes(dumps(checkpoint(persistent(state, "Generator", ""))))
    with pytest.raises(CheckpointError, match="refused: tensors of 12,960,000 bytes in a file of 1,4"):
        load_generator(tmp_path / "a.pkl")


def test_weights_of_an_official_file_load_into_a_given_network(tmp_path: Path) -> None:
    written = stylegan2_ada()
    source = write(tmp_path, written)
    other = StyleGAN2Generator(cast("StyleGAN2Generator", written.network).config)
    load_weights(other, source)
    assert torch.equal(images(other), images(written.network))
    assert names_configuration(source)
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pth")
    assert not names_configuration(tmp_path / "a.pth")


def test_converted_file_is_plain_data(tmp_path: Path) -> None:
    converted = convert(write(tmp_path, stylegan2_ada()), tmp_path / "a.safetensors").path.read_bytes()
    header = json.loads(converted[8 : 8 + int.from_bytes(converted[:8], "little")])
    made = json.loads(header.pop("__metadata__")["stylebench-generator-1"])
    assert made["target"] == "models.stylegan2:build"
    assert all(set(entry) == {"dtype", "shape", "data_offsets"} for entry in header.values())


def test_self_written_files_would_execute_if_they_were_loaded(tmp_path: Path) -> None:
    """What makes these tests worth something: the module source is there, and it leaves its mark."""
    source = write(tmp_path, stylegan2_ada())
    text = module_source(tmp_path / "executed").encode()
    assert text in source.read_bytes()
    exec(text)
    assert (tmp_path / "executed").exists()
    with pytest.raises((ModuleNotFoundError, ImportError, AttributeError)):
        pickle.loads(source.read_bytes())
