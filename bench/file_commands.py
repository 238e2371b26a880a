"""The commands that make and get files: weights, checkpoints, pictures, data sets, trained generators."""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path

from bench.convert import convert_checkpoint
from bench.datasets import open_dataset
from bench.environment import choose_device
from bench.errors import UserError
from bench.fetch import file_sha256
from bench.generate import GenerateSpec, generate, parse_numbers
from bench.model_weights import FORMATS, LoadedModel, fetch_model, load_file, load_model, model_file, model_named
from bench.offline import forbid_network, network_available
from bench.prepare import PreparationSpec, prepare_dataset
from bench.shapes import ShapesDataset
from bench.train import SHAPES_COUNT, TrainingRun, small_spec, train_on
from bench.weights import WEIGHTS, fetch_weights
from models.registry import MODELS

MAX_TRAINING_IMAGES = 10**9  # the minutes end a training


def fetch(arguments: argparse.Namespace) -> int:
    """Download weights of feature networks and of models; nothing is fetched if one name is unknown."""
    names: list[str] = arguments.names
    for name in names:
        if name not in WEIGHTS and name not in MODELS:
            near = difflib.get_close_matches(name, [*WEIGHTS, *MODELS], n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise UserError(f"no weights are called {name!r}.{hint} `ls weights` and `ls models` list what there is.")
    for name in names:
        if name in WEIGHTS:
            print(fetch_weights(name))
        else:
            path = fetch_model(name)
            print(f"{name}: {path}, sha256 {file_sha256(path)}, {model_named(name).licence}")
    return 0


def draw(arguments: argparse.Namespace) -> int:
    """Write pictures of a model or of a file of one."""
    if arguments.offline:
        forbid_network()
    for name in ("steps", "batch_size"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: it must be 1 or more")
    spec = GenerateSpec(
        seeds=parse_numbers(arguments.seeds),
        classes=parse_numbers(arguments.classes) if arguments.classes else (),
        prompts=tuple(arguments.prompt),
        truncation_psi=arguments.psi,
        truncation_cutoff=arguments.cutoff,
        centroids=arguments.centroids,
        noise_mode=arguments.noise_mode,
        interpolate=arguments.interpolate,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
    )
    model = _model_to_draw(arguments)
    print(f"weights  {model.weights}, sha256 {model.weights_sha256}")
    for path in generate(model, spec, arguments.out, force=arguments.force):
        print(f"picture  {path}")
    return 0


def _model_to_draw(arguments: argparse.Namespace) -> LoadedModel:
    device = choose_device(arguments.device)
    name = arguments.model
    if Path(name).suffix in FORMATS:
        return load_file(Path(name), device)
    classes = model_named(name).num_classes
    if arguments.random_weights is not None:
        return load_model(name, None, classes, arguments.random_weights, device)
    offline = arguments.offline or not network_available()
    path = model_file(name) or fetch_model(name, offline=offline)
    return load_model(name, path, classes, 0, device)


def train(arguments: argparse.Namespace) -> int:
    """Train a small StyleGAN2 on a data set."""
    device = choose_device(arguments.device)
    size = arguments.resolution
    is_shapes = arguments.dataset == "shapes"
    dataset = ShapesDataset(size, SHAPES_COUNT) if is_shapes else open_dataset(arguments.dataset, size)
    how = TrainingRun(minutes=arguments.minutes, device=str(device))
    digest = train_on(dataset, small_spec(dataset, images=MAX_TRAINING_IMAGES), arguments.output, how)
    print(f"weights  {arguments.output}, sha256 {digest}")
    return 0


def convert(arguments: argparse.Namespace) -> int:
    """Convert a checkpoint."""
    print(convert_checkpoint(arguments.source, arguments.destination, arguments.network, force=arguments.force))
    return 0


def dataset(arguments: argparse.Namespace) -> int:
    """Prepare a data set."""
    names = ("source", "destination", "resolution", "crop", "filter", "max_images", "force")
    prepare_dataset(PreparationSpec(**{name: getattr(arguments, name) for name in names}))
    return 0
