"""CLIP's text encoder, which turns prompts into the features that StyleGAN-T is conditioned on.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (arXiv:2103.00020), section 2.4.
The transformer and the tokeniser are open_clip's; neither fetches anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import fill_normal
from models.spec import Condition

OPENAI_VIT_L_14 = "ViT-L-14-quickgelu"  # open_clip's name of the architecture of OpenAI's ViT-L/14
_NO_VISION = {"layers": 1, "width": 8, "head_width": 8, "patch_size": 8, "image_size": 8}  # taken off again
_NOT_OF_TEXT = ("logit_scale", "attn_mask")  # in official files, and without influence on text features


class TextEncoder(nn.Module):
    """The text half of a CLIP; below `model`, its parameters have open_clip's names."""

    def __init__(self, architecture: str | Mapping[str, Any]) -> None:
        """Make an encoder of zero weights.

        `architecture` is a name of open_clip, or a mapping of its `embed_dim`, `text_cfg` and `quick_gelu`.

        Raises:
            ValueError: open_clip has no such architecture, or its text half isn't CLIP's own transformer.
        """
        super().__init__()
        description = _description(architecture)
        self.embed_dim = int(description["embed_dim"])  # width of the features
        self.model = _text_tower(description)

    def reset(self, rng: np.random.Generator) -> None:
        """Draw weights that tell prompts apart; training starts from those of a trained CLIP instead."""
        for name, parameter in self.model.named_parameters():
            if parameter.ndim > 1:
                fill_normal(parameter, rng, parameter.shape[-1] ** -0.5)
            else:
                parameter.fill_(float(name.endswith("weight")))  # of layer norms; all others are biases

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode int64 tokens `[N, context_length]` to features `[N, embed_dim]` of unit length."""
        return F.normalize(self.model.encode_text(tokens), dim=-1)  # type: ignore[operator]

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts to features `[N, embed_dim]` of unit length; what exceeds the context is cut off.

        Raises:
            ValueError: the encoder's vocabulary isn't CLIP's.
        """
        tokenizer = _tokenizer()
        words, known = cast("nn.Embedding", self.model.token_embedding).weight, tokenizer.vocab_size
        if len(words) != known:
            raise ValueError(f"the text encoder has {len(words)} tokens, CLIP's tokeniser {known}; give tokens instead")
        tokens = tokenizer(list(prompts), context_length=self.model.context_length)
        return cast("Tensor", self(tokens.to(words.device)))


def text_features(condition: Condition, encoder: TextEncoder | None, shape: tuple[int, int]) -> Tensor | None:
    """Features of the `shape` (N, width) from N prompts, or as they are given; None for a width of 0.

    Raises:
        ValueError: texts are missing, not wanted, of another shape or can't be read.
    """
    count, width = shape
    if condition is None:
        if width:
            raise ValueError(f"no texts: this generator takes prompts or their features, float [{count}, {width}]")
        return None
    if isinstance(condition, Tensor):
        if not condition.is_floating_point() or condition.shape != shape or not width:
            allowed = f"text features, float [{count}, {width}]" if width else "none, it is unconditional"
            raise ValueError(f"condition {condition.dtype} {list(condition.shape)}; this generator takes {allowed}")
        return condition
    features = encode_prompts(condition, encoder, width)
    if len(features) != count:
        raise ValueError(f"{len(features)} prompts for {count} latents; give one for each")
    return features


def encode_prompts(prompts: Sequence[str], encoder: TextEncoder | None, width: int) -> Tensor:
    """Encode prompts to features `[N, width]` of unit length for a generator that takes such.

    Raises:
        ValueError: the generator is unconditional or has no text encoder, or a lone string is given.
    """
    if not width:
        raise ValueError("prompts for an unconditional generator; leave them out")
    if isinstance(prompts, str):
        raise ValueError(f"one string {prompts!r} for prompts; give a list of them")
    if encoder is None:
        raise ValueError(
            f"prompts for a generator without a text encoder; give their CLIP features, float [N, {width}], "
            "or load a file that has the encoder (`mapping.clip.*`), as official ones do"
        )
    return encoder.encode(prompts)


@cache
def _tokenizer() -> Any:  # open_clip has no types
    import open_clip

    return open_clip.SimpleTokenizer()


def _description(architecture: str | Mapping[str, Any]) -> Mapping[str, Any]:
    import open_clip

    found = open_clip.get_model_config(architecture) if isinstance(architecture, str) else architecture
    text = (found or {}).get("text_cfg", {})
    if found is None or "hf_model_name" in text or found.get("custom_text"):
        raise ValueError(
            f"text encoder {architecture!r}: open_clip has no CLIP transformer of that name; "
            f"StyleGAN-T's is {OPENAI_VIT_L_14!r}, open_clip.list_models() has the others"
        )
    return found


def _text_tower(description: Mapping[str, Any]) -> nn.Module:
    """An open_clip model without its visual half; drawing its random weights first would take seconds."""
    import open_clip

    device = torch.empty(0).device
    with torch.device("meta"):
        model: nn.Module = open_clip.CLIP(
            embed_dim=description["embed_dim"],
            text_cfg=description["text_cfg"],
            quick_gelu=description.get("quick_gelu", False),
            vision_cfg=_NO_VISION,
        )
    del model.visual, model.logit_scale
    model.to_empty(device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    if isinstance(mask := model.attn_mask, Tensor):  # not of the state dict: no token sees a later one
        mask.fill_(float("-inf")).triu_(1)
    model.register_load_state_dict_pre_hook(_forget_what_is_not_of_text)
    return model


def _forget_what_is_not_of_text(_module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in _NOT_OF_TEXT:
        state.pop(prefix + name, None)
