"""Probes on generators whose equivariance is known, and their independence of batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.networks.standin import StandinPerceptual
from bench.probes import (
    MAX_PSNR_DB,
    PROBE_PROTOCOLS,
    VIEW,
    Probing,
    num_passes,
    probe_protocol_named,
    probe_score,
    reason_to_skip,
)
from bench.sampling import GeneratedImages, sample_rng
from bench.shapes import ShapesDataset
from models import stylegan2, stylegan3
from models.layers import initialise
from models.registry import build
from models.spec import Latents, SamplingSettings
from models.stylegan2 import StyleGAN2Generator
from models.stylegan3 import StyleGAN3Generator

CPU = torch.device("cpu")
EQUIVARIANCE = tuple(name for name in PROBE_PROTOCOLS if name.startswith("eq"))
PATH = "ppl2_wend@sg3"


class WaveInput(nn.Module):
    """The place of every output pixel in the scene, under a transform of the user's."""

    transform: Tensor

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.resolution = resolution
        self.obeys: Callable[[Tensor], Tensor] = torch.clone  # what it makes of the transform
        self.register_buffer("transform", torch.eye(3))

    def forward(self) -> Tensor:
        line = (torch.arange(self.resolution, dtype=torch.float64) + 0.5) / self.resolution - 0.5
        y, x = torch.meshgrid(line, line, indexing="ij")
        places = torch.stack([x, y, torch.ones_like(x)], dim=-1)
        matrices = self.obeys(self.transform.double())
        return torch.einsum("...ij,hwj->...hwi", matrices, places)


class WaveSynthesis(nn.Module):
    """A slow wave in each channel, with phases by style."""

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.input = WaveInput(resolution)

    def forward(self, ws: Tensor, noise_mode: str, force_fp32: bool = False) -> Tensor:
        assert force_fp32, "probes run in float32"
        places = self.input()[..., :2].expand(len(ws), -1, -1, -1)
        phases = places @ torch.tensor([[3.0, -1.0, 2.0], [1.0, 4.0, -2.0]], dtype=torch.float64)
        return torch.sin(2 * math.pi * (phases + ws[:, 0, None, None, :3].double())).permute(0, 3, 1, 2).float() / 2


class WaveGenerator:
    """A generator of the house's protocol, as far as probes need it; w is z."""

    conditioning, num_classes, z_dim, settings = "none", 0, 4, SamplingSettings()

    def __init__(self, resolution: int = 64) -> None:
        self.resolution, self.synthesis, self.mapping = resolution, WaveSynthesis(resolution), Identity()

    def draw(self, rng: np.random.Generator) -> Latents:
        return {"z": torch.from_numpy(rng.standard_normal(self.z_dim, dtype=np.float32))}


class Identity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conditions: list[Tensor | None] = []

    def forward(self, z: Tensor, c: Tensor | None) -> Tensor:
        self.conditions.append(c)
        return z[:, None]


class MeanSquare:
    """Stands for LPIPS where its value must be known."""

    name, sha256, official = "mean-square", "0" * 64, True

    def loss(self, a: Tensor, b: Tensor) -> Tensor:
        assert a.dtype == torch.float32
        return (a - b).double().square().mean(dim=(1, 2, 3))

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError("probes compare images that are not rounded")


def probing(generator: Any, names: tuple[str, ...], count: int = 6, batch_size: int = 3) -> Probing:
    samples = GeneratedImages(generator, ShapesDataset(32), seed=5, device=CPU)
    return Probing(samples, names, MeanSquare(), count, shard_size=4, batch_size=batch_size)


def values(what: Probing) -> dict[str, Tensor]:
    starts = range(0, what.count, what.batch_size)
    parts = [what.measure(range(s, min(s + what.batch_size, what.count))) for s in starts]
    return {name: torch.cat([part[f"{VIEW}.{name}"] for part in parts]) for name in what.protocols}


def scores(what: Probing) -> dict[str, float]:
    return {name: probe_score(PROBE_PROTOCOLS[name], kept) for name, kept in values(what).items()}


def small_stylegan2() -> StyleGAN2Generator:
    generator = stylegan2.build(resolution=16, z_dim=8, w_dim=8, channel_base=128, channel_max=8, mapping_layers=2)
    initialise(generator, seed=0)
    for name, strength in generator.named_parameters():
        if name.endswith("noise_strength"):
            strength.data.fill_(0.5)
    return generator.requires_grad_(False)


def small_stylegan3() -> StyleGAN3Generator:
    generator = stylegan3.build(resolution=32, z_dim=8, w_dim=8, channel_base=256, channel_max=16, num_layers=6)
    initialise(generator, seed=0)
    return generator.requires_grad_(False)


def test_equivariant_generator_scores_high() -> None:
    measured = scores(probing(WaveGenerator(), EQUIVARIANCE))
    assert measured["eqt50k_int@sg3"] > 90, "whole shifts need no filter"
    assert measured["eqt50k_frac@sg3"] > 40
    assert measured["eqr50k@sg3"] > 40


@pytest.mark.parametrize("obeys", [torch.ones_like, torch.linalg.inv], ids=["stands still", "moves backwards"])
def test_generator_that_does_not_follow_its_input_scores_low(obeys: Callable[[Tensor], Tensor]) -> None:
    generator = WaveGenerator()
    generator.synthesis.input.obeys = obeys
    assert max(scores(probing(generator, EQUIVARIANCE)).values()) < 20


