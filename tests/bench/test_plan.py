from __future__ import annotations

import pytest

from bench.plan import default_models


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
