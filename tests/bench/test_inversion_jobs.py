from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import inversion_jobs
from bench.errors import UserError
from bench.inversion_jobs import inversion_task
from bench.jobs import Bench, Subject
from bench.plan import REAL, Stage, Task
from bench.progress import Progress
from bench.records import Measurement
from bench.sampling import RealImages
from bench.shapes import ShapesDataset
from bench.suites import Entry
from bench.views import OpenedViews
from tests.bench.inversion_cases import CPU, PixelLoss, biggan, style_generator

STAYS = "z, the embedding of the class stays"
ALL_TRACKS = ("inversion@sgxl", "inversion@sgxl-w+", "inversion@sgxl-pti")
MISSING = {"vgg16-lpips": "no LPIPS", "inception": "no Inception"}


@dataclass
class Lab:
    """A bench around one tiny generator, in a folder."""

    folder: Path
    generator: Any = field(default_factory=lambda: style_generator(resolution=16))
    dataset: Any = None
    steps: list[int] = field(default_factory=list)
    at_step: Callable[[int], None] = lambda total: None

    def run(self, tracks: tuple[str, ...] = ("inversion@sgxl",), batch: int = 2, images: int = 3) -> list[Measurement]:
        resolution = self.generator.resolution
        dataset = self.dataset or ShapesDataset(resolution, 8)
        entry = Entry(
            "shapes", resolution, inversion_images=images, inversion_steps=4, inversion_batch=batch,
            inversion_tracks=tracks,
        )  # fmt: skip
        stage = Stage(entry, dataset, 4, {REAL: RealImages(dataset, range(4))})
        plan: Any = SimpleNamespace(device=CPU, suite=SimpleNamespace(name="tiny", version=1, seed=0))
        progress: Any = Progress([1.0], io.StringIO())
        progress = SimpleNamespace(advance=self._advance)
        bench = Bench(self.folder, plan, OpenedViews({}, dict(MISSING)), PixelLoss(), {}, progress)
        return list(inversion_task(bench, Task("inversion", stage, "tiny", 1, 1.0)))

    def _advance(self, units: int = 1) -> None:
        self.steps.append(units)
        self.at_step(sum(self.steps))

    def subject(self, *_: object) -> Subject:
        return Subject("tiny", "random seed 0", None, self.generator)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    made = Lab(tmp_path)
    monkeypatch.setattr(inversion_jobs, "subject_of", made.subject)
    return made


def values(rows: list[Measurement]) -> dict[tuple[str, str], float]:
    return {(r.protocol, r.metric): r.value for r in rows if r.value is not None and r.kind == "quality"}


def test_each_track_has_all_numbers_under_honest_names(lab: Lab) -> None:
    rows = lab.run(ALL_TRACKS)
    suffix = " [n=3, steps=4]"
    for track in ALL_TRACKS:
        mine = {r.metric: r for r in rows if r.protocol == track}
        names = ["PSNR", "PSNR of mean error", "SSIM", "MSE", "pixels", "Inversion FD-standin-v1"]
        assert [*(name + suffix for name in names), "Inversion time [steps=4]"] == [
            m for m, r in mine.items() if r.status == "ok"
        ]
        assert mine["LPIPS" + suffix].error == "no LPIPS"
        assert mine["Inversion FID" + suffix].error == "no Inception"
        assert mine["SSIM" + suffix].case["ssim_window"] == "Gaussian 11x11, sigma 1.5, RGB, no padding"
        seconds = mine["Inversion time [steps=4]"]
        assert (seconds.kind, seconds.unit) == ("speed", "s/image")
        assert seconds.value is not None
        assert seconds.value > 0
        assert "3 targets" in mine["PSNR" + suffix].caveats
    pictures = {path.name for path in (lab.folder / "samples").iterdir()}
    assert pictures == {f"shapes-16-tiny-inversion{name}.png" for name in ("", "-w+", "-pti")}
    assert sum(lab.steps) == 3 * (4 + 4 + 1), "tuning starts from the pivots of the first track"


