from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.checkpoints import weights_sha256
from models.layers import initialise
from models.stylegan2 import StyleGAN2Generator
from models.stylegan2_config import StyleGAN2Config
from models.training.augment_control import AdaptiveAugmentation
from models.training.loop import Batch, DivergedError, Step, TrainingSpec, _adam, train
from models.training.losses import r1_penalty
from models.training.stylegan2_discriminator import DiscriminatorConfig

BATCH = 4
WIDTHS: dict[str, Any] = {"resolution": 8, "channel_base": 64, "channel_max": 8, "mapping_layers": 1}


def tiny_spec(num_classes: int = 2, **changes: Any) -> TrainingSpec:
    generator = StyleGAN2Config(**WIDTHS, num_classes=num_classes, z_dim=4, w_dim=4)
    discriminator = DiscriminatorConfig(**WIDTHS, num_classes=num_classes)
    return replace(TrainingSpec(generator, discriminator, images=1000), **changes)


def tiny_batches(count: int | None = None, labelled: bool = True) -> Iterator[Batch]:
    """Bright images of class 0 and dark ones of class 1."""
    labels = torch.arange(BATCH) % 2
    images = (labels[:, None, None, None] * 200).to(torch.uint8).expand(-1, 3, 8, 8)
    return itertools.islice(itertools.repeat((images, labels if labelled else None)), count)


def ignore(step: Step) -> None:
    pass


def flat(generator: StyleGAN2Generator) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in generator.parameters()]).double()


def trajectory(spec: TrainingSpec, steps: int) -> list[Tensor]:
    """The parameters of the moving average after each step."""
    kept: list[Tensor] = []
    train(spec, tiny_batches(steps), lambda step: kept.append(flat(step.ema)))
    return kept


def test_train_lowers_the_loss_of_the_discriminator() -> None:
    losses: list[float] = []
    train(tiny_spec(), tiny_batches(30), lambda step: losses.append(step.discriminator_loss))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_train_is_a_function_of_its_spec() -> None:
    first, again, other = (weights_sha256(train(tiny_spec(seed=seed), tiny_batches(3), ignore)) for seed in (0, 0, 1))
    start = StyleGAN2Generator(tiny_spec().generator)
    initialise(start, 0)
    assert first == again
    assert len({first, other, weights_sha256(start)}) == 3


def test_train_averages_the_weights_of_all_steps() -> None:
    # with no memory the average is the generator itself, whose path does not depend on the average
    weights = trajectory(tiny_spec(ema_images=0, ema_rampup=None), 4)
    start = StyleGAN2Generator(tiny_spec().generator)
    initialise(start, 0)
    expected, keep = flat(start), 0.5 ** (BATCH / 6)
    for now, mean in zip(weights, trajectory(tiny_spec(ema_images=6, ema_rampup=None), 4), strict=True):
        expected = keep * expected + (1 - keep) * now
        assert torch.allclose(mean, expected, atol=1e-6)


def test_ema_beta_halves_in_its_half_life_which_ramps_up() -> None:
    spec = tiny_spec(ema_images=1000, ema_rampup=0.05)
    assert spec.ema_beta(1000, 10**6) == 0.5
    assert spec.ema_beta(500, 10**6) ** 2 == pytest.approx(0.5)
    assert spec.ema_beta(100, 2000) == 0.5  # half-life 5 % of 2000
    assert replace(spec, ema_rampup=None).ema_beta(1000, 0) == 0.5
    assert spec.ema_beta(32, 0) == 0


def test_train_regularises_one_step_in_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    penalties: list[Tensor] = []

    def noted(logits: Tensor, images: Tensor) -> Tensor:
        penalties.append(r1_penalty(logits, images))
        return penalties[-1]

    monkeypatch.setattr("models.training.loop.r1_penalty", noted)
    train(tiny_spec(r1_interval=3), tiny_batches(7), ignore)
    assert [penalty.shape for penalty in penalties] == [(BATCH,)] * 3


