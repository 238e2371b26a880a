"""Questions with known answers, put to the metrics and to the libraries below them: a few seconds, and no file.

They catch a library that changed under the user: another stream of random numbers, another resize, a distance whose
square root breaks. A number of a machine on which one of them fails is not to be believed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor

from bench.metrics.frechet import Gaussian, frechet_distance, frechet_distance_from_features
from bench.metrics.inception_score import inception_score
from bench.metrics.kernel_distance import polynomial_mmd2, subset_distances
from bench.metrics.precision_recall import density_coverage, precision_recall

FIRST_BROKEN_SCIPY = (1, 18)  # clean-fid asks its `sqrtm` for a second result


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one question."""

    name: str
    ok: bool
    detail: str


class WrongAnswerError(Exception):
    """The message says what was got, and what is right."""


def sing() -> list[Answer]:
    """Ask all questions."""
    return [_asked(name, question) for name, question in QUESTIONS.items()]


def format_answers(answers: list[Answer]) -> str:
    """The answers as aligned lines."""
    width = max(len(answer.name) for answer in answers)
    return "\n".join(f"  {'ok' if a.ok else 'WRONG':<5}  {a.name:<{width}}  {a.detail}" for a in answers)


def _asked(name: str, question: Callable[[], str]) -> Answer:
    try:
        with warnings.catch_warnings():  # clean-fid silences all warnings of the process when it resizes
            warnings.simplefilter("ignore")
            return Answer(name, ok=True, detail=question())
    except Exception as error:  # a library that changed may raise anything
        return Answer(name, ok=False, detail=f"{type(error).__name__}: {error}".removeprefix("WrongAnswerError: "))


def _expect(what: str, got: object, want: object, rel: float = 0.0) -> None:
    values = [np.asarray(value, dtype=np.float64) for value in (got, want)]
    same_shape = values[0].shape == values[1].shape
    scale = max(1.0, float(np.abs(values[1]).max()))
    if not same_shape or not float(np.abs(values[0] - values[1]).max()) <= rel * scale:
        raise WrongAnswerError(f"{what} is {values[0].tolist()}, must be {values[1].tolist()}")


def _features(n: int, width: int, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((n, width)) @ rng.standard_normal((width, width)) + seed / 10)


def _identical_sets() -> str:
    features = _features(200, 16, seed=1)
    copy = features.clone()
    _expect("Frechet distance", frechet_distance_from_features(features, copy, ddof=1), 0, rel=1e-9)
    _expect("biased MMD^2", polynomial_mmd2(features, copy, estimator="biased"), 0, rel=1e-6)
    _expect("precision and recall", precision_recall(features, copy), (1, 1))
    _expect("coverage", density_coverage(features, copy).coverage, 1)
    return "distances 0, precision and recall 1"


def _gaussian_closed_form() -> str:
    variances = torch.tensor([[4.0, 1.0, 0.25, 9.0], [1.0, 1.0, 16.0, 0.01]], dtype=torch.float64)
    means = torch.tensor([[1.0, 0.0, 2.0, -1.0], [0.0, 0.5, 2.0, 3.0]], dtype=torch.float64)
    turn = torch.linalg.qr(_features(4, 4, seed=2)).Q
    covs = [turn @ variance.diag() @ turn.T for variance in variances]
    want = float((means[0] - means[1]).square().sum() + (variances[0].sqrt() - variances[1].sqrt()).square().sum())
    _expect("Frechet distance", frechet_distance(means[0], covs[0], means[1], covs[1]), want, rel=1e-12)
    return f"Frechet distance {want:g}"


def _collapsed_set() -> str:
    real = _features(300, 16, seed=3)
    collapsed = real[:1] + 1e-3 * _features(300, 16, seed=4)
    precision, recall = precision_recall(real, collapsed)
    _expect("precision of a collapsed set", precision, 1)
    if recall > 1 / 300:
        raise WrongAnswerError(f"recall of a collapsed set is {recall}, must be 1/300 or less; are the sets swapped?")
    return f"precision 1, recall {recall:.4f}"


def _class_order() -> str:
    by_class = torch.nn.functional.one_hot(torch.arange(1000) // 100, 10).double().log()
    _expect("score in order of classes", inception_score(by_class)[0], 1, rel=1e-9)
    _expect("score in one split", inception_score(by_class, splits=1)[0], 10, rel=1e-9)
    shuffled = inception_score(by_class, shuffle_seed=2020)[0]
    _expect("shuffled score", shuffled, 9.644640, rel=1e-6)
    return f"sorted by class 1, shuffled {shuffled:.2f} of 10"


def _range_and_rounding() -> str:
    from bench.networks.extractors import check_images
    from bench.sampling import QUANTISERS

    for wrong in (torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, 3, dtype=torch.uint8)):
        try:
            check_images(wrong)
        except ValueError:
            continue
        raise WrongAnswerError(f"images {wrong.dtype} {list(wrong.shape)} pass for uint8 [N, 3, H, W]")
    ramp = torch.linspace(-1, 1, 100_001).reshape(1, 1, 1, -1)
    levels = {name: quantise(ramp).double() for name, quantise in QUANTISERS.items()}
    _expect("half-up less truncated", (levels["half-up"] - levels["truncate"]).mean(), 0.5, rel=2e-3)
    _expect("levels of -1 and 1", [levels["half-up"].min(), levels["half-up"].max()], [0, 255])
    return "uint8 only; half-up and truncation differ by half a level"


