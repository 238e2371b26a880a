"""Every metric case of the golden files: features in, the numbers of eight official implementations out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.metrics.authenticity import authenticity
from bench.metrics.frechet import frechet_distance, frechet_distance_from_features
from bench.metrics.inception_score import inception_score
from bench.metrics.kernel_distance import Draw, KernelDistance, mmd2, polynomial_mmd2, subset_distances
from bench.metrics.precision_recall import density_coverage, neighbour_radii, precision_recall, realism
from bench.metrics.vendi import vendi_score
from bench.statistics import FeatureStatistics
from tests.conftest import golden_root
from tests.golden_cases import FORWARD_TOLERANCE, GoldenFile, golden_files, golden_meta, load_golden

FLOAT32_EPS = 2.0**-23
TINY = 1e-3  # what is 0 up to rounding (a standard deviation of one split) is compared with this
SHUFFLE_SEED = 2020  # of torch-fidelity and dgm-eval

# The StyleGAN3 distance of fid_rank_deficient in 40-digit arithmetic, from the singular values of the centred features.
RANK_DEFICIENT_DISTANCE = 23.117523600020311049


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "metric_case" in metafunc.fixturenames:
        paths = golden_files(golden_root(metafunc.config), "metrics")
        metafunc.parametrize("metric_case", paths, ids=[path.stem for path in paths])


def test_golden_folder_holds_metric_cases(golden_dir: Path, pytestconfig: pytest.Config) -> None:
    kinds = {golden_meta(path)["class"] for path in golden_files(golden_dir, "metrics")}
    assert kinds
    if pytestconfig.getoption("--golden") is None:
        assert kinds >= KINDS.keys()


def test_metric_agrees_with_golden_case(metric_case: Path) -> None:
    kind = golden_meta(metric_case)["class"]
    assert kind in KINDS, f"{metric_case.name}: no metric for class {kind!r}"
    case = load_golden(metric_case)
    values = KINDS[kind](case)
    assert values.keys() == case.group("out/").keys()
    for name, value in values.items():
        error, allowed = deviation(value, case.tensors[f"out/{name}"]), tolerance(name, case)
        assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"  # fails on NaN too


def deviation(value: Tensor, want: Tensor) -> float:
    """The largest difference over the largest value; equal infinities differ by nothing."""
    assert value.shape == want.shape
    scale = want[want.isfinite()].abs().amax().double().clamp_min(TINY)
    return float(torch.where(value == want, 0.0, (value.double() - want.double()).abs()).max() / scale)


def tolerance(name: str, case: GoldenFile) -> float:
    """That of the file, ten times the measured noise; more where the official code's own arithmetic falls short."""
    noise, largest = case.meta["noise_floor"].get(name, (0.0, 0.0))
    allowed: float = max(FORWARD_TOLERANCE, 10 * noise / max(largest, TINY))
    if name.startswith("dgm_eval/vendi") and vendi_arguments(name)["order"] == 1:
        # zero eigenvalues of the N x N kernel come out of float32 as some 1e-8, and each adds w log w to the entropy
        allowed = max(allowed, len(case.tensors["in/feat_gen"]) * FLOAT32_EPS * -math.log(FLOAT32_EPS) / 4)
    return allowed


def test_frechet_distance_of_few_images_agrees_with_exact_arithmetic(golden_dir: Path) -> None:
    paths = [path for path in golden_files(golden_dir, "metrics") if path.stem == "fid_rank_deficient"]
    if not paths:
        pytest.skip("this folder of golden cases has no fid_rank_deficient")
    features = load_golden(paths[0]).group("in/")
    distance = frechet_distance_from_features(features["feat_gen"], features["feat_real"], ddof=0)
    assert distance == pytest.approx(RANK_DEFICIENT_DISTANCE, rel=1e-14)


Values = dict[str, Tensor]


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def frechet_outputs(case: GoldenFile) -> Values:
    """StyleGAN3 from the features; the others from their own moments, since their means are rounded to float32."""
    fake, real, stats = case.tensors["in/feat_gen"], case.tensors["in/feat_real"], case.group("out/stats/")
    moments = {name: FeatureStatistics.empty(f.shape[1]).update(f) for name, f in (("gen", fake), ("real", real))}
    values = {f"stats/{name}/mu": m.mean for name, m in moments.items()}
    values |= {f"stats/{name}/sigma": m.cov(1) for name, m in moments.items()}
    values |= {"stylegan3/mean_gen": moments["gen"].mean, "stylegan3/cov_gen": moments["gen"].cov(0)}
    values["stylegan3/fid"] = scalar(frechet_distance_from_features(fake, real, ddof=0))
    distance = frechet_distance(stats["gen/mu"], stats["gen/sigma"], stats["real/mu"], stats["real/sigma"])
    assert frechet_distance_from_features(fake, real, ddof=1) == pytest.approx(distance, rel=1e-5)
    others = case.group("out/").keys() - values.keys()
    assert others >= {"torch_fidelity/fid", "clean_fid/fid", "pytorch_fid/fid", "edm/fid", "edm2/fid", "dgm_eval/fd"}
    return values | dict.fromkeys(others, scalar(distance))


