"""Every metric case of the golden files: features in, the numbers of seven official implementations out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.metrics.frechet import frechet_distance, frechet_distance_from_features
from bench.metrics.inception_score import inception_score
from bench.metrics.kernel_distance import Draw, KernelDistance, mmd2, polynomial_mmd2, subset_distances
from bench.metrics.precision_recall import density_coverage, neighbour_radii, precision_recall, realism
from bench.statistics import FeatureStatistics
from tests.conftest import golden_root
from tests.golden_cases import GoldenFile, assert_close_to_golden, golden_files, golden_meta, load_golden

NOT_YET = {"misc": "Vendi score and authenticity"}

EXACT = 1e-12  # computed in float64 on both sides
FRECHET = 1e-8
# A singular product: the rounding of its zero eigenvalues, 1e-17, becomes 1e-9 each under the libraries' square root.
FRECHET_SINGULAR = 3e-8
FLOAT32_MEAN = 1e-6  # numpy sums float32 features in float32
FLOAT32_ULP = 2.0**-23
TINY = 1e-3  # a standard deviation that is 0 up to rounding is compared with this

# The StyleGAN3 distance of fid_rank_deficient in 40-digit arithmetic, from the singular values of the centred features.
RANK_DEFICIENT_DISTANCE = 23.117523600020311049


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "metric_case" in metafunc.fixturenames:
        paths = golden_files(golden_root(metafunc.config), "metrics")
        metafunc.parametrize("metric_case", paths, ids=[path.stem for path in paths])


def test_golden_folder_holds_metric_cases(golden_dir: Path) -> None:
    kinds = {golden_meta(path)["class"] for path in golden_files(golden_dir, "metrics")}
    assert kinds >= KINDS.keys()


def test_metric_agrees_with_golden_case(metric_case: Path) -> None:
    kind = golden_meta(metric_case)["class"]
    if kind in NOT_YET:
        pytest.skip(f"{NOT_YET[kind]} is not implemented yet")
    assert kind in KINDS, f"{metric_case.name}: no metric for class {kind!r}"
    case = load_golden(metric_case)
    values, bars = KINDS[kind](case)
    assert values.keys() == case.group("out/").keys()
    for name, value in values.items():
        if name in bars:
            want = case.tensors[f"out/{name}"]
            error = float((value - want).abs().max() / want.abs().max().clamp_min(TINY))
            assert error <= bars[name], f"{name}: error {error:.2e}, allowed {bars[name]:.2e}"
        else:
            assert_close_to_golden(name, value, case)


def test_frechet_distance_of_few_images_agrees_with_exact_arithmetic(golden_dir: Path) -> None:
    (path,) = [path for path in golden_files(golden_dir, "metrics") if path.stem == "fid_rank_deficient"]
    features = load_golden(path).group("in/")
    distance = frechet_distance_from_features(features["feat_gen"], features["feat_real"], ddof=0)
    assert distance == pytest.approx(RANK_DEFICIENT_DISTANCE, rel=1e-14)


# our value of each output, and its relative bar where that isn't the usual one
Values = tuple[dict[str, Tensor], dict[str, float]]


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def frechet_outputs(case: GoldenFile) -> Values:
    """StyleGAN3 from the features; the others from their own moments, since their means are rounded to float32."""
    fake, real, stats = case.tensors["in/feat_gen"], case.tensors["in/feat_real"], case.group("out/stats/")
    moments = {name: FeatureStatistics.empty(f.shape[1]).update(f) for name, f in (("gen", fake), ("real", real))}
    values = {f"stats/{name}/mu": m.mean for name, m in moments.items()}
    bars = dict.fromkeys(values, FLOAT32_MEAN)
    exact = {f"stats/{name}/sigma": m.cov(1) for name, m in moments.items()}
    exact |= {"stylegan3/mean_gen": moments["gen"].mean, "stylegan3/cov_gen": moments["gen"].cov(0)}
    bars |= dict.fromkeys(exact, EXACT)
    bar = FRECHET if min(len(fake), len(real)) > fake.shape[1] else FRECHET_SINGULAR
    values |= exact | {"stylegan3/fid": scalar(frechet_distance_from_features(fake, real, ddof=0))}
    bars["stylegan3/fid"] = bar
    distance = frechet_distance(stats["gen/mu"], stats["gen/sigma"], stats["real/mu"], stats["real/sigma"])
    mean_term = float((stats["gen/mu"] - stats["real/mu"]).square().sum())
    others = case.group("out/").keys() - values.keys()
    assert others >= {"torch_fidelity/fid", "clean_fid/fid", "pytorch_fid/fid", "edm/fid", "edm2/fid", "dgm_eval/fd"}
    values |= dict.fromkeys(others, scalar(distance))
    # their squared distance of the means is a float32 number: one unit in its last place is allowed on top
    bars |= dict.fromkeys(others, bar + FLOAT32_ULP * mean_term / distance)
    return values, bars


def kernel_outputs(case: GoldenFile) -> Values:
    fake, real, params = case.tensors["in/feat_gen"], case.tensors["in/feat_real"], case.meta["params"]
    values: dict[str, Tensor] = {}
    for i, settings in enumerate(params["torch_fidelity"]):
        distances = torch_fidelity_distances(fake, real, settings)
        values[f"torch_fidelity/{i}/mean"] = distances.mean()
        values[f"torch_fidelity/{i}/std"] = distances.std(correction=0)
    for i, settings in enumerate(params["numpy_global"]):
        sizes = (settings["seed"], settings["num_subsets"], settings["max_subset_size"])
        fake_first = subset_distances(real, fake, swapped(legacy_draws(len(fake), len(real), *sizes)))
        values |= dict.fromkeys((f"clean_fid/{i}", f"stylegan3/{i}"), fake_first.mean())
        values[f"dgm_eval/{i}/per_subset"] = subset_distances(real, fake, legacy_draws(len(real), len(fake), *sizes))
    whole = {
        "mmd2_first220_f64/biased": polynomial_mmd2(fake[:220], real[:220], estimator="biased"),
        "mmd2_first220_f64/unbiased": polynomial_mmd2(fake[:220], real[:220]),
        "mmd2_first220_f64/u-statistic": polynomial_mmd2(fake[:220], real[:220], estimator="u-statistic"),
    }
    return values | whole, dict.fromkeys(whole, EXACT)


def torch_fidelity_distances(fake: Tensor, real: Tensor, settings: dict[str, Any]) -> Tensor:
    draws = legacy_draws(
        len(fake), len(real), settings["rng_seed"], settings["kid_subsets"], settings["kid_subset_size"]
    )
    if settings.get("kid_kernel") == "rbf":  # no protocol has it: the estimator is checked on a kernel made here
        pairs = [(fake[rows_fake].double(), real[rows_real].double()) for rows_fake, rows_real in draws]
        width = settings["kid_kernel_rbf_sigma"]
        return torch.stack([mmd2(rbf(x, x, width), rbf(y, y, width), rbf(x, y, width)) for x, y in pairs])
    kernel = {"degree": "kid_kernel_poly_degree", "gamma": "kid_kernel_poly_gamma", "coef0": "kid_kernel_poly_coef0"}
    spec = KernelDistance(**{ours: settings[theirs] for ours, theirs in kernel.items() if theirs in settings})
    return subset_distances(real, fake, swapped(draws), spec)


def rbf(x: Tensor, y: Tensor, width: float) -> Tensor:
    return torch.exp(-torch.cdist(x, y).square() / (2 * width**2))


def legacy_draws(n_first: int, n_second: int, seed: int, subsets: int, size: int) -> list[Draw]:
    """The subsets of numpy's legacy generator, which `numpy.random.seed` sets too."""
    rng = np.random.RandomState(seed)
    return [
        (rng.choice(n_first, size, replace=False), rng.choice(n_second, size, replace=False)) for _ in range(subsets)
    ]


