"""The feature networks with published weights: Inception, LPIPS and CLIP, each with the way it looks at an image.

Networks come from torch-fidelity and open_clip, their weights are read as data only. What is scored with a file that is
not the official one carries the first digits of its SHA-256 in its name.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.errors import UserError
from bench.weights import LocalWeights, read_tensors

Resize = Literal["tf1", "clean", "torch"]
INCEPTION_SIZE = 299
LPIPS_CHANNELS = (64, 128, 256, 512, 512)
VGG16_STAGES = ((0, 4), (4, 9), (9, 16), (16, 23), (23, 30))  # layers up to relu1_2, 2_2, 3_3, 4_3, 5_3
CLIP_ARCHITECTURE = "ViT-B-32-quickgelu"


class Extractor(Protocol):
    """A network that looks at pixels."""

    name: str
    sha256: str  # of the weights
    official: bool

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Features of uint8 `[N, 3, H, W]`, float32: "pool" `[N, D]` and "logits" `[N, K]`."""
        ...


def check_images(images: Tensor) -> None:
    """Raise ValueError unless the images are uint8 `[N, 3, H, W]`."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be uint8 [N, 3, H, W], got {images.dtype} {list(images.shape)}")


def check_pair(a: Tensor, b: Tensor) -> None:
    """Raise ValueError unless both are RGB images of one shape and dtype."""
    if a.shape != b.shape or a.dtype != b.dtype or a.ndim != 4 or a.shape[1] != 3:
        raise ValueError(
            f"both must be [N, 3, H, W] of one shape and dtype, got {a.dtype} {list(a.shape)} and "
            f"{b.dtype} {list(b.shape)}"
        )


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions and products in true float32 (no TF32), with deterministic algorithms, whatever the caller set."""
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.deterministic
    matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.deterministic = "ieee", "ieee", True
    try:
        yield
    finally:
        matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.deterministic = before


def _load(module: nn.Module, tensors: Mapping[str, Tensor], weights: LocalWeights) -> None:
    try:
        module.load_state_dict(dict(tensors), assign=True)
    except RuntimeError as error:
        raise _foreign(weights, error) from error
    module.requires_grad_(False).eval()


def _foreign(weights: LocalWeights, error: Exception) -> UserError:
    lines = " ".join(str(error).split())
    return UserError(
        f"{weights.path} does not hold the weights {weights.name}: {lines[:300]}. "
        f"`python -m bench fetch {weights.name}` gets the official file."
    )


def _tf1_pixels(images: Tensor) -> Tensor:
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as resize

    size = (INCEPTION_SIZE, INCEPTION_SIZE)
    resized: Tensor = resize(images.float(), size=size, align_corners=False)
    return (resized - 128) / 128


def _clean_pixels(images: Tensor) -> Tensor:
    from cleanfid.resize import build_resizer

    resize = build_resizer("clean")
    resized = [torch.from_numpy(resize(image)) for image in images.permute(0, 2, 3, 1).cpu().numpy()]
    return (torch.stack(resized).permute(0, 3, 1, 2).to(images.device) - 128) / 128


def _torch_pixels(images: Tensor) -> Tensor:
    size = (INCEPTION_SIZE, INCEPTION_SIZE)
    resized = F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False)
    return 2 * (resized / 255) - 1


RESIZES: dict[Resize, tuple[str, Callable[[Tensor], Tensor]]] = {
    "tf1": ("", _tf1_pixels),
    "clean": ("+clean", _clean_pixels),
    "torch": ("+torch", _torch_pixels),
}


class InceptionExtractor:
    """The Inception-v3 of 2015-12-05: pool3 `[N, 2048]` and logits without bias `[N, 1008]`."""

    def __init__(self, weights: LocalWeights, resize: Resize, device: torch.device) -> None:
        suffix, self._pixels = RESIZES[resize]
        known_as = "inception-v3-2015-12-05" if weights.official else f"inception-{weights.sha256[:8]}"
        self.name, self.sha256, self.official = known_as + suffix, weights.sha256, weights.official
        network = _inception(weights)
        # The network's own forward takes bytes and resizes them itself. Its children stand in the order of the pass.
        self._trunk = nn.Sequential(*list(network.children())[:-1]).to(device)
        self._classes: Tensor = network.get_submodule("fc").get_parameter("weight").to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Features of uint8 `[N, 3, H, W]`, on the network's device."""
        check_images(images)
        with full_float32():
            pool = self._trunk(self._pixels(images.to(self._classes.device))).flatten(1)
            return {"pool": pool, "logits": pool.mm(self._classes.T)}


def _inception(weights: LocalWeights) -> nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # The constructor unpickles whatever it is given: it gets tensors that were read safely and written again here.
    rewritten = io.BytesIO()
    torch.save(read_tensors(weights), rewritten)
    rewritten.seek(0)
    with torch.random.fork_rng(devices=[]):  # building layers draws initial weights
        try:
            network: nn.Module = FeatureExtractorInceptionV3(
                "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=rewritten
            )
        except RuntimeError as error:
            raise _foreign(weights, error) from error
    return network


def inception_extractor(weights: LocalWeights, resize: Resize, device: torch.device) -> InceptionExtractor:
    """The Inception network behind FID, KID, IS, precision and recall (Heusel et al. 2017, arXiv 1706.08500).

    `resize` to 299 pixels is part of the protocol: "tf1" is TensorFlow 1's bilinear without half-pixel centres, as in
    the original and in StyleGAN's evaluation; "clean" is antialiased bicubic without rounding (Parmar et al. 2022,
    arXiv 2104.11222); "torch" is bilinear without antialiasing and with the scaling 2x/255 - 1, as in pytorch-fid.
    Raises `UserError` if the file does not hold this network.
    """
    return InceptionExtractor(weights, resize, device)


