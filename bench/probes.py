"""Probes: metrics that drive the generator itself instead of looking at a set of its images.

What a probe measures of a sample is a pure function of (weights, seed, i), as the sample itself is, so the batch has no
part in it. The official code draws noise maps, shifts and angles once for each batch of 2 or 4; the distributions are
the same, but here each sample has its own. All is computed in float32, without TF32 and without truncation.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bench.errors import UserError, did_you_mean
from bench.features import Sharded
from bench.inversion import PerceptualLoss
from bench.metrics import equivariance, path_length
from bench.metrics.equivariance import Transformed
from bench.sampling import GeneratedImages, draw_latents, sample_rng
from models.layers import one_hot
from models.noise import drawn_noise

Need = Literal["mapping", "transform"]
VIEW = "probe"  # the layers of shards are "probe.<protocol>"
PERCEPTUAL = ("ppl2_wend@sg3",)  # look at images through LPIPS
MAX_PSNR_DB = 100.0  # an exactly equivariant generator has no finite PSNR; records hold finite numbers
SG3 = "as StyleGAN3 measures it, arXiv 2106.12423"


@dataclass(frozen=True, slots=True)
class ProbeProtocol:
    """One way to probe a generator, and what `ls metrics` says of it."""

    name: str
    summary: str
    paper: str
    label: str  # the metric's name in tables
    unit: str
    higher_is_better: bool
    needs: Need  # of the generator: a mapping network to W, or also an input that can be shifted and rotated
    passes: int  # through the synthesis network, beside those that all probes of a sample share
    num_samples: int = 50_000


PROBE_PROTOCOLS: dict[str, ProbeProtocol] = {
    protocol.name: protocol
    for protocol in (
        ProbeProtocol(
            name="ppl2_wend@sg3",
            summary="LPIPS-VGG16 for a step of 1e-4 in W over its square, at path ends, float images averaged to 256, "
            "no crop, mean between the 1st and 99th percentile.",
            paper=f"Karras et al. 2019, arXiv 1812.04948; {SG3}",
            label="PPL",
            unit="",
            higher_is_better=False,
            needs="mapping",
            passes=2,
        ),
        ProbeProtocol(
            name="eqt50k_int@sg3",
            summary="PSNR between shifted images and images of a shifted input, whole pixels, up to 1/8 of the image.",
            paper="Karras et al. 2021, arXiv 2106.12423, appendix E.1",
            label="EQ-T",
            unit="dB",
            higher_is_better=True,
            needs="transform",
            passes=1,
        ),
        ProbeProtocol(
            name="eqt50k_frac@sg3",
            summary="The same with fractions of pixels, reference shifted by a Lanczos filter.",
            paper="Karras et al. 2021, arXiv 2106.12423, appendix E.2",
            label="EQ-T_frac",
            unit="dB",
            higher_is_better=True,
            needs="transform",
            passes=1,
        ),
        ProbeProtocol(
            name="eqr50k@sg3",
            summary="PSNR between rotated images and images of a rotated input, any angle, both limited to their "
            "common band.",
            paper="Karras et al. 2021, arXiv 2106.12423, appendix E.3",
            label="EQ-R",
            unit="dB",
            higher_is_better=True,
            needs="transform",
            passes=1,
        ),
    )
}


def probe_protocol_named(name: str) -> ProbeProtocol:
    """Look a probe up; the error names the nearest one."""
    if name in PROBE_PROTOCOLS:
        return PROBE_PROTOCOLS[name]
    hint = did_you_mean(name, PROBE_PROTOCOLS)
    raise UserError(f"no probe {name!r}.{hint} There are {', '.join(PROBE_PROTOCOLS)}.")


def reason_to_skip(generator: Any, protocol: ProbeProtocol) -> str | None:
    """Why a generator can't be probed so; None if it can."""
    if not isinstance(getattr(generator, "mapping", None), nn.Module):
        return "no mapping network: there is no W; StyleGANs have one"
    if protocol.needs == "transform" and _input_of(generator) is None:
        return "the input of the synthesis network can't be shifted or rotated; that of StyleGAN3 and StyleGAN-XL can"
    return None


def num_passes(generator: Any, names: Sequence[str]) -> int:
    """How many images the probes make of a sample."""
    able = [p for p in map(probe_protocol_named, names) if reason_to_skip(generator, p) is None]
    return sum(p.passes for p in able) + any(p.needs == "transform" for p in able)


def _input_of(generator: Any) -> Any:
    """The input layer that has a transform of the user's, if there is one."""
    layer = getattr(generator.synthesis, "input", None)
    return layer if hasattr(layer, "transform") else None


