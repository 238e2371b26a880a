"""The named protocols: each pins network, resize, quantiser, sample count, splits and aggregation of one number.

Numbers of different protocols never share a column. A protocol whose network can't be had names the stand-in protocol
that fills a column of its own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from bench.errors import UserError, did_you_mean

Maths = Literal[
    "frechet",
    "frechet_infinity",
    "kernel_distance",
    "inception_score",
    "precision_recall",
    "density_coverage",
    "clip_score",
]
Aggregate = Literal["mean", "min"]


@dataclass(frozen=True, slots=True)
class Protocol:
    """One way to score a set of images."""

    name: str
    maths: Maths
    view: str  # key of views.VIEWS: the network with its resize and quantiser
    num_images: int  # of a full number; more are not used
    summary: str
    paper: str
    label: str = ""  # what the paper calls the number, where it isn't the usual name of its maths
    suffix: str = ""  # told in the metric's name where one network serves several protocols
    layer: str = "pool"  # of the view
    ddof: Literal[0, 1] = 0  # Fréchet: divisor N - ddof of the covariance
    neighbourhood: int = 3  # k of the nearest neighbours
    half_precision: bool = False  # distances of neighbours in float16
    num_reference: int | None = None  # so many random real images, where neighbours are searched; None: all
    shuffle_seed: int | None = None  # Inception Score: None is sample order
    split_size: int | None = None  # Inception Score: rows of a split; None: ten splits, however many rows
    runs: int = 1  # sample sets of different seeds that a full number takes
    aggregate: Aggregate = "mean"  # what is reported of several runs
    datasets: tuple[str, ...] = ()  # that it is defined on; empty: all
    standin: str | None = None  # the protocol that runs when the network can't be had

    @property
    def layers(self) -> tuple[str, ...]:
        """The features that it reads, as "view.layer"."""
        names = ("image", "text") if self.maths == "clip_score" else (self.layer,)
        return tuple(f"{self.view}.{name}" for name in names)


def _standin(name: str, maths: Maths) -> Protocol:
    summary = "Stand-in network with seeded weights: shows that a run works; comparable with nothing published."
    view = "standin-clip" if maths == "clip_score" else "standin"
    layer = "logits" if maths == "inception_score" else "pool"
    return Protocol(f"{name}@{view}", maths, view, num_images=50_000, summary=summary, paper="-", layer=layer)


FID_PAPER = "Heusel et al. 2017, arXiv 1706.08500"
PR_PAPER = "Kynkäänniemi et al. 2019, arXiv 1904.06991"
IS_PAPER = "Salimans et al. 2016, arXiv 1606.03498"
CLIP_PAPER = "Hessel et al. 2021, arXiv 2104.08718"

FRECHET = (
    Protocol(
        name="fid50k_full@sg3",
        maths="frechet",
        view="inception",
        num_images=50_000,
        summary="Inception pool3, TF1 resize inside the network, rounding half up, covariance over N, whole training "
        "set without mirror images.",
        paper=f"{FID_PAPER}; as StyleGAN3 measures it, arXiv 2106.12423",
        standin="fd@standin",
    ),
    Protocol(
        name="fid50k@adm",
        maths="frechet",
        view="inception-adm",
        num_images=50_000,
        summary="Inception pool3, TF1 resize, pixels truncated, covariance over N - 1; reference cropped by boxes, "
        "then bicubic (`dataset --crop center-dhariwal`).",
        paper=f"{FID_PAPER}; as ADM measures it, arXiv 2105.05233",
        suffix="-ADM",
        ddof=1,
        standin="fd@standin",
    ),
    Protocol(
        name="fid50k@edm-min3",
        maths="frechet",
        view="inception",
        num_images=50_000,
        summary="Inception pool3, TF1 resize, rounding half up, covariance over N - 1, the lowest of three sample "
        "sets (`repeats = 3` in the suite).",
        paper=f"{FID_PAPER}; as EDM measures it, arXiv 2206.00364",
        suffix="-min3",
        ddof=1,
        runs=3,
        aggregate="min",
        standin="fd@standin",
    ),
    Protocol(
        name="fid@clean",
        maths="frechet",
        view="inception-clean",
        num_images=50_000,
        summary="Inception pool3 after clean-fid's antialiased bicubic resize, covariance over N - 1.",
        paper="Parmar et al. 2022, arXiv 2104.11222",
        ddof=1,
        suffix="-clean",
        standin="fd@standin",
    ),
    Protocol(
        name="fid@legacy-pytorch",
        maths="frechet",
        view="inception-torch",
        num_images=50_000,
        summary="Inception pool3 after a bilinear resize without antialiasing and 2x/255 - 1, as pytorch-fid does it; "
        "covariance over N - 1.",
        paper=f"{FID_PAPER}; clean-fid's mode legacy_pytorch, arXiv 2104.11222",
        ddof=1,
        suffix="-pytorch",
        standin="fd@standin",
    ),
    Protocol(
        name="fid30k@coco-sgt",
        maths="frechet",
        view="inception",
        num_images=30_000,
        summary="Zero-shot FID of 30,000 captions drawn with replacement against all images of COCO val2014 "
        "(40,504), centre crop, LANCZOS.",
        paper=f"{FID_PAPER}; as StyleGAN-T measures it, arXiv 2301.09515",
        suffix="-COCO30k",
        datasets=("coco",),
        standin="fd@standin",
    ),
    Protocol(
        name="sfid50k@adm",
        maths="frechet",
        view="inception-adm",
        num_images=50_000,
        summary="First 7 channels of Inception's mixed_6/conv, 2,023 values, pixels truncated, covariance over N - 1.",
        paper="Nash et al. 2021, arXiv 2103.03841; as ADM measures it, arXiv 2105.05233",
        label="sFID",
        suffix="-ADM",
        layer="spatial",
        ddof=1,
        standin="fd@standin",
    ),
    Protocol(
        name="sfid50k_full@sgxl",
        maths="frechet",
        view="inception",
        num_images=50_000,
        summary="First 7 channels of Inception's mixed_6/conv, 2,023 values, rounding half up, covariance over N.",
        paper="Nash et al. 2021, arXiv 2103.03841; as StyleGAN-XL measures it, arXiv 2202.00273",
        label="sFID",
        layer="spatial",
        standin="fd@standin",
    ),
    Protocol(
        name="rfid50k_full@sgxl",
        maths="frechet",
        view="inception-random",
        num_images=50_000,
        summary="Pool3 of an Inception with random weights; the number belongs to that one file.",
        paper="Sauer et al. 2022, arXiv 2202.00273, after Naeem et al. 2020, arXiv 2002.09797",
        label="rFID",
    ),
    Protocol(
        name="fd@dinov2",
        maths="frechet",
        view="dinov2-vit-l-14",
        num_images=50_000,
        summary="Class token of DINOv2 ViT-L/14, PIL bicubic to 224, covariance over N - 1, all real images (dgm-eval: "
        "50,000 of them at most).",
        paper="Stein et al. 2023, arXiv 2306.04675",
        label="FD-DINOv2",
        ddof=1,
        standin="fd@standin",
    ),
    Protocol(
        name="clip-fid@clean",
        maths="frechet",
        view="clip-fid-vit-b-32",
        num_images=50_000,
        summary="Image embedding of CLIP ViT-B/32, PIL bicubic to 224, covariance over N - 1.",
        paper="Kynkäänniemi et al. 2023, arXiv 2203.06026; as clean-fid measures it",
        label="CLIP-FID",
        ddof=1,
        standin="fd@standin",
    ),
    Protocol(
        name="fid-infinity@sg3",
        maths="frechet_infinity",
        view="inception",
        num_images=50_000,
        summary="fid50k_full@sg3 extrapolated to infinitely many samples, over 15 sample counts.",
        paper="Chong and Forsyth 2020, arXiv 1911.07023",
        standin="fd-infinity@standin",
    ),
)

OTHERS = (
    Protocol(
        name="kid50k_full@sg3",
        maths="kernel_distance",
        view="inception",
        num_images=50_000,
        summary="Unbiased cubic-kernel MMD of Inception pool3, 100 subsets of 1000, seeded, with their spread.",
        paper="Binkowski et al. 2018, arXiv 1801.01401",
        standin="kd@standin",
    ),
    Protocol(
        name="is50k@sg3",
        maths="inception_score",
        view="inception",
        num_images=50_000,
        summary="Inception Score over 10 splits in sample order, logits without bias.",
        paper=IS_PAPER,
        layer="logits",
        standin="is@standin",
    ),
    Protocol(
        name="is50k@shuffled",
        maths="inception_score",
        view="inception",
        num_images=50_000,
        summary="Inception Score over 10 splits after a shuffle with seed 2020, as torch-fidelity does it.",
        paper=IS_PAPER,
        suffix="-shuffled",
        layer="logits",
        shuffle_seed=2020,
        standin="is@standin",
    ),
    Protocol(
        name="is50k@adm",
        maths="inception_score",
        view="inception-adm",
        num_images=50_000,
        summary="Inception Score over 10 splits of 5,000 in sample order, pixels truncated.",
        paper=f"{IS_PAPER}; as ADM measures it, arXiv 2105.05233",
        suffix="-ADM",
        layer="logits",
        split_size=5000,
        standin="is@standin",
    ),
    Protocol(
        name="pr50k3_full@sg3-vgg",
        maths="precision_recall",
        view="vgg16-fc",
        num_images=50_000,
        summary="Precision and recall, k = 3, VGG16 fc features and distances in float16, at most 200,000 random "
        "real images.",
        paper=f"{PR_PAPER}; as StyleGAN3 measures it, arXiv 2106.12423",
        suffix="-VGG",
        half_precision=True,
        num_reference=200_000,
        standin="pr@standin",
    ),
    Protocol(
        name="pr50k3@adm-inception",
        maths="precision_recall",
        view="inception-adm",
        num_images=50_000,
        summary="Precision and recall, k = 3, Inception pool3, pixels truncated, 10,000 random real images.",
        paper=f"{PR_PAPER}; as ADM measures it, arXiv 2105.05233",
        num_reference=10_000,
        standin="pr@standin",
    ),
    Protocol(
        name="dc10k5@inception",
        maths="density_coverage",
        view="inception",
        num_images=10_000,
        summary="Density and coverage, k = 5, open balls, Inception pool3, 10,000 of each.",
        paper="Naeem et al. 2020, arXiv 2002.09797; as dgm-eval measures it, arXiv 2306.04675",
        neighbourhood=5,
        num_reference=10_000,
        standin="dc@standin",
    ),
    Protocol(
        name="clip@sgt-vit-g-14",
        maths="clip_score",
        view="clip-vit-g-14",
        num_images=30_000,
        summary="Cosine of image and prompt, open_clip ViT-g/14 laion2b_s12b_b42k, bicubic 224 without antialiasing, "
        "unscaled, no prefix.",
        paper=f"{CLIP_PAPER}; as StyleGAN-T measures it, arXiv 2301.09515",
        suffix="-ViT-g/14",
        standin="clip@standin-clip",
    ),
    Protocol(
        name="clip@vit-b-32",
        maths="clip_score",
        view="clip-vit-b-32",
        num_images=50_000,
        summary="Cosine of image and prompt, OpenAI ViT-B/32, antialiased bicubic 224, unscaled, no prefix.",
        paper=f"Radford et al. 2021, arXiv 2103.00020; {CLIP_PAPER}",
        standin="clip@standin-clip",
    ),
    Protocol(
        name="clip@vit-b-32-prefix",
        maths="clip_score",
        view="clip-vit-b-32-prefix",
        num_images=30_000,
        summary="The same after the prefix 'A photo depicts ', as GigaGAN measures it.",
        paper=f"{CLIP_PAPER}; Kang et al. 2023, arXiv 2303.05511",
        suffix="-prefix",
        standin="clip@standin-clip",
    ),
)

STANDINS = (
    _standin("fd", "frechet"),
    _standin("fd-infinity", "frechet_infinity"),
    _standin("kd", "kernel_distance"),
    _standin("is", "inception_score"),
    _standin("pr", "precision_recall"),
    dataclasses.replace(_standin("dc", "density_coverage"), neighbourhood=5),
    _standin("clip", "clip_score"),
)

PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in (*FRECHET, *OTHERS, *STANDINS)}


def protocol_named(name: str) -> Protocol:
    """The protocol of this name; a miss names the nearest."""
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    hint = did_you_mean(name, PROTOCOLS)
    raise UserError(f"unknown protocol {name!r}.{hint} `python -m bench ls metrics` lists all of them.")
