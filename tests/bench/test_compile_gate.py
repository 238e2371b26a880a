# mypy: allow-untyped-defs, allow-untyped-decorators
# (Triton publishes no types)

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.cli import main
from bench.compile_gate import SHARED_LIMIT_BYTES, Compiled, compile_all, compile_case, compile_cases, violations
from bench.compiled_table import COLUMNS, TABLE, check, covers, differences, format_rows, read_table, write_table
from kernels.bias_act import Activation
from kernels.launch import ARCHITECTURES, CompileCase, Options, TensorCores, launch, recording
from kernels.modulated_conv import Epilogue
from kernels.upfirdn2d import Resampling
from tests.conftest import REPOSITORY

triton = pytest.importorskip("triton", reason="needs the package triton, which has wheels for Linux only")

ROW = Compiled(
    case="bias_act/forward-fp16-nhwc", architecture=90, triton="0.0.1", warps=4, registers=40, stack_bytes=0,
    shared_bytes=0, local=0, wgmma=0, mma=0, tma=0, ldg=6, stg=4, ffma=1000, instructions=336,
)  # fmt: skip
CASE = CompileCase("made/up", lambda: None)


@pytest.mark.slow
def test_every_kernel_compiles_as_the_table_says() -> None:
    rows = compile_all(compile_cases())
    assert check(rows, read_table()) == []
    assert covers(rows, read_table()) or rows[0].triton not in ("3.6.0", "3.9.0")


@pytest.mark.slow
def test_a_planted_spill_is_caught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kernels.bias_act_triton.OPTIONS", Options(num_warps=1))
    monkeypatch.setattr("kernels.bias_act_triton.TILE", 8192)
    case = compile_cases()["bias_act/gradient-fp32-nchw"]
    row = compile_case(case, 90, tmp_path)
    assert row.registers == 255
    assert row.stack_bytes > 0
    assert row.local > 0
    (words,) = violations(row, case)
    assert words.startswith("bias_act/gradient-fp32-nchw on sm_90: spills: ")


SIDE = triton.language.constexpr(128)


@triton.jit
def _product(x, y):
    o = triton.language.arange(0, SIDE)
    a = x.load([0, 0])
    triton.language.store(y + o[:, None] * SIDE + o[None, :], triton.language.dot(a, triton.language.trans(a)))


def test_tensor_cores_and_descriptors_are_counted(tmp_path: Path) -> None:
    from triton.tools.tensor_descriptor import TensorDescriptor

    def call() -> None:
        x = torch.empty(128, 128, dtype=torch.float16, device="meta")
        y = torch.empty(128, 128, device="meta")
        launch(_product, (1,), (TensorDescriptor.from_tensor(x, [128, 128]), y), {})

    case = CompileCase("made/up", call, tensor_cores="warpgroup")
    row = compile_case(case, 90, tmp_path)
    assert row.wgmma > 0
    assert row.tma > 0
    assert row.shared_bytes > 0
    assert violations(row, case) == []


def test_compile_case_must_launch_one_kernel(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="made/up: launches 0 kernels; a case shows one"):
        compile_case(CASE, 90, tmp_path)


@pytest.mark.parametrize(
    ("changes", "tensor_cores", "words"),
    [
        ({}, "none", None),
        ({"stack_bytes": 8}, "none", "spills: 8 bytes of stack"),
        ({"local": 2}, "none", "2 loads and stores of local memory"),
        ({"shared_bytes": SHARED_LIMIT_BYTES[90] + 1}, "none", "232449 bytes of shared memory; the device has 232448"),
        ({}, "any", "without tensor cores"),
        ({"mma": 4}, "any", None),
        ({"mma": 4}, "warpgroup", "with small fragments"),
        ({"mma": 4, "architecture": 80}, "warpgroup", None),
        ({"wgmma": 4}, "warpgroup", None),
    ],
)
def test_violations_name_broken_limits(changes: dict[str, int], tensor_cores: TensorCores, words: str | None) -> None:
    case = dataclasses.replace(CASE, tensor_cores=tensor_cores)
    found = violations(dataclasses.replace(ROW, **changes), case)  # type: ignore[arg-type]
    assert [words in text for text in found if words] == ([True] if words else [])
    assert bool(found) == (words is not None)


def test_differences_tolerate_two_per_cent_of_instructions_only() -> None:
    def changed(**changes: int) -> list[str]:
        return differences([dataclasses.replace(ROW, **changes)], [ROW])  # type: ignore[arg-type]

    assert changed() == []
    assert changed(ffma=1020, instructions=340) == []
    assert changed(ffma=1021) == [f"{ROW.case} on sm_90: ffma is 1021, was 1000 (+-20 is allowed)"]
    assert changed(registers=41) == [f"{ROW.case} on sm_90: registers is 41, was 40"]
    assert changed(stg=5) == [f"{ROW.case} on sm_90: stg is 5, was 4"]


