"""The command line: each command parses, builds a spec, and makes one call."""

from __future__ import annotations

import argparse
import difflib
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from bench.arguments import (
    add_execution,
    add_gate,
    add_generation,
    add_network_weights,
    add_preparation,
    add_recording,
    add_selection,
    add_trend,
)
from bench.errors import UserError

COMMANDS_HELP = """\
With no command the main job runs: doctor, plan, run, report.

examples:
  python -m bench                                   the embedded data set, under three minutes on a CPU
  python -m bench --data ~/datasets                 CIFAR-10, FFHQ, ImageNet, Pokemon zips found there
  python -m bench plan --suite paper --data DIR     what would run, and how long it would take
  python -m bench report results/runs/NAME          write the tables and plots of a run again
"""
EXAMPLES = {
    "main": "python -m bench --data ~/datasets --inception-weights weights-inception-2015-12-05-6726825d.pth",
    "doctor": "python -m bench doctor --offline",
    "ls": "python -m bench ls models",
    "plan": "python -m bench plan --data ~/datasets --only 'ffhq-*'",
    "run": "python -m bench run --suite data-cpu --data ~/datasets --limit 64 --output /tmp/try",
    "report": "python -m bench report results/runs/20260101T000000Z-cpu-smoke-0123abcd",
    "fetch": "python -m bench fetch inception vgg16 vgg16-lpips stylegan2-ffhq-256",
    "convert": "python -m bench convert stylegan3-t-ffhq-1024x1024.pkl stylegan3-t-ffhq-1024.safetensors",
    "generate": "python -m bench generate stylegan2-shapes-32 --seeds 0-7 --classes 0-9 --out /tmp/shapes",
    "dataset": "python -m bench dataset ~/photos ffhq-64x64.zip --resolution 64 --crop center --filter lanczos",
    "train": "python -m bench train shapes --resolution 32 --minutes 60 -o mine.safetensors",
    "kernels": "python -m bench kernels --budget 60",
    "compile": "python -m bench compile --only 'upfirdn2d/*' --update",
    "speed": "python -m bench speed stylegan2-f-64 stylegan3-t-64 --batch-size 4",
    "gate": "python -m bench gate --base main --kernels 'upfirdn2d*' --no-gpu",
    "trend": "python -m bench trend --kernel 'modulated_conv2d/b64.*'",
}


