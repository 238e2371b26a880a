"""The arguments of commands that have many."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.weights import WEIGHTS

# of `bench.kernel_speed.contenders` and `bench.kernel_speed.ceilings`, which take seconds to import
KERNEL_BASELINES = ("eager", "grouped", "compiled")
KERNEL_DTYPES = ("float16", "bfloat16", "tf32", "float32")


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
    what.add_argument(
        "--prompts", type=Path, metavar="FILE", help="texts for text-conditional models: .jsonl, .tsv, or one a line"
    )
    what.add_argument(
        "--reference", type=Path, action="append", default=[], metavar="FILE",
        help="statistics of a reference set that `reference` made; may be given again",
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


def add_merging(parser: argparse.ArgumentParser) -> None:
    """What `merge` brings together."""
    parser.add_argument("parts", type=Path, nargs="+", metavar="DIR", help="run folders of `run --shard I/N`")
    parser.add_argument("--output", "-o", type=Path, required=True, metavar="DIR", help="folder of the whole run")


def add_reporting(parser: argparse.ArgumentParser) -> None:
    """What `report` shows."""
    parser.add_argument("run", type=Path, nargs="?", help="run folder; default: the latest")
    parser.add_argument("--publish", metavar="NAME", help="copy to results/tables/NAME.* and into the README")


def add_referencing(parser: argparse.ArgumentParser) -> None:
    """What `reference` does with statistics."""
    kinds = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = kinds.add_parser("build", help="from the images of a data set")
    build.add_argument("dataset", help="a data set (`ls datasets`), a folder or a zip")
    build.add_argument("--data", type=Path, metavar="DIR", help="folder of data sets")
    build.add_argument(
        "--protocol", default="fid50k_full@sg3", metavar="NAME", help="whose network; default: %(default)s"
    )
    build.add_argument("--limit", type=int, metavar="N", help="the first N images only, to try it out")
    build.add_argument("--batch-size", type=int, default=32, metavar="N")
    build.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    build.add_argument("--output", "-o", type=Path, metavar="FILE", help="safetensors file to write")
    add_network_weights(build)
    import_ = kinds.add_parser("import", help="from an official npz of ADM or EDM")
    import_.add_argument("source", type=Path, metavar="NPZ")
    import_.add_argument("dataset", help="the data set that it is of")
    import_.add_argument("--count", type=int, required=True, metavar="N", help="of how many images it was made")
    import_.add_argument(
        "--convention", required=True, metavar="NAME", help="for protocols that end in @NAME, such as adm"
    )
    import_.add_argument("--output", "-o", type=Path, required=True, metavar="FILE", help="safetensors file to write")
    for added in (build, import_):
        added.add_argument("--resolution", type=int, required=True, help="width and height in pixels")
    export = kinds.add_parser("export", help="as an npz with mu and sigma")
    export.add_argument("source", type=Path, metavar="FILE")
    export.add_argument("destination", type=Path, metavar="NPZ")
    kinds.add_parser("show", help="what it was made of").add_argument("source", type=Path, metavar="FILE")


def add_conversion(parser: argparse.ArgumentParser) -> None:
    """What `convert` reads and writes."""
    read = "a .pkl, .pth, .pt or .bin; nothing of it is executed"
    parser.add_argument("source", type=Path, metavar="SRC", help=read)
    parser.add_argument("destination", type=Path, metavar="DEST", help="the .safetensors file to write")
    parser.add_argument("--network", choices=["G_ema", "G", "D"], default="G_ema", help="default: G_ema")
    parser.add_argument("--force", action="store_true", help="replace DEST if it is there")


def add_training(parser: argparse.ArgumentParser) -> None:
    """What `train` trains on, and how long."""
    parser.add_argument("dataset", help="`shapes`, a folder or a zip")
    parser.add_argument("--resolution", type=int, required=True, help="width and height in pixels")
    parser.add_argument("--minutes", type=float, default=60.0, help="when to stop; default: 60")
    parser.add_argument("--output", "-o", type=Path, required=True, metavar="FILE", help="safetensors file to write")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def add_compiling(parser: argparse.ArgumentParser) -> None:
    """What `compile` compiles."""
    parser.add_argument("--update", action="store_true", help="write the table kernels/compiled.csv")
    parser.add_argument("--only", default="*", metavar="GLOB", help="cases to compile: 'upfirdn2d/*'")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {number}; allowed are whole numbers from 1 up")
    return number


def add_kernels(parser: argparse.ArgumentParser) -> None:
    """What `kernels` measures, against what, and for how long."""
    batches = "default: 4, on a GPU 16 4 64 1"
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="time to take; default: 60, on a GPU 540")
    parser.add_argument(
        "--only", default="*", metavar="GLOB", help="rows: 'filtered_lrelu/*', '*/b64.conv1', 'check/*'"
    )
    parser.add_argument("--against", nargs="+", choices=KERNEL_BASELINES, help="default: all, on a CPU grouped")
    parser.add_argument("--batch-size", type=_positive, nargs="+", metavar="N", help=batches)
    parser.add_argument("--dtype", nargs="+", choices=KERNEL_DTYPES, help="default: float32, on a GPU float16")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew, where a cut run could go on")
    parser.add_argument("--output", "-o", type=Path, metavar="DIR", help="where page, figures and JSON are written")
    parser.add_argument("--no-record", action="store_true", help="add nothing to results/history")


def add_recording(parser: argparse.ArgumentParser) -> None:
    """How long `speed` measures, and whether the history keeps it."""
    parser.add_argument("--budget", type=float, default=300.0, metavar="SECONDS", help="time to measure; default: 300")
    parser.add_argument("--batch-size", type=_positive, default=4, metavar="N")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N; default: cpu")
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
