"""The task that inverts real images: targets in batches, each a file once it is done, then rows for each track."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from bench.errors import StorageError, UserError
from bench.features import View
from bench.grids import triptych
from bench.inversion import (
    INVERSION_PROTOCOLS,
    PUBLISHED_STEPS,
    InversionProtocol,
    checked_targets,
    has_mapping_network,
    invert,
    render,
)
from bench.inversion_scores import InversionScore, frechet_score, perceptual_score, pixel_scores
from bench.inversion_start import Starts
from bench.jobs import Bench, Subject, case_of, subject_of, with_weights_caveat, without_value
from bench.metrics.ssim import WINDOW_NAME
from bench.networks.standin import StandinExtractor
from bench.pivotal_tuning import Pivot, tune, tuning_steps
from bench.plan import REAL, Task
from bench.records import Measurement, write_atomic
from bench.views import ImageView

Finished = dict[str, Tensor]  # of one target: "target" and "inverted" uint8 [3, R, R], "ws" [num_ws, w_dim], "seconds"
MIN_FOR_FRECHET = 2


class Inversion:
    """The inversions of one subject: what is finished, and what failed and why, by track and target."""

    def __init__(self, bench: Bench, task: Task, subject: Subject) -> None:
        self.bench, self.stage, self.subject = bench, task.stage, subject
        self.entry, self.dataset = task.stage.entry, task.stage.dataset
        self.members = task.stage.sources[REAL].members[: self.entry.inversion_images]
        self.generator: Any = subject.generator
        self.starts = Starts(self.generator, self.dataset, bench.classifier)
        self.failures: dict[str, dict[int, str]] = {}
        self._finished: dict[str, dict[int, Finished]] = {}

    def finished(self, track: InversionProtocol) -> dict[int, Finished]:
        """All targets that can be inverted, by their number; those of an earlier, cut run are read back."""
        if track.name not in self._finished:
            pivots = self.finished(INVERSION_PROTOCOLS["inversion@sgxl"]) if track.tunes_weights else None
            self.failures[track.name] = {}
            indices = list(range(len(self.members)))
            missing = [index for index in indices if not self._path(track, index).exists()]
            self.bench.progress.advance((len(indices) - len(missing)) * self._steps(track))
            size = 1 if track.tunes_weights else self.entry.inversion_batch
            for first in range(0, len(missing), size):
                self._attempt(track, missing[first : first + size], pivots)
            done = (i for i in indices if i not in self.failures[track.name])
            self._finished[track.name] = {i: safetensors.torch.load_file(self._path(track, i)) for i in done}
        return self._finished[track.name]

    def _path(self, track: InversionProtocol, index: int) -> Path:
        folder = self.bench.folder / "inversion" / self.entry.title / self.subject.name
        return folder / track.name.partition("@")[2] / f"target-{index:03d}.safetensors"

    def _steps(self, track: InversionProtocol) -> int:
        steps = self.entry.inversion_steps
        return tuning_steps(steps) if track.tunes_weights else steps

    def _attempt(self, track: InversionProtocol, indices: Sequence[int], pivots: dict[int, Finished] | None) -> None:
        """Make the files of some targets; if that can't be done at once, one by one, and note what fails."""
        try:
            made = self._invert(track, indices) if pivots is None else self._tune(indices[0], pivots)
        except StorageError:
            raise
        except (UserError, ValueError, RuntimeError, ArithmeticError) as error:
            if len(indices) == 1:
                self.failures[track.name][indices[0]] = _message(error)
                return
            for index in indices:
                self._attempt(track, [index], pivots)
            return
        for index, finished in zip(indices, made, strict=True):
            if finished["ws"].isfinite().all():
                write_atomic(self._path(track, index), safetensors.torch.save(finished))
            else:
                self.failures[track.name][index] = "the optimisation diverged: the latent is not finite"

    def _target(self, index: int) -> Tensor:
        return self.dataset.image(self.members[index]).to(self.bench.plan.device)[None]

    def _invert(self, track: InversionProtocol, indices: Sequence[int]) -> list[Finished]:
        each = [self._target(index) for index in indices]
        for target in each:
            checked_targets(self.generator, target)
        targets, began = torch.cat(each), time.perf_counter()
        starts = [self.starts(self.members[i], target) for i, target in zip(indices, targets, strict=True)]
        how = (track.latent, self.entry.inversion_steps)
        ws = invert(
            self.generator,
            targets,
            torch.cat(starts),
            self.bench.perceptual,
            how,
            lambda: self.bench.progress.advance(len(indices)),
        )
        images = render(self.generator, ws).cpu()
        seconds = (time.perf_counter() - began) / len(indices)
        return [_finished(*one, seconds) for one in zip(targets.cpu(), images, ws.cpu(), strict=True)]

    def _tune(self, index: int, pivots: dict[int, Finished]) -> list[Finished]:
        if index not in pivots:
            raise UserError("there is no pivot to tune around: the inversion of this target failed")
        device, pivot = self.bench.plan.device, pivots[index]
        text = self.starts.text(self.members[index], device)
        what = Pivot(pivot["target"][None].to(device), pivot["ws"][None].to(device), self.members[index], text)
        steps, began = tuning_steps(self.entry.inversion_steps), time.perf_counter()
        image, _ = tune(self.generator, what, self.bench.perceptual, steps, self.bench.progress.advance)
        inverted = image[0].cpu()
        seconds = float(pivot["seconds"]) + time.perf_counter() - began
        return [_finished(pivot["target"], inverted, pivot["ws"], seconds)]


