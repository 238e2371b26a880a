from __future__ import annotations

from pathlib import Path

import pytest

from bench.plan import PlanOptions, default_models, make_plan
from tests.bench.tiny_suite import CPU, SUITE


@pytest.mark.parametrize(
    ("dataset", "resolution", "models"),
    [
        ("cifar10", 32, ["stylegan2-cifar10-32"]),
        ("ffhq", 1024, ["stylegan2-ffhq-1024"]),
        ("imagenet", 64, ["stylegan2-half-64"]),  # and not a StyleGAN-XL, which needs all 1000 classes
        ("imagenet", 48, []),
    ],
)
def test_data_set_that_no_suite_lists_gets_the_stylegan2_that_fits(
    dataset: str, resolution: int, models: list[str]
) -> None:
    assert default_models(dataset, resolution) == models


def test_real_images_are_as_many_as_samples_where_the_reference_is_the_whole_set(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(SUITE.replace('"half"', '"full"'), encoding="utf-8")
    (stage,) = make_plan(PlanOptions(suite=str(path)), CPU).stages
    whole = len(stage.dataset)
    assert [stage.count(name) for name in ("real", "reference", "floor-reference")] == [24, whole, whole // 2]