def swapped(draws: list[Draw]) -> list[Draw]:
    return [(second, first) for first, second in draws]


def inception_outputs(case: GoldenFile) -> Values:
    logits, params = case.tensors["in/logits"], case.meta["params"]
    log_probs = case.tensors["in/probs"].log()
    shuffled = log_probs[torch.from_numpy(np.random.RandomState(2020).permutation(len(logits)))]
    scores: dict[str, tuple[float, float]] = {}
    for i, settings in enumerate(params["torch_fidelity"]):
        seed = settings["rng_seed"] if settings["shuffle"] else None
        scores[f"torch_fidelity/{i}"] = inception_score(logits, settings["splits"], shuffle_seed=seed)
    for i, splits in enumerate(params["stylegan3_splits"]):
        scores[f"stylegan3/{i}"] = inception_score(log_probs, splits)
        whole_splits = len(logits) // splits * splits  # dgm-eval leaves the remainder out
        scores[f"dgm_eval/{i}"] = inception_score(shuffled[:whole_splits], splits)
    values = {f"{name}/mean": scalar(mean) for name, (mean, _) in scores.items()}
    values |= {f"{name}/std": scalar(std) for name, (_, std) in scores.items()}
    bars = {name: EXACT for name in values if name.startswith("torch_fidelity/")}
    for i, size in enumerate(params["guided_split_size"]):
        values[f"guided_diffusion/{i}"] = scalar(inception_score(log_probs, len(logits) // size)[0])
    return values, bars


def precision_recall_outputs(case: GoldenFile) -> Values:
    fake, real = case.tensors["in/feat_gen"], case.tensors["in/feat_real"]
    values: dict[str, Tensor] = {"radii_real_k3": neighbour_radii(real, 3), "radii_gen_k3": neighbour_radii(fake, 3)}
    floats: dict[str, float] = {}
    for k in case.meta["params"]["neighborhoods"]:
        p, r = precision_recall(real, fake, k)
        for library in ("torch_fidelity_full", "torch_fidelity_part", "guided_diffusion_f32"):
            floats |= {f"{library}/k{k}/precision": p, f"{library}/k{k}/recall": r}
            floats |= {f"{library}/k{k}/f_score": 2 * p * r / (p + r)}
        half = precision_recall(real.half(), fake.half(), k, rounding=torch.float16)
        floats |= {f"stylegan3_fp16emul/k{k}/{name}": value for name, value in half._asdict().items()}
        prdc = precision_recall(real, fake, k, strict=True)._asdict() | density_coverage(real, fake, k)._asdict()
        floats |= {f"dgm_eval_prdc/k{k}/{name}": value for name, value in prdc.items()}
        values[f"dgm_eval_prdc/k{k}/realism"] = realism(real, fake, k)
    outputs = case.group("out/").keys()  # ADM's evaluator was run for one k, and gives no F-score
    values |= {name: scalar(value) for name, value in floats.items() if name in outputs}
    return values, {name: FLOAT32_ULP for name in floats if name in outputs}


KINDS: dict[str, Callable[[GoldenFile], Values]] = {
    "fid": frechet_outputs,
    "kid": kernel_outputs,
    "isc": inception_outputs,
    "prc": precision_recall_outputs,
}
