from __future__ import annotations

import pytest
import torch

from bench.kernel_speed.contenders import Form
from bench.kernel_speed.generators import GeneratorCase, GeneratorWork
from bench.kernel_speed.timing import measure
from bench.verify import VerificationError
from tests.bench.kernel_speed.rows import CPU, bench_of

CASE = GeneratorCase("stylegan2-shapes-32", 3)


@pytest.fixture(scope="module")
def work() -> GeneratorWork:
    return CASE.work(CPU)


@pytest.mark.parametrize("form", ["eager", "grouped"])
def test_every_form_makes_the_image_that_float64_gives(work: GeneratorWork, form: Form) -> None:
    outputs = work.prepared(form, work.tensors(form))()
    assert outputs[0].shape == (3, 3, 32, 32)
    assert work.check(outputs, form) <= 1 / 255


def test_another_image_is_found(work: GeneratorWork) -> None:
    outputs = work.prepared("eager", work.tensors("eager"))()
    with pytest.raises(VerificationError, match=r"dB against float64; allowed are 35"):
        work.check([255 - outputs[0]], "eager")


def test_generator_is_a_row_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    row = measure(CASE, bench_of(), 0.0)
    assert (row.kind, row.subject, row.status) == ("speed", "stylegan2-shapes-32", "ok")
    assert (row.case["batch_size"], row.case["resolution"]) == (3, 32)
    assert "floor_us" not in row.details
    assert row.details["grouped_ratio"] == 1.0
    unavailable = measure(CASE, bench_of(ours="triton"), 0.0)
    assert unavailable.status == "missing"


def test_labels_are_not_looked_at_while_images_are_made(work: GeneratorWork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "__int__", lambda _: pytest.fail("a value was looked at"))
    work.prepared("eager", work.tensors("eager"))()
