from __future__ import annotations

import io
import random
import re

import pytest
from PIL import Image

from bench.plots import quality_speed_plot
from bench.records import Record
from tests.bench.fake_records import FETCH, build_records, quality, record, speed, without_value


def model(name: str, fid: float, images_per_s: float) -> list[Record]:
    return [record(subject=name, value=fid, interval=(fid - 0.1, fid + 0.1)), *speed(name, 10.0, images_per_s)]


def size_of(plot: dict[str, bytes]) -> tuple[int, int]:
    return Image.open(io.BytesIO(plot["png"])).size


def markers(plot: dict[str, bytes]) -> int:
    """How many measured points are drawn: each has an uncertainty bar of its own."""
    return len(re.findall(rb'id="LineCollection_\d+"', plot["svg"]))


def test_plot_is_empty_without_a_model_that_has_both_numbers() -> None:
    assert quality_speed_plot([]) == {}
    assert quality_speed_plot([record()]) == {}
    assert quality_speed_plot([record(), *speed("another", 1.0, 1.0)]) == {}
    assert quality_speed_plot([without_value("missing", FETCH), *speed("stylegan2-ffhq-256", 1.0, 1.0)]) == {}


def test_plot_draws_a_point_for_each_model_with_both_numbers() -> None:
    assert markers(quality_speed_plot(model("a", 3.0, 100.0))) == 1
    three = [*model("a", 3.0, 100.0), *model("b", 2.0, 10.0), *model("c", 5.0, 1000.0)]
    assert markers(quality_speed_plot([*three, record(subject="no speed")])) == 3


def test_plot_has_a_panel_for_each_data_set_and_resolution() -> None:
    other = [record(case={"dataset": "pokemon", "resolution": 256}), *speed("stylegan2-ffhq-256", 1, 2, "pokemon")]
    one, two = quality_speed_plot(model("a", 3.0, 1.0)), quality_speed_plot([*model("a", 3.0, 1.0), *other])
    assert (size_of(two)[0], size_of(two)[1]) == (2 * size_of(one)[0], size_of(one)[1])


def test_plot_never_mixes_incomparable_distances() -> None:
    both = [*model("a", 3.0, 1.0), *model("b", 4.0, 2.0)]
    clean = record(subject="c", protocol="fid@clean", value=3.5)
    assert markers(quality_speed_plot([*both, clean, *speed("c", 1.0, 5.0)])) == 2


def test_plot_draws_the_floor_of_real_images() -> None:
    dashed = rb"stroke-dasharray: 3.7"
    assert dashed not in quality_speed_plot(model("a", 3.0, 1.0))["svg"]
    assert dashed in quality_speed_plot([*model("a", 3.0, 1.0), *quality("real", 0.4, 0.01, {})])["svg"]


def test_plot_gives_the_same_bytes_for_the_same_records_in_any_order() -> None:
    records = build_records()
    shuffled = random.Random(0).sample(records, len(records))
    first = quality_speed_plot(records)
    assert first == quality_speed_plot(shuffled)
    assert b"<dc:date>" not in first["svg"]


@pytest.mark.parametrize("fids", [[3.0] * 4, [0.0, 0.0], [-0.2, 0.1], [1e-4, 400.0], [2.0 + i / 50 for i in range(12)]])
def test_plot_bears_any_spread_of_values(fids: list[float]) -> None:
    records = [r for i, fid in enumerate(fids) for r in model(f"model-{i}-ffhq-256", fid, 10.0 + i)]
    assert markers(quality_speed_plot(records)) == len(fids)
