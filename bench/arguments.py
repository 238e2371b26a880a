"""The arguments of commands that have many."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.weights import WEIGHTS


def _weights_argument(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    return (name, Path(path)) if equals else ("", Path(text))


def add_selection(parser: argparse.ArgumentParser) -> None:
    """What `plan`, `run` and the main job have in common."""
    what = parser.add_argument_group("what is run")
    what.add_argument("--suite", default="auto", help="a suite (`ls suites`) or a .toml file")
    what.add_argument("--data", type=Path, metavar="DIR", help="folder of data sets; default: $STYLEBENCH_DATA")
    what.add_argument(
        "--model", action="append", default=[], metavar="NAME", help="run this model, not the suite's; may be repeated"
    )
    what.add_argument("--only", metavar="GLOB", help="entries or models to keep: 'ffhq-*', 'stylegan2-*'")
    what.add_argument("--limit", type=int, metavar="N", help="images of each subject; numbers then carry N")
    what.add_argument("--seed", type=int, help="seed of samples, splits and random weights; default: the suite's")
    what.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    what.add_argument("--batch-size", type=int, metavar="N", help="images a step; does not change the samples")
    what.add_argument(
        "--weights", type=_weights_argument, action="append", default=[], metavar="[MODEL=]FILE",
        help="safetensors of a model, instead of random weights; may be given again",
    )  # fmt: skip
    add_network_weights(parser)


def add_network_weights(parser: argparse.ArgumentParser) -> None:
    """Files of feature networks, and whether the network may be asked."""
    group = parser.add_argument_group("feature networks")
    for name, file in WEIGHTS.items():
        group.add_argument(f"--{name}-weights", type=Path, metavar="FILE", help=f"serves {file.serves}")
    group.add_argument("--offline", action="store_true", help="never ask the network for anything")


def add_execution(parser: argparse.ArgumentParser) -> None:
    """Where a run goes, and how it goes on."""
    how = parser.add_argument_group("how it is run")
    how.add_argument("--output", "-o", type=Path, metavar="DIR", help="run folder; default: results/runs/NAME")
    how.add_argument("--fresh", action="store_true", help="start anew, where an unfinished run could be resumed")
    how.add_argument("--shard", metavar="I/N", help="make only part I of N of the features; then run without --shard")


def add_generation(parser: argparse.ArgumentParser) -> None:
    """What `generate` draws."""
    parser.add_argument("model", metavar="NAME_OR_PATH", help="a model (`ls models`) or a file of one")
    parser.add_argument("--seeds", default="0-7", help="such as 0-31 or 85,265; default: 0-7")
    parser.add_argument("--classes", default="", help="such as 0-9; each with every seed. Default: class of the seed")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may be given again")
    parser.add_argument("--psi", type=float, default=1.0, help="truncation; default: 1, none")
    parser.add_argument("--cutoff", type=int, metavar="N", help="truncate the first N style vectors only")
    parser.add_argument("--centroids", type=Path, metavar="FILE", help="truncate to the nearest of these (StyleGAN-XL)")
    parser.add_argument("--noise-mode", choices=["const", "random", "none"], default="const")
    parser.add_argument("--interpolate", choices=["strip", "frames"], nargs="?", const="strip", help="seed to seed")
    parser.add_argument("--steps", type=int, default=8, metavar="N", help="images from one seed to the next")
    parser.add_argument("--out", "-o", type=Path, required=True, metavar="DIR", help="folder of the pictures")
    parser.add_argument("--force", action="store_true", help="replace pictures of other weights or settings in DIR")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="does not change the pictures")
    parser.add_argument("--random-weights", type=int, metavar="SEED", help="run NAME untrained")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--offline", action="store_true", help="never ask the network for anything")


def add_preparation(parser: argparse.ArgumentParser) -> None:
    """How `dataset` prepares images."""
    from bench.prepare import CROPS, FILTERS

    parser.add_argument("source", metavar="SRC", help="folder, zip, CIFAR-10 archive, or `shapes`")
    parser.add_argument("destination", type=Path, metavar="DEST", help="the zip to write, such as ffhq-64x64.zip")
    parser.add_argument("--resolution", type=int, required=True, help="width and height in pixels")
    parser.add_argument("--crop", choices=CROPS, default="center", help="how to make images square")
    parser.add_argument("--filter", choices=FILTERS, default="lanczos", help="resampling filter; part of the recipe")
    parser.add_argument("--max-images", type=int, metavar="N", help="take a fixed random choice of N images")
    parser.add_argument("--force", action="store_true", help="replace DEST if it is there")


def add_recording(parser: argparse.ArgumentParser) -> None:
    """How long `kernels` and `speed` measure, and whether the history keeps it."""
    parser.add_argument("--batch-size", type=int, default=4, metavar="N")
    parser.add_argument("--no-record", action="store_true", help="add nothing to results/history")


def add_gate(parser: argparse.ArgumentParser) -> None:
    """What `gate` compares."""
    parser.add_argument("--base", required=True, metavar="REF", help="branch, tag or commit that the work goes into")
    parser.add_argument("--kernels", default="*", metavar="GLOB", help="kernels to compare: 'upfirdn2d', 'mod*'")
    parser.add_argument("--budget", type=float, default=120.0, metavar="SECONDS", help="time to measure; default: 120")
    parser.add_argument(
        "--no-gpu", action="store_true", help="compare CPU formulations, and what all kernels compile to"
    )


def add_trend(parser: argparse.ArgumentParser) -> None:
    """What `trend` draws."""
    parser.add_argument("--machine", default="*", metavar="GLOB", help="machines: folders of results/history")
    parser.add_argument("--kernel", default="*", metavar="GLOB", help="kernels, layers or models: 'upfirdn2d*'")
    parser.add_argument("--output", "-o", type=Path, metavar="DIR", help="where to draw; default: results/plots")
