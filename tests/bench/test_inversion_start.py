from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.inversion import drawn_classes, mean_w
from bench.inversion_start import Starts
from bench.shapes import ShapesDataset
from models.stylegan_t import StyleGANTGenerator
from models.stylegan_t_config import StyleGANTConfig
from tests.bench.inversion_cases import CPU, biggan, labels, ready, style_generator

DATASET = ShapesDataset(8, 16)


class Classifier:
    """Sure of two classes, by the brightness of the image."""

    name, sha256, official = "two-classes", "0" * 64, True

    def posterior(self, images: torch.Tensor) -> torch.Tensor:
        first = images.float().mean((1, 2, 3)) / 255
        return torch.nn.functional.pad(torch.stack([1 - first, first], dim=1), (500, 498))


def test_start_is_the_mean_w_of_the_classes_that_the_classifier_predicts() -> None:
    generator, target = style_generator(num_classes=1000), torch.full((3, 8, 8), 51, dtype=torch.uint8)
    starts = Starts(generator, DATASET, Classifier(), num_samples=400)
    drawn = drawn_classes(Classifier().posterior(target[None])[0], 400)
    assert set(drawn.tolist()) == {500, 501}
    assert 0.7 < (drawn == 500).float().mean() < 0.9
    expected = mean_w(generator, labels(*drawn.tolist(), num_classes=1000), 400, CPU)
    assert torch.equal(starts(0, target), expected)
    bright = torch.full((3, 8, 8), 255, dtype=torch.uint8)
    assert torch.equal(starts(0, bright), mean_w(generator, labels(501, num_classes=1000), 400, CPU))
    assert starts.caveats() == ()


def test_biggan_starts_from_zero_and_the_likeliest_class() -> None:
    generator = biggan(num_classes=1000)
    starts = Starts(generator, DATASET, Classifier())
    dark = starts(0, torch.zeros(3, 32, 32, dtype=torch.uint8))
    assert torch.equal(dark, generator.mapping(torch.zeros(1, generator.z_dim), labels(500, num_classes=1000)))
    assert starts.caveats() == ()


@pytest.mark.parametrize(
    ("num_classes", "classifier", "why"),
    [(10, Classifier(), "the classifier knows ImageNet's only"), (10, None, "knows ImageNet's only")],
)
def test_known_class_is_the_start_where_none_can_be_predicted(num_classes: int, classifier: Any, why: str) -> None:
    generator = style_generator(num_classes)
    starts = Starts(generator, DATASET, classifier, num_samples=300)
    member = 5
    label = DATASET.label(member)
    assert torch.equal(starts(member, DATASET.image(member)), mean_w(generator, labels(label), 300, CPU))
    assert why in starts.caveats()[0]


def test_missing_or_foreign_classifier_is_a_caveat() -> None:
    generator = style_generator(num_classes=1000)
    assert "the weights `deit` are not here" in Starts(generator, DATASET, None).caveats()[0]
    foreign = Classifier()
    foreign.official = False
    assert "two-classes" in Starts(generator, DATASET, foreign).caveats()[0]


def test_unconditional_generator_starts_from_one_mean_w() -> None:
    generator = style_generator(num_classes=0)
    starts = Starts(generator, DATASET, Classifier(), num_samples=300)
    expected = mean_w(generator, None, 300, CPU)
    assert torch.equal(starts(0, DATASET.image(0)), expected)
    assert torch.equal(starts(1, DATASET.image(1)), expected)
    assert starts.caveats() == ()


def test_text_conditional_generator_starts_from_its_text() -> None:
    config = StyleGANTConfig(
        resolution=16, z_dim=8, text_dim=6, channel_base=128, channel_max=8, mapping_layers=2, gn_groups=4
    )
    generator = ready(StyleGANTGenerator(config))
    starts = Starts(generator, DATASET, Classifier(), num_samples=50)
    features = starts.text(3, CPU)
    assert features is not None
    assert features.shape == (1, 6)
    assert torch.equal(starts(3, DATASET.image(3)), mean_w(generator, features, 50, CPU))


def test_target_without_label_and_classifier_is_an_error() -> None:
    class Unlabelled(ShapesDataset):
        def label(self, index: int) -> int:
            return None  # type: ignore[return-value]

    with pytest.raises(ValueError, match="no labels, and no classifier"):
        Starts(style_generator(), Unlabelled(8, 4), None)(0, DATASET.image(0))