def test_train_takes_the_penalty_into_account() -> None:
    # the generator's step comes first: a penalty in discriminator step k shows in generator step k + 1
    free, held = (trajectory(tiny_spec(r1_gamma=gamma, ema_images=0), 2) for gamma in (0, 100))
    assert torch.equal(free[0], held[0])
    assert not torch.equal(free[1], held[1])


def test_adam_is_slowed_as_much_as_the_extra_loss_would_speed_it() -> None:
    network = nn.Linear(1, 1)
    plain, lazy = _adam(network, 0.01).defaults, _adam(network, 0.01, 16).defaults
    assert (plain["lr"], plain["betas"]) == (0.01, (0.0, 0.99))
    assert lazy["lr"] == pytest.approx(0.01 * 16 / 17)
    assert lazy["betas"][1] ** (17 / 16) == pytest.approx(0.99)


def test_train_ends_with_its_images_or_with_the_batches() -> None:
    seen: list[int] = []
    train(tiny_spec(images=9), tiny_batches(), lambda step: seen.append(step.images_seen))
    assert seen == [4, 8, 12]
    seen.clear()
    train(tiny_spec(), tiny_batches(2), lambda step: seen.append(step.images_seen))
    assert seen == [4, 8]


def test_train_follows_the_mean_style_vector() -> None:
    ema = train(tiny_spec(), tiny_batches(2), ignore)
    assert ema.mapping.w_avg.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in ema.parameters())


def test_train_works_without_labels_and_says_when_they_are_missing() -> None:
    assert train(tiny_spec(0), tiny_batches(1, labelled=False), ignore).conditioning == "none"
    with pytest.raises(ValueError, match="no labels"):
        train(tiny_spec(2), tiny_batches(1, labelled=False), ignore)


def test_train_stops_when_a_loss_is_not_finite() -> None:
    with pytest.raises(DivergedError, match="Lower the learning rate"):
        train(tiny_spec(learning_rate=1e30), tiny_batches(5), ignore)


def augmented(**changes: Any) -> TrainingSpec:
    return tiny_spec(augmentation=AdaptiveAugmentation(**changes), learning_rate=1e-9)


def strengths(spec: TrainingSpec, steps: int) -> list[float]:
    """The augmentation's `p` after each step."""
    kept: list[float] = []
    train(spec, tiny_batches(steps), lambda step: kept.append(step.augment_p))
    return kept


def test_train_without_augmentation_draws_nothing_from_it() -> None:
    plain, off = (
        weights_sha256(train(spec, tiny_batches(3), ignore))
        for spec in (tiny_spec(), tiny_spec(augmentation=AdaptiveAugmentation(target=None)))  # p stays 0
    )
    assert plain == off
    assert strengths(tiny_spec(), 2) == [0, 0]


def test_train_with_augmentation_is_a_function_of_its_spec_and_differs_from_one_without() -> None:
    spec = tiny_spec(augmentation=AdaptiveAugmentation(initial_p=0.8, target=None), r1_interval=2)
    first, again, plain = (weights_sha256(train(s, tiny_batches(3), ignore)) for s in (spec, spec, tiny_spec()))
    assert first == again != plain
    names = train(spec, tiny_batches(1), ignore).state_dict()
    assert not [name for name in names if "Hz_" in name or name.endswith("p")]


def test_train_moves_the_strength_once_in_an_interval() -> None:
    # a target below every possible mean sign is always exceeded
    rising = strengths(augmented(target=-2.0, interval=2, images=BATCH * 8), 5)
    assert rising == pytest.approx([0, 0.25, 0.25, 0.5, 0.5])
    falling = strengths(augmented(target=2.0, initial_p=0.3, interval=1, images=BATCH * 8), 4)
    assert falling == pytest.approx([0.175, 0.05, 0, 0])
