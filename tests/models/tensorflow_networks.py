"""Official TensorFlow networks as pickles hold them, made from our state dicts, and StyleGAN2 run from its variables.

Written from the layouts and formulas of the official networks; shares nothing with `models.formats.tensorflow_names`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.formats.tensorflow_names import TensorFlowNetwork

State = dict[str, Tensor]
Variables = dict[str, np.ndarray]


def network(function: str, static_kwargs: dict[str, Any], **parts: Variables) -> TensorFlowNetwork:
    """A network of its own variables (`own`) and of those of its components."""
    own = parts.pop("own")
    components = {
        name: TensorFlowNetwork(f"G_{name}", f"G_{name}", static_kwargs, variables, {})
        for name, variables in parts.items()
    }
    return TensorFlowNetwork("Gs" if components else "D", function, static_kwargs, own, components)


def stylegan1_generator(state: State, **static_kwargs: Any) -> TensorFlowNetwork:
    """G_style."""
    mapping: Variables = {}
    synthesis = {"lod": _array(state["synthesis.lod"])}
    for i in range(static_kwargs["mapping_layers"]):
        mapping |= _dense(f"Dense{i}", state, f"mapping.dense{i}")
    if "mapping.label_weight" in state:
        mapping["LabelConcat/weight"] = _array(state["mapping.label_weight"])
    last = int(math.log2(static_kwargs["resolution"]))
    layer = 0
    for stage in range(2, last + 1):
        for part in ("Const", "Conv") if stage == 2 else ("Conv0_up", "Conv1"):
            ours, scope = f"synthesis.layer{layer}.", f"{2**stage}x{2**stage}/{part}/"
            if part == "Const":
                synthesis[f"{scope}const"] = _array(state[f"{ours}const"])
            else:
                synthesis[f"{scope}weight"] = _hwio(state[f"{ours}weight"])
            synthesis |= _dense(f"{scope}StyleMod", state, f"{ours}style")
            synthesis[f"{scope}bias"] = _array(state[f"{ours}bias"])
            synthesis[f"{scope}Noise/weight"] = _array(state[f"{ours}apply_noise.weight"])
            synthesis[f"noise{layer}"] = _array(state[f"{ours}apply_noise.noise"])
            layer += 1
        synthesis |= _conv(f"ToRGB_lod{last - stage}", state, f"synthesis.output{stage - 2}")
    own = {"lod": _array(torch.zeros(())), "dlatent_avg": _array(state["truncation.w_avg"])}
    return network("training.networks_stylegan.G_style", static_kwargs, own=own, mapping=mapping, synthesis=synthesis)


def stylegan1_discriminator(state: State, **static_kwargs: Any) -> TensorFlowNetwork:
    """D_basic."""
    own, last = {"lod": _array(state["lod"])}, int(math.log2(static_kwargs["resolution"])) - 2
    for i in range(last + 1):
        size = 4 * 2 ** (last - i)
        own |= _conv(f"FromRGB_lod{i}", state, f"input{i}")
        own |= _conv(f"{size}x{size}/{'Conv0' if i < last else 'Conv'}", state, f"layer{2 * i}")
        if i < last:
            own |= _conv(f"{size}x{size}/Conv1_down", state, f"layer{2 * i + 1}")
    own |= _dense("4x4/Dense0", state, f"layer{2 * last + 1}") | _dense("4x4/Dense1", state, f"layer{2 * last + 2}")
    return network("training.networks_stylegan.D_basic", static_kwargs, own=own)


def stylegan2_generator(state: State, **static_kwargs: Any) -> TensorFlowNetwork:
    """G_main with G_synthesis_stylegan2."""
    mapping: Variables = {}
    for i in range(static_kwargs["mapping_layers"]):
        mapping |= _dense(f"Dense{i}", state, f"mapping.fc{i}")
    synthesis = {"4x4/Const/const": _array(state["synthesis.b4.const"][None])}
    noises = 0
    for stage in range(2, int(math.log2(static_kwargs["resolution"])) + 1):
        ours, scope = f"synthesis.b{2**stage}.", f"{2**stage}x{2**stage}/"
        for layer, part in (("conv0", "Conv0_up"), ("conv1", "Conv" if stage == 2 else "Conv1")):
            if f"{ours}{layer}.weight" in state:
                synthesis |= _modulated(scope + part, state, ours + layer, up=layer == "conv0")
                synthesis[f"{scope}{part}/noise_strength"] = _array(state[f"{ours}{layer}.noise_strength"])
                synthesis[f"noise{noises}"] = _array(state[f"{ours}{layer}.noise_const"][None, None])
                noises += 1
        if f"{ours}torgb.weight" in state:
            synthesis |= _modulated(f"{scope}ToRGB", state, f"{ours}torgb")
        if f"{ours}skip.weight" in state:
            synthesis[f"{scope}Skip/weight"] = _hwio(state[f"{ours}skip.weight"])
    own = {"dlatent_avg": _array(state["mapping.w_avg"])}
    return network("training.networks_stylegan2.G_main", static_kwargs, own=own, mapping=mapping, synthesis=synthesis)


def stylegan2_discriminator(state: State, **static_kwargs: Any) -> TensorFlowNetwork:
    """D_stylegan2."""
    own = _conv("4x4/Conv", state, "b4.conv") | _dense("4x4/Dense0", state, "b4.fc") | _dense("Output", state, "b4.out")
    for stage in range(2, int(math.log2(static_kwargs["resolution"])) + 1):
        for ours, part in (("fromrgb", "FromRGB"), ("conv0", "Conv0"), ("conv1", "Conv1_down"), ("skip", "Skip")):
            if f"b{2**stage}.{ours}.weight" in state:
                own |= _conv(f"{2**stage}x{2**stage}/{part}", state, f"b{2**stage}.{ours}")
    return network("training.networks_stylegan2.D_stylegan2", static_kwargs, own=own)


def _array(value: Tensor) -> np.ndarray:
    made: np.ndarray = value.detach().numpy().copy()
    made.flags.writeable = False  # as arrays over the bytes of a file are
    return made


def _hwio(weight: Tensor) -> np.ndarray:
    return _array(weight.permute(2, 3, 1, 0))


def _conv(name: str, state: State, ours: str) -> Variables:
    biases = {f"{name}/bias": _array(state[f"{ours}.bias"])} if f"{ours}.bias" in state else {}
    return {f"{name}/weight": _hwio(state[f"{ours}.weight"]), **biases}


def _dense(name: str, state: State, ours: str) -> Variables:
    return {f"{name}/weight": _array(state[f"{ours}.weight"].T), f"{name}/bias": _array(state[f"{ours}.bias"])}


def _modulated(name: str, state: State, ours: str, up: bool = False) -> Variables:
    weight = state[f"{ours}.weight"].flip((2, 3)) if up else state[f"{ours}.weight"]
    return {
        f"{name}/weight": _hwio(weight),
        f"{name}/bias": _array(state[f"{ours}.bias"]),
        f"{name}/mod_weight": _array(state[f"{ours}.affine.weight"].T),
        f"{name}/mod_bias": _array(state[f"{ours}.affine.bias"] - 1),
    }


def run_stylegan2(made: TensorFlowNetwork, z: np.ndarray) -> np.ndarray:
    """The images of G_main with skip connections and its stored noise, from its variables, in float64."""
    mapping, synthesis = ({k: v.astype(np.float64) for k, v in c.variables.items()} for c in made.components.values())
    w = z / np.sqrt((z**2).mean(1, keepdims=True) + 1e-8)
    for i in range(made.static_kwargs["mapping_layers"]):
        weight, bias = mapping[f"Dense{i}/weight"], mapping[f"Dense{i}/bias"]
        w = _lrelu(w @ (weight * 0.01 / math.sqrt(len(weight))) + bias * 0.01)
    size, noises = 4, 0
    x = np.repeat(synthesis["4x4/Const/const"], len(z), axis=0)
    image = np.zeros(())
    while size <= made.static_kwargs["resolution"]:
        for part in ("Conv",) if size == 4 else ("Conv0_up", "Conv1"):
            layer = {k.rpartition("/")[2]: v for k, v in synthesis.items() if k.startswith(f"{size}x{size}/{part}/")}
            x = _modulated_conv(x, w, layer, up=part == "Conv0_up", demodulate=True)
            x = _lrelu(x + synthesis[f"noise{noises}"] * layer["noise_strength"] + layer["bias"][:, None, None])
            noises += 1
        layer = {k.rpartition("/")[2]: v for k, v in synthesis.items() if k.startswith(f"{size}x{size}/ToRGB/")}
        color = _modulated_conv(x, w, layer, up=False, demodulate=False) + layer["bias"][:, None, None]
        image = color if size == 4 else _filtered(_stuffed(image), (2, 1)) + color
        size *= 2
    return image


def _modulated_conv(x: np.ndarray, w: np.ndarray, layer: Variables, *, up: bool, demodulate: bool) -> np.ndarray:
    style = w @ (layer["mod_weight"] / math.sqrt(w.shape[1])) + layer["mod_bias"] + 1
    kernel = layer["weight"] / math.sqrt(math.prod(layer["weight"].shape[:3]))  # [kh, kw, in, out]
    images: list[np.ndarray] = []
    for sample, scales in zip(x, style, strict=True):
        own = kernel * scales[:, None]
        if demodulate:
            own = own / np.sqrt((own**2).sum((0, 1, 2)) + 1e-8)
        oihw = torch.from_numpy(own.transpose(3, 2, 0, 1).copy())
        stuffed = _stuffed(sample[None]) if up else sample[None]
        # zeros between the samples, then correlation with the stored kernel, then the filter
        y = F.conv2d(torch.from_numpy(stuffed), oihw, padding=2 if up else len(kernel) // 2).numpy()
        images.append(_filtered(y[:, :, : 2 * x.shape[2] + 1, : 2 * x.shape[3] + 1], (1, 1)) if up else y)
    return np.concatenate(images)


def _stuffed(x: np.ndarray) -> np.ndarray:
    made = np.zeros((*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]))
    made[:, :, ::2, ::2] = x
    return made


def _filtered(x: np.ndarray, padding: tuple[int, int]) -> np.ndarray:
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16
    padded = np.pad(x, ((0, 0), (0, 0), padding, padding))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (4, 4), axis=(2, 3))
    filtered: np.ndarray = (windows * taps).sum((4, 5))
    return filtered


def _lrelu(x: np.ndarray) -> np.ndarray:
    rectified: np.ndarray = np.maximum(x, 0.2 * x) * math.sqrt(2)
    return rectified