def kernel_outputs(case: GoldenFile) -> Values:
    fake, real, params = case.tensors["in/feat_gen"], case.tensors["in/feat_real"], case.meta["params"]
    values: dict[str, Tensor] = {}
    for i, settings in enumerate(params["torch_fidelity"]):
        distances = torch_fidelity_distances(fake, real, settings)
        values[f"torch_fidelity/{i}/mean"] = distances.mean()
        values[f"torch_fidelity/{i}/std"] = distances.std(correction=0)
    for i, settings in enumerate(params["numpy_global"]):
        size = min(settings["max_subset_size"], len(fake), len(real))
        how = (settings["seed"], settings["num_subsets"], size)
        fake_first = subset_distances(real, fake, swapped(legacy_draws(len(fake), len(real), *how)))
        values |= dict.fromkeys((f"clean_fid/{i}", f"stylegan3/{i}"), fake_first.mean())
        values[f"dgm_eval/{i}/per_subset"] = subset_distances(real, fake, legacy_draws(len(real), len(fake), *how))
    for name in case.group("out/"):
        if match := re.fullmatch(r"mmd2_first(\d+)_f64/(biased|unbiased|u-statistic)", name):
            n = int(match[1])
            values[name] = polynomial_mmd2(fake[:n], real[:n], estimator=match[2])  # type: ignore[arg-type]
    return values


def torch_fidelity_distances(fake: Tensor, real: Tensor, settings: dict[str, Any]) -> Tensor:
    subsets, size = settings.get("kid_subsets", 100), settings.get("kid_subset_size", 1000)
    draws = legacy_draws(len(fake), len(real), settings.get("rng_seed", SHUFFLE_SEED), subsets, size)
    if (
        settings.get("kid_kernel", "poly") == "rbf"
    ):  # no protocol has it: the estimator is checked on a kernel made here
        pairs = [(fake[rows_fake].double(), real[rows_real].double()) for rows_fake, rows_real in draws]
        width = settings.get("kid_kernel_rbf_sigma", 10)
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
    shuffled = log_probs[torch.from_numpy(np.random.RandomState(SHUFFLE_SEED).permutation(len(logits)))]
    scores: dict[str, tuple[float, float]] = {}
    for i, settings in enumerate(params["torch_fidelity"]):
        seed = settings.get("rng_seed", SHUFFLE_SEED) if settings.get("shuffle", True) else None
        scores[f"torch_fidelity/{i}"] = inception_score(logits, settings.get("splits", 10), shuffle_seed=seed)
    for i, splits in enumerate(params["stylegan3_splits"]):
        scores[f"stylegan3/{i}"] = inception_score(log_probs, splits)
        whole_splits = len(logits) // splits * splits  # dgm-eval leaves the remainder out
        scores[f"dgm_eval/{i}"] = inception_score(shuffled[:whole_splits], splits)
    values = {f"{name}/mean": scalar(mean) for name, (mean, _) in scores.items()}
    values |= {f"{name}/std": scalar(std) for name, (_, std) in scores.items()}
    for i, size in enumerate(params["guided_split_size"]):
        values[f"guided_diffusion/{i}"] = scalar(inception_score(log_probs, split_size=size)[0])
    return values


def precision_recall_outputs(case: GoldenFile) -> Values:
    fake, real = case.tensors["in/feat_gen"], case.tensors["in/feat_real"]
    outputs, values = case.group("out/").keys(), dict[str, Tensor]()
    for name in outputs:
        if match := re.fullmatch(r"radii_(real|gen)_k(\d+)", name):
            values[name] = neighbour_radii(real if match[1] == "real" else fake, int(match[2]))
    floats: dict[str, float] = {}
    for k in sorted({int(number) for name in outputs for number in re.findall(r"/k(\d+)/", name)}):
        p, r = precision_recall(real, fake, k)
        for library in ("torch_fidelity_full", "torch_fidelity_part", "guided_diffusion_f32"):
            floats |= {f"{library}/k{k}/precision": p, f"{library}/k{k}/recall": r}
            floats |= {f"{library}/k{k}/f_score": 2 * p * r / max(p + r, 1e-20)}
        half = precision_recall(real.half(), fake.half(), k, rounding=torch.float16)
        floats |= {f"stylegan3_fp16emul/k{k}/{name}": value for name, value in half._asdict().items()}
        prdc = precision_recall(real, fake, k, strict=True)._asdict() | density_coverage(real, fake, k)._asdict()
        floats |= {f"dgm_eval_prdc/k{k}/{name}": value for name, value in prdc.items()}
        values[f"dgm_eval_prdc/k{k}/realism"] = realism(real, fake, k)
    # not every library was run for every k, and ADM's evaluator gives no F-score
    values |= {name: scalar(value) for name, value in floats.items()}
    return {name: value for name, value in values.items() if name in outputs}


def diversity_outputs(case: GoldenFile) -> Values:
    fake, real = case.tensors["in/feat_gen"], case.tensors["in/feat_real"]
    longest = fake.norm(dim=1).max()
    values = {"dgm_eval/authpct": scalar(authenticity(real, fake))}
    for name in (name for name in case.group("out/") if name.startswith("dgm_eval/vendi")):
        arguments = vendi_arguments(name)
        values[name] = scalar(vendi_score(fake if arguments["normalize"] else fake / longest, **arguments))
    return values


def vendi_arguments(name: str) -> dict[str, Any]:
    """What an output's name says: vendi_linear, vendi_poly, vendi_q2, vendi_unnormalized_q_inf."""
    order = re.search(r"_q_?(inf|[\d.]+)", name)
    kernel = "polynomial" if "poly" in name else "linear"
    return {"order": float(order[1]) if order else 1.0, "kernel": kernel, "normalize": "unnormalized" not in name}


KINDS: dict[str, Callable[[GoldenFile], Values]] = {
    "fid": frechet_outputs,
    "kid": kernel_outputs,
    "isc": inception_outputs,
    "prc": precision_recall_outputs,
    "misc": diversity_outputs,
}