class Parser(argparse.ArgumentParser):
    """Names the nearest flag when one is not known."""

    def every_parser(self) -> list[argparse.ArgumentParser]:
        """This parser and those of its commands."""
        groups = [action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return [self, *(parser for group in groups for parser in group.values())]

    def error(self, message: str) -> None:  # type: ignore[override]
        """Print one message and leave with status 2."""
        words = [word for parser in self.every_parser() for a in parser._actions for word in a.option_strings]
        unknown = next((word for word in message.split() if word.startswith("-")), "")
        near = difflib.get_close_matches(unknown, words, n=1, cutoff=0.6) if "unrecognized" in message else []
        hint = f" Did you mean {near[0]}?" if near else ""
        self.exit(2, f"{self.prog}: {message}.{hint}\nSee `{self.prog} --help`.\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m bench", description=__doc__, epilog=COMMANDS_HELP, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def command(name: str, summary: str, handler: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        example = f"example:\n  {EXAMPLES[name]}\n"
        added = commands.add_parser(name, help=summary, description=summary, epilog=example, formatter_class=raw)
        added.set_defaults(handler=handler)
        return added

    main_job = command("main", "doctor, plan, run and report in one (the default)", run_main_job)
    add_selection(main_job)
    add_execution(main_job)
    add_network_weights(command("doctor", "look at the environment, the GPU, the network and the caches", run_doctor))
    ls = command("ls", "list what there is", run_ls)
    ls.add_argument("kind", choices=["models", "suites", "protocols", "datasets", "weights", "kernels", "runs"])
    add_selection(command("plan", "say what would run, how long, and what it needs", run_plan))
    run = command("run", "run a suite; the same command resumes a run that was cut", run_suite)
    add_selection(run)
    add_execution(run)
    report = command("report", "write tables and plots of a run", run_report)
    report.add_argument("run", type=Path, nargs="?", help="run folder; default: the latest")
    report.add_argument("--publish", metavar="NAME", help="copy to results/tables/NAME.* and into the README")
    fetch = command("fetch", "download weights of networks and models into the cache", run_fetch)
    fetch.add_argument("names", nargs="+", metavar="NAME", help="see `python -m bench ls weights` and `ls models`")
    convert = command("convert", "read an official checkpoint as data and write it as safetensors", run_convert)
    convert.add_argument(
        "source", type=Path, metavar="SRC", help="a .pkl, .pth, .pt or .bin; nothing of it is executed"
    )
    convert.add_argument("destination", type=Path, metavar="DEST", help="the .safetensors file to write")
    convert.add_argument("--network", choices=["G_ema", "G", "D"], default="G_ema", help="default: G_ema")
    convert.add_argument("--force", action="store_true", help="replace DEST if it is there")
    add_generation(command("generate", "draw pictures: seeds, classes, prompts, interpolations", run_generate))
    dataset = command("dataset", "make a data set zip: crop, resize, keep labels and captions", run_dataset)
    add_preparation(dataset)
    train = command("train", "train a small StyleGAN2, as the shipped weights were made", run_train)
    train.add_argument("dataset", help="`shapes`, a folder or a zip")
    train.add_argument("--resolution", type=int, required=True, help="width and height in pixels")
    train.add_argument("--minutes", type=float, default=60.0, help="when to stop; default: 60")
    train.add_argument("--output", "-o", type=Path, required=True, metavar="FILE", help="safetensors file to write")
    train.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    kernels = command("kernels", "check, then time the kernels of this machine", run_kernels)
    kernels.add_argument("--budget", type=float, default=60.0, metavar="SECONDS", help="time to measure; default: 60")
    add_recording(kernels)
    compile_ = command("compile", "compile the kernels, without a GPU, and compare with the table", run_compile)
    compile_.add_argument("--update", action="store_true", help="write the table kernels/compiled.csv")
    compile_.add_argument("--only", default="*", metavar="GLOB", help="cases to compile: 'upfirdn2d/*'")
    speed = command("speed", "time generators beside the naive formulation of the same networks", run_speed)
    speed.add_argument("models", nargs="*", metavar="NAME", help="default: each family at 32, 64 and 256 pixels")
    speed.add_argument("--budget", type=float, default=300.0, metavar="SECONDS", help="time to measure; default: 300")
    add_recording(speed)
    add_gate(command("gate", "fail if a kernel is slower than where this branch began", run_speed_gate))
    add_trend(command("trend", "draw the history of speed, with the commits that changed it", run_trend))
    return parser


def run_main_job(arguments: argparse.Namespace) -> int:
    """Doctor, plan, run, report."""
    from bench.commands import main_job

    return main_job(arguments)


def run_doctor(arguments: argparse.Namespace) -> int:
    """Print the findings; status 1 if one is bad."""
    from bench.commands import doctor

    return doctor(arguments)


def run_ls(arguments: argparse.Namespace) -> int:
    """Print a registry."""
    from bench.listing import list_kind

    print("\n".join(list_kind(arguments.kind)))
    return 0


def run_plan(arguments: argparse.Namespace) -> int:
    """Print the plan."""
    from bench.commands import plan

    return plan(arguments)


def run_suite(arguments: argparse.Namespace) -> int:
    """Run without the talk around it."""
    from bench.commands import run

    return run(arguments)


def run_report(arguments: argparse.Namespace) -> int:
    """Write the report of a run again."""
    from bench.commands import report

    return report(arguments.run, arguments.publish)


def run_fetch(arguments: argparse.Namespace) -> int:
    """Fetch weights."""
    from bench.commands import fetch

    return fetch(arguments.names)


def run_convert(arguments: argparse.Namespace) -> int:
    """Convert a checkpoint."""
    from bench.convert import convert_checkpoint

    print(convert_checkpoint(arguments.source, arguments.destination, arguments.network, force=arguments.force))
    return 0


def run_generate(arguments: argparse.Namespace) -> int:
    """Draw pictures."""
    from bench.commands import draw

    return draw(arguments)


def run_dataset(arguments: argparse.Namespace) -> int:
    """Prepare a data set."""
    from bench.prepare import PreparationSpec, prepare_dataset

    names = ("source", "destination", "resolution", "crop", "filter", "max_images", "force")
    prepare_dataset(PreparationSpec(**{name: getattr(arguments, name) for name in names}))
    return 0


def run_train(arguments: argparse.Namespace) -> int:
    """Train a small generator."""
    from bench.commands import train

    return train(arguments)


def run_kernels(arguments: argparse.Namespace) -> int:
    """Time the kernels."""
    from bench.commands import time_kernels

    return time_kernels(arguments.budget, arguments.batch_size, record=not arguments.no_record)


def run_speed(arguments: argparse.Namespace) -> int:
    """Time generators."""
    from bench.commands import time_models

    return time_models(arguments.models, arguments.budget, arguments.batch_size, record=not arguments.no_record)


def run_compile(arguments: argparse.Namespace) -> int:
    """Compile the kernels ahead of time."""
    from bench.compiled_table import run_compile_gate

    return run_compile_gate(update=arguments.update, only=arguments.only)


def run_speed_gate(arguments: argparse.Namespace) -> int:
    """Compare with another version. Exit status: 0 ok, 3 regressed, 4 inconclusive, 5 incomplete."""
    from bench.gate import GateSpec, run_gate

    device, compiled = "cpu" if arguments.no_gpu else "cuda", arguments.no_gpu and arguments.kernels == "*"
    return run_gate(GateSpec(arguments.base, arguments.kernels, arguments.budget, device, compiled))


def run_trend(arguments: argparse.Namespace) -> int:
    """Draw the history."""
    from bench.trend import run_trend as draw_trend

    return draw_trend(arguments.machine, arguments.kernel, arguments.output)


def _with_default_command(argv: list[str]) -> list[str]:
    """No command means the main job; a word that is no command is an error with the nearest one."""
    if argv and argv[0] in {"-h", "--help"}:
        return argv
    if not argv or argv[0].startswith("-"):
        return ["main", *argv]
    if argv[0] not in EXAMPLES:
        near = difflib.get_close_matches(argv[0], EXAMPLES, n=1, cutoff=0.3)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"unknown command {argv[0]!r}.{hint} Commands: {', '.join(EXAMPLES)}.")
    return argv


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(argv: list[str]) -> int:
    """Run a command. Exit status: 0 done, 1 error or a failed task, 2 wrong usage, 130 interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        from bench.doctor import refuse_foreign_packages

        refuse_foreign_packages()
        arguments = build_parser().parse_args(_with_default_command(argv))
        arguments.shown_command = shlex.join(["python", "-m", "bench", *argv])
        if not hasattr(arguments, "handler"):
            build_parser().print_help()
            return 2
        status: int = arguments.handler(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return status