class Lpips:
    """LPIPS v0.1 with the VGG16 trunk (Zhang et al. 2018, arXiv 1801.03924, eq. 1), of images in [-1, 1]."""

    def __init__(self, linear: LocalWeights, vgg16: LocalWeights, device: torch.device) -> None:
        self.official = linear.official and vgg16.official
        self.sha256 = hashlib.sha256((linear.sha256 + vgg16.sha256).encode()).hexdigest()
        self.name = "lpips-vgg16-v0.1" if self.official else f"lpips-{self.sha256[:8]}"
        self._network = _lpips(linear, vgg16).to(device)
        self._device = device

    @torch.no_grad()
    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances `[N]` between uint8 images `[N, 3, H, W]`."""
        check_images(a)
        check_pair(a, b)
        return self._of_bytes(a.to(self._device).float(), b.to(self._device).float())

    def loss(self, a: Tensor, b: Tensor) -> Tensor:
        """Differentiable distances `[N]` between float32 images `[N, 3, H, W]` in [-1, 1]."""
        check_pair(a, b)
        return self._of_bytes((a + 1) * 127.5, (b + 1) * 127.5)

    def _of_bytes(self, a: Tensor, b: Tensor) -> Tensor:
        with full_float32():
            values: Tensor = self._network(a, b)
        return values.flatten()


def lpips(linear: LocalWeights, vgg16: LocalWeights, device: torch.device) -> Lpips:
    """LPIPS for scoring and for inversion, from its channel weights and torchvision's VGG16.

    Raises `UserError` if a file does not hold what it should.
    """
    return Lpips(linear, vgg16, device)


class _Vgg16Stages(nn.Module):
    def __init__(self, weights: LocalWeights) -> None:
        from torchvision.models import vgg16

        super().__init__()
        with torch.device("meta"):
            layers = vgg16(weights=None).features
        prefix = "features."  # the rest of the file classifies
        tensors = read_tensors(weights)
        _load(layers, {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}, weights)
        self.stages = nn.ModuleList(layers[first:last] for first, last in VGG16_STAGES)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        outputs = []
        for stage in self.stages:
            pixels = stage(pixels)
            outputs.append(pixels)
        return outputs


def _lpips(linear: LocalWeights, vgg16: LocalWeights) -> nn.Module:
    from torch_fidelity.sample_similarity_base import SampleSimilarityBase
    from torch_fidelity.sample_similarity_lpips import NetLinLayer, SampleSimilarityLPIPS

    class Network(SampleSimilarityLPIPS):  # type: ignore[misc]
        """torch-fidelity's distance without its constructor, which downloads and unpickles."""

        def __init__(self) -> None:
            SampleSimilarityBase.__init__(self, "lpips-vgg16")
            self.sample_similarity_resize = self.sample_similarity_dtype = None
            self.L = len(LPIPS_CHANNELS)
            for index, channels in enumerate(LPIPS_CHANNELS):
                self.add_module(f"lin{index}", NetLinLayer(channels, use_dropout=True))
            self.lins = [self.get_submodule(f"lin{index}") for index in range(self.L)]

    with torch.random.fork_rng(devices=[]):
        network: nn.Module = Network()
    _load(network, read_tensors(linear), linear)
    network.add_module("net", _Vgg16Stages(vgg16).eval())
    return network


class ClipExtractor:
    """CLIP embeddings of images and texts, not normalised.

    Images go through OpenAI's preparation: PIL's antialiased bicubic to 224 pixels, centre crop, rounded to bytes.
    Texts longer than 77 tokens are cut.
    """

    def __init__(self, weights: LocalWeights, device: torch.device, architecture: str) -> None:
        import open_clip
        from open_clip.transform import image_transform
        from PIL import Image

        origin = "openai" if weights.official else weights.sha256[:8]
        self.name = f"clip-{architecture.lower()}-{origin}+pil-bicubic"
        self.sha256, self.official = weights.sha256, weights.official
        with torch.random.fork_rng(devices=[]):
            self._network = open_clip.CLIP(**open_clip.get_model_config(architecture))
        _load(self._network, read_tensors(weights), weights)
        self._network.to(device)
        self._device = device
        self._prepare = image_transform(self._network.visual.image_size, is_train=False)
        self._tokenize = open_clip.get_tokenizer(architecture)
        self._from_array = Image.fromarray

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Embed uint8 `[N, 3, H, W]` as float32 `[N, D]`."""
        check_images(images)
        arrays = images.permute(0, 2, 3, 1).cpu().contiguous().numpy()
        pixels = torch.stack([self._prepare(self._from_array(array)) for array in arrays])
        with full_float32():
            embedded: Tensor = self._network.encode_image(pixels.to(self._device))
        return embedded

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """Embed N texts as float32 `[N, D]`."""
        with full_float32():
            embedded: Tensor = self._network.encode_text(self._tokenize(texts).to(self._device))
        return embedded


def clip_extractor(weights: LocalWeights, device: torch.device, architecture: str = CLIP_ARCHITECTURE) -> ClipExtractor:
    """CLIP (Radford et al. 2021, arXiv 2103.00020) in an architecture that open_clip knows.

    Raises `UserError` if the file does not hold this network.
    """
    return ClipExtractor(weights, device, architecture)
