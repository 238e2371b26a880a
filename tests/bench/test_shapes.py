"""The procedural data set: scenes, signed distances, balance, and the pins that tell when its pixels change."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from bench import shapes
from bench.errors import UserError
from bench.shapes import BACKGROUNDS, CLASSES, COLOURS, SIZES, ShapesDataset, draw_scene, render

PINNED_MEANS = [[234, 211, 185], [174, 175, 184], [232, 218, 194], [23, 43, 79], [61, 50, 32]]
PINNED_MEANS += [[62, 44, 33], [52, 70, 76], [18, 22, 26], [178, 191, 224], [181, 200, 228]]
PINNED_CAPTIONS = "cbda34d504544770"


def test_shapes_are_uint8_images_with_balanced_labels_and_captions() -> None:
    dataset = ShapesDataset(16, count=50)
    assert (dataset.name, dataset.resolution, dataset.num_classes, len(dataset)) == ("shapes", 16, 10, 50)
    assert dataset.image(0).dtype == torch.uint8
    assert dataset.image(0).shape == (3, 16, 16)
    assert dataset.image(0).is_contiguous()
    assert np.bincount([dataset.label(i) for i in range(50)]).tolist() == [5] * 10
    for index in range(50):
        words = dataset.caption(index).split(" ", 4)
        assert words[0] == "a"
        assert words[1] in SIZES
        assert words[2] in COLOURS
        assert words[3] == dataset.class_names[dataset.label(index)]
        assert words[4].removeprefix("on a ").removesuffix(" background") in BACKGROUNDS


def test_shapes_pixels_are_pinned() -> None:
    """Raise `VERSION` when this fails: the digest of the data set has to change with its pixels."""
    dataset = ShapesDataset(32)
    means = [[round(v) for v in dataset.image(i).float().mean((1, 2)).tolist()] for i in range(10)]
    assert shapes.VERSION == 1
    np.testing.assert_allclose(means, PINNED_MEANS, atol=1)
    assert dataset.caption(0) == "a small red circle on a cream background"
    captions = "\n".join(dataset.caption(i) for i in range(100))
    assert hashlib.sha256(captions.encode()).hexdigest().startswith(PINNED_CAPTIONS)


def test_shapes_image_does_not_depend_on_count_or_order() -> None:
    few, many = ShapesDataset(16, count=10), ShapesDataset(16, count=1000)
    many.image(7)
    assert torch.equal(few.image(3), many.image(3))
    assert not torch.equal(few.image(3), ShapesDataset(16, count=10, seed=1).image(3))


@pytest.mark.parametrize("resolution", [8, 16, 32])
def test_shapes_show_the_same_scene_at_every_resolution(resolution: int) -> None:
    for index in range(20):
        fine = ShapesDataset(256).image(index).float()
        factor = 256 // resolution
        boxed = fine.reshape(3, resolution, factor, resolution, factor).mean((2, 4))
        gap = (boxed - ShapesDataset(resolution).image(index).float()).abs()
        assert gap.mean() < 0.6  # rounding alone is 0.25
        assert gap.max() < 20  # at the tips of stars and crescents


def test_shapes_resolution_need_not_be_a_power_of_two() -> None:
    assert ShapesDataset(8).image(0).shape == (3, 8, 8)
    assert ShapesDataset(37).image(0).shape == (3, 37, 37)


@pytest.mark.parametrize("shape", CLASSES)
def test_distance_changes_no_faster_than_the_distance_walked(shape: str) -> None:
    """A signed distance has slope at most 1, is negative at a point inside and positive outside the unit circle."""
    x, y = np.meshgrid(np.linspace(-1.5, 1.5, 301), np.linspace(-1.5, 1.5, 301))
    distance = CLASSES[shape](x, y)
    assert np.abs(np.diff(distance, axis=0)).max() < 0.01 + 1e-9
    assert np.abs(np.diff(distance, axis=1)).max() < 0.01 + 1e-9
    assert distance[np.hypot(x, y) > 1.08].min() > 0
    assert distance.min() < -0.15


def test_distance_matches_closed_forms() -> None:
    x, y = np.array([0.0, 0.9, 2.0]), np.array([0.0, 0.0, 0.0])
    np.testing.assert_allclose(CLASSES["circle"](x, y), [-0.9, 0.0, 1.1])
    np.testing.assert_allclose(CLASSES["square"](x, y), [-0.76, 0.14, 1.24])
    # the inradius of an equilateral triangle is half its circumradius, that of a hexagon sqrt(3)/2 of it
    np.testing.assert_allclose(CLASSES["triangle"](x[:1], y[:1]), [-0.5])
    np.testing.assert_allclose(CLASSES["hexagon"](x[:1], y[:1]), [-0.95 * np.sqrt(3) / 2])
    np.testing.assert_allclose(CLASSES["diamond"](x, y), [-0.6 / np.hypot(1, 0.6), 0.3, 1.4])


def test_shape_area_is_the_area_painted() -> None:
    scene = draw_scene(0, 0)  # a circle of 0.9 radii
    picture = render(scene, 256).astype(float)
    red, background = (np.array(table[name]) for table, name in ((COLOURS, "red"), (BACKGROUNDS, "cream")))
    nearer = ((picture - red) ** 2).sum(-1) < ((picture - background) ** 2).sum(-1)
    assert nearer.mean() == pytest.approx(np.pi * (0.9 * scene.radius) ** 2, rel=0.03)


def test_shapes_stay_in_the_picture_and_stand_out() -> None:
    scenes = [draw_scene(0, i) for i in range(300)]
    assert all(scene.radius < c < 1 - scene.radius for scene in scenes for c in scene.centre)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {scene.colour for scene in scenes} == set(COLOURS)
    assert {scene.size for scene in scenes} == set(SIZES)
    images = [render(scene, 32).astype(int) for scene in scenes]
    assert min(np.ptp(image.sum(-1)) for image in images) > 90


def test_shapes_digest_tells_sets_apart() -> None:
    sets = [ShapesDataset(16), ShapesDataset(32), ShapesDataset(16, count=10), ShapesDataset(16, seed=1)]
    assert len({dataset.content_sha256() for dataset in sets}) == 4
    assert ShapesDataset(16).content_sha256() == ShapesDataset(16).content_sha256()


@pytest.mark.parametrize(("resolution", "count", "seed"), [(7, 10, 0), (16, 0, 0), (16, 10, -1)])
def test_shapes_refuse_what_cannot_be_drawn(resolution: int, count: int, seed: int) -> None:
    with pytest.raises(UserError, match="shapes: got"):
        ShapesDataset(resolution, count, seed)


def test_shapes_index_is_checked() -> None:
    with pytest.raises(IndexError):
        ShapesDataset(8, count=10).image(10)
