from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.errors import UserError
from bench.features import FeatureSet
from bench.protocols import PROTOCOLS, protocol_named
from bench.sampling import ImageBatch
from bench.scoring import METRICS, caveats, honest_name, score
from bench.views import VIEWS


class FakeView:
    def __init__(self, name: str, *, official: bool) -> None:
        self.name, self.sha256, self.official = name, "00", official

    def __call__(self, batch: ImageBatch) -> dict[str, Tensor]:
        return {}


OFFICIAL = FakeView("inception-v3-2015-12-05", official=True)
USERS_OWN = FakeView("inception-3fa2b81c", official=False)
FID = PROTOCOLS["fid50k_full@sg3"]


@pytest.mark.parametrize(
    ("view", "n", "name", "num_caveats"),
    [
        (OFFICIAL, 50_000, "FID", 0),
        (OFFICIAL, 49_999, "FID [n=49999]", 1),
        (USERS_OWN, 50_000, "FD-inception-3fa2b81c", 1),
        (USERS_OWN, 64, "FD-inception-3fa2b81c [n=64]", 2),
    ],
)
def test_only_the_whole_protocol_is_called_fid(view: FakeView, n: int, name: str, num_caveats: int) -> None:
    assert honest_name(METRICS["frechet"][0], FID, view, n) == name
    assert len(caveats(FID, view, n)) == num_caveats


def test_protocols_of_one_network_have_different_names() -> None:
    names = {
        honest_name(METRICS["frechet"][0], PROTOCOLS[p], OFFICIAL, 50_000) for p in ("fid50k_full@sg3", "fid@clean")
    }
    assert names == {"FID", "FID-clean"}


def test_every_protocol_has_a_view_and_a_standin_of_the_same_maths() -> None:
    for protocol in PROTOCOLS.values():
        assert protocol.view in VIEWS
        if protocol.standin is not None:
            assert PROTOCOLS[protocol.standin].maths == protocol.maths
            assert VIEWS[PROTOCOLS[protocol.standin].view].weights is None


def test_every_maths_scores_features() -> None:
    def features(seed: int) -> FeatureSet:
        generator = torch.Generator().manual_seed(seed)
        layers = {"pool": 8, "logits": 5, "image": 8, "text": 8}
        views = ("inception", "clip-vit-b-32")
        tensors = {f"{v}.{name}": torch.randn(40, d, generator=generator) for v in views for name, d in layers.items()}
        return FeatureSet(tensors, "00")

    fake, real = features(0), features(1)
    for name in ("fid50k_full@sg3", "kid50k_full@sg3", "is50k@sg3", "pr50k3@inception", "clip@vit-b-32"):
        for metric, result in score(PROTOCOLS[name], fake, real):
            assert result.interval is None or result.interval[0] <= result.value <= result.interval[1], metric
    assert score(FID, fake, fake)[0][1].value == pytest.approx(0, abs=1e-9)


def test_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'fid@clean'"):
        protocol_named("fid@cleen")
