"""Probes inside a run: rows, stand-ins, shards and failures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench import jobs, probes
from bench import run as run_module
from bench.distributed import Shard
from bench.grouping import ColumnKey
from bench.jobs import Subject
from bench.plan import PlanOptions, make_plan, needed_weights
from bench.probes import PROBE_PROTOCOLS, Probing
from bench.records import Measurement
from bench.run import RunOptions
from tests.bench.test_probes import MeanSquare, WaveGenerator, small_stylegan2
from tests.bench.tiny_suite import CPU, run_tiny

SUITE = """\
schema = 1
name = "tiny"
[[entry]]
dataset = "shapes"
resolution = 32
reference = "half"
models = ["stylegan2-shapes-32"]
num_images = 4
shard_size = 2
batch_size = 2
probes = ["ppl2_wend@sg3", "eqt50k_int@sg3", "eqr50k@sg3"]
probe_samples = 5
latency_calls = 1
latency_budget_s = 0.1
max_batch_size = 1
"""


@pytest.fixture
def probed(suite: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A suite in which probes are all that a model is measured by."""
    suite.write_text(SUITE, encoding="utf-8")
    monkeypatch.setitem(run_module.JOBS, "speed", lambda _bench, _task: iter(()))
    return suite


def use(monkeypatch: pytest.MonkeyPatch, generator: object) -> None:
    """Put a generator in the place of the suite's model."""
    subject = Subject("stylegan2-shapes-32", "random seed 0", None, generator)  # type: ignore[arg-type]
    monkeypatch.setattr(jobs, "load_subject", lambda *_: subject)


class Waves(WaveGenerator):
    """Can be sampled as well, as all subjects are."""

    def __init__(self) -> None:
        super().__init__(32)

    def images(self, latents: dict[str, Tensor], condition: None = None) -> Tensor:
        return self.synthesis(latents["z"][:, None], "const", force_fp32=True)  # type: ignore[no-any-return]


def rows(suite: Path, how: RunOptions) -> dict[str, Measurement]:
    found = [record.measurement for record in run_tiny(suite, how)[1]]
    return {
        row.metric: row for row in found if row.protocol.partition("50k")[0] in {"eqt", "eqr"} or "ppl" in row.protocol
    }


def test_numbers_have_intervals_and_tell_how_many_samples(
    probed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Waves())
    monkeypatch.setattr(run_module, "open_perceptual", lambda *_: (MeanSquare(), None))
    found = rows(probed, RunOptions(tmp_path / "run"))
    assert set(found) == {"PPL [n=5]", "EQ-T [n=5]", "EQ-R [n=5]"}
    for row in found.values():
        assert row.status == "ok"
        assert row.value is not None
        assert row.interval is not None
        assert row.interval[0] <= row.value <= row.interval[1]
        assert row.case["interval_kind"] == "95 % bootstrap over samples"
        assert row.n == 5
        assert row.caveats[0].startswith("5 samples instead of 50,000")
        assert row.case["synthesis_dtype"] == "float32"
    assert (found["EQ-T [n=5]"].unit, found["EQ-T [n=5]"].higher_is_better) == ("dB", True)
    assert found["PPL [n=5]"].higher_is_better is False
    assert found["PPL [n=5]"].case["extractor"] == "mean-square"
    assert "extractor" not in found["EQ-R [n=5]"].case


def test_plan_tells_what_probes_cost_and_need(probed: Path) -> None:
    plan = make_plan(PlanOptions(suite=str(probed), limit=3), CPU)
    samples, scoring = (next(task for task in plan.tasks if task.kind == k) for k in ("probe-samples", "probe"))
    assert samples.units == 3, "--limit holds for probes too"
    features = next(task for task in plan.tasks if task.kind == "features" and task.subject == samples.subject)
    assert samples.estimate_s > 1.5 * features.estimate_s * 3 / features.units, "two images a sample"
    assert scoring.estimate_s <= 1
    assert {"vgg16", "vgg16-lpips"} <= set(needed_weights(plan))


def test_whole_number_of_samples_needs_no_remark(probed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Waves())
    for name, protocol in PROBE_PROTOCOLS.items():
        monkeypatch.setitem(probes.PROBE_PROTOCOLS, name, dataclasses.replace(protocol, num_samples=5))
    row = rows(probed, RunOptions(tmp_path / "run"))["EQ-T"]
    assert row.caveats == ("random weights: untrained",)


def test_what_can_not_be_measured_has_a_row_that_says_why(
    probed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, small_stylegan2())
    found = rows(probed, RunOptions(tmp_path / "run"))
    for metric in ("EQ-T [n=5]", "EQ-R [n=5]"):
        assert found[metric].status == "skipped"
        assert "StyleGAN3" in str(found[metric].error)
    missing, standin = found["PPL [n=5]"], found["PPL-standin-perceptual-v1 [n=5]"]
    assert missing.status == "missing"
    assert "python -m bench fetch" in str(missing.error)
    assert missing.case["extractor"] == "vgg16-lpips"
    assert standin.case["extractor"] == "standin-perceptual-v1"
    assert standin.status == "ok"
    assert standin.protocol != missing.protocol, "a stand-in has a column of its own"
    assert any("comparable with nothing published" in caveat for caveat in standin.caveats)


def test_shards_of_several_processes_give_the_numbers_of_one(
    probed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Waves())
    whole = rows(probed, RunOptions(tmp_path / "whole"))
    for index in (2, 1):
        assert run_tiny(probed, RunOptions(tmp_path / "parts", shard=Shard(index, 2)))[1] == []
    assert len(list((tmp_path / "parts" / "probes").rglob("shard-*.safetensors"))) == 3
    monkeypatch.setattr(Probing, "measure", None)  # all samples are there
    together = rows(probed, RunOptions(tmp_path / "parts"))
    assert {m: row.value for m, row in together.items()} == {m: row.value for m, row in whole.items()}


def test_failed_probe_is_a_row_for_each_protocol(probed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: Probing, _ids: Sequence[int]) -> dict[str, Tensor]:
        raise RuntimeError("out of memory")

    use(monkeypatch, Waves())
    monkeypatch.setattr(Probing, "measure", fail)
    found = rows(probed, RunOptions(tmp_path / "run"))
    assert [row.status for row in found.values()] == ["error"] * 3
    assert all("out of memory" in str(row.error) for row in found.values())


def test_images_without_numbers_are_an_error_of_their_protocol(
    probed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = Waves()
    generator.synthesis.input.obeys = lambda matrices: matrices + torch.where(matrices[..., :1, 1:2] == 0, 0, math.nan)
    use(monkeypatch, generator)
    found = rows(probed, RunOptions(tmp_path / "run"))
    assert found["EQ-T [n=5]"].status == "ok", "only rotations have entries beside the diagonal"
    assert found["EQ-R [n=5]"].status == "error"
    assert "NaN" in str(found["EQ-R [n=5]"].error)


def test_probe_task_that_fails_as_a_whole_fills_the_columns_of_probes_only() -> None:
    failed = ColumnKey("probe", "", None, "probe", ())
    assert ColumnKey("EQ-T", "dB", True, "eqt50k_int@sg3", ()).admits(failed)
    assert ColumnKey("PPL-standin", "", False, "ppl2_wend@standin", ()).admits(failed)
    assert not ColumnKey("FID", "", False, "fid50k_full@sg3", ()).admits(failed)
    assert not ColumnKey("PSNR", "dB", True, "inversion@sgxl", ()).admits(failed)