def _resizes() -> str:
    """Every third column white, 897 to 299 pixels: TF1 reads the first of three, torch the middle one, clean all."""
    from bench.networks.inception import RESIZES, Resize

    stripes = torch.zeros(1, 3, 3, 897, dtype=torch.uint8)
    stripes[..., ::3] = 255
    inside = slice(20, -20)
    known: dict[Resize, float] = {"tf1": 127 / 128, "clean": -43 / 128, "torch": -1.0}
    for resize, scaled in known.items():
        pixels = RESIZES[resize][1](stripes)[..., inside]
        _expect(f"{resize} resize of stripes", [pixels.min(), pixels.max()], [scaled, scaled], rel=1e-5)
    return "stripes come out as 255 (TF1), 85 (clean) and 0 (torch)"


def _random_streams() -> str:
    _expect("RandomState(2020)", np.random.RandomState(2020).permutation(10), [2, 4, 9, 1, 5, 7, 6, 3, 8, 0])
    _expect("default_rng(0)", np.random.default_rng(0).choice(1000, 5, replace=False), [635, 510, 269, 307, 847])
    _expect("Philox(1)", np.random.Philox(key=1).random_raw(2) >> np.uint64(32), [1303814779, 3645176323])
    return f"numpy {np.__version__} draws as it did"


def _linear_algebra() -> str:
    hilbert = 1 / (torch.arange(6)[:, None] + torch.arange(6) + 1).double()  # Hilbert matrix
    _expect("eigenvalues", torch.linalg.eigvalsh(hilbert).sum(), hilbert.trace(), rel=1e-14)
    _expect("log of the determinant", torch.linalg.slogdet(hilbert).logabsdet, -39.7662, rel=1e-5)
    root = np.real(scipy.linalg.sqrtm(hilbert.numpy()))
    _expect("square root, squared", root @ root, hilbert.numpy(), rel=1e-9)
    return f"torch {torch.__version__} and SciPy {scipy.__version__} agree with the Hilbert matrix"


def _pictures() -> str:
    from PIL import Image

    image = Image.fromarray((np.arange(64).reshape(8, 8) * 37 % 256).astype(np.uint8))
    known = {
        Image.Resampling.LANCZOS: [66, 170, 86, 178, 101, 99, 103, 106, 196],
        Image.Resampling.BICUBIC: [73, 161, 91, 169, 104, 103, 106, 111, 187],
        Image.Resampling.BOX: [77, 170, 91, 177, 78, 106, 106, 114, 178],
    }
    for resampling, want in known.items():
        _expect(f"{resampling.name} to 3 x 3", np.asarray(image.resize((3, 3), resampling)).ravel(), want)
    return "Pillow resizes as it did"


def _torch_fidelity() -> str:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    fake, real = _features(120, 16, seed=5), _features(150, 16, seed=6)
    theirs = dict(fid_statistics_to_metric(*map(fid_features_to_statistics, (fake, real)), False))
    theirs |= kid_features_to_metric(fake, real, kid_subsets=2, kid_subset_size=100, rng_seed=7, verbose=False)
    theirs |= isc_features_to_metric(fake, 10, True, 2020)
    theirs |= prc_features_to_metric(fake, real, prc_neighborhood=3, verbose=False)
    rng = np.random.RandomState(7)
    draws = [(rng.choice(120, 100, replace=False), rng.choice(150, 100, replace=False)) for _ in range(2)]
    precision, recall = precision_recall(real, fake)
    ours = {
        "frechet_inception_distance": frechet_distance_from_features(fake, real, ddof=1),
        "kernel_inception_distance_mean": float(subset_distances(fake, real, draws).mean()),
        "inception_score_mean": inception_score(fake, shuffle_seed=2020)[0],
        "precision": precision,
        "recall": recall,
    }
    for name, value in ours.items():
        _expect(f"torch-fidelity's {name}", theirs[name], value, rel=1e-6)
    return "FID, KID, IS, precision and recall are ours"


def _clean_fid() -> str:
    version = tuple(int(part) for part in scipy.__version__.split(".")[:2])
    if version >= FIRST_BROKEN_SCIPY:
        return f"not asked: its own distance fails with SciPy {scipy.__version__}; only its resize is used here"
    from cleanfid import fid

    fake, real = _features(120, 16, seed=5), _features(150, 16, seed=6)
    moments = [m for f in (fake.numpy(), real.numpy()) for m in (f.mean(axis=0), np.cov(f, rowvar=False))]
    ours = Gaussian(*map(torch.from_numpy, moments[2:])).distance(Gaussian(*map(torch.from_numpy, moments[:2])))
    _expect("clean-fid's distance", fid.frechet_distance(*moments), ours, rel=1e-8)
    mmd2 = fid.kernel_distance(real[:120].numpy(), fake.numpy(), num_subsets=1)
    _expect("clean-fid's kernel distance", mmd2, polynomial_mmd2(real[:120], fake), rel=1e-8)
    return "FID and KID are ours"


QUESTIONS: dict[str, Callable[[], str]] = {
    "identical sets": _identical_sets,
    "Gaussians": _gaussian_closed_form,
    "collapsed set": _collapsed_set,
    "class order": _class_order,
    "range and rounding": _range_and_rounding,
    "resize": _resizes,
    "random streams": _random_streams,
    "linear algebra": _linear_algebra,
    "pictures": _pictures,
    "torch-fidelity": _torch_fidelity,
    "clean-fid": _clean_fid,
}