def _finished(target: Tensor, inverted: Tensor, ws: Tensor, seconds: float) -> Finished:
    tensors = {"target": target, "inverted": inverted, "ws": ws}
    return {name: tensor.contiguous() for name, tensor in tensors.items()} | {"seconds": torch.tensor(seconds)}


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def inversion_task(bench: Bench, task: Task) -> Iterator[Measurement]:
    """Invert some real images, and measure how close they come under each track of the entry."""
    inversion = Inversion(bench, task, subject_of(bench, task.stage, task.subject))
    for track in (INVERSION_PROTOCOLS[name] for name in task.stage.entry.inversion_tracks):
        if hasattr(inversion.generator, "synthesis"):
            yield from _track_rows(inversion, track)
        else:
            why = "the model has no latent that its images could be traced back to"
            yield without_value(dataclasses.replace(_frame(inversion, track, 0), metric="Inversion"), "skipped", why)


def _track_rows(inversion: Inversion, track: InversionProtocol) -> Iterator[Measurement]:
    """A row for each number of a track, and one for each target that failed."""
    bench, finished = inversion.bench, list(inversion.finished(track).values())
    frame = _frame(inversion, track, len(finished))
    for index, why in inversion.failures[track.name].items():
        yield without_value(dataclasses.replace(frame, metric=f"Inversion of target {index}"), "error", why)
    if not finished:
        return
    targets, inverted = (torch.stack([one[name] for one in finished]) for name in ("target", "inverted"))
    suffix = "" if track.name == "inversion@sgxl" else track.name.removeprefix("inversion@sgxl")
    picture = f"{inversion.entry.title}-{inversion.subject.name}-inversion{suffix}.png"
    write_atomic(bench.folder / "samples" / picture, triptych(targets, inverted))
    for score in pixel_scores(targets, inverted):
        yield _row(frame, score, ssim_window=WINDOW_NAME if score.metric == "SSIM" else None)
    yield from _network_rows(frame, bench, targets, inverted)
    yield _time_row(inversion, track, frame, float(torch.stack([one["seconds"] for one in finished]).mean()))


