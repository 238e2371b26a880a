"""The weight files of the feature networks: where they come from, what they must hash to, and reading them as data."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from bench.errors import UserError
from bench.fetch import RemoteFile, UnreachableError, cache_dir, cached, fetch, file_sha256

# pytorch-fid publishes the same Inception file, byte for byte, as pt_inception-2015-12-05-6726825d.pth. The CLIP file
# is the one that open_clip loads for ViT-B-32-quickgelu/openai: float32 tensors and no code, where OpenAI's own is a
# TorchScript archive, which is a program. StyleGAN-XL's random Inception was published as a pickled program only, at an
# address without a digest: it can't be read as data, so there is nothing to fetch and no file of it is official.
WEIGHTS: dict[str, RemoteFile] = {
    "inception": RemoteFile(
        url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        filename="weights-inception-2015-12-05-6726825d.pth",
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        size_bytes=95_628_359,
        licence="Apache-2.0",
        serves="FID, sFID, KID, IS, precision and recall of Inception features",
    ),
    "inception-random": RemoteFile(
        url="",
        filename="",
        sha256="",
        size_bytes=0,
        licence="yours",
        serves="rFID: a state dict of the same network that no one has trained; its hash is in the metric's name",
    ),
    "vgg16": RemoteFile(
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
        filename="vgg16-397923af.pth",
        sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        size_bytes=553_433_881,
        licence="BSD-3-Clause",
        serves="precision and recall of VGG16 features; LPIPS (its trunk)",
    ),
    "vgg16-lpips": RemoteFile(
        url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-vgg16-lpips.pth",
        filename="weights-vgg16-lpips.pth",
        sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        size_bytes=7_289,
        licence="BSD-2-Clause",
        serves="LPIPS (its channel weights, v0.1)",
    ),
    "clip-vit-b-32": RemoteFile(
        url="https://huggingface.co/timm/vit_base_patch32_clip_224.openai/resolve/"
        "a6f597a30f7b82c51704746581f9a4e41421e878/open_clip_model.safetensors",
        filename="clip-vit-b-32-openai.safetensors",
        sha256="e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
        size_bytes=605_143_284,
        licence="MIT",
        serves="CLIP score and CLIP-FID",
    ),
    "clip-vit-g-14": RemoteFile(
        url="https://huggingface.co/laion/CLIP-ViT-g-14-laion2B-s12B-b42K/resolve/"
        "4b0305adc6802b2632e11cbe6606a9bdd43d35c9/open_clip_pytorch_model.bin",
        filename="clip-vit-g-14-laion2b-s12b-b42k.bin",
        sha256="6aac683f899159946bc4ca15228bb7016f3cbb1a2c51f365cba0b23923f344da",
        size_bytes=5_467_006_745,
        licence="MIT",
        serves="CLIP score as StyleGAN-T measures it",
    ),
    "dinov2-vit-l-14": RemoteFile(
        url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        filename="dinov2_vitl14_pretrain.pth",
        sha256="d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
        size_bytes=1_217_586_395,
        licence="Apache-2.0",
        serves="FD-DINOv2",
    ),
    "deit": RemoteFile(
        url="https://dl.fbaipublicfiles.com/deit/deit_base_distilled_patch16_224-df68dfff.pth",
        filename="deit_base_distilled_patch16_224-df68dfff.pth",
        sha256="df68dfff",  # the publisher gives the first digits, in the name; the rest is pinned at first use
        size_bytes=0,
        licence="Apache-2.0",
        serves="inversion: the class of a target, whose mean w is the start",
    ),
}


class MissingWeights(UserError):  # noqa: N818, it is told as a state of affairs, not as a fault
    """A weight file is neither given nor cached and can't be fetched now."""


@dataclass(frozen=True, slots=True)
class WeightsOptions:
    """Where weight files come from: the user's own by name, the cache, and the network unless `offline`."""

    overrides: Mapping[str, Path] = field(default_factory=dict)
    cache: Path = field(default_factory=cache_dir)
    offline: bool = True


