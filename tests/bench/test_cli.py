"""The command line as a user meets it: help, bad input, and what stays intact."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bench.cli import EXAMPLES, build_parser, main
from tests.conftest import REPOSITORY


@pytest.fixture(autouse=True)
def quiet_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of these tests may touch the user's cache, runs or data."""
    monkeypatch.setattr("bench.run_folder.RUNS", tmp_path / "results" / "runs")
    monkeypatch.setattr("bench.commands.RUNS", tmp_path / "results" / "runs")
    monkeypatch.setenv("STYLEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STYLEBENCH_DATA", raising=False)
    monkeypatch.setattr("bench.commands.network_available", lambda: False)


@pytest.mark.parametrize("command", EXAMPLES)
def test_help_of_each_command_shows_an_example_that_parses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert EXAMPLES[command] in shown
    words = EXAMPLES[command].replace("'", "").split()[3:]
    arguments = build_parser().parse_args(words if words[0] == command else [command, *words])
    assert arguments.command == command


def test_help_of_the_program_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "python -m bench --data ~/datasets" in shown
    assert all(command in shown for command in EXAMPLES)


@pytest.mark.parametrize("kind", ["models", "suites", "metrics", "datasets", "weights", "kernels", "runs"])
def test_ls_lists_every_registry(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", kind]) == 0
    assert capsys.readouterr().out.strip()


def test_doctor_and_plan_measure_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--offline"]) == 0
    assert main(["plan", "--offline"]) == 0
    shown = capsys.readouterr().out
    assert "python -m bench fetch inception" in shown
    assert "suite     smoke" in shown
    assert not (tmp_path / "results").exists()


def image_file(path: Path, size: int = 32, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (size, size)).save(path)
    return path


def empty_data(tmp_path: Path) -> list[str]:
    (tmp_path / "data").mkdir()
    return ["plan", "--data", str(tmp_path / "data")]


def truncated_zip(tmp_path: Path) -> list[str]:
    path = tmp_path / "data" / "cifar10-32x32.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(image_file(tmp_path / "a.png"), "a.png")
    path.write_bytes(path.read_bytes()[:-30])
    return ["plan", "--data", str(path.parent)]


def empty_zip(tmp_path: Path) -> list[str]:
    path = tmp_path / "data" / "ffhq-32x32.zip"
    path.parent.mkdir()
    zipfile.ZipFile(path, "w").close()
    return ["plan", "--data", str(path.parent)]


def wrong_size(tmp_path: Path) -> list[str]:
    image_file(tmp_path / "data" / "ffhq-32x32" / "a.png", size=16)
    return ["plan", "--data", str(tmp_path / "data")]


def wrong_mode(tmp_path: Path) -> list[str]:
    image_file(tmp_path / "data" / "ffhq-32x32" / "a.png", mode="L")
    return ["plan", "--data", str(tmp_path / "data")]


def too_few_images(tmp_path: Path) -> list[str]:
    image_file(tmp_path / "data" / "ffhq-32x32" / "a.png")
    return ["plan", "--data", str(tmp_path / "data")]


def suite_with_unknown_key(tmp_path: Path) -> list[str]:
    path = tmp_path / "mine.toml"
    path.write_text('schema = 1\nseeds = 2\n[[entry]]\ndataset = "shapes"\nresolution = 32\n', encoding="utf-8")
    return ["plan", "--suite", str(path)]


def suite_with(tmp_path: Path, model: str, dataset: str = "shapes") -> list[str]:
    if dataset != "shapes":
        for index in range(4):
            image_file(tmp_path / "data" / f"{dataset}-32x32" / f"{index}.png")
    path = tmp_path / "mine.toml"
    entry = f'[[entry]]\ndataset = "{dataset}"\nresolution = 32\nmodels = ["{model}"]\n'
    path.write_text("schema = 1\n" + entry, encoding="utf-8")
    return ["plan", "--suite", str(path), *(["--data", str(tmp_path / "data")] if dataset != "shapes" else [])]


def weights_of_another_model(tmp_path: Path) -> list[str]:
    save_file({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    return _run_with_weights(tmp_path, tmp_path / "a.safetensors")


def weights_that_are_a_pickle(tmp_path: Path) -> list[str]:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"G_ema": os.getcwd}))
    return _run_with_weights(tmp_path, tmp_path / "a.pkl")


def weights_cut_short(tmp_path: Path) -> list[str]:
    save_file({"a": torch.zeros(300)}, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:200])
    return _run_with_weights(tmp_path, tmp_path / "a.safetensors")


def _run_with_weights(tmp_path: Path, weights: Path) -> list[str]:
    named = f"stylegan2-shapes-32={weights}"
    return ["run", "--limit", "4", "--only", "stylegan2-shapes-32", "--weights", named, "-o", str(tmp_path / "out")]


def inception_that_is_no_network(tmp_path: Path) -> list[str]:
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth")
    return ["run", "--limit", "4", "--inception-weights", str(tmp_path / "a.pth"), "-o", str(tmp_path / "out")]


def unwritable_folder(tmp_path: Path) -> list[str]:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    return ["run", "--limit", "4", "-o", str(tmp_path / "file" / "run")]