def test_cut_run_goes_on_after_the_last_whole_batch(lab: Lab) -> None:
    whole = values(Lab(lab.folder / "whole", lab.generator).run(ALL_TRACKS))

    def cut(total: int) -> None:
        if total >= 3 * 4 - 1:  # in the second batch of the first track
            raise KeyboardInterrupt

    lab.at_step = cut
    with pytest.raises(KeyboardInterrupt):
        lab.run(ALL_TRACKS)
    assert (
        len(list(lab.folder.rglob("target-*.safetensors"))) - len(list((lab.folder / "whole").rglob("target-*"))) == 2
    )
    lab.at_step = lambda total: None
    lab.steps.clear()
    assert values(lab.run(ALL_TRACKS)) == whole
    assert lab.steps[0] == 2 * 4, "what was done before is told at once"
    lab.steps.clear()
    lab.run(ALL_TRACKS)
    assert lab.steps == [12, 12, 3], "nothing is made twice"


def test_numbers_do_not_depend_on_the_batch(lab: Lab) -> None:
    together = values(Lab(lab.folder / "together", lab.generator).run(batch=3))
    alone = values(lab.run(batch=1))
    for key, value in together.items():
        assert alone[key] == pytest.approx(value, rel=1e-2), key


class Damaged(ShapesDataset):
    """Image 1 can't be read, image 2 is of another size."""

    def image(self, index: int) -> Tensor:
        if index == 1:
            raise UserError("image 1 is damaged")
        return super().image(index)[:, :12, :12] if index == 2 else super().image(index)


def test_failing_target_is_a_row_and_the_rest_goes_on(lab: Lab) -> None:
    lab.dataset = Damaged(16, 8)
    rows = lab.run(("inversion@sgxl", "inversion@sgxl-pti"), batch=4, images=4)
    failed = {(r.protocol, r.metric): r.error or "" for r in rows if r.status == "error"}
    assert failed["inversion@sgxl", "Inversion of target 1"] == "image 1 is damaged"
    assert "needs uint8 [N, 3, 16, 16]" in failed["inversion@sgxl", "Inversion of target 2"]
    assert "no pivot" in failed["inversion@sgxl-pti", "Inversion of target 1"]
    assert len(failed) == 4
    psnr = next(r for r in rows if r.metric == "PSNR [n=2, steps=4]")
    assert psnr.n == 2
    assert "2 targets; 2 more failed" in psnr.caveats


def test_diverged_target_is_a_row(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverged(*arguments: Any) -> Tensor:
        starts: Tensor = arguments[2]
        return starts.expand(-1, lab.generator.num_ws, -1) * torch.nan

    monkeypatch.setattr(inversion_jobs, "invert", diverged)
    rows = lab.run(images=1)
    assert [(r.status, r.metric) for r in rows] == [("error", "Inversion of target 0")]
    assert not list(lab.folder.rglob("target-*"))


def test_biggan_runs_through_every_track(lab: Lab) -> None:
    lab.generator = biggan()
    rows = lab.run(ALL_TRACKS, images=1)
    assert {r.protocol for r in rows if r.metric.startswith("PSNR ")} == set(ALL_TRACKS)
    caveats = {r.protocol: r.caveats for r in rows if r.metric.startswith("PSNR ")}
    for track, moved in zip(
        ALL_TRACKS, (STAYS, "z and the embedding of the class", f"{STAYS}; then all weights"), strict=True
    ):
        assert f"there is no w; optimised: {moved}" in caveats[track]
        assert any(c.startswith("started from the known class") for c in caveats[track])


def test_model_without_latent_is_a_skipped_row(lab: Lab) -> None:
    lab.generator = SimpleNamespace(resolution=16, conditioning="none", num_classes=0)
    rows = lab.run()
    assert [(r.status, r.metric, r.protocol) for r in rows] == [("skipped", "Inversion", "inversion@sgxl")]
