"""A small run's records as the engine writes them, for tests of what is shown."""

from __future__ import annotations

import dataclasses
from typing import Any

from bench.records import Measurement, Provenance, Record

PROVENANCE = Provenance(
    run_id="2026-11-01T10-00-00Z-gpu-900b480",
    commit="900b480aa11bb22cc33dd44ee55ff6677889900a",
    dirty=False,
    source_sha256="ab" * 32,
    machine="nvidia-h100-80gb-hbm3",
    environment={
        "python": "3.11.7",
        "gpu": {"name": "NVIDIA H100 80GB HBM3", "driver": "590.48", "sm_clock_mhz": 1980},
        "packages": {"torch": "2.15.0", "triton": "3.9.0", "open_clip_torch": None},
    },
)
STAMP = "2026-11-01T10:00:00Z"
FULL = {"extractor": "inception-2015-tf", "n_reference": 70_000}
STANDIN = {"extractor": "standin-conv-v1", "n_reference": 128}
LIMITED = "128 samples: a check of the pipeline, not a result"
RANDOM = "random weights (seed 0): this is not the published model"
NO_INCEPTION = "the Inception network is not here; run `python -m bench fetch inception`"
FETCH = "weights are not here; run `python -m bench fetch stylegan-xl-ffhq-256`"


def record(timestamp: str = STAMP, machine: str | None = None, **fields: Any) -> Record:
    """One row; what isn't named is a plain FID of a full run."""
    defaults: dict[str, Any] = {
        "kind": "quality",
        "subject": "stylegan2-ffhq-256",
        "weights": "official",
        "weights_sha256": "a" * 64,
        "case": {"dataset": "ffhq", "resolution": 256, **FULL},
        "protocol": "fid50k_full@sg3",
        "metric": "FID",
        "unit": "",
        "higher_is_better": False,
        "value": 3.8,
        "n": 50_000,
        "seed": 0,
    }
    measured = Measurement(**(defaults | fields))
    provenance = PROVENANCE if machine is None else dataclasses.replace(PROVENANCE, machine=machine)
    return Record(measured, provenance, timestamp, task=f"{measured.subject}/{measured.metric}")


def without_value(status: str, error: str, **fields: Any) -> Record:
    """A row that says why there is no value."""
    return record(value=None, status=status, error=error, **fields)


def sha_of(subject: str) -> str:
    """A hash for a model's weights."""
    return subject.encode().hex().ljust(64, "0")[:64]


def quality(subject: str, fid: float, half: float, more: dict[str, float], timestamp: str = STAMP) -> list[Record]:
    """A model's full rows on FFHQ-256."""
    weights = "real images" if subject == "real" else "official"
    common: dict[str, Any] = {
        "subject": subject,
        "weights": weights,
        "weights_sha256": sha_of(subject),
        "timestamp": timestamp,
    }
    rows = [record(**common, value=fid, interval=(fid - half, fid + half))]
    for metric, value in more.items():
        protocol = "pr50k3@sg3-vgg" if metric in {"Precision", "Recall"} else "is@sg3" if metric == "IS" else "kid@sg3"
        higher = metric != "KID x 1000"
        rows.append(record(**common, metric=metric, protocol=protocol, value=value, higher_is_better=higher))
    return rows


def speed(
    subject: str, latency_ms: float, images_per_s: float, dataset: str = "ffhq", resolution: int = 256
) -> list[Record]:
    """A model's speed and size rows: calls, fastest batch and rounding differences are each model's own."""
    case: dict[str, Any] = {"dataset": dataset, "resolution": resolution, "device": "cuda", "dtype": "float16"}
    case |= {"nfe": 1 + len(subject) % 3, "verified_max_grey_levels": len(subject), "batch_size": 16 * len(subject)}
    one, interval = case | {"batch_size": 1}, (latency_ms * 0.99, latency_ms * 1.01)
    rows: list[dict[str, Any]] = [
        {
            "kind": "speed",
            "metric": "Latency p50",
            "unit": "ms",
            "value": latency_ms,
            "interval": interval,
            "case": one,
        },
        {"kind": "speed", "metric": "Latency p90", "unit": "ms", "value": latency_ms * 1.2, "case": one},
        {"kind": "speed", "metric": "Throughput", "unit": "images/s", "value": images_per_s, "higher_is_better": True},
        {"kind": "size", "metric": "Parameters", "unit": "M", "value": 24.767458 + len(subject)},
        {"kind": "size", "metric": "Peak memory", "unit": "MiB", "value": 1843.4 + latency_ms},
    ]
    for row, protocol in zip(rows, ("latency", "latency", "offline", "size", "offline"), strict=True):
        row |= {"subject": subject, "protocol": protocol, "seed": None, "n": 60 + len(subject)}
        row.setdefault("case", case)
    return [record(**row) for row in rows]


