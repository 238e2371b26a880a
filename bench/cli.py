"""The command line: each command parses, builds a spec, and makes one call."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from bench.arguments import (
    add_compiling,
    add_conversion,
    add_execution,
    add_gate,
    add_generation,
    add_kernels,
    add_merging,
    add_network_weights,
    add_preparation,
    add_recording,
    add_referencing,
    add_reporting,
    add_selection,
    add_training,
    add_trend,
)
from bench.errors import UserError, did_you_mean

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
    "canary": "python -m bench canary",
    "ls": "python -m bench ls models",
    "plan": "python -m bench plan --data ~/datasets --only 'ffhq-*'",
    "run": "python -m bench run --suite data-cpu --data ~/datasets --limit 64 --output /tmp/try",
    "merge": "python -m bench merge /tmp/part-1 /tmp/part-2 --output /tmp/whole",
    "delta": "python -m bench delta --data ~/datasets --only 'ffhq-256' --inception-weights FILE",
    "diff": "python -m bench diff results/runs/20260101T000000Z-cpu-smoke-0123abcd",
    "reference": "python -m bench reference build ffhq --resolution 256 --data ~/datasets --protocol fid50k_full@sg3",
    "report": "python -m bench report results/runs/20260101T000000Z-cpu-smoke-0123abcd",
    "fetch": "python -m bench fetch inception vgg16 vgg16-lpips stylegan2-ffhq-256",
    "convert": "python -m bench convert stylegan3-t-ffhq-1024x1024.pkl stylegan3-t-ffhq-1024.safetensors",
    "generate": "python -m bench generate stylegan2-shapes-32 --seeds 0-7 --classes 0-9 --out /tmp/shapes",
    "dataset": "python -m bench dataset ~/photos ffhq-64x64.zip --resolution 64 --crop center --filter lanczos",
    "train": "python -m bench train shapes --resolution 32 --minutes 60 -o mine.safetensors",
    "kernels": "python -m bench kernels --budget 540 --only 'modulated_conv2d/*' --against eager compiled",
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


Command = Callable[[str, str, str], argparse.ArgumentParser]


def _add_running(command: Command) -> None:
    """The commands that run suites."""
    main_job = command("main", "doctor, plan, run and report in one (the default)", "commands:main_job")
    add_selection(main_job)
    add_execution(main_job)
    doctor = command("doctor", "look at the environment, the GPU, the network and the caches", "commands:doctor")
    add_network_weights(doctor)
    command("canary", "ask questions with known answers: has a library changed?", "commands:canary")
    ls = command("ls", "list what there is", "listing:ls")
    ls.add_argument("kind", choices=["models", "suites", "metrics", "datasets", "weights", "kernels", "runs"])
    add_selection(command("plan", "say what would run, how long, and what it needs", "commands:plan"))
    run = command("run", "run a suite; the same command resumes a run that was cut", "commands:run")
    add_selection(run)
    add_execution(run)
    add_merging(command("merge", "bring parts of a run together that several machines made", "commands:merge"))
    delta = command("delta", "one set of images under all protocols: what is each choice worth?", "commands:delta")
    add_selection(delta)
    add_execution(delta)
    diff = command("diff", "which models of one run, or of two, can be told apart", "commands:diff")
    diff.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    add_reporting(command("report", "write tables and plots of a run", "commands:report"))
    reference = "statistics of reference sets: build, show, import, export"
    add_referencing(command("reference", reference, "reference_commands:reference"))


def _add_files(command: Command) -> None:
    """The commands that make and get files."""
    fetch = command("fetch", "download weights of networks and models into the cache", "file_commands:fetch")
    fetch.add_argument("names", nargs="+", metavar="NAME", help="see `python -m bench ls weights` and `ls models`")
    convert = "read an official checkpoint as data and write it as safetensors"
    add_conversion(command("convert", convert, "file_commands:convert"))
    add_generation(command("generate", "draw pictures: seeds, classes, prompts, interpolations", "file_commands:draw"))
    dataset = "make a data set zip: crop, resize, keep labels and captions"
    add_preparation(command("dataset", dataset, "file_commands:dataset"))
    train = "train a small StyleGAN2, as the shipped weights were made"
    add_training(command("train", train, "file_commands:train"))


def _add_speed(command: Command) -> None:
    """The commands that measure speed."""
    add_kernels(command("kernels", "check, then time the kernels of this machine", "speed_commands:kernels"))
    compile_ = "compile the kernels, without a GPU, and compare with the table"
    add_compiling(command("compile", compile_, "speed_commands:compile_kernels"))
    speed = command(
        "speed", "time generators beside the naive formulation of the same networks", "speed_commands:speed"
    )
    speed.add_argument("models", nargs="*", metavar="NAME", help="default: each family at 32, 64 and 256 pixels")
    add_recording(speed)
    add_gate(command("gate", "fail if a kernel is slower than where this branch began", "speed_commands:gate"))
    add_trend(command("trend", "draw the history of speed, with the commits that changed it", "speed_commands:trend"))


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m bench", description=__doc__, epilog=COMMANDS_HELP, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def command(name: str, summary: str, handler: str) -> argparse.ArgumentParser:
        """`handler` is "module:function" of bench, imported when the command runs: --help stays quick."""
        example = f"example:\n  {EXAMPLES[name]}\n"
        added = commands.add_parser(name, help=summary, description=summary, epilog=example, formatter_class=raw)
        added.set_defaults(handler=handler)
        return added

    _add_running(command)
    _add_files(command)
    _add_speed(command)
    return parser


def _merged(arguments: argparse.Namespace) -> argparse.Namespace:
    """The command of the first part of a run, as it would be without `--shard`."""
    from bench.run_folder import run_facts

    command = run_facts(arguments.parts[0]).get("command")
    if command is None:
        raise UserError(f"{arguments.parts[0]}: no run there. Give folders that `run --shard I/N --output DIR` made.")
    whole = build_parser().parse_args(_with_default_command(shlex.split(command)[3:]))
    return argparse.Namespace(**vars(whole) | vars(arguments) | {"shard": None, "fresh": False})


def _with_default_command(argv: list[str]) -> list[str]:
    """No command means the main job; a word that is no command is an error with the nearest one."""
    if argv and argv[0] in {"-h", "--help"}:
        return argv
    if not argv or argv[0].startswith("-"):
        return ["main", *argv]
    if argv[0] not in EXAMPLES:
        hint = did_you_mean(argv[0], EXAMPLES)
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
        if arguments.command == "merge":
            arguments = _merged(arguments)
        module, _, function = arguments.handler.partition(":")
        status: int = getattr(importlib.import_module(f"bench.{module}"), function)(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return status
