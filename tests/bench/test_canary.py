from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from bench import canary, doctor, sampling
from bench.canary import QUESTIONS, Answer, format_answers, sing
from bench.cli import main
from bench.metrics.precision_recall import PrecisionRecall, precision_recall
from bench.networks import inception


def answer(name: str) -> Answer:
    return canary._asked(name, QUESTIONS[name])


def test_all_answers_are_right_here(capsys: pytest.CaptureFixture[str]) -> None:
    filters = list(warnings.filters)
    answers = sing()
    assert [a.name for a in answers] == list(QUESTIONS)
    assert all(a.ok for a in answers), format_answers(answers)
    assert warnings.filters == filters
    assert main(["canary"]) == 0
    assert "resize" in capsys.readouterr().out


def test_swapped_precision_and_recall_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(real: torch.Tensor, fake: torch.Tensor) -> PrecisionRecall:
        return PrecisionRecall(*reversed(precision_recall(real, fake)))

    monkeypatch.setattr(canary, "precision_recall", swapped)
    assert not answer("collapsed set").ok
    assert not answer("torch-fidelity").ok


def test_changed_resize_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(inception.RESIZES, "tf1", inception.RESIZES["torch"])
    assert answer("resize").detail.startswith("tf1 resize of stripes is")


def test_changed_rounding_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sampling.QUANTISERS, "half-up", sampling.QUANTISERS["truncate"])
    assert "half-up less truncated is 0.0, must be 0.5" in answer("range and rounding").detail


def test_images_that_are_not_guarded_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.networks.extractors.check_images", lambda images: None)
    assert "pass for uint8" in answer("range and rounding").detail


def test_changed_random_stream_and_picture_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np.random, "default_rng", lambda seed: np.random.Generator(np.random.MT19937(seed)))
    assert not answer("random streams").ok
    monkeypatch.setattr(Image.Image, "resize", lambda image, size, _: image.crop((0, 0, *size)))
    assert not answer("pictures").ok


def test_changed_square_root_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scipy.linalg.sqrtm", lambda a, disp=True: a if disp else (a, 0.0))
    assert not answer("linear algebra").ok
    assert "clean-fid's distance is" in answer("clean-fid").detail


def test_library_that_raises_is_caught_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise TypeError("no such argument")

    monkeypatch.setattr("torch_fidelity.metric_fid.fid_statistics_to_metric", broken)
    assert answer("torch-fidelity") == Answer("torch-fidelity", ok=False, detail="TypeError: no such argument")


def test_clean_fid_is_not_asked_where_scipy_is_known_to_break_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scipy.__version__", "1.18.0")
    assert answer("clean-fid") == Answer("clean-fid", ok=True, detail=answer("clean-fid").detail)
    assert "not asked" in answer("clean-fid").detail


def test_doctor_tells_of_wrong_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [Answer("resize", ok=False, detail="is 3"), Answer("pictures", ok=True, detail="fine")]
    monkeypatch.setattr(doctor, "sing", lambda: answers)
    doctor._canary.cache_clear()
    findings = doctor._canary()
    doctor._canary.cache_clear()
    assert [(f.state, f.what, f.text) for f in findings] == [("bad", "canary: resize", "is 3")]


def test_known_shuffled_score_is_that_of_its_definition() -> None:
    classes = (np.arange(1000) // 100)[np.random.RandomState(2020).permutation(1000)].reshape(10, 100)
    shares = np.stack([np.bincount(split, minlength=10) / 100 for split in classes])
    entropies = [-sum(p * math.log(p) for p in split if p) for split in shares]
    assert np.mean(np.exp(entropies)) == pytest.approx(9.644640, rel=1e-6)