def standin(subject: str, fd: float, kd: float, recall: float) -> list[Record]:
    """A model's rows of a limited run on CIFAR-10: stand-in network, random weights, and no Inception."""
    real, name = subject == "real", "standin-conv-v1[n=128]"
    case: dict[str, Any] = {"dataset": "cifar10", "resolution": 32, "dataset_sha256": "d" * 64, "suite": "data-cpu v1"}
    case |= {"reference": "floor-reference" if real else "reference", "batch_size": 16, "device": "cpu"}
    scored = case | STANDIN | {"pixels_sha256": sha_of(subject), "reference_pixels_sha256": sha_of(case["reference"])}
    common: dict[str, Any] = {"subject": subject, "n": 128, "weights_sha256": None if real else sha_of(subject)}
    common["weights"] = "real images" if real else "random weights, seed 0"
    caveats = (LIMITED,) if real else (LIMITED, RANDOM)
    measured = common | {"case": scored, "caveats": caveats}
    kd_interval = (kd - 0.4, kd + 0.9)
    return [
        without_value("missing", NO_INCEPTION, **common, case=case | {"extractor": "inception"}),
        record(**measured, metric=f"FD-{name}", protocol="fd@standin", value=fd, interval=(fd - 1.2, fd + 1.2)),
        record(**measured, metric=f"KD x 1000-{name}", protocol="kd@standin", value=kd, interval=kd_interval),
        record(**measured, metric=f"Recall-{name}", protocol="pr@standin", value=recall, higher_is_better=True),
    ]


def build_records() -> list[Record]:
    """Two data sets; full, limited, missing, skipped, failed and repeated rows."""
    xl: dict[str, Any] = {"subject": "stylegan-xl-ffhq-256", "weights_sha256": None}
    ldm: dict[str, Any] = {"subject": "ldm-4-ffhq-256", "weights_sha256": "c" * 64}
    ldm["case"] = {"dataset": "ffhq", "resolution": 256, **FULL, "steps": 200}
    return [
        *quality("real", 0.42, 0.01, {"KID x 1000": 0.02, "IS": 5.21, "Precision": 0.802, "Recall": 0.799}),
        *quality(
            "stylegan2-ffhq-256", 3.81, 0.04, {"KID x 1000": 1.12, "IS": 5.03, "Precision": 0.689, "Recall": 0.431}
        ),
        *quality(
            "stylegan3-t-ffhq-256", 3.78, 0.05, {"KID x 1000": 1.31, "IS": 5.11, "Precision": 0.652, "Recall": 0.503}
        ),
        record(weights_sha256=sha_of("stylegan2-ffhq-256"), metric="FID-clean", protocol="fid@clean", value=4.07),
        *quality("stylegan2-ffhq-256", 9.99, 0.5, {}, timestamp="2026-10-01T10:00:00Z"),
        *(
            without_value("missing", FETCH, **xl, metric=metric, protocol=protocol, n=None)
            for metric, protocol in (("FID", "fid50k_full@sg3"), ("KID x 1000", "kid@sg3"), ("IS", "is@sg3"))
        ),
        record(**ldm, value=5.02, interval=(4.96, 5.1)),
        without_value(
            *("skipped", "IS of faces says nothing: skipped by the suite"),
            **(ldm | {"metric": "IS", "protocol": "is@sg3", "n": None}),
        ),
        without_value(
            *("error", "CUDA out of memory at batch 64; run again with `--batch-size 8`"),
            **(ldm | {"metric": "KID x 1000", "protocol": "kid@sg3"}),
        ),
        *speed("stylegan2-ffhq-256", 9.8, 412.3),
        *speed("stylegan3-t-ffhq-256", 17.4, 198.7),
        *speed("ldm-4-ffhq-256", 4630.0, 1.07),
        *standin("real", 1.3, 0.1, 0.93),
        *standin("stylegan2-ada-cifar10", 311.7, 412.0, 0.0),
        *standin("edm-cifar10-uncond-vp", 287.2, 388.0, 0.0),
        *speed("edm-cifar10-uncond-vp", 402.0, 26.3, "cifar10", 32),
        *speed("stylegan2-ada-cifar10", 5.1, 1530.0, "cifar10", 32),
    ]
