from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kernels.dispatch import use
from models.layers import initialise
from models.spectral_norm import SpectralEmbedding, SpectralLinear, SpectralNorm, WeightSpec, fill


def spectral_layer(norm: SpectralNorm) -> SpectralLinear:
    layer = SpectralLinear(9, 6, WeightSpec(norm, "N02"))
    initialise(layer, 0)
    return layer


def test_power_iteration_finds_the_largest_singular_values() -> None:
    layer = spectral_layer(SpectralNorm(num_svs=3)).train()
    for _ in range(300):
        layer(torch.zeros(1, 9))
    found = torch.cat([layer.get_buffer(f"sv{i}") for i in range(3)])
    torch.testing.assert_close(found, torch.linalg.svdvals(layer.weight.detach())[:3], rtol=1e-4, atol=0)
    assert torch.linalg.svdvals(layer.prepared())[0].item() == pytest.approx(1, rel=1e-4)


def test_a_step_of_training_takes_all_its_iterations_and_evaluation_one_that_it_forgets() -> None:
    thrice, once = spectral_layer(SpectralNorm(num_itrs=3)), spectral_layer(SpectralNorm())
    u0 = once.get_buffer("u0").clone()
    evaluated = once.eval().prepared()
    assert torch.equal(once.get_buffer("u0"), u0)
    assert torch.equal(thrice.eval().prepared(), evaluated)
    thrice.train().prepared()
    for _ in range(3):
        once.train().prepared()
    assert torch.equal(thrice.get_buffer("u0"), once.get_buffer("u0"))
    assert not torch.equal(once.get_buffer("u0"), u0)


def test_gradient_flows_through_the_singular_value() -> None:
    layer = spectral_layer(SpectralNorm(num_svs=2)).double().eval()
    x = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u = layer.get_buffer("u0")

    with torch.no_grad():
        right = F.normalize(u @ layer.weight)
        left = F.normalize(right @ layer.weight.t())
    weight = layer.weight / (right @ layer.weight.t() @ left.t())
    want = torch.autograd.grad(F.linear(x, weight, layer.bias).square().sum(), layer.weight)[0]
    got = torch.autograd.grad(layer(x).square().sum(), layer.weight)[0]
    torch.testing.assert_close(got, want)


def _scale_in_place(layer: SpectralLinear) -> None:
    with torch.no_grad():
        layer.weight[0].mul_(3)


def _step(layer: SpectralLinear) -> None:
    with torch.enable_grad():
        layer(torch.ones(1, 9)).square().sum().backward()
    torch.optim.SGD([layer.weight], lr=0.1).step()


def _move_estimate(layer: SpectralLinear) -> None:
    layer.get_buffer("u0").normal_(generator=torch.Generator().manual_seed(1))


def _load(layer: SpectralLinear) -> None:
    layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()})


def _replace_storage(layer: SpectralLinear) -> None:
    layer.weight.data = layer.weight.data.flip(0)


def _write_data_and_say_so(layer: SpectralLinear) -> None:
    layer.weight.data[0] = 1
    layer.eval()


@torch.inference_mode()
def _scale_in_inference_mode(layer: SpectralLinear) -> None:
    layer.weight[0].mul_(3)


@pytest.mark.parametrize(
    "change",
    [
        _scale_in_place,
        _step,
        _move_estimate,
        _load,
        _replace_storage,
        _write_data_and_say_so,
        _scale_in_inference_mode,
    ],
)
def test_kept_weight_follows_its_tensors(change: Callable[[SpectralLinear], None]) -> None:
    layer = spectral_layer(SpectralNorm()).eval()
    with torch.no_grad():
        before = layer.prepared()
        change(layer)
        after = layer.prepared()
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, layer.make().detach())


def test_weight_kept_in_inference_mode_serves_gradients_outside() -> None:
    layer = spectral_layer(SpectralNorm()).eval().requires_grad_(False)
    with torch.inference_mode():
        kept = layer.prepared()
    x = torch.ones(1, 9, requires_grad=True)
    layer(x).sum().backward()
    assert layer.prepared() is kept
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0], layer.make().sum(0))


def test_weights_with_gradients_and_copies_do_not_share_what_was_kept() -> None:
    layer = spectral_layer(SpectralNorm()).eval()
    with torch.no_grad():
        kept = layer.prepared()
        assert copy.deepcopy(layer).prepared() is not kept
        assert layer.double().prepared().dtype == torch.float64
    assert layer.prepared().requires_grad


def test_naive_formulation_keeps_nothing() -> None:
    layer = spectral_layer(SpectralNorm()).eval()
    with torch.no_grad(), use("naive"):
        assert layer.prepared() is not layer.prepared()
    with torch.no_grad():
        kept = layer.prepared()
        assert layer.prepared() is kept
    with use("naive"):
        torch.testing.assert_close(layer.prepared(), kept)


def test_layer_without_normalisation_uses_its_weight() -> None:
    layer = SpectralLinear(9, 6, WeightSpec(None, "N02"))
    initialise(layer, 0)
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert layer.prepared() is layer.weight


def test_embedding_of_a_class_is_its_row() -> None:
    embedding = SpectralEmbedding(4, 3, WeightSpec(SpectralNorm(), "N02")).eval()
    initialise(embedding, 0)
    torch.testing.assert_close(embedding(torch.eye(4)[[2, 0]]), embedding.make()[[2, 0]])


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (6, 2, 3, 3), (40, 3, 3, 3)])
def test_orthogonal_start_has_orthonormal_rows_or_columns(shape: tuple[int, ...]) -> None:
    weight = torch.zeros(shape)
    fill(weight, "ortho", np.random.default_rng(0))
    matrix = weight.flatten(1)
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()
    torch.testing.assert_close(matrix @ matrix.t(), torch.eye(len(matrix)), atol=1e-5, rtol=0)


def test_random_starts_have_the_spread_of_their_name() -> None:
    weight, rng = torch.zeros(200, 100, 3, 3), np.random.default_rng(0)
    fill(weight, "N02", rng)
    assert weight.std().item() == pytest.approx(0.02, rel=0.01)
    fill(weight, "xavier", rng)
    bound = math.sqrt(6 / (9 * 300))
    assert 0.99 * bound < weight.abs().max().item() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