def _time_row(inversion: Inversion, track: InversionProtocol, frame: Measurement, seconds: float) -> Measurement:
    """Seconds for one image; for a tuned one, those of its pivot are in it."""
    steps = inversion.entry.inversion_steps
    size = 1 if track.tunes_weights else min(inversion.entry.inversion_batch, len(inversion.members))
    reasons = tuple(reason for reason in frame.caveats if "steps of" in reason)
    timed = dataclasses.replace(frame, kind="speed", metric=f" [steps={steps}]", seed=None, caveats=reasons)
    score = InversionScore("Inversion time", "s/image", False, seconds)
    return _row(timed, score, batch_size=size, nfe=inversion.generator.nfe)


def _network_rows(frame: Measurement, bench: Bench, targets: Tensor, inverted: Tensor) -> Iterator[Measurement]:
    """LPIPS and the Fréchet distance, or why not and what stands in."""
    device, perceptual = bench.plan.device, bench.perceptual
    network = {"extractor": perceptual.name, "extractor_sha256": perceptual.sha256}
    if not perceptual.official:
        yield _missing(frame, "LPIPS", bench.views.missing["vgg16-lpips"])
    yield _row(frame, perceptual_score(targets.to(device), inverted.to(device), perceptual), **network)
    view: View = bench.views.views.get("inception") or ImageView(StandinExtractor(device))
    if not view.official:
        asked = "no protocol of this entry looks through Inception; add fid50k_full@sg3 to it"
        yield _missing(frame, "Inversion FID", bench.views.missing.get("inception", asked))
    if len(targets) >= MIN_FOR_FRECHET:
        network = {"extractor": view.name, "extractor_sha256": view.sha256}
        yield _row(frame, frechet_score(targets, inverted, view), **network)
    elif view.official:
        yield _missing(frame, "Inversion FID", f"a distance of distributions needs {MIN_FOR_FRECHET} targets or more")


def _frame(inversion: Inversion, track: InversionProtocol, n: int) -> Measurement:
    """What all rows of a track share; `metric` is what follows the name of each."""
    bench, subject, steps = inversion.bench, inversion.subject, inversion.entry.inversion_steps
    failed = len(inversion.failures.get(track.name, {}))
    reasons = [f"{n} target{'s' if n != 1 else ''}" + (f"; {failed} more failed" if failed else "")]
    if steps < PUBLISHED_STEPS:
        reasons.append(f"{steps} steps of optimisation instead of {PUBLISHED_STEPS}")
    if not bench.perceptual.official:
        reasons.append(f"optimised for {bench.perceptual.name} instead of LPIPS")
    if not has_mapping_network(inversion.generator):
        moved = "z and the embedding of the class" if track.latent == "w+" else "z, the embedding of the class stays"
        reasons.append(f"there is no w; optimised: {moved}" + ("; then all weights" if track.tunes_weights else ""))
    return Measurement(
        kind="quality",
        subject=subject.name,
        weights=subject.weights,
        weights_sha256=subject.weights_sha256,
        case=case_of(bench, inversion.stage, loss=bench.perceptual.name),
        protocol=track.name,
        metric=f" [n={n}, steps={steps}]",
        unit="",
        higher_is_better=None,
        value=0.0,
        n=n,
        seed=bench.plan.suite.seed,
        caveats=with_weights_caveat(subject, (*reasons, *inversion.starts.caveats())),
    )


def _row(frame: Measurement, score: InversionScore, **case: Any) -> Measurement:
    return dataclasses.replace(
        frame,
        metric=score.metric + frame.metric,
        unit=score.unit,
        higher_is_better=score.higher_is_better,
        value=score.value,
        interval=score.interval,
        case={**frame.case, **{name: value for name, value in case.items() if value is not None}},
    )


def _missing(frame: Measurement, metric: str, why: str) -> Measurement:
    named = dataclasses.replace(frame, metric=metric + frame.metric, higher_is_better=False)
    return without_value(named, "missing", why)
