"""StyleGAN3: images, features, gradients and moving averages of a generator; layer geometry; filters; convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kernels.modulated_conv import ModulatedConv
from models.filter_design import lowpass_filter
from models.spec import Latents
from models.stylegan3 import AliasFreeGenerator, StyleGAN3Generator, modulated_conv_with_gain
from models.stylegan3_config import LayerSpec, SynthesisConfig, official_config, our_names
from tests.golden_cases import GoldenFile


def generator(case: GoldenFile) -> Latents:
    network = StyleGAN3Generator(official_config(case.meta["class"], case.meta["kwargs"]))
    network.load_state_dict(case.group("state/"), strict=True)
    first = slice(2)  # these cases keep the first two images
    return generator_outputs(network, case, first)


def generator_outputs(network: AliasFreeGenerator, case: GoldenFile, shown: slice) -> Latents:
    """All that the cases of StyleGAN3 and StyleGAN-XL record; images are made of the `shown` samples."""
    z, c = case.tensors["in/z"], case.tensors.get("in/c")
    values: Latents = {
        "ws_psi1": network.mapping(z, c),
        "ws_psi0.7": network.mapping(z, c, 0.7),
        "ws_psi0.7_cutoff3": network.mapping(z, c, 0.7, 3),
    }
    ws, z, c = values["ws_psi1"][shown], z[shown], None if c is None else c[shown]
    values |= _image_with_features(network, ws)
    values["img_psi0.7"] = network(z, c, truncation_psi=0.7)
    values |= _gradients(network, case)
    for i, transform in enumerate(case.tensors.get("in/transform", ())):
        values |= {f"transform{i}/{name}": value for name, value in _transformed(network, ws[:1], transform).items()}
    values["ema/img"] = network(z, c, update_emas=True)
    return values | {f"ema/{name}": value for name, value in network.named_buffers()}


def layer_specs(case: GoldenFile) -> Latents:
    values: Latents = {}
    for i, kwargs in enumerate(case.meta["cases"]):
        names = {name: value for name, value in kwargs.items() if name != "w_dim"}
        config = SynthesisConfig(**our_names(names, set(SynthesisConfig.__dataclass_fields__), case.meta["class"]))
        start = config.input
        row = [start.channels, start.size, start.sampling_rate, start.bandwidth]
        values[f"{i:03d}/input"] = torch.tensor(row, dtype=torch.float64)
        values[f"{i:03d}/layers"] = torch.tensor([_row(spec) for spec in config.layers], dtype=torch.float64)
    return values


def lowpass_filters(case: GoldenFile) -> Latents:
    filters = {
        f"{i:03d}/f": lowpass_filter(p["numtaps"], p["cutoff"], p["width"], p["fs"], radial=p.get("radial", False))
        for i, p in enumerate(case.meta["cases"])
    }
    return {name: taps for name, taps in filters.items() if taps is not None}


def modulated_conv(case: GoldenFile) -> Latents:
    values: Latents = {}
    for i, parameters in enumerate(case.meta["cases"]):
        outputs = _modulated_conv(case.group(f"in/{i:03d}/"), **parameters)
        values |= {f"{i:03d}/{name}": value for name, value in outputs.items()}
    return values


def _image_with_features(network: AliasFreeGenerator, ws: Tensor) -> Latents:
    features: Latents = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            features[f"feat/{name}"] = output[:1]

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in network.synthesis.named_children()]
    features["img"] = network.synthesis(ws, "const", force_fp32=True)
    for handle in handles:
        handle.remove()
    return features


def _gradients(network: AliasFreeGenerator, case: GoldenFile) -> Latents:
    ws = case.tensors["in/ws"].clone().requires_grad_()
    image = network.synthesis(ws)
    (image * case.tensors["in/gy"]).sum().backward()
    assert ws.grad is not None
    parameters = {f"grad_param/{name}": value.grad for name, value in network.named_parameters()}
    of_parameters = {name: grad for name, grad in parameters.items() if grad is not None}
    return {"img_from_ws": image, "grad_ws": ws.grad, **of_parameters}


def _transformed(network: AliasFreeGenerator, ws: Tensor, transform: Tensor) -> Latents:
    buffer = network.synthesis.input.transform
    before = buffer.clone()
    buffer.copy_(transform)
    values = {"input": network.synthesis.input(ws[:, 0]), "img": network.synthesis(ws)}
    buffer.copy_(before)
    return values


def _row(spec: LayerSpec) -> list[float]:
    return [
        *(spec.in_channels, spec.out_channels, spec.in_size, spec.out_size),
        *(spec.in_sampling_rate, spec.out_sampling_rate, spec.tmp_sampling_rate),
        *(spec.in_cutoff, spec.out_cutoff, spec.in_half_width, spec.out_half_width),
        *(spec.up_factor, spec.up_taps, spec.down_factor, spec.down_taps, spec.radial, *spec.padding),
        *(spec.conv_kernel, spec.is_critically_sampled, spec.is_torgb, spec.use_fp16),
    ]


def _modulated_conv(inputs: Latents, padding: int | list[int] = 0, demodulate: bool = True) -> Latents:
    leaves = {name: inputs[name].clone().requires_grad_() for name in ("gy", "x", "w", "s")}
    pads = padding if isinstance(padding, int) else (padding[1], padding[0])  # theirs are (y, x)
    conv = ModulatedConv(padding=pads, demodulate=demodulate)
    y = modulated_conv_with_gain(leaves["x"], leaves["w"], leaves["s"], conv, input_gain=inputs.get("input_gain"))
    differentiated = [leaves[name] for name in ("x", "w", "s")]
    first = torch.autograd.grad((y * leaves["gy"]).sum(), differentiated, create_graph=True)
    products = [(grad * inputs[f"v{name}"]).sum() for grad, name in zip(first, ("x", "w", "s"), strict=True)]
    second = torch.autograd.grad(torch.stack(products).sum(), list(leaves.values()))
    values = {"y": y} | {f"d{name}": grad for name, grad in zip(("x", "w", "s"), first, strict=True)}
    return values | {f"d2/d{name}": grad for name, grad in zip(leaves, second, strict=True)}