class ProbeBatch:
    """Some samples of a generator, their style vectors, and images of these and of others."""

    def __init__(self, samples: GeneratedImages, ids: Sequence[int], perceptual: PerceptualLoss) -> None:
        self.samples, self.ids, self.perceptual = samples, ids, perceptual
        self.generator: Any = samples.generator
        self.latents = draw_latents(samples.generator, samples.seed, ids, samples.device)
        self.condition = samples.condition(ids)
        self.ws = self.mapped(self.latents["z"])

    def mapped(self, z: Tensor) -> Tensor:
        """Style vectors `[N, num_ws, w_dim]` of other latents `[N, z_dim]` under the samples' own conditions."""
        c = self.condition
        if self.generator.conditioning == "class":
            c = one_hot(c, self.generator.num_classes, like=z)
        ws: Tensor = self.generator.mapping(z, c)
        return ws

    def synthesised(self, ws: Tensor) -> Tensor:
        """Images `[N, 3, R, R]`, nominally in [-1, 1], with the samples' own noise maps if there are any."""
        synthesis, mode = self.generator.synthesis, self.generator.settings.noise_mode
        maps = drawn_noise(self.latents, mode)
        options: dict[str, Any] = {"noise_maps": maps} if maps else {}
        if "force_fp32" in inspect.signature(synthesis.forward).parameters:  # StyleGAN1 has no half precision
            options["force_fp32"] = True
        images: Tensor = synthesis(ws, noise_mode=mode, **options)
        return images

    def transformed(self, matrices: Sequence[Tensor]) -> Tensor:
        """Images of the samples with inputs transformed by matrices `[3, 3]`, one a sample."""
        with _transform(_input_of(self.generator), torch.stack(list(matrices))):
            return self.synthesised(self.ws)

    @functools.cached_property
    def untransformed(self) -> Tensor:
        """The images of the samples as they are."""
        return self.transformed([torch.eye(3)] * len(self.ids))

    @functools.cached_property
    def moves(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Random numbers of [-1, 1] `[N, 5]`: two for the whole shift, two for the fractional one, the angle."""
        seed = self.samples.seed
        return np.stack([sample_rng(seed, i, "transform").uniform(-1, 1, 5) for i in self.ids])


@contextmanager
def _transform(layer: Any, matrices: Tensor) -> Iterator[None]:
    before = layer.transform
    layer.transform = matrices.to(before)  # [N, 3, 3]: one a sample
    try:
        yield
    finally:
        layer.transform = before


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Products and convolutions in true float32, by the flags that the kernels read too."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _path_steps(batch: ProbeBatch) -> Tensor:
    """Distances `[N]` of one step from each sample towards a second latent of the same class or text."""
    generator, seed = batch.generator, batch.samples.seed
    drawn = [sample_rng(seed, i, "path").standard_normal(generator.z_dim, dtype=np.float32) for i in batch.ids]
    ends = batch.mapped(torch.from_numpy(np.stack(drawn)).to(batch.samples.device))
    before, after = (batch.synthesised(ws) for ws in (batch.ws, path_length.step_towards(batch.ws, ends)))
    return path_length.step_distances(before, after, batch.perceptual.loss)


def _whole_shifts(batch: ProbeBatch) -> Tensor:
    size = batch.generator.resolution
    reach = equivariance.MAX_SHIFT * size
    shifts = [(round(x * reach), round(y * reach)) for x, y in batch.moves[:, :2].tolist()]
    images = batch.transformed([equivariance.shift_input(x / size, y / size) for x, y in shifts])
    return _shift_errors(batch, shifts, equivariance.shift_whole, images)


def _fractional_shifts(batch: ProbeBatch) -> Tensor:
    size = batch.generator.resolution
    shifts = [(x * equivariance.MAX_SHIFT, y * equivariance.MAX_SHIFT) for x, y in batch.moves[:, 2:4].tolist()]
    images = batch.transformed([equivariance.shift_input(x, y) for x, y in shifts])
    return _shift_errors(batch, [(x * size, y * size) for x, y in shifts], equivariance.shift, images)


def _shift_errors(
    batch: ProbeBatch, shifts: Sequence[Any], shift: Callable[..., Transformed], images: Tensor
) -> Tensor:
    references = (shift(one, *by) for one, by in zip(batch.untransformed.split(1), shifts, strict=True))
    pairs = zip(references, images.split(1), strict=True)
    return torch.cat([equivariance.squared_errors(reference, image) for reference, image in pairs])


def _rotations(batch: ProbeBatch) -> Tensor:
    angles = [equivariance.MAX_ANGLE * part for part in batch.moves[:, 4].tolist()]
    images = batch.transformed([equivariance.rotate_input(angle) for angle in angles])
    rows = []
    for one, image, angle in zip(batch.untransformed.split(1), images.split(1), angles, strict=True):
        rotated, limited = equivariance.rotate(one, angle), equivariance.limit_as_rotation(image, angle)
        both = Transformed(rotated.images, rotated.mask & limited.mask)
        rows.append(equivariance.squared_errors(both, limited.images))
    return torch.cat(rows)


# what is kept of each sample, [N] or [N, 2]
MEASURES: dict[str, Callable[[ProbeBatch], Tensor]] = {
    "ppl2_wend@sg3": _path_steps,
    "eqt50k_int@sg3": _whole_shifts,
    "eqt50k_frac@sg3": _fractional_shifts,
    "eqr50k@sg3": _rotations,
}


@dataclass(frozen=True, slots=True)
class Probing(Sharded):
    """Which probes to measure of `count` samples, in shards and batches of fixed size."""

    samples: GeneratedImages
    protocols: tuple[str, ...]
    perceptual: PerceptualLoss
    count: int
    shard_size: int
    batch_size: int

    @torch.no_grad()
    def measure(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """What the protocols keep of these samples, on the CPU."""
        with _without_tf32():
            batch = ProbeBatch(self.samples, ids, self.perceptual)
            return {f"{VIEW}.{name}": MEASURES[name](batch).cpu() for name in self.protocols}


def probe_score(protocol: ProbeProtocol, values: Tensor) -> float:
    """The number of a protocol from what was kept of its samples.

    Raises:
        ValueError: a value is not finite.
    """
    if protocol.name in PERCEPTUAL:
        return path_length.path_length(values)
    if not torch.isfinite(values).all():
        raise ValueError("images with NaN or infinity can't be compared; look at the weights")
    return min(equivariance.equivariance_psnr(values), MAX_PSNR_DB)
