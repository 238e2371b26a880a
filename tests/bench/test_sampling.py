from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.sampling import GeneratedImages, ImageBatch, RealImages, disjoint_halves, sample_rng
from bench.shapes import ShapesDataset
from models.layers import to_uint8
from models.spec import Condition, Conditioning, Latents, SamplingSettings

CPU = torch.device("cpu")


class Stripes(nn.Module):
    """A class-conditional generator that shows its latents and labels, so that both can be read off the image."""

    resolution, num_classes, nfe = 8, 10, 1

    def __init__(self, conditioning: Conditioning = "class") -> None:
        super().__init__()
        self.conditioning: Conditioning = conditioning
        self.settings = SamplingSettings()
        self.gain = nn.Parameter(torch.ones(()))

    def draw(self, rng: np.random.Generator) -> Latents:
        return {"z": torch.from_numpy(rng.standard_normal(8, dtype=np.float32))}

    def images(self, latents: Latents, condition: Condition = None) -> Tensor:
        rows = (latents["z"] * 40 * self.gain + 128).clamp(0, 255)[:, None, None, :].expand(-1, 3, 8, 8)
        offset = condition[:, None, None, None] if isinstance(condition, Tensor) else 0
        levels = (rows * 0.9 + offset).floor()
        return (levels + 0.7 - 128) / 127.5  # the same level however it is quantised

    def sample(self, latents: Latents, condition: Condition = None) -> Tensor:
        return to_uint8(self.images(latents, condition))


def test_sample_rng_is_pinned() -> None:
    # A change of these numbers changes every sample of every run: raise the versions of all suites with it.
    drawn = sample_rng(7, 3, "latents").random(3).tolist()
    assert drawn == pytest.approx([0.2701962210, 0.8760001999, 0.0605967006], abs=1e-9)


def test_streams_and_indices_are_independent() -> None:
    first = [
        sample_rng(s, i, stream).integers(2**62) for s in (0, 1) for i in (0, 1) for stream in ("latents", "label")
    ]
    assert len(set(first)) == len(first)
    assert sample_rng(5, 9, "label").integers(2**62) == sample_rng(5, 9, "label").integers(2**62)


@pytest.mark.parametrize("count", [4, 5, 100])
def test_halves_are_disjoint_equal_and_seeded(count: int) -> None:
    first, second = disjoint_halves(count, seed=0)
    assert len(first) == len(second) == count // 2
    assert set(first).isdisjoint(second)
    assert set(first) | set(second) <= set(range(count))
    assert disjoint_halves(count, seed=0) == (first, second)
    assert count == 4 or disjoint_halves(count, seed=1) != (first, second)


def test_samples_do_not_depend_on_the_batch() -> None:
    source = GeneratedImages(Stripes(), ShapesDataset(8, count=50), seed=3, device=CPU)
    together = source.batch(range(6))
    alone = [source.batch([i]) for i in reversed(range(6))]
    assert torch.equal(together.images, torch.cat([one.images for one in alone][::-1]))
    assert together.prompts == [one.prompts[0] for one in alone if one.prompts][::-1]


def test_labels_follow_the_data_set_and_make_the_prompt() -> None:
    dataset = ShapesDataset(8, count=50)
    source = GeneratedImages(Stripes(), dataset, seed=3, device=CPU)
    prompts = source.batch(range(40)).prompts
    labels = [source._label(i) for i in range(40)]
    assert prompts is not None
    assert all(dataset.class_names[label] in text for label, text in zip(labels, prompts, strict=True))
    assert len(set(labels)) > 5


def test_unconditional_generator_has_no_prompts() -> None:
    source = GeneratedImages(Stripes("none"), ShapesDataset(8, count=50), seed=3, device=CPU)
    assert source.batch([0, 1]).prompts is None


class Worded(Stripes):
    """A text-conditional generator that keeps what it was conditioned on."""

    text_dim = 6

    def __init__(self, encoder: nn.Module | None = None) -> None:
        super().__init__("text")
        self.mapping = nn.Module()
        self.mapping.add_module("encoder", encoder)
        self.conditions: list[Condition] = []

    def images(self, latents: Latents, condition: Condition = None) -> Tensor:
        self.conditions.append(condition)
        return super().images(latents)


def test_text_conditional_generator_is_given_captions_of_the_data_set() -> None:
    generator, dataset = Worded(encoder=nn.Identity()), ShapesDataset(8, count=50)
    batch = GeneratedImages(generator, dataset, seed=3, device=CPU).batch(range(20))
    assert batch.prompts == generator.conditions[0]
    assert set(batch.prompts or []) <= {dataset.caption(i) for i in range(50)}
    assert len(set(batch.prompts or [])) > 5


def test_text_conditional_generator_without_encoder_gets_features_that_tell_prompts_apart() -> None:
    generator = Worded()
    source = GeneratedImages(generator, ShapesDataset(8, count=50), seed=3, device=CPU)
    together, alone = source.batch(range(20)), source.batch([7])
    features, again = generator.conditions
    assert isinstance(features, Tensor)
    assert isinstance(again, Tensor)
    assert torch.equal(features[7:8], again)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(20))
    assert len(features.unique(dim=0)) == len(set(together.prompts or []))
    assert alone.prompts == (together.prompts or [])[7:8]


def test_real_images_are_those_of_the_members() -> None:
    dataset = ShapesDataset(8, count=50)
    batch = RealImages(dataset, [4, 9, 2]).batch([2, 0])
    assert torch.equal(batch.images, torch.stack([dataset.image(2), dataset.image(4)]))
    assert batch.prompts == [dataset.caption(2), dataset.caption(4)]


def test_pixels_are_rounded_half_up_and_truncated_from_one_pass() -> None:
    class Between(Stripes):
        def images(self, latents: Latents, condition: Condition = None) -> Tensor:
            levels = torch.tensor([99.5, 99.6, 100.0, 100.4]).expand(len(latents["z"]), 3, 1, 4)
            return levels / 127.5 - 1

    batch = GeneratedImages(Between("none"), ShapesDataset(8, count=5), seed=0, device=CPU).batch([0])
    assert batch.pixels("half-up")[0, 0, 0].tolist() == [100, 100, 100, 100]
    assert batch.pixels("truncate")[0, 0, 0, 1:].tolist() == [99, 100, 100]
    from_file = ImageBatch(batch.images)
    assert from_file.pixels("truncate") is from_file.images


def test_network_looks_at_the_same_pixels_once() -> None:
    calls: list[Tensor] = []

    def network(pixels: Tensor) -> int:
        calls.append(pixels)
        return len(calls)

    one = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    batch = ImageBatch(one)
    assert batch.look(network) == batch.look(network, "truncate") == len(calls) == 1
    cut = ImageBatch(one, truncated=one.clone())
    assert (cut.look(network), cut.look(network, "truncate")) == (2, 3)


def test_labels_are_drawn_as_often_as_the_data_has_them_or_evenly() -> None:
    class Lopsided(ShapesDataset):
        def label(self, index: int) -> int:
            return 7

    dataset = Lopsided(8, count=50)
    of_data, even = (GeneratedImages(Stripes(), dataset, 3, CPU, None, uniform) for uniform in (False, True))
    drawn = {name: cast("Tensor", source.condition(range(40))) for name, source in (("data", of_data), ("even", even))}
    assert drawn["data"].unique().tolist() == [7]
    assert len(drawn["even"].unique()) == 10
    assert cast("Tensor", even.condition([5])).tolist() == drawn["even"][5:6].tolist()
