from __future__ import annotations

import copy
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from models.clip_text import OPENAI_VIT_L_14, TextEncoder, encode_prompts, text_features
from models.layers import initialise

TEXT_CFG = {"context_length": 20, "width": 16, "heads": 2, "layers": 2}
TINY: dict[str, Any] = {"embed_dim": 6, "text_cfg": TEXT_CFG, "quick_gelu": True}
VISION_CFG = {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8}


def make(description: dict[str, Any] = TINY, seed: int = 0) -> TextEncoder:
    encoder = TextEncoder(description)
    initialise(encoder, seed)
    return encoder.requires_grad_(requires_grad=False).eval()


def official_text_state(clip: Any) -> dict[str, Tensor]:
    """What a StyleGAN-T file has of its CLIP: everything but the visual half."""
    return {name: value for name, value in clip.state_dict().items() if not name.startswith("visual.")}


@pytest.mark.parametrize(
    "changes", [{}, {"quick_gelu": False}, {"text_cfg": {**TEXT_CFG, "no_causal_mask": True, "pool_type": "last"}}]
)
def test_encoder_gives_the_text_features_of_the_whole_clip(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    description = {**TINY, **changes}
    clip: Any = open_clip.CLIP(**{**description, "vision_cfg": VISION_CFG}).eval()
    encoder = make(description)
    state = official_text_state(clip)
    assert "logit_scale" in state
    encoder.model.load_state_dict(state, strict=True)
    tokens = open_clip.SimpleTokenizer()(["a cat", "two dogs and a very long tail"], context_length=20)
    with torch.no_grad():
        want = clip.encode_text(tokens, normalize=True)
    assert torch.allclose(encoder(tokens), want, atol=1e-6)
    assert torch.allclose(encoder.encode(["a cat", "two dogs and a very long tail"]), want, atol=1e-6)


def test_state_has_the_names_of_open_clip_without_visual_half_and_logit_scale() -> None:
    clip: Any = open_clip.CLIP(**{**TINY, "vision_cfg": VISION_CFG})
    assert set(make().model.state_dict()) == set(official_text_state(clip)) - {"logit_scale"}
    broken = official_text_state(clip) | {"ln_post.weight": torch.ones(16)}
    with pytest.raises(RuntimeError, match=r"ln_post\.weight"):
        make().model.load_state_dict(broken, strict=True)


def test_later_tokens_do_not_change_what_earlier_ones_give() -> None:
    encoder = make()
    tokens = torch.randint(1, 1000, (1, 20), generator=torch.Generator().manual_seed(0))
    tokens[0, 9] = 40_000  # the largest token ends the text
    other = tokens.clone()
    other[0, 10:] = 5
    assert torch.equal(encoder(tokens), encoder(other))
    other[0, 3] = 7
    assert not torch.allclose(encoder(tokens), encoder(other), atol=1e-3)


def test_features_have_unit_length_and_do_not_depend_on_the_batch() -> None:
    encoder = make()
    prompts = ["a cat", "A  CAT", "", "a dog " * 50]
    together = encoder.encode(prompts)
    alone = torch.cat([encoder.encode([prompt]) for prompt in prompts])
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.allclose(together.norm(dim=1), torch.ones(4))
    assert torch.allclose(together[0], together[1], atol=1e-6)  # upper case and blanks make no difference to CLIP
    assert (together[0] - together[2]).abs().max() > 0.01


def test_initialised_weights_are_a_function_of_the_seed_alone() -> None:
    first, again, other = make(), make(), make(seed=1)
    states = [encoder.state_dict() for encoder in (first, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    assert (first.encode(["a cat"]) - other.encode(["a cat"])).abs().max() > 0.01


def test_new_encoder_has_zero_weights_and_float64_copies_stay_exact() -> None:
    assert not any(parameter.any() for parameter in TextEncoder(TINY).parameters())
    encoder = make()
    exact = copy.deepcopy(encoder).double().encode(["a cat"])
    assert exact.dtype == torch.float64
    assert torch.allclose(encoder.encode(["a cat"]).double(), exact, atol=1e-6)


def test_encoder_of_official_stylegan_t_has_as_many_parameters_as_published() -> None:
    with torch.device("meta"):
        encoder = TextEncoder(OPENAI_VIT_L_14)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 123_650_304  # the paper: 123 million
    assert encoder.embed_dim == 768


@pytest.mark.parametrize("name", ["ViT-Q-99", "roberta-ViT-B-32", "ViT-B-16-SigLIP"])
def test_encoder_of_another_kind_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"'{name}': open_clip has no CLIP transformer .*{OPENAI_VIT_L_14}"):
        TextEncoder(name)


def test_prompts_need_the_vocabulary_of_clip() -> None:
    encoder = TextEncoder({**TINY, "text_cfg": {**TEXT_CFG, "vocab_size": 400}})
    with pytest.raises(ValueError, match=r"has 400 tokens, CLIP's tokeniser 49408"):
        encoder.encode(["a cat"])


def test_text_features_are_prompts_encoded_or_features_as_given() -> None:
    encoder = make()
    given = torch.rand(2, 6)
    assert text_features(given, None, (2, 6)) is given
    assert text_features(None, None, (2, 0)) is None
    encoded = text_features(["a", "b"], encoder, (2, 6))
    assert encoded is not None
    assert torch.equal(encoded, encode_prompts(["a", "b"], encoder, 6))