def test_equivariance_keeps_error_and_count_of_each_sample() -> None:
    generator = WaveGenerator()
    kept = values(probing(generator, ("eqt50k_int@sg3",)))["eqt50k_int@sg3"]
    moves = [sample_rng(5, i, "transform").uniform(-1, 1, 5)[:2] for i in range(6)]
    counts = [3 * math.prod(64 - abs(round(float(part) * 8)) for part in move) for move in moves]
    assert kept[:, 1].tolist() == counts, "an eighth of 64 pixels is the largest shift"
    assert len(set(counts)) > 1, "each sample moves by its own shift"
    assert torch.equal(generator.synthesis.input.transform, torch.eye(3)), "the generator is left as it was"


def test_path_length_of_waves_has_its_closed_form() -> None:
    generator = WaveGenerator(32)
    kept = values(probing(generator, (PATH,)))[PATH]
    for i, distance in enumerate(kept):
        start = generator.draw(sample_rng(5, i, "latents"))["z"]
        end = sample_rng(5, i, "path").standard_normal(4, dtype=np.float32)
        squared_speed = (math.pi * (end - start.numpy())[:3]) ** 2 / 2
        assert float(distance) == pytest.approx(float(squared_speed.mean()), rel=1e-2)


def test_both_ends_of_a_step_have_the_noise_of_the_sample() -> None:
    distances = values(probing(small_stylegan2(), (PATH,)))[PATH]
    assert 0 < float(distances.max()) < 100, "other noise would be divided by the squared step, 1e-8"


@pytest.mark.parametrize(("make", "names"), [(small_stylegan2, (PATH,)), (small_stylegan3, tuple(PROBE_PROTOCOLS))])
def test_values_do_not_depend_on_the_batch(make: Callable[[], Any], names: tuple[str, ...]) -> None:
    one, several = (values(probing(make(), names, count=3, batch_size=size)) for size in (1, 3))
    for name in names:
        tolerance = 0.05 if name == PATH else 1e-3  # a step of 1e-4 in float32 leaves few digits
        assert torch.allclose(one[name].double(), several[name].double(), rtol=tolerance), name


def test_a_small_stylegan3_follows_whole_shifts() -> None:
    measured = scores(probing(small_stylegan3(), EQUIVARIANCE, count=3))
    assert measured["eqt50k_int@sg3"] > measured["eqr50k@sg3"], "configuration T is equivariant to shifts only"


def test_probes_know_the_class_of_a_sample() -> None:
    generator: Any = WaveGenerator(32)
    generator.conditioning, generator.num_classes = "class", ShapesDataset(32).num_classes
    what = probing(generator, (PATH,), count=3)
    what.measure(range(3))
    start, end = generator.mapping.conditions
    assert torch.equal(start, end), "both ends of a path are of one class"
    shapes = what.samples.dataset
    members = [int(sample_rng(5, i, "label").integers(len(shapes))) for i in range(3)]
    assert start.argmax(1).tolist() == [shapes.label(member) for member in members], "as the sample itself has it"
    assert start.shape == (3, generator.num_classes)


@pytest.mark.parametrize(
    ("name", "able"),
    [
        ("stylegan-f-32", 1),
        ("stylegan2-shapes-32", 1),
        ("stylegan3-t-32", 4),
        ("stylegan3-r-32", 4),
        ("stylegan-xl-cifar10-32", 4),
        ("stylegan-t-uncond-32", 1),
        ("biggan-32", 0),
    ],
)
def test_families_are_probed_for_what_they_have(name: str, able: int) -> None:
    generator = build(name, device="meta")
    reasons = [reason_to_skip(generator, protocol) for protocol in PROBE_PROTOCOLS.values()]
    assert reasons.count(None) == able
    assert all(reason is None or "no mapping network" in reason or "StyleGAN3" in reason for reason in reasons)
    assert num_passes(generator, tuple(PROBE_PROTOCOLS)) == {0: 0, 1: 2, 4: 6}[able]


def test_score_is_finite_or_says_why_not() -> None:
    protocol = PROBE_PROTOCOLS["eqr50k@sg3"]
    assert probe_score(protocol, torch.tensor([[0.0, 3.0]], dtype=torch.float64)) == MAX_PSNR_DB
    with pytest.raises(ValueError, match="NaN"):
        probe_score(protocol, torch.tensor([[math.nan, 3.0]], dtype=torch.float64))


def test_unknown_probe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'eqr50k@sg3'"):
        probe_protocol_named("eqr50@sg3")


@pytest.mark.parametrize("allowed", [True, False])
def test_generators_run_without_tf32(allowed: bool) -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    generator, seen = WaveGenerator(32), []
    generator.synthesis.register_forward_pre_hook(lambda *_: seen.append((matmul.allow_tf32, cudnn.allow_tf32)))
    samples = GeneratedImages(generator, ShapesDataset(32), seed=5, device=CPU)  # type: ignore[arg-type]
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = allowed
        # the network that looks sets flags of its own meanwhile
        Probing(samples, (PATH,), StandinPerceptual(CPU), 2, shard_size=2, batch_size=1).measure(range(2))
        assert set(seen) == {(False, False)}
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (allowed, allowed)
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