def test_differences_name_new_and_vanished_cases_of_the_installed_version() -> None:
    other = dataclasses.replace(ROW, triton="0.0.2")
    new = dataclasses.replace(ROW, architecture=80)
    found = differences([new, dataclasses.replace(new, architecture=100)], [ROW, other])
    assert [text.partition(":")[0] for text in found] == [f"{ROW.case} on sm_80, sm_100", f"{ROW.case} on sm_90"]
    assert "not in the table" in found[0]
    assert "no case is so any more" in found[1]
    assert covers([ROW], [ROW, other])
    assert not covers([ROW], [other])
    assert check([ROW], [other]) == []


def test_write_table_replaces_one_version_and_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "compiled.csv"
    assert read_table(path) == []
    other = dataclasses.replace(ROW, triton="0.0.2")
    write_table([ROW, dataclasses.replace(ROW, case="a/b")], path)
    write_table([other], path)
    write_table([dataclasses.replace(ROW, registers=50)], path, only="bias_act/*")
    assert read_table(path) == [dataclasses.replace(ROW, case="a/b"), dataclasses.replace(ROW, registers=50), other]
    write_table([dataclasses.replace(ROW, registers=60)], path)
    assert read_table(path) == [dataclasses.replace(ROW, registers=60), other]
    assert format_rows([ROW]).splitlines()[0].split() == list(COLUMNS)


def test_table_has_every_case_of_both_ends_of_triton() -> None:
    wanted = {(name, arch) for name, case in compile_cases().items() for arch in case.architectures}
    for version in ("3.6.0", "3.9.0"):
        assert {(row.case, row.architecture) for row in read_table(TABLE) if row.triton == version} == wanted, (
            f"run `python -m bench compile --update` with triton {version} too"
        )


def test_every_kernel_that_is_launched_has_a_case() -> None:
    compiled = set()
    for case in compile_cases().values():
        assert set(case.architectures) <= set(ARCHITECTURES)
        with recording(90) as launches:
            case.call()
        assert all("enable_fp_fusion" in launch.options.keywords() for launch in launches)
        compiled |= {launch.kernel.__name__ for launch in launches}
    launched = set()
    for path in (REPOSITORY / "kernels").glob("*_triton.py"):
        calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
        launched |= {ast.unparse(call.args[0]) for call in calls if ast.unparse(call.func) == "launch"}
        assert "[grid]" not in path.read_text(encoding="utf-8"), f"{path.name}: launch kernels with kernels.launch"
    assert launched == compiled


@pytest.mark.parametrize("name", ["conv_flat/layer-512-512-64-bfloat16", "conv_flat/flat-512-512-64-float16"])
def test_flat_convolution_copies_and_multiplies_in_warps_of_their_own(name: str, tmp_path: Path) -> None:
    case = compile_cases()[name]
    row = compile_case(case, 90, tmp_path)
    assert violations(row, case) == []
    assert row.warps == 12
    (ptx,) = (path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.ptx"))
    products = re.findall(r"wgmma\.mma_async\S+ \{[^}]*\},\s*(\S)", ptx)
    assert products
    assert set(products) == {"%"}  # the descriptor of a tile in shared memory, and not "{": registers
    assert "setmaxnreg.dec" in ptx
    assert "setmaxnreg.inc" in ptx


def test_compile_command_prints_and_updates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.compiled_table.compile_all", lambda names: [ROW])
    monkeypatch.setattr("bench.compiled_table.TABLE", tmp_path / "compiled.csv")
    assert main(["compile"]) == 0
    assert "has no rows of triton 0.0.1: only the hard limits were checked" in capsys.readouterr().out
    assert main(["compile", "--update"]) == 0
    assert "nothing changed" in capsys.readouterr().out
    monkeypatch.setattr("bench.compiled_table.compile_all", lambda names: [dataclasses.replace(ROW, registers=41)])
    assert main(["compile"]) == 1
    assert "registers is 41, was 40" in capsys.readouterr().out
    assert main(["compile", "--only", "nothing/*"]) == 1
    assert "--only nothing/*: no case is called so" in capsys.readouterr().err


def ones_of_bias_act() -> None:
    from kernels.bias_act_triton import bias_act_triton

    x = torch.ones(1, 1, 1, 1, device="meta")
    bias_act_triton(x, torch.ones(1, device="meta"), Activation("lrelu", clamp=1.0))


def ones_of_upfirdn2d() -> None:
    from kernels.upfirdn2d_triton import upfirdn2d_epilogue_triton

    x, noise, bias = (torch.ones(shape, device="meta") for shape in ((1, 1, 1, 1), (1, 1), (1,)))
    upfirdn2d_epilogue_triton(x, torch.ones(3, 3, device="meta"), Resampling(padding=1), Epilogue(noise, bias))


def ones_of_demodulation() -> None:
    from kernels.demodulation_triton import demodulation_triton

    demodulation_triton(torch.ones(1, 1, 1, 1, device="meta"), torch.ones(1, 1, device="meta"))


@pytest.mark.parametrize("call", [ones_of_bias_act, ones_of_upfirdn2d, ones_of_demodulation])
def test_sizes_of_one_compile(call: Callable[[], None], tmp_path: Path) -> None:
    """Triton makes a constant of an integer that is 1, which the interpreter doesn't show."""
    case = CompileCase("made/up", call)
    assert violations(compile_case(case, 90, tmp_path), case) == []
