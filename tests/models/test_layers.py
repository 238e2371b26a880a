from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from models.layers import FullyConnectedLayer, initialise, labels_checked, normalize_2nd_moment, one_hot, to_uint8


def test_to_uint8_rounds_half_up_and_clamps() -> None:
    grey = torch.tensor([0.0, 0.4999, 0.5, 254.4999, 254.5, 255.0], dtype=torch.float64)
    images = torch.cat([grey / 127.5 - 1, torch.tensor([-7.0, 7.0], dtype=torch.float64)])
    assert to_uint8(images).tolist() == [0, 0, 1, 254, 255, 255, 0, 255]


def test_normalize_2nd_moment_makes_rows_of_unit_mean_square() -> None:
    x = torch.tensor([[3.0, 4.0], [0.3, -0.4], [0.0, 0.0]])
    root = math.sqrt(12.5)
    expected = torch.tensor([[3 / root, 4 / root], [3 / root, -4 / root], [0.0, 0.0]])
    assert torch.allclose(normalize_2nd_moment(x), expected, atol=1e-6)


def test_fully_connected_layer_scales_stored_weights_and_bias() -> None:
    layer = FullyConnectedLayer(4, 2, "lrelu", lr_multiplier=0.01)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[100.0, 200, 300, 400], [-100, -200, -300, -400]]))
        layer.bias.fill_(50.0)
    # rows sum to +-10, divided by sqrt(4); the bias becomes 0.5
    expected = torch.tensor([[5.5, -4.5 * 0.2]]) * math.sqrt(2)
    assert torch.allclose(layer(torch.ones(1, 4)), expected, atol=1e-5)


def test_initialise_leaves_foreign_layers_alone() -> None:
    network = nn.Sequential(FullyConnectedLayer(3, 3, bias_init=2.0), nn.Linear(3, 3))
    before = network[1].weight.clone()  # type: ignore[operator]
    initialise(network, 0)
    assert torch.equal(network[1].weight, before)  # type: ignore[arg-type]
    assert network[0].bias.tolist() == [2.0, 2.0, 2.0]  # type: ignore[operator]


def test_one_hot_takes_type_and_device_of_its_model() -> None:
    like = torch.zeros(1, dtype=torch.float64)
    rows = one_hot(torch.tensor([2, 0]), 3, like)
    assert rows is not None
    assert rows.dtype == torch.float64
    assert rows.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert one_hot(None, 0, like) is None


def test_one_hot_refuses_labels_that_are_missing_or_out_of_range() -> None:
    like = torch.zeros(1)
    with pytest.raises(ValueError, match="no labels for a network of 3 classes"):
        one_hot(None, 3, like)
    with pytest.raises(ValueError, match="labels 0 to 3; allowed are 0 to 2"):
        one_hot(torch.tensor([0, 3]), 3, like)


def test_labels_that_were_checked_are_not_looked_at() -> None:
    like = torch.empty(0)
    with labels_checked():
        wrong = one_hot(torch.tensor([0, 7]), 3, like)
    assert wrong is not None
    assert wrong.tolist() == [[1, 0, 0], [0, 0, 0]]
    with pytest.raises(ValueError, match="labels 0 to 7"):
        one_hot(torch.tensor([0, 7]), 3, like)
