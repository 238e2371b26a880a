"""The engine: plan -> run -> records -> report, cut anywhere and resumed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from bench import run as run_module
from bench import run_folder
from bench.distributed import Shard
from bench.errors import StorageError, UserError
from bench.plan import PlanOptions, make_plan
from bench.records import read_records
from bench.report import write_report
from bench.run import RunOptions, execute
from bench.shapes import ShapesDataset
from bench.weights import WeightsOptions
from tests.bench.networks.random_networks import random_inception
from tests.bench.tiny_suite import CPU, SUITE, quality, run_tiny


def test_run_measures_everything_and_reports(suite: Path, tmp_path: Path) -> None:
    folder, records = run_tiny(suite, RunOptions(tmp_path / "run"))
    metrics = {record.measurement.metric for record in records if record.measurement.status == "ok"}
    for start in ("FD-", "KD-", "IS-", "Precision-", "Recall-", "Score-", "PSNR", "SSIM", "Latency p50", "Throughput"):
        assert any(metric.startswith(start) for metric in metrics), start
    assert {"Parameters", "Peak memory"} <= metrics
    assert {"FID", "LPIPS [n=1, steps=3]"} <= {
        r.measurement.metric for r in records if r.measurement.status == "missing"
    }
    assert not any(metric.startswith("FID") for metric in metrics), "a stand-in must not be called FID"
    floor = quality(records)["real", next(m for m in metrics if m.startswith("FD-"))]
    assert floor is not None
    assert all(
        record.measurement.caveats
        for record in records
        if record.measurement.kind == "quality" and record.measurement.value
    )
    page = write_report(folder)
    names = {path.name for path in page.parent.iterdir()}
    assert {"index.html", "tables.md", "tables.csv", "tables.tex", "quality_speed.png"} <= names
    assert len(list((folder / "samples").glob("*.png"))) == 3
    provenance = records[0].provenance
    assert provenance.environment["packages"]["torch"] == importlib.metadata.version("torch")
    assert len(provenance.source_sha256) == 64


@pytest.mark.slow
def test_one_inception_file_serves_every_metric_of_that_network(suite: Path, tmp_path: Path) -> None:
    path = tmp_path / "inception.pth"
    torch.save(random_inception(seed=0), path)
    text = SUITE.replace('"fid50k_full@sg3"', '"fid50k_full@sg3", "fid@clean"').replace(
        "num_images = 24", "num_images = 12"
    )
    suite.write_text(text.replace("inversion_images = 1", "").replace(', "clip@vit-b-32"', ""), encoding="utf-8")
    options = PlanOptions(suite=str(suite), network_weights=WeightsOptions({"inception": path}))
    result = execute(make_plan(options, CPU), options, RunOptions(tmp_path / "run"))
    rows = [record.measurement for record in read_records(result.folder / "records.jsonl")]
    quality_rows = [row for row in rows if row.kind == "quality"]
    name = f"inception-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    assert all(row.status == "ok" and name in row.metric for row in quality_rows)
    protocols = {"fid50k_full@sg3", "fid@clean", "kid50k_full@sg3", "is50k@sg3", "pr50k3@adm-inception"}
    assert {row.protocol for row in quality_rows} == protocols
    assert not any(row.metric.startswith(("FID", "KID")) for row in quality_rows), "these are not the official weights"
    shard = next((tmp_path / "run").rglob("shard-*.safetensors"))
    layers = {"inception.pool", "inception.logits", "inception-adm.pool", "inception-clean.pool"}
    beside = {"pixels", "prompts", "thumbnails"}
    assert load_file(shard).keys() == layers | beside, "no stand-in where the network is there"


def test_shards_and_batch_size_do_not_change_the_numbers(suite: Path, tmp_path: Path) -> None:
    whole = quality(run_tiny(suite, RunOptions(tmp_path / "whole"))[1])
    sharded = tmp_path / "sharded"
    for index in (2, 1):
        assert run_tiny(suite, RunOptions(sharded, shard=Shard(index, 2)))[1] == []
    assert quality(run_tiny(suite, RunOptions(sharded))[1]) == whole
    other_batch = quality(run_tiny(suite, RunOptions(tmp_path / "batch"), batch_size=3)[1])
    for key, value in whole.items():
        if value is not None and "steps" not in key[1]:
            assert other_batch[key] == pytest.approx(value, rel=1e-4), key


def test_finished_run_is_not_run_again_in_its_folder(suite: Path, tmp_path: Path) -> None:
    _, first = run_tiny(suite, RunOptions(tmp_path / "run"))
    _, second = run_tiny(suite, RunOptions(tmp_path / "run"))
    assert first == second
    with pytest.raises(UserError, match="another plan"):
        run_tiny(suite, RunOptions(tmp_path / "run"), seed=5)


def test_remains_of_a_killed_process_are_cleared_away(suite: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".run.json.123.part").write_text("{", encoding="utf-8")
    run_tiny(suite, RunOptions(folder))
    assert not list(folder.rglob("*.part"))
    with pytest.raises(UserError, match="--fresh"):
        run_tiny(suite, RunOptions(folder, fresh=True))


def test_unfinished_run_is_found_again(suite: Path, tmp_path: Path) -> None:
    options = PlanOptions(suite=str(suite))
    half = execute(make_plan(options, CPU), options, RunOptions(shard=Shard(1, 2)))
    whole = execute(make_plan(options, CPU), options, RunOptions())
    assert half.folder == whole.folder
    assert execute(make_plan(options, CPU), options, RunOptions()).folder != whole.folder
    assert (run_folder.RUNS.parent / "latest").is_file()


def test_two_processes_do_not_write_one_run(suite: Path, tmp_path: Path) -> None:
    with run_folder.locked(tmp_path / "run", shared=False), pytest.raises(UserError, match="another process"):
        run_tiny(suite, RunOptions(tmp_path / "run"))


def test_foreign_folder_is_left_alone(suite: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    with pytest.raises(UserError, match="not empty and not a run"):
        run_tiny(suite, RunOptions(tmp_path / "thesis"))


def test_failed_task_is_a_row_and_the_rest_goes_on(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the speed of nothing")

    monkeypatch.setitem(run_module.JOBS, "speed", broken)
    _, records = run_tiny(suite, RunOptions(tmp_path / "run"))
    failed = [record.measurement for record in records if record.measurement.status == "error"]
    assert [row.metric for row in failed] == ["speed"]
    assert "the speed of nothing" in str(failed[0].error)
    assert any(value is not None for value in quality(records).values())


def test_broken_image_is_named_in_the_rows_that_need_it(suite: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "ffhq-32x32"
    folder.mkdir(parents=True)
    dataset = ShapesDataset(32, count=40)
    for index in range(40):
        image = Image.fromarray(dataset.image(index).permute(1, 2, 0).numpy())
        image.save(folder / f"{index}.png")
    labels = [[f"{index}.png", index % 10] for index in range(40)]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}), encoding="utf-8")
    whole = (folder / "5.png").read_bytes()
    (folder / "5.png").write_bytes(whole[: len(whole) // 2])
    suite.write_text(SUITE.replace('"shapes"', '"ffhq"').replace("inversion_images = 1", ""), encoding="utf-8")
    options = PlanOptions(suite=str(suite), data_dir=folder.parent)
    result = execute(make_plan(options, CPU), options, RunOptions(tmp_path / "run"))
    rows = [record.measurement for record in read_records(result.folder / "records.jsonl")]
    failed = [row for row in rows if row.status == "error" and row.kind == "quality"]
    assert result.num_failed == len(failed) > 0
    assert all("5.png" in str(row.error) for row in failed)
    assert any(row.metric == "Throughput" for row in rows), "what does not need the image goes on"


def test_full_disk_stops_the_run_and_keeps_what_was_measured(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    whole = quality(run_tiny(suite, RunOptions(tmp_path / "whole"))[1])
    real_fsync, calls = os.fsync, [0]

    def full_after_some(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == 8:
            raise OSError(28, "No space left on device")
        real_fsync(descriptor)

    monkeypatch.setattr("os.fsync", full_after_some)
    with pytest.raises(StorageError, match="No space left"):
        run_tiny(suite, RunOptions(folder))
    assert list(folder.rglob("*.safetensors"))
    assert not list(folder.rglob("*.part"))
    assert quality(run_tiny(suite, RunOptions(folder))[1]) == whole


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_bad_shard_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="I/N"):
        Shard.parse(text)
