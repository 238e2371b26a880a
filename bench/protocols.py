"""The named protocols: each pins network, resize, quantiser, sample count, splits and aggregation of one number.

Numbers of different protocols never share a column. A protocol whose network can't be had names the stand-in protocol
that fills a column of its own.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from bench.errors import UserError

Maths = Literal["frechet", "kernel_distance", "inception_score", "precision_recall", "clip_score"]


@dataclass(frozen=True, slots=True)
class Protocol:
    """One way to score a set of images."""

    name: str
    maths: Maths
    view: str  # key of features.VIEWS: the network with its resize
    num_images: int  # of a full number
    summary: str
    paper: str
    ddof: Literal[0, 1] = 0  # Fréchet: divisor N - ddof of the covariance
    suffix: str = ""  # told in the metric's name where one network serves several protocols
    standin: str | None = None  # the protocol that runs when the network can't be had


def _standin(name: str, maths: Maths) -> Protocol:
    summary = "Stand-in network with seeded weights: shows that a run works; comparable with nothing published."
    view = "standin-clip" if maths == "clip_score" else "standin"
    return Protocol(f"{name}@{view}", maths, view, num_images=50_000, summary=summary, paper="-")


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="fid50k_full@sg3",
            maths="frechet",
            view="inception",
            num_images=50_000,
            summary="Fréchet distance of Inception pool3, TF1 resize inside the network, covariance over N.",
            paper="Heusel et al. 2017, arXiv 1706.08500; as StyleGAN3 measures it, arXiv 2106.12423",
            standin="fd@standin",
        ),
        Protocol(
            name="fid@clean",
            maths="frechet",
            view="inception-clean",
            num_images=50_000,
            summary="Fréchet distance of Inception pool3 after clean-fid's antialiased bicubic resize, over N - 1.",
            paper="Parmar et al. 2022, arXiv 2104.11222",
            ddof=1,
            suffix="-clean",
            standin="fd@standin",
        ),
        Protocol(
            name="kid50k_full@sg3",
            maths="kernel_distance",
            view="inception",
            num_images=50_000,
            summary="Unbiased cubic-kernel MMD of Inception pool3, 100 subsets of 1000, seeded.",
            paper="Binkowski et al. 2018, arXiv 1801.01401",
            standin="kd@standin",
        ),
        Protocol(
            name="is50k@sg3",
            maths="inception_score",
            view="inception",
            num_images=50_000,
            summary="Inception Score over 10 splits in sample order, logits without bias.",
            paper="Salimans et al. 2016, arXiv 1606.03498",
            standin="is@standin",
        ),
        Protocol(
            name="pr50k3@inception",
            maths="precision_recall",
            view="inception",
            num_images=50_000,
            summary="Improved precision and recall, k = 3, Inception pool3.",
            paper="Kynkäänniemi et al. 2019, arXiv 1904.06991; features as ADM, arXiv 2105.05233",
            standin="pr@standin",
        ),
        Protocol(
            name="clip@vit-b-32",
            maths="clip_score",
            view="clip-vit-b-32",
            num_images=50_000,
            summary="Cosine of image and prompt, OpenAI ViT-B/32, antialiased bicubic 224, unscaled, no prefix.",
            paper="Radford et al. 2021, arXiv 2103.00020; Hessel et al. 2021, arXiv 2104.08718",
            standin="clip@standin-clip",
        ),
        _standin("fd", "frechet"),
        _standin("kd", "kernel_distance"),
        _standin("is", "inception_score"),
        _standin("pr", "precision_recall"),
        _standin("clip", "clip_score"),
    )
}


def protocol_named(name: str) -> Protocol:
    """The protocol of this name; a miss names the nearest."""
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    near = difflib.get_close_matches(name, PROTOCOLS, n=1, cutoff=0.3)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(f"unknown protocol {name!r}.{hint} `python -m bench ls protocols` lists all of them.")
