"""From official checkpoints to networks of this program: which network it is, its arguments, its state dict.

The families use the same class names, and the files don't say reliably which code wrote them. So they are told apart by
the names in their state dicts. Constructor arguments come from the file; where code of two repositories takes different
things for granted, the attributes of the layers decide.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from models.formats.checkpoint_tree import Name, Node, RefusedError, StoredTensor, shown
from models.formats.module_tree import Module, StoredState, check_sizes, plain

if TYPE_CHECKING:
    from models.formats.tensorflow_names import TensorFlowNetwork

NETWORKS = ("G_ema", "G", "D")
_TENSORFLOW = Name("dnnlib.tflib.network", "Network")
_TENSORFLOW_ORDER = ("G", "D", "G_ema")
_MAX_COMPONENTS = 4  # of a TensorFlow network: a mapping and a synthesis network
_SHARED_BYTES = 2**20  # of tensors that a file may hold once and name often, such as filters
# of the CLIP in StyleGAN-T's files: the temperature that images and texts are compared with; no generator needs it
_UNUSED = "mapping.clip.model.logit_scale"
_STATE_DICT_KEYS = ("state_dict", "model", "ema")  # some files have their state dict under one of these


@dataclass(frozen=True, slots=True)
class Recovered:
    """A network of a file: `build_target(target, kwargs)` makes it, and `state` is its state dict."""

    target: str
    kwargs: dict[str, Any]
    state: Mapping[str, Tensor]


class UnknownNetworkError(RefusedError):
    """The file could be read, but no network of this program has such weights."""


def recover(tree: object, network: str, size_bytes: int) -> Recovered:
    """Find a network in the tree of a checkpoint of that size.

    Raises:
        UnknownNetworkError: it is none that this program has.
        RefusedError: it is not in the file, or damaged.
        ValueError: its arguments are none that this program's network has.
    """
    found = find(tree, network)
    try:
        if isinstance(found, Module) and found.node.cls == _TENSORFLOW:
            return _from_tensorflow(found, size_bytes)
        state = found if isinstance(found, StoredState) else found.state()
        _check_total(state.tensors.values(), size_bytes)
        if isinstance(found, StoredState):
            return _from_state(found)
        adapt = next((adapt for applies, adapt in _ADAPTERS if applies(state)), None)
        if adapt is None:
            raise UnknownNetworkError(_unknown(found.class_name, state))
        state.tensors.pop(_UNUSED, None)
        return Recovered(*adapt(found, state), state)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        reason = shown(error or type(error).__name__)
        raise RefusedError(f"what it says of its {network} is damaged: {reason}") from error


def _check_total(tensors: Iterable[StoredTensor], size_bytes: int) -> None:
    """Refuse more tensors than a file of that size can hold: a file can name the same bytes again and again."""
    total = sum(tensor.numel * tensor.dtype.itemsize for tensor in tensors)
    if total > 2 * size_bytes + _SHARED_BYTES:
        raise RefusedError(f"refused: tensors of {total:,} bytes in a file of {size_bytes:,}")


def find(tree: object, network: str) -> Module | StoredState:
    """The module of a network in the tree, or the state dict where a file has nothing else.

    Raises:
        RefusedError: it has neither; the message says what it has.
    """
    if network not in NETWORKS:
        raise RefusedError(f"no network {network!r}; there are {', '.join(NETWORKS)}")
    if isinstance(tree, tuple | list) and len(tree) == 3 and all(isinstance(part, Node) for part in tree):
        return Module(tree[_TENSORFLOW_ORDER.index(network)])
    if isinstance(tree, Node):
        return Module(tree)
    if not isinstance(tree, dict):
        raise RefusedError(f"it holds a {type(tree).__name__}, not networks or a state dict")
    wanted = tree.get(network) or (tree.get("ema") if network == "G_ema" else None)
    if isinstance(wanted, Node):
        return Module(wanted)
    if state := _state_dict(wanted) or _state_dict(tree):
        return state
    for key in _STATE_DICT_KEYS:
        if state := _state_dict(tree.get(key)):
            return state
    names = [shown(name, 40) for name, value in tree.items() if isinstance(name, str) and isinstance(value, Node)]
    raise RefusedError(f"it has no network {network}; its networks are {shown(', '.join(names) or 'none', 200)}")


def _state_dict(tree: object) -> StoredState | None:
    if not isinstance(tree, dict) or not tree:
        return None
    if not all(isinstance(name, str) and isinstance(value, StoredTensor) for name, value in tree.items()):
        return None
    return StoredState(tree)


def _unknown(class_name: str, state: Mapping[str, Tensor]) -> str:
    what = f"{class_name} with {len(state)} tensors ({', '.join(shown(name, 60) for name in list(state)[:3])}, ...)"
    if any(name.startswith("model.map_layer0.") for name in state):
        return f"it holds {what}, a diffusion network of EDM or PFGM++; this version has no such network yet"
    return f"it holds {what}; this version has no such network"


def _from_state(state: StoredState) -> Recovered:
    """BigGAN, whose files have state dicts and nothing else."""
    from models import biggan, biggan_config, biggan_deep, biggan_deep_config
    from models.training import biggan_discriminator

    if "generator.gen_z.weight_orig" in state:
        deep = biggan_deep_config.config_from_state(state.shapes)
        return Recovered(biggan_deep.BigGANDeepGenerator.target, dataclasses.asdict(deep), state)
    if "output_layer.0.gain" in state:
        config = biggan_config.config_from_state(state.shapes)
        return Recovered(biggan.BigGANGenerator.target, dataclasses.asdict(config), state)
    if "embed.weight" in state and "linear.weight" in state and "blocks.0.0.conv1.weight" in state:
        judge = biggan_discriminator.discriminator_config_from_state(state.shapes)
        return Recovered(biggan_discriminator.BigGANDiscriminator.target, dataclasses.asdict(judge), state)
    raise UnknownNetworkError(_unknown("a state dict", state))


def _from_tensorflow(module: Module, size_bytes: int) -> Recovered:
    from models.formats.tensorflow_names import convert_tensorflow

    within = module.node.attributes.get("components")
    components = {name: Module(node) for name, node in within.items()} if isinstance(within, dict) else {}
    if len(components) > _MAX_COMPONENTS or not all(isinstance(part.node, Node) for part in components.values()):
        raise RefusedError("a TensorFlow network whose components are damaged or too many")
    variables = {name: _variables(part.node.attributes.get("variables")) for name, part in components.items()}
    own = _variables(module.node.attributes.get("variables"))
    _check_total([tensor for tensors in (own, *variables.values()) for tensor in tensors.values()], size_bytes)
    made = {str(name): _tensorflow_network(part, variables[name], {}) for name, part in components.items()}
    return Recovered(*convert_tensorflow(_tensorflow_network(module, own, made)))


def _tensorflow_network(
    module: Module, variables: Mapping[str, StoredTensor], components: Mapping[str, TensorFlowNetwork]
) -> TensorFlowNetwork:
    from models.formats.tensorflow_names import TensorFlowNetwork

    attributes = {"name": "", "build_func_name": "", **module.attributes("name", "build_func_name")}
    static_kwargs = plain(module.node.attributes.get("static_kwargs") or {})
    check_sizes(static_kwargs)
    arrays = {name: value.load().numpy() for name, value in variables.items()}
    names = str(attributes["name"]), str(attributes["build_func_name"])
    return TensorFlowNetwork(*names, static_kwargs, arrays, components)


def _variables(pairs: object) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for pair in pairs if isinstance(pairs, list) else ():
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise RefusedError("a variable of a TensorFlow network without a name")
        if not isinstance(pair[1], StoredTensor):
            raise RefusedError(f"variable {shown(pair[0])} is no array")
        found[pair[0]] = pair[1]
    return found


def _stylegan2(module: Module, state: StoredState) -> tuple[str, dict[str, Any]]:  # noqa: ARG001
    from models.stylegan2 import StyleGAN2Generator
    from models.stylegan2_config import official_config

    kwargs = module.arguments()
    # only StyleGAN2-ADA passes the arguments of the synthesis network in a group of their own
    repository = "networks" if "synthesis_kwargs" in kwargs else "networks_stylegan2"
    config = official_config(f"training.{repository}.Generator", kwargs)
    found = _precision(module.child("synthesis"), "conv1") | _attributes(module.child("mapping"), "w_avg_beta")
    return StyleGAN2Generator.target, dataclasses.asdict(dataclasses.replace(config, **found))


def _stylegan2_discriminator(module: Module, state: StoredState) -> tuple[str, dict[str, Any]]:  # noqa: ARG001
    from models.training.stylegan2_discriminator import StyleGAN2Discriminator, official_discriminator_config

    # the attributes of the layers decide what the two repositories take for granted
    config = official_discriminator_config("training.networks_stylegan2.Discriminator", module.arguments())
    found = _precision(module, "conv0")
    return StyleGAN2Discriminator.target, dataclasses.asdict(dataclasses.replace(config, **found))


def _stylegan3(module: Module, state: StoredState) -> tuple[str, dict[str, Any]]:  # noqa: ARG001
    from models.stylegan3 import StyleGAN3Generator
    from models.stylegan3_config import OFFICIAL_CLASS, official_config

    return StyleGAN3Generator.target, dataclasses.asdict(official_config(OFFICIAL_CLASS, module.arguments()))


def _stylegan_xl(module: Module, state: StoredState) -> tuple[str, dict[str, Any]]:
    from models import stylegan_xl_config
    from models.stylegan_xl import StyleGANXLGenerator

    named = {name: found for name, found in module.walk() if _PARTS_OF_STYLEGAN_XL.fullmatch(name)}
    if len(named) > _MAX_PARTS:
        raise RefusedError(f"a StyleGAN-XL of {len(named)} modules")
    modules = {name: found.attributes() for name, found in named.items()}
    if any("in_cutoff" in attributes for attributes in modules.values()):
        # the arguments of a super-resolution stage don't say what it stands on, and the layers say all
        config = stylegan_xl_config.config_from_modules(modules, state)
    elif module.class_name == "SuperresGenerator":
        raise RefusedError("a super-resolution stage whose layers have no attributes, which alone tell its stem")
    else:
        config = stylegan_xl_config.official_config(stylegan_xl_config.OFFICIAL_CLASS, module.arguments())
        config = stylegan_xl_config.fitted_to_state(config, state)
    return StyleGANXLGenerator.target, config.to_kwargs()


_PARTS_OF_STYLEGAN_XL = re.compile(r"mapping|mapping\.fc0|synthesis|synthesis\.(input|L\d+_\d+_\d+)")
_MAX_PARTS = 128


def _stylegan_t(module: Module, state: StoredState) -> tuple[str, dict[str, Any]]:
    from models.stylegan_t import StyleGANTGenerator
    from models.stylegan_t_config import config_from_state, official_config

    found: dict[str, Any] = {}
    if arguments := module.arguments():
        given = official_config("networks.generator.Generator", {**arguments, "conditional": False})
        found = {name: getattr(given, name) for name in _TRACELESS_OF_STYLEGAN_T}
    found |= _precision(module.child("synthesis"), "convs1", "0")
    for name, part in module.walk():
        wanted = [trace for trace in _TRACES_OF_STYLEGAN_T if name.endswith(trace[0])]
        for _, attribute, field in wanted:
            found |= {field: value for value in _attributes(part, attribute).values()}  # noqa: B035  # none or one
    return StyleGANTGenerator.target, dataclasses.asdict(config_from_state(state.shapes, **found))


# what the shapes don't tell: official arguments, and where the layers keep it
_TRACELESS_OF_STYLEGAN_T = (
    "conv_clamp", "num_fp16_res", "mapping_activation", "mapping_lr_multiplier", "x_avg_beta", "activation",
    "layer_scale_init", "gn_groups",
)  # fmt: skip
_TRACES_OF_STYLEGAN_T = (
    ("mapping", "x_avg_beta", "x_avg_beta"),
    ("mapping.mlp.fc0", "bias_gain", "mapping_lr_multiplier"),
    ("mapping.mlp.fc0", "activation", "mapping_activation"),
    (".convs1.0", "activation", "activation"),
    (".convs1.1.norm", "num_groups", "gn_groups"),
)


def _attributes(module: Module | None, *names: str) -> dict[str, Any]:
    """Those of the plain attributes that are there."""
    return module.attributes(*names) if module else {}


def _precision(parent: Module | None, *layer: str) -> dict[str, Any]:
    """The clamp of the layers and the number of float16 blocks, as far as the blocks of a StyleGAN2 tell."""
    blocks = [block for name, block in parent.children().items() if name[1:].isdecimal()] if parent else []
    flags = [flag for block in blocks for flag in _attributes(block, "use_fp16").values()]
    found: dict[str, Any] = {"num_fp16_res": sum(flag is True for flag in flags)} if flags else {}
    for block in blocks:
        found |= _attributes(block.child(*layer), "conv_clamp")
    return found


_Adapter = Callable[[Module, StoredState], tuple[str, dict[str, Any]]]
_ADAPTERS: list[tuple[Callable[[StoredState], bool], _Adapter]] = [
    (lambda state: "synthesis.b4.const" in state, _stylegan2),
    (lambda state: "b4.out.weight" in state and "b4.conv.weight" in state, _stylegan2_discriminator),
    (lambda state: "mapping.embed.weight" in state and "mapping.embed.bias" not in state, _stylegan_xl),
    (lambda state: "synthesis.input.freqs" in state, _stylegan3),
    (lambda state: "mapping.x_avg" in state, _stylegan_t),
]
