"""StyleGAN-T: images, features, gradients and moving average of a generator; its layers; CLIP's text encoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from models.clip_text import TextEncoder
from models.spec import Latents
from models.stylegan_t import StyleGANTGenerator, SynthesisLayer
from models.stylegan_t_config import official_config, official_layer_config
from tests.golden_cases import GoldenFile


def generator(case: GoldenFile) -> Latents:
    return _generator_outputs(_load_official(case), case)


def synthesis_layers(case: GoldenFile) -> Latents:
    values: Latents = {}
    for i, parameters in enumerate(case.meta["cases"]):
        outputs = _layer_outputs(parameters, case.group(f"state/{i:03d}."), case.group(f"in/{i:03d}/"))
        values |= {f"{i:03d}/{name}": value for name, value in outputs.items()}
    return values


def text_encoder(case: GoldenFile) -> Latents:
    encoder = TextEncoder(case.meta["kwargs"])
    model: Any = encoder.model
    model.load_state_dict(case.group("state/"), strict=True)
    tokens = case.tensors["in/tokens"]
    return {"text_raw": model.encode_text(tokens), "text": encoder(tokens)}


def _load_official(case: GoldenFile) -> StyleGANTGenerator:
    config = official_config(case.meta["class"], case.meta["kwargs"])
    if config.text_dim:  # the cases put features of their own width in the place of CLIP's
        config = replace(config, text_dim=case.meta["params"]["txt_dim"], text_encoder=None)
    generator = StyleGANTGenerator(config)
    generator.load_state_dict(case.group("state/"), strict=True)
    return generator


def _generator_outputs(generator: StyleGANTGenerator, case: GoldenFile) -> Latents:
    z, c = case.tensors["in/z"], case.tensors.get("in/c")
    values = {"ws_psi1": generator.mapping(z, c), "ws_psi0.7": generator.mapping(z, c, 0.7)}
    values |= _synthesis_with_features(generator, values["ws_psi1"])
    values["img_none"] = generator.synthesis(values["ws_psi1"], "none")
    values["img_psi0.7"] = generator(z, c, truncation_psi=0.7, noise_mode="const")
    values |= _gradients(generator, case)
    generator.mapping(z, c, update_emas=True)
    return values | {"train/mapping.x_avg": generator.mapping.x_avg}


def _synthesis_with_features(generator: StyleGANTGenerator, ws: Tensor) -> Latents:
    features: Latents = {}
    blocks = dict(generator.synthesis.named_children())
    first = next(iter(blocks.values()))
    watched = {"input": first.input} | {f"b0.convs1.{i}": layer for i, layer in first.convs1.named_children()}  # type: ignore[union-attr]
    watched |= blocks

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, outputs: Tensor | tuple[Tensor, Tensor | None]) -> None:
            parts = {"": outputs} if isinstance(outputs, Tensor) else {".x": outputs[0], ".img": outputs[1]}
            features.update({f"feat/{name}{part}": x[:1] for part, x in parts.items() if x is not None})

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in watched.items()]
    features["img"] = generator.synthesis(ws, "const", force_fp32=True)
    for handle in handles:
        handle.remove()
    return features


def _gradients(generator: StyleGANTGenerator, case: GoldenFile) -> Latents:
    ws = case.tensors["in/ws"].clone().requires_grad_()
    image = generator.synthesis(ws, "const")
    (image * case.tensors["in/gy"]).sum().backward()
    assert ws.grad is not None
    return {"img_from_ws": image, "grad_ws": ws.grad, **_gradients_of_parameters(generator)}


def _layer_outputs(parameters: dict[str, Any], state: Latents, inputs: Latents) -> Latents:
    kwargs = {name: value for name, value in parameters.items() if name != "gain"}
    layer = SynthesisLayer(official_layer_config(kwargs))
    layer.load_state_dict(state, strict=True)
    x, w = inputs["x"].clone().requires_grad_(), inputs["w"].clone().requires_grad_()
    y = layer(x, w, layer.noise_const if layer.config.use_noise else None, parameters["gain"])
    torch.autograd.backward((y * inputs["gy"]).sum())
    assert x.grad is not None
    assert w.grad is not None
    return {"y": y, "dx": x.grad, "dw": w.grad, **_gradients_of_parameters(layer)}


def _gradients_of_parameters(network: nn.Module) -> Latents:
    gradients = {f"grad_param/{name}": parameter.grad for name, parameter in network.named_parameters()}
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}
