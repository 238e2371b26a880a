from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import cast

import pytest
from torch import nn

from models.registry import MODELS, UnknownModelError, build, build_target
from tests.conftest import REPOSITORY

CONFIG_F_1024, CONFIG_F_512, CONFIG_F_256, PAPER256, CIFAR = 30_370_060, 30_276_583, 30_034_338, 24_767_458, 20_215_315
PUBLISHED = {
    "StyleGAN": 5,
    "StyleGAN2": 34,
    "StyleGAN3": 12,
    "StyleGAN-XL": 14,
    "BigGAN": 2,
    "BigGAN-deep": 3,
}
PARAMETERS = {
    "stylegan2-ffhq-1024": CONFIG_F_1024,
    "stylegan2-metfacesu-1024": CONFIG_F_1024,
    "stylegan2-f-ffhq-1024": CONFIG_F_1024,
    "stylegan2-f-1024": CONFIG_F_1024,
    "stylegan2-ffhq-512": CONFIG_F_512,
    "stylegan2-afhqwild-512": CONFIG_F_512,
    "stylegan2-lsun-car-512": CONFIG_F_512,
    "stylegan2-lsun-cat-256": CONFIG_F_256,
    "stylegan2-f-256": CONFIG_F_256,
    "stylegan2-ffhq-256": PAPER256,
    "stylegan2-lsundog-256": PAPER256,
    "stylegan2-half-256": PAPER256,
    "stylegan2-cifar10-32": CIFAR,
}


@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_builds_with_what_its_entry_says(name: str) -> None:
    spec, generator = MODELS[name], build(name, device="meta")
    assert spec.name == name
    assert generator.resolution == spec.resolution
    assert (generator.conditioning, generator.num_classes) == (spec.conditioning, spec.num_classes)
    assert generator.nfe == 1
    if name in PARAMETERS:
        assert sum(p.numel() for p in cast("nn.Module", generator).parameters()) == PARAMETERS[name]


def test_published_models_have_their_terms_and_an_address_of_their_own() -> None:
    published = [spec for spec in MODELS.values() if spec.checkpoint is not None]
    assert Counter(spec.family for spec in published) == PUBLISHED
    assert len({spec.checkpoint.url for spec in published if spec.checkpoint}) == len(published)
    assert all(spec.reported_as and spec.dataset != "any" for spec in published)
    terms = {spec.checkpoint.licence for spec in published if spec.checkpoint}
    assert all("non-commercial" in licence or licence.startswith("MIT") for licence in terms)


@pytest.mark.parametrize("family", sorted({spec.family for spec in MODELS.values()} - {"BigGAN-deep"}))
def test_every_family_has_models_for_a_data_set_of_ones_own(family: str) -> None:
    fitting = [spec for spec in MODELS.values() if spec.family == family and spec.dataset == "any"]
    assert {32, 64, 256} <= {spec.resolution for spec in fitting}
    assert not any(spec.checkpoint for spec in fitting)


def test_build_takes_the_classes_of_any_data_set() -> None:
    generator = build("stylegan2-half-32", num_classes=7, device="meta")
    assert (generator.conditioning, generator.num_classes) == ("class", 7)


def test_build_refuses_classes_that_the_published_model_has_not() -> None:
    assert build("stylegan2-cifar10-32", num_classes=10, device="meta").num_classes == 10
    with pytest.raises(ValueError, match="has 10 classes, not 100"):
        build("stylegan2-cifar10-32", num_classes=100, device="meta")
    with pytest.raises(ValueError, match="has 0 classes, not 10"):
        build("stylegan2-ffhq-256", num_classes=10, device="meta")


def test_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownModelError, match="did you mean stylegan2-ffhq-256"):
        build("stylegan2-fhq-256")
    with pytest.raises(UnknownModelError, match="there are StyleGAN, StyleGAN2"):
        build("zzz")


def test_only_registered_targets_are_called() -> None:
    with pytest.raises(ValueError, match=r"unknown generator 'os:system'; known are .*models\.stylegan2:build"):
        build_target("os:system", {"command": "true"})


def test_importing_the_registry_loads_no_network_code() -> None:
    heavy = {"models.stylegan2", "models.layers", "triton", "open_clip"}
    program = f"import models.registry, sys; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True)
