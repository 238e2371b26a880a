"""The Inception-v3 of 2015 behind FID, sFID, KID, Inception Score, and the precision and recall of ADM."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bench.networks.extractors import check_images, foreign_file, full_float32
from bench.networks.resize import tf1_bilinear
from bench.weights import LocalWeights, read_tensors

Resize = Literal["tf1", "clean", "torch"]
INCEPTION_SIZE = 299
# the first 192 channels of this layer are the branch that TensorFlow calls mixed_6/conv
SPATIAL_LAYER, SPATIAL_CHANNELS = "Mixed_6d", 7


def _tf1_pixels(images: Tensor) -> Tensor:
    return tf1_bilinear(images, INCEPTION_SIZE).sub_(128).div_(128)


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
    """An Inception-v3: "pool" `[N, 2048]`, "logits" without bias `[N, 1008]` and "spatial" `[N, 2023]` of one pass.

    "spatial" are the first 7 channels of mixed_6/conv after its ReLU, 17 x 17 each: the features of sFID (Nash et al.
    2021, arXiv 2103.03841). They are flattened in the order height, width, channel, as in ADM's evaluation.
    """

    def __init__(self, weights: LocalWeights, resize: Resize, device: torch.device) -> None:
        suffix, self._pixels = RESIZES[resize]
        known_as = "inception-v3-2015-12-05" if weights.official else f"{weights.name}-{weights.sha256[:8]}"
        self.name, self.sha256, self.official = known_as + suffix, weights.sha256, weights.official
        network = _inception(weights)
        # The network's own forward takes bytes and resizes them itself. Its children stand in the order of the pass.
        children = dict(network.named_children())
        classifier = children.pop("fc")
        cut = list(children).index(SPATIAL_LAYER) + 1
        layers = list(children.values())
        # a CPU convolves in two thirds of the time with channels last; on CUDA the layout is left as it was
        memory = torch.channels_last if device.type == "cpu" else torch.contiguous_format
        parts = (nn.Sequential(*part) for part in (layers[:cut], layers[cut:]))
        self._lower, self._upper = (part.to(device).to(memory_format=memory) for part in parts)
        self._classes: Tensor = classifier.get_parameter("weight").to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Features of uint8 `[N, 3, H, W]`, on the network's device."""
        check_images(images)
        with full_float32():
            middle = self._lower(self._pixels(images.to(self._classes.device)))
            pool = self._upper(middle).flatten(1)
            spatial = middle[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
            return {"pool": pool, "logits": pool.mm(self._classes.T), "spatial": spatial}


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
            raise foreign_file(weights, error) from error
    _fold_norms(network)
    return network


def _fold_norms(network: nn.Module) -> None:
    """Make the batch norm after each convolution part of it: fewer passes over memory, features the same to 1e-6."""
    for block in network.modules():
        children = dict(block.named_children())
        if children.keys() == {"conv", "bn"}:
            conv, norm = children["conv"], children["bn"]
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            block.conv, block.bn = fuse_conv_bn_eval(conv, norm), nn.Identity()


def inception_extractor(weights: LocalWeights, resize: Resize, device: torch.device) -> InceptionExtractor:
    """The Inception network behind FID, KID, IS, precision and recall (Heusel et al. 2017, arXiv 1706.08500).

    `resize` to 299 pixels is part of the protocol: "tf1" is TensorFlow 1's bilinear without half-pixel centres, as in
    the original and in StyleGAN's evaluation; "clean" is antialiased bicubic without rounding (Parmar et al. 2022,
    arXiv 2104.11222); "torch" is bilinear without antialiasing and with the scaling 2x/255 - 1, as in pytorch-fid.

    The weights "inception-random" are those of rFID (Sauer et al. 2022, arXiv 2202.00273): any state dict of this
    network that no one has trained. Each such file gives numbers of its own, so its hash is in the name.
    Raises `UserError` if the file does not hold this network.
    """
    return InceptionExtractor(weights, resize, device)