def broken_records(tmp_path: Path) -> list[str]:
    (tmp_path / "records.jsonl").write_text("{\n", encoding="utf-8")
    return ["report", str(tmp_path)]


def dataset_that_exists(tmp_path: Path) -> list[str]:
    image_file(tmp_path / "in" / "a.png")
    (tmp_path / "out.zip").write_bytes(b"mine")
    return ["dataset", str(tmp_path / "in"), str(tmp_path / "out.zip"), "--resolution", "32"]


def dataset_of_nothing(tmp_path: Path) -> list[str]:
    (tmp_path / "in").mkdir()
    return ["dataset", str(tmp_path / "in"), str(tmp_path / "out.zip"), "--resolution", "32"]


def dataset_with_a_broken_image(tmp_path: Path) -> list[str]:
    path = image_file(tmp_path / "in" / "a.png")
    path.write_bytes(path.read_bytes()[:40])
    return ["dataset", str(tmp_path / "in"), str(tmp_path / "out.zip"), "--resolution", "32"]


BAD_INPUT: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "unknown command": (lambda _: ["raport"], "Did you mean 'report'"),
    "missing data folder": (lambda p: ["plan", "--data", str(p / "nowhere")], "no such folder"),
    "empty data folder": (empty_data, "none of its data sets is there"),
    "truncated zip": (truncated_zip, r"cifar10-32x32\.zip"),
    "empty zip": (empty_zip, r"ffhq-32x32\.zip"),
    "images of another size": (wrong_size, r"a\.png"),
    "images of another mode": (wrong_mode, r"a\.png"),
    "too few images": (too_few_images, "need 4 or more"),
    "unknown suite": (lambda _: ["plan", "--suite", "smoky"], "Did you mean 'smoke'"),
    "unknown suite key": (suite_with_unknown_key, "Did you mean 'seed'"),
    "unknown model": (lambda p: suite_with(p, "stylegan2-shape-32"), "stylegan2-shapes-32"),
    "model of another resolution": (lambda p: suite_with(p, "stylegan2-half-64"), "makes 64 px images"),
    "labels that don't fit": (lambda p: suite_with(p, "stylegan2-shapes-32", "ffhq"), "has 10 classes, the data set 0"),
    "selection of nothing": (lambda _: ["plan", "--only", "biggan-*"], "matches nothing"),
    "limit below one": (lambda _: ["plan", "--limit", "0"], "must be 1 or more"),
    "limit too small to split": (lambda _: ["plan", "--batch-size", "-3"], "must be 1 or more"),
    "no such device": (lambda _: ["plan", "--device", "tpu9"], "not a device"),
    "no GPU": (lambda _: ["plan", "--device", "cuda:77"], "CUDA device"),
    "bad shard": (lambda p: ["run", "--shard", "3/2", "-o", str(p / "out")], "I/N"),
    "missing weights": (lambda p: _run_with_weights(p, p / "none.safetensors"), "no such file"),
    "weights for no model": (lambda p: ["plan", "--weights", f"a={image_file(p / 'b.png')}"], "no such model"),
    "weights of another model": (weights_of_another_model, r"a\.safetensors"),
    "weights that run code": (weights_that_are_a_pickle, r"refused: posix\.getcwd"),
    "weights cut short": (weights_cut_short, r"a\.safetensors"),
    "missing inception": (lambda p: ["plan", "--inception-weights", str(p / "none.pth")], "no such file"),
    "inception that is none": (inception_that_is_no_network, r"a\.pth"),
    "unwritable folder": (unwritable_folder, "cannot write"),
    "report of nothing": (lambda p: ["report", str(p)], "not a finished run"),
    "report without a run": (lambda _: ["report"], "no run yet"),
    "broken records": (broken_records, "line 1"),
    "unknown weights": (lambda _: ["fetch", "inseption"], "inception"),
    "data set that exists": (dataset_that_exists, "--force"),
    "data set of nothing": (dataset_of_nothing, "in"),
    "data set with a broken image": (dataset_with_a_broken_image, r"a\.png"),
}


@pytest.mark.parametrize("kind", BAD_INPUT)
def test_bad_input_is_one_clear_message(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = BAD_INPUT[kind]
    arguments = make(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(arguments) not in (0, None)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.count("error:") == 1
    assert re.search(message, error), error
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("arguments", [["plan", "--limt"], ["--limt", "3"], ["run", "--limt=3"]])
def test_unknown_flag_names_the_nearest(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "Did you mean --limit?" in capsys.readouterr().err


@pytest.mark.slow
def test_termination_is_told_and_resumable(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "run", "--offline", "--limit", "64", "-o", str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "features" in line:
                process.send_signal(signal.SIGTERM)
                break
        assert "goes on from here" in process.stderr.read()
        assert process.wait(60) == 130


def test_foreign_package_under_our_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}
    done = subprocess.run(
        [sys.executable, "-c", "from bench.cli import main; raise SystemExit(main(['ls', 'suites']))"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Run from the checkout" in done.stderr


def test_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m bench ls models | true"
    done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stderr == ""
