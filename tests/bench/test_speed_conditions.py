from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.speed_conditions import Sample, UnfitConditionError, check_condition, prepare
from bench.verify import VerificationError
from models.spec import Condition, Latents
from tests.bench.test_sampling import Stripes, Worded

CPU = torch.device("cpu")


def compiled_right(sample: Sample, _device: torch.device) -> Sample:
    return sample


def compiled_wrong(sample: Sample, _device: torch.device) -> Sample:
    return lambda latents, condition: 255 - sample(latents, condition)


def not_compiled(_sample: Sample, _device: torch.device) -> Sample:
    def run(_latents: Latents, _condition: Condition) -> Tensor:
        raise RuntimeError("no compiler\nand more")

    return run


def test_each_condition_is_told_in_name_and_case() -> None:
    eager, compiled = prepare(Stripes(), "eager", CPU), prepare(Stripes(), "compiled", CPU, compiled_right)
    assert (eager.label, compiled.label) == ("", " (compiled)")
    assert eager.setup_s is None
    assert compiled.setup_s is not None
    assert (eager.facts()["execution"], compiled.facts()["execution"]) == ("eager", "compiled")
    assert torch.equal(eager.batch(3, CPU)(), compiled.batch(3, CPU)())


def test_compiled_generator_with_other_images_is_never_timed() -> None:
    with pytest.raises(VerificationError, match="compiled: the image differs"):
        prepare(Stripes(), "compiled", CPU, compiled_wrong)


def test_condition_that_does_not_fit_says_why() -> None:
    with pytest.raises(UnfitConditionError, match=r"compiled failed: no compiler$"):
        prepare(Stripes(), "compiled", CPU, not_compiled)
    with pytest.raises(UnfitConditionError, match="GPU only"):
        prepare(Stripes(), "graphs", CPU)
    with pytest.raises(UnfitConditionError, match="no text encoder"):
        prepare(Worded(), "text", CPU)


def test_text_encoder_is_in_the_times_where_it_says_so() -> None:
    generator = Worded(encoder=nn.Identity())
    prepare(generator, "text", CPU).batch(2, CPU)()
    assert generator.conditions[-1] == ["a photo of sample 0", "a photo of sample 1"]
    prepare(generator, "eager", CPU).batch(2, CPU)()
    assert isinstance(generator.conditions[-1], Tensor)
    assert prepare(generator, "text", CPU).facts()["text_encoder"] == "included"


def test_unknown_condition_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'graphs'"):
        check_condition("graph")