@dataclass(frozen=True, slots=True)
class LocalWeights:
    """A weight file on this machine; `official` says that its SHA-256 is the pinned one."""

    name: str  # a key of WEIGHTS
    path: Path
    sha256: str
    official: bool


def _spec(name: str) -> RemoteFile:
    if name not in WEIGHTS:
        raise UserError(f"no weights are called {name!r}; there are {', '.join(WEIGHTS)}")
    return WEIGHTS[name]


def how_to_get(name: str) -> str:
    """A sentence on where a weight file comes from."""
    spec = _spec(name)
    own = f"`--{name}-weights FILE` takes a file of yours."
    if not spec.url:
        return f"No file of them was published as data; {own}"
    size = f"{spec.size_bytes / 1e6:,.1f} MB, " if spec.size_bytes else ""
    return f"`python -m bench fetch {name}` gets them ({size}{spec.licence}); {own}"


def find_weights(name: str, options: WeightsOptions) -> LocalWeights | None:
    """The weight file that is on this machine: the user's own, else the cached one; asks no network.

    A file of the user's whose SHA-256 is not the pinned one is `official=False`, and what it scores is named for it.
    """
    spec = _spec(name)
    path = options.overrides.get(name)
    if path is None:
        kept = cached(spec, options.cache) if spec.url else None
        return None if kept is None else LocalWeights(name, kept, file_sha256(kept), official=True)
    if not path.is_file():
        raise UserError(f"--{name}-weights {path}: no such file. Give a file, or leave it out.")
    digest = file_sha256(path)
    return LocalWeights(name, path, digest, official=bool(spec.sha256) and digest.startswith(spec.sha256))


def resolve_weights(name: str, options: WeightsOptions) -> LocalWeights:
    """The weight file on this machine, fetched if it is not there and `options` allow it.

    Raises `MissingWeights`, with the command that gets the file, if it can't be had.
    """
    if found := find_weights(name, options):
        return found
    spec = _spec(name)
    if not spec.url:
        raise MissingWeights(f"the weights {name} are not here. {how_to_get(name)}")
    try:
        path = fetch(spec, options.cache, offline=options.offline)
    except UnreachableError as error:
        why = "" if options.offline else f" ({error})"
        raise MissingWeights(f"the weights {name} are not here{why}. {how_to_get(name)}") from error
    return LocalWeights(name, path, file_sha256(path), official=True)


def fetch_weights(name: str) -> str:
    """Fetch a weight file into the cache, and say in a line where it is and what it is."""
    spec = _spec(name)
    if not spec.url:
        raise UserError(f"the weights {name} can't be fetched. {how_to_get(name)}")
    path = fetch(spec, cache_dir(), offline=False)
    return f"{name}: {path}, sha256 {file_sha256(path)}, {spec.licence}, from {spec.url}"


def read_tensors(weights: LocalWeights) -> dict[str, Tensor]:
    """Read a state dict from a .pth or .safetensors file, floats as float32, on the CPU; nothing of it is executed.

    Raises `UserError` if the file is cut short, holds anything but tensors, or is a TorchScript program.
    """
    try:
        tensors = _read(weights.path)
    except Exception as error:  # the readers raise a dozen kinds at a foreign file
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{weights.path} can't be read as the weights {weights.name}: {reason}. It must be a state dict, whole, as "
            f"torch.save or safetensors write it. {how_to_get(weights.name)}"
        ) from error
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        # Copied: what load_file gives lies in the file, and changes when that is written again.
        return {name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()}
    with warnings.catch_warnings():  # torch warns of a TorchScript archive before it refuses it
        warnings.simplefilter("ignore")
        content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, Mapping) and content.keys() == {"model"}:  # as DeiT's is written
        content = content["model"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"it holds a {type(content).__name__} that is not a mapping of names to tensors")
    return dict(content)
