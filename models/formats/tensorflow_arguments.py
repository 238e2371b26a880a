"""The keyword arguments of the official TensorFlow functions that build StyleGAN and StyleGAN2.

Their defaults are ours, unless said otherwise: a pickle has those alone that a training run gave.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Arguments:
    """The keyword arguments of an official function, and what they are called here."""

    names: Mapping[str, str]  # official name: ours, where a dot stands for a nested dictionary
    defaults: Mapping[str, Any]  # where the official ones are not ours
    fixed: Mapping[str, tuple[Any, ...]]  # the only values that our arithmetic has
    ignored: Iterable[str]  # without influence on a trained network

    def translated(self, static_kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Our arguments.

        Raises:
            ValueError: an argument, or its value, is none that we have.
        """
        if unknown := sorted(set(static_kwargs) - {*self.names, *self.fixed, *self.ignored}):
            raise ValueError(f"unknown arguments {', '.join(unknown)}; known: {', '.join(sorted(self.names))}")
        ours: dict[str, Any] = {}
        for name, value in {**self.defaults, **static_kwargs}.items():
            if name in self.fixed and value not in self.fixed[name]:
                allowed = " or ".join(map(repr, self.fixed[name]))
                raise ValueError(f"{name}={value!r} is not supported, only {allowed}")
            if name in self.names:
                group, _, field = self.names[name].rpartition(".")
                into = ours.setdefault(group, {}) if group else ours
                # TensorFlow counts channels from a base at twice the resolution
                into[field] = 2 * value if name == "fmap_base" else value
        return ours


_SHARED_NAMES = {"fmap_base": "channel_base", "fmap_max": "channel_max"}
_SHARED_FIXED: dict[str, tuple[Any, ...]] = {
    "fmap_decay": (1, 1.0),
    "normalize_latents": (True,),
    "nonlinearity": ("lrelu",),
    "mapping_nonlinearity": ("lrelu",),
    "dtype": ("float32",),
    "mapping_func": ("G_mapping",),
}
_OF_TRAINING_OR_SAMPLING = (
    *("truncation_psi", "truncation_cutoff", "truncation_psi_val", "truncation_cutoff_val", "style_mixing_prob"),
    *("is_training", "is_validation", "return_dlatents", "is_template_graph", "randomize_noise", "structure"),
    *("force_clean_graph", "dlatent_broadcast", "components", "func_name", "fused_modconv", "fmap_min"),
)
_STYLEGAN1_FIXED: dict[str, tuple[Any, ...]] = {
    **_SHARED_FIXED,
    "synthesis_func": ("G_synthesis",),
    "use_styles": (True,),
    "const_input_layer": (True,),
    "use_noise": (True,),
    "use_pixel_norm": (False,),
    "use_instance_norm": (True,),
    "blur_filter": ([1, 2, 1], (1, 2, 1)),
}
STYLEGAN1_GENERATOR = Arguments(
    names={
        **_SHARED_NAMES,
        "resolution": "resolution",
        "num_channels": "img_channels",
        "label_size": "num_classes",
        "latent_size": "z_dim",
        "dlatent_size": "w_dim",
        "mapping_layers": "mapping_layers",
        "mapping_fmaps": "mapping_features",
        "mapping_lrmul": "mapping_lr_multiplier",
        "dlatent_avg_beta": "w_avg_beta",
        "use_wscale": "equalized",
        "fused_scale": "fused_scale",
    },
    defaults={"resolution": 1024},
    fixed=_STYLEGAN1_FIXED,
    ignored=_OF_TRAINING_OR_SAMPLING,
)
STYLEGAN1_DISCRIMINATOR = Arguments(
    names={
        **_SHARED_NAMES,
        "resolution": "resolution",
        "num_channels": "img_channels",
        "label_size": "num_classes",
        "use_wscale": "equalized",
        "mbstd_group_size": "mbstd_group_size",
        "mbstd_num_features": "mbstd_num_channels",
    },
    defaults={"resolution": 32, "num_channels": 1},
    fixed=_STYLEGAN1_FIXED,
    ignored=(*_OF_TRAINING_OR_SAMPLING, "fused_scale"),  # both of its forms are the same operator
)
STYLEGAN2_GENERATOR = Arguments(  # to the arguments of the official PyTorch class, which are many more
    names={
        "resolution": "img_resolution",
        "num_channels": "img_channels",
        "label_size": "c_dim",
        "latent_size": "z_dim",
        "dlatent_size": "w_dim",
        "mapping_layers": "mapping_kwargs.num_layers",
        "mapping_fmaps": "mapping_kwargs.layer_features",
        "label_fmaps": "mapping_kwargs.embed_features",
        "mapping_lrmul": "mapping_kwargs.lr_multiplier",
        "dlatent_avg_beta": "mapping_kwargs.w_avg_beta",
        "w_avg_beta": "mapping_kwargs.w_avg_beta",
        "fmap_base": "synthesis_kwargs.channel_base",
        "fmap_max": "synthesis_kwargs.channel_max",
        "num_fp16_res": "synthesis_kwargs.num_fp16_res",
        "conv_clamp": "synthesis_kwargs.conv_clamp",
        "architecture": "synthesis_kwargs.architecture",
        "resample_kernel": "synthesis_kwargs.resample_filter",
    },
    defaults={"resolution": 1024},
    fixed={**_SHARED_FIXED, "synthesis_func": ("G_synthesis_stylegan2", "G_synthesis"), "use_noise": (True,)},
    ignored=_OF_TRAINING_OR_SAMPLING,
)
STYLEGAN2_DISCRIMINATOR = Arguments(
    names={
        **_SHARED_NAMES,
        "resolution": "img_resolution",
        "num_channels": "img_channels",
        "num_fp16_res": "num_fp16_res",
        "conv_clamp": "conv_clamp",
        "architecture": "architecture",
        "resample_kernel": "block_kwargs.resample_filter",
        "mbstd_group_size": "epilogue_kwargs.mbstd_group_size",
        "mbstd_num_features": "epilogue_kwargs.mbstd_num_channels",
    },
    defaults={"resolution": 1024},
    # labels choose an output in TensorFlow, and are projected on in PyTorch; no conditional one was published
    fixed={**_SHARED_FIXED, "label_size": (0,)},
    ignored=_OF_TRAINING_OR_SAMPLING,
)
