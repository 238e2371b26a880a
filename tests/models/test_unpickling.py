"""Attacks on the reader of pickles: nothing of a file runs, memory and time stay bounded, every refusal is one line."""

from __future__ import annotations

import copyreg
import functools
import io
import operator
import os
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.checkpoints import CheckpointError, convert
from models.formats.checkpoint_tree import Name, Node, RefusedError, StoredTensor
from models.formats.torch_files import read_checkpoint
from models.formats.unpickling import Budget
from tests.conftest import REPOSITORY
from tests.models.official_pickles import Call, Dialect, OfficialPickler, Ref, dumps

Read = Callable[[bytes], object]


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture
def read(tmp_path: Path, mark: Path) -> Read:
    """Reads a file of these bytes, and checks that nothing was executed and the file is as it was."""

    def read(content: bytes) -> object:
        path = tmp_path / "attack.pkl"
        path.write_bytes(content)
        try:
            return read_checkpoint(path)
        finally:
            assert not mark.exists()
            assert path.read_bytes() == content
            assert sorted(tmp_path.iterdir()) == [path]

    return read


def refusal(read: Read, content: bytes) -> str:
    """The message of a refusal, which is a single line."""
    with pytest.raises(RefusedError) as caught:
        read(content)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


class Reduced:
    """An object whose pickle says: call this."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.reduced = (function, args)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.reduced

    def __call__(self) -> None:
        """A pickler only takes what looks callable."""


def payloads(mark: Path) -> dict[str, object]:
    """Objects that leave the mark when a pickle of them is loaded in the usual way."""
    touch, source = f"touch {mark}", f"open({str(mark)!r}, 'w').close()"
    return {
        "os.system": Reduced(os.system, touch),
        "subprocess": Reduced(subprocess.call, ["touch", str(mark)]),
        "popen": Reduced(os.popen, touch),
        "eval": Reduced(eval, source),
        "exec": Reduced(exec, source),
        "compile": Reduced(exec, Reduced(compile, source, "a", "exec")),
        "open": Reduced(open, str(mark), "w"),
        "touch": Reduced(Path.touch, mark),
        "import": Reduced(getattr, Reduced(__import__, "os"), "system"),
        "getattr chain": Reduced(Reduced(getattr, Reduced(__import__, "os"), "system"), touch),
        "partial": Reduced(functools.partial(os.system, touch)),
        "attrgetter": Reduced(Reduced(operator.attrgetter, "system"), Reduced(__import__, "os")),
        "methodcaller": Reduced(Reduced(operator.methodcaller, "touch"), mark),
        "map": Reduced(list, Reduced(map, os.system, [touch])),
        "pickle in pickle": Reduced(pickle.loads, pickle.dumps(Reduced(os.system, touch))),
        "torch.load": Reduced(torch.load, str(mark), "cpu", None, False),
        "numpy.load": Reduced(np.load, str(mark)),
        "in a dict": {"G_ema": {"a": [Reduced(os.system, touch)]}},
        "as a key": {1: 2, "key": (Reduced(os.system, touch),)},
    }


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", payloads(Path("a")))
def test_callables_are_refused(name: str, protocol: int, read: Read, mark: Path) -> None:
    assert "refused: " in refusal(read, pickle.dumps(payloads(mark)[name], protocol))


def test_payloads_do_execute_where_they_are_loaded_in_the_usual_way(mark: Path) -> None:
    pickle.loads(pickle.dumps(payloads(mark)["os.system"]))
    assert mark.exists()


NAMES = [
    ("os", "system"), ("posix", "system"), ("nt", "system"), ("builtins", "eval"), ("builtins", "exec"),
    ("builtins", "__import__"), ("builtins", "open"), ("builtins", "compile"), ("__builtin__", "eval"),
    ("builtins", "print"), ("builtins", "type"), ("builtins", "object"), ("subprocess", "Popen"), ("sys", "exit"),
    ("functools", "partial"), ("operator", "attrgetter"), ("operator", "methodcaller"), ("types", "FunctionType"),
    ("types", "CodeType"), ("marshal", "loads"), ("pickle", "loads"), ("_pickle", "loads"), ("copyreg", "__newobj__"),
    ("copyreg", "_reconstructor"), ("importlib", "import_module"), ("runpy", "run_path"), ("shutil", "rmtree"),
    ("ctypes", "CDLL"), ("socket", "create_connection"), ("webbrowser", "open"), ("timeit", "timeit"),
    ("pydoc", "locate"), ("pathlib", "Path"), ("codecs", "encode"), ("_codecs", "decode"), ("numpy", "load"),
    ("numpy.testing._private.utils", "runstring"), ("numpy.core.multiarray", "fromfile"), ("torch", "load"),
    ("torch.serialization", "load"), ("torch.hub", "load"), ("torch.jit", "load"), ("torch", "save"),
    ("torch.utils.cpp_extension", "load"), ("torch._utils", "_import_dotted_name"), ("torch.storage", "os"),
    ("torch._C", "_jit_get_operation"), ("torch.distributed.rpc", "rpc_sync"), ("collections", "namedtuple"),
    ("collections", "_sys"), ("torch_utilsx", "a"), ("trainingx.a", "b"), ("", ""), ("torch.nn", "Module.load"),
    ("torch.nn", "modules.module.os.system"), ("torch_utils.persistence", "os.system"), ("dill._dill", "os.system"),
    ("collections.OrderedDict", "__init__.__globals__"), ("os\nsystem", "a"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_names_are_refused_by_name(module: str, name: str, read: Read) -> None:
    message = refusal(read, dumps(Call(Ref(module, name), ("x",))))
    assert f"refused: {module}.{name}".replace("\n", "?") in message
    if "\n" not in module:
        refusal(read, dumps(Call(Ref(module, name), ("x",)), Dialect(protocol=2)))
        refusal(read, dumps(Call(Ref(module, name), (), {"a": 1}, new=True)))
        refusal(read, dumps([Ref(module, name)]))


INERT = [
    ("dill._dill", "_create_function"), ("dill._dill", "_create_code"), ("dill._dill", "_create_type"),
    ("dill._dill", "_load_type"), ("dill._dill", "_import_module"), ("dill._dill", "_eval_repr"),
    ("dill._dill", "_get_attr"), ("dill", "loads"), ("dnnlib.util", "call_func_by_name"),
    ("torch.nn.functional", "relu"),
    ("torch_utils.misc", "os"), ("torch.nn.modules.module", "Module"), ("pg_modules.discriminator", "anything"),
    ("timm.models.helpers", "load_checkpoint"), ("open_clip", "create_model"), ("networks.generator", "Generator"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name"), INERT)
def test_classes_and_functions_of_networks_become_records(module: str, name: str, read: Read, mark: Path) -> None:
    source = f"__import__('os').system('touch {mark}')"
    for written in (
        Call(Ref(module, name), (source,), {"a": 1}),
        Call(Ref(module, name), (), {"a": 1, "__setstate__": source, "__reduce__": source}, new=True),
        Call(Call(Ref(module, name), (source,)), (source,), {"a": 1}),
    ):
        found = read(dumps(written))
        assert type(found) is Node
        assert found.cls == Name(module, name)
        assert found.attributes["a"] == 1


def test_persistent_object_keeps_its_state_and_drops_its_source(read: Read, mark: Path) -> None:
    source = f"open({str(mark)!r}, 'w')"
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": "Generator", "state": {"a": 1}}
    found = read(dumps(Call(Ref("torch_utils.persistence", "_reconstruct_persistent_obj"), (meta,))))
    assert isinstance(found, Node)
    assert (found.cls.name, found.attributes, found.args) == ("Generator", {"a": 1}, ())
    wrong: list[object] = [{**meta, "type": "function"}, {**meta, "class_name": 3}, [], None]
    for broken in wrong:
        refusal(read, dumps(Call(Ref("torch_utils.persistence", "_reconstruct_persistent_obj"), (broken,))))


def test_getattr_is_only_the_words_of_dill(read: Read) -> None:
    dill, setter = Ref("dill", "_dill"), Ref("builtins", "setattr")
    assert isinstance(read(dumps(Call(Ref("builtins", "getattr"), (dill, "_setattr", setter)))), Node)
    for args in ((dill, "os", setter), (dill, "_setattr"), (Ref("torch.nn", "a"), "_setattr", setter), (dill, "a", 3)):
        message = refusal(read, dumps(Call(Ref("builtins", "getattr"), args)))
        assert "refused: builtins.getattr" in message
    assert "builtins.setattr" in refusal(read, dumps(Call(setter, (dill, "a", 1))))


def test_extension_registry_is_refused(read: Read) -> None:
    copyreg.add_extension("os", "system", 0xF0)
    try:
        for code in (b"\x82\xf0", b"\x83\xf0\x00", b"\x84\xf0\x00\x00\x00"):
            assert "opcode EXT" in refusal(read, b"\x80\x02" + code + b"\x8c\x04true\x85R.")
    finally:
        copyreg.remove_extension("os", "system", 0xF0)


@pytest.mark.parametrize(
    ("opcode", "content"),
    [
        ("INST", b"(ios\nsystem\n."),
        ("OBJ", b"(ctorch.nn\nModule\no."),
        ("STRING", b"(S'touch a'\nios\nsystem\n."),
        ("INT", b"I1\n."),
        ("LONG", b"L" + b"9" * 9999 + b"L\n."),
        ("FLOAT", b"F1.5\n."),
        ("UNICODE", b"Va\n."),
        ("PERSID", b"Pa\n."),
        ("DUP", b"]2."),
        ("GET", b"g0\n."),
        ("DICT", b"(d."),
        ("NEXT_BUFFER", b"\x97."),
        ("READONLY_BUFFER", b"\x98."),
    ],
)
def test_opcodes_that_no_checkpoint_has_are_refused_by_name(opcode: str, content: bytes, read: Read) -> None:
    assert f"opcode {opcode} " in refusal(read, content)
    refusal(read, b"\x80\x02" + content)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04.", b"\x80\x040.", b"\x80\x04R.", b"\x80\x04NNR.", b"\x80\x04N)R.", b"\x80\x04]}b.", b"\x80\x04Nb.",
        b"\x80\x04NN\x86b.", b"\x80\x04N(Ne.", b"\x80\x04(Ne.", b"\x80\x04N(NNu.", b"\x80\x04}(Nu.", b"\x80\x04NNNs.",
        b"\x80\x04NNa.", b"\x80\x04h\x05.", b"\x80\x04j\xff\xff\xff\xff.", b"\x80\x04\x94.", b"\x80\x04u.",
        b"\x80\x04\x85.", b"\x80\x04NQ.", b"\x80\x04NN\x93.", b"\x80\x04\x8c\x01a]\x93.", b"\x80\x04(1111.",
        b"\x80\x04ctorch.nn\nModule\nN\x81.", b"\x80\x04ctorch.nn\nModule\n]R.", b"\x80\x04ctorch.nn\nModule\n)}}\x92.",
        b"\x80\x04\x8c\x02\xff\xfe.", b"\x80\xff.", b"\x80", b"N", b"", b"\x00", b"\xff" * 50, b"hello", b"{}", b"N.N.",
        b"ctorch.nn\n" + b"a" * 1000 + b"\n.", b"c\xff\xfe\nb\n.", b"\x80\x04ctorch.nn\nModule\n}b.",
    ],
)  # fmt: skip
def test_malformed_pickles_are_refused(content: bytes, read: Read) -> None:
    refusal(read, content)


def test_state_of_a_record_is_set_once(read: Read) -> None:
    refusal(read, b"\x80\x04ctorch.nn\nModule\n)\x81}b}b.")


def traced(call: Callable[[], object]) -> tuple[object, int]:
    """The result of a call, and the peak of memory that Python allocated in it."""
    tracemalloc.start()
    try:
        result = call()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [
        b"\x8e" + b"\xff" * 8, b"\x8e" + struct.pack("<Q", 1 << 40), b"B\xff\xff\xff\xff", b"C\xff",
        b"\x96" + b"\xff" * 8,
        b"\x8d" + b"\xff" * 8, b"X\xff\xff\xff\xff", b"\x8c\xff", b"T\xff\xff\xff\xff", b"U\xff", b"\x95" + b"\xff" * 8,
        b"\x8b\xff\xff\xff\xff", b"\x8b\xff\xff\xff\x7f", b"\x8a\xff",
    ],
)  # fmt: skip
def test_declared_lengths_allocate_nothing(content: bytes, read: Read) -> None:
    message, peak = traced(lambda: refusal(read, b"\x80\x04" + content + b"abc."))
    assert "cut short" in str(message) or "an integer of" in str(message)
    assert peak < 1e6


def test_large_memo_index_allocates_nothing(read: Read) -> None:
    value, peak = traced(lambda: read(b"\x80\x04Nr\xff\xff\xff\xff0j\xff\xff\xff\xff."))
    assert value is None
    assert peak < 1e6


def test_integers_of_many_bytes_are_refused(read: Read) -> None:
    assert "an integer of 300000 bytes" in refusal(
        read, b"\x8b" + struct.pack("<I", 300_000) + b"\x01" * 300_000 + b"."
    )


DEEP = 200_000


TUPLES = b"N" + b"\x85" * DEEP
NESTED = {
    "lists": b"]" * DEEP + b"a" * (DEEP - 1),
    "tuples": TUPLES,
    "key": b"}" + TUPLES + b"Ns",
    "key of a network": b"}\x8c\x05G_ema}" + TUPLES + b"Nss",
    "set": b"\x8f(" + TUPLES + b"\x90",
    "arguments of a call": b"ctorch.nn\nModule\n" + TUPLES + b"R",
    "a tensor's storage": b"ctorch._utils\n_rebuild_tensor_v2\n(" + TUPLES + b"NNNtR",
    "getattr": b"cbuiltins\ngetattr\n" + TUPLES + b"NN\x87R",
    "arguments of a network": b"ctorch.nn\nModule\n)\x81}\x8c\x0c_init_kwargs}\x8c\x01a" + TUPLES + b"ssb",
    "name of a variable": b"cdnnlib.tflib.network\nNetwork\n)\x81}\x8c\x09variables]" + TUPLES + b"N\x86asb",
}


def test_deep_nesting_overflows_no_stack(tmp_path: Path) -> None:
    """In another process, since an overflow of the C stack would end it."""
    for index, content in enumerate(NESTED.values()):
        (tmp_path / f"{index}.pkl").write_bytes(b"\x80\x04" + content + b".")
    code = (
        "import sys, pathlib\nfrom models.checkpoints import convert, CheckpointError\n"
        f"for path in pathlib.Path({str(tmp_path)!r}).glob('*.pkl'):\n"
        "    try:\n        convert(path, path.with_suffix('.safetensors'))\n"
        "    except CheckpointError as error:\n        print('refused', len(str(error)) < 400)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert (done.returncode, done.stdout) == (0, "refused True\n" * len(NESTED)), done.stderr[-500:]


def laughs(levels: int, opening: bytes, closing: bytes) -> bytes:
    """Each level holds the one below twice, so that the whole has 2 ** levels leaves."""
    parts = [opening + b"N" * 2 + closing + b"\x94"]
    parts += [opening + b"h" + bytes([i]) + b"h" + bytes([i]) + closing + b"\x94" for i in range(levels)]
    return b"\x80\x04" + b"".join(parts) + b"."


@pytest.mark.parametrize(("opening", "closing"), [(b"](", b"e"), (b"(", b"t"), (b"\x8f(", b"\x90"), (b"(", b"\x91")])
@pytest.mark.parametrize("place", ["tree", "key", "G_ema", "arguments", "call"])
def test_billion_laughs_are_not_walked(opening: bytes, closing: bytes, place: str, tmp_path: Path) -> None:
    laugh = laughs(60, opening, closing)[2:-1]
    content = {
        "tree": laugh,
        "key": b"}(" + laugh + b"Nu",
        "G_ema": b"}\x8c\x05G_ema" + laugh + b"s",
        "arguments": b"ctorch.nn\nModule\n" + laugh + b"R",
        "call": b"cbuiltins\ngetattr\n" + laugh + laugh[:0] + b"\x8c\x01aN\x87R",
    }[place]
    path = tmp_path / "laughs.pkl"
    path.write_bytes(b"\x80\x04" + content + b".")
    start = time.monotonic()
    with pytest.raises(CheckpointError):
        convert(path, tmp_path / "a.safetensors")
    assert time.monotonic() - start < 5


def module(modules: object) -> Call:
    state = {"_modules": modules, "_parameters": {}, "_buffers": {}}
    return Call(Ref("networks.generator", "Generator"), (), state, new=True)


def test_modules_that_contain_themselves_are_refused(tmp_path: Path) -> None:
    twice = module({})
    for _ in range(60):
        twice = module({"a": twice, "b": twice})
    itself: dict[str, Any] = {}
    itself["a"] = owner = module(itself)
    shared = Call(Ref("networks.generator", "Layer"), (), {"_buffers": dict.fromkeys(map(str, range(2000)))}, new=True)
    wide = module({str(i): shared for i in range(2000)})
    for index, network in enumerate((twice, owner, wide)):
        path = tmp_path / f"{index}.pkl"
        path.write_bytes(dumps({"G_ema": network}))
        start = time.monotonic()
        with pytest.raises(CheckpointError):
            convert(path, tmp_path / "a.safetensors")
        assert time.monotonic() - start < 10


def test_colliding_keys_take_no_time(read: Read) -> None:
    keys = b"".join(b"\x8a\x0a" + ((2**61 - 1) * i).to_bytes(10, "little") + b"N" for i in range(1, 100_000))
    start = time.monotonic()
    found = read(b"\x80\x04}(" + keys + b"u.")
    assert time.monotonic() - start < 20  # a dict of such integers takes minutes
    assert isinstance(found, dict)
    assert len(found) == 99_999


def test_keys_of_every_kind_are_kept_apart(read: Read) -> None:
    found = read(b"\x80\x04}(" + b"K\x01N" + b"]N" + b"}N" + b")N" + b"]N" + b"NN" + b"\x8c\x01aN" + b"\x88N" + b"u.")
    assert isinstance(found, dict)
    assert next(iter(found)) == 1
    assert len(found) == 7  # True is 1


# what one opcode, or a few, can make of a few bytes; each line is run often
BULKY = {
    "dicts": (b"", b"}"),
    "lists": (b"", b"]"),
    "sets": (b"", b"\x8f"),
    "frozensets": (b"", b"(\x91"),
    "marks": (b"", b"("),
    "dicts of one": (b"", b"}NNs"),
    "odd keys": (b"}", b")Ns"),
    "integers": (b"", b"J\xff\xff\xff\x7f"),
    "memo": (b"N", b"\x94"),
    "texts": (b"", b"\x8c\x02\xc4\x80"),
    "bytes": (b"", b"C\x00"),
    "names": (b"", b"ctorch.nn\na\n"),
    "records": (b"ctorch.nn\nModule\n\x940", b"h\x00)R"),
    "records by NEWOBJ": (b"ctorch.nn\nModule\n\x940", b"h\x00)\x81"),
    "dtypes": (b"cnumpy\ndtype\n\x940", b"h\x00)R"),
    "dtypes of many arguments": (b"cnumpy\ndtype\n\x940(" + b"N" * 64 + b"t\x940", b"h\x00h\x01R"),
    "dtypes of very many": (b"cnumpy\ndtype\n\x940(" + b"N" * 9000 + b"t\x940", b"h\x00h\x01R"),
    "empty dicts": (b"ccollections\nOrderedDict\n\x940", b"h\x00)R"),
    "arrays": (b"cnumpy.core.multiarray\n_reconstruct\n\x940", b"h\x00)R"),
    "bytes of text": (
        b"c_codecs\nencode\n\x940X\x80\x00\x00\x00" + b"a" * 128 + b"\x8c\x06latin1\x86\x940",
        b"h\x00h\x01R",
    ),
    "bytes of long text": (
        b"c_codecs\nencode\n\x940X\x00\x00\x01\x00" + b"a" * 65536 + b"\x8c\x06latin1\x86\x940",
        b"h\x00h\x01R",
    ),
    "long texts": (b"", b"X\x00\x02\x00\x00" + "\U0001f600".encode() * 128),
    "wide texts": (b"", b"X\x00\x02\x00\x00" + b"a" * 508 + "\U0001f600".encode()),
}  # fmt: skip


def outcome(read: Read, content: bytes) -> str:
    try:
        read(content)
    except RefusedError:
        return "refused"
    return "read"


@pytest.mark.parametrize("kind", BULKY)
def test_memory_stays_within_the_budget(kind: str, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading takes at most 512 bytes a unit, and the budget of a file ends every kind of growth."""
    monkeypatch.setattr("models.formats.unpickling._FREE_UNITS", 20_000)
    prologue, line = BULKY[kind]
    content = b"\x80\x04" + prologue + line * (4_000 if len(line) > 100 else 40_000) + b"."
    budget = Budget.of_file(len(content))
    result, peak = traced(lambda: outcome(read, content))
    copies = 2 * len(content)  # which the fixture holds
    assert peak < 512 * budget.units + copies
    assert result == ("read" if kind in ("long texts", "wide texts") else "refused")


def array(state: tuple[Any, ...]) -> Call:
    return Call(Ref("numpy.core.multiarray", "_reconstruct"), (Ref("numpy", "ndarray"), (0,), b"b"), state)


def dtype(code: str, order: str = "<") -> Call:
    return Call(Ref("numpy", "dtype"), (code, False, True), (3, order, None, None, None, -1, -1, 0))


def test_arrays_are_rebuilt_from_their_bytes(read: Read) -> None:
    for order in ("C", "F"):
        expected = np.arange(6, dtype=np.float32).reshape((2, 3), order=order)
        for dialect in (Dialect(2), Dialect(3, numpy_1=True), Dialect(4), Dialect(5), Dialect(4, dill=True)):
            found = read(dumps(expected, dialect))
            assert isinstance(found, StoredTensor)
            assert found.load().numpy().tolist() == expected.tolist()
    for scalar in (np.float64(1.5), np.float32(2.5), np.int64(-3), np.bool_(True)):
        assert read(pickle.dumps(scalar, 4)) == scalar.item()


@pytest.mark.parametrize(
    "state",
    [
        (1, (1,), dtype("O8", "|"), False, [Reduced(os.getcwd)]),
        (1, (1,), dtype("O8", "|"), False, b"12345678"),
        (1, (1,), dtype("f4"), False, [1]),
        (1, (2,), dtype("f4"), False, b"1234"),
        (1, (2**62, 2**62), dtype("f4"), False, b"1234"),
        (1, (-1,), dtype("f4"), False, b"1234"),
        (1, ("a",), dtype("f4"), False, b"1234"),
        (1, (1,) * 9, dtype("f4"), False, b"1234"),
        (1, (1,), dtype("f4", ">"), False, b"1234"),
        (1, (1,), dtype("V4"), False, b"1234"),
        (1, (1,), Ref("numpy", "ndarray"), False, b"1234"),
        (1, [1], dtype("f4"), False, b"1234"),
        (1, (1,), dtype("f4"), False),
    ],
    ids=range(13),
)
def test_arrays_of_objects_and_of_other_sizes_are_refused(state: tuple[Any, ...], read: Read) -> None:
    refusal(read, dumps(array(state)))


def test_numpy_never_unpickles_scalars_of_objects(read: Read, mark: Path) -> None:
    inner = pickle.dumps(Reduced(os.system, f"touch {mark}"))
    refusal(read, dumps(Call(Ref("numpy.core.multiarray", "scalar"), (dtype("O8", "|"), inner))))


def tensor(numel: object, offset: object, shape: object, stride: object) -> bytes:
    """A legacy file of torch.save whose tensor has these numbers."""
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    file = io.BytesIO()

    class Writer(OfficialPickler):
        def persistent_id(self, obj: Any) -> Any:
            storage = ("storage", Ref("torch", "FloatStorage"), "0", "cpu", numel, None)
            return storage if obj is Writer else None

    call = Call(Ref("torch._utils", "_rebuild_tensor_v2"), (Writer, offset, shape, stride, False, {}))
    Writer(file, Dialect(2)).dump(call)
    return head + file.getvalue() + pickle.dumps(["0"], 2) + struct.pack("<Q", 4) + bytes(16)


def test_tensor_of_a_storage_is_rebuilt(read: Read) -> None:
    found = read(tensor(4, 1, (3,), (1,)))
    assert isinstance(found, StoredTensor)
    assert found.load().tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("numel", "offset", "shape", "stride"),
    [
        (4, 2, (3,), (1,)), (4, 0, (5,), (1,)), (4, 0, (2, 2), (3, 2)), (4, -1, (1,), (1,)), (4, 0, (2,), (-1,)),
        (4, 0, (-1,), (1,)), (4, 0, (2**63,), (0,)), (4, 2**62, (1,), (1,)), (4, 0, (2, 2), (1,)), (4, 0, [2], [1]),
        (4, 0, (1,) * 9, (1,) * 9), (4, True, (1,), (1,)), (4, "0", (1,), (1,)), (-4, 0, (1,), (1,)),
        (2**62, 0, (1,), (1,)), (5, 0, (1,), (1,)), ("4", 0, (1,), (1,)), (4.0, 0, (1,), (1,)), ((), 0, (1,), (1,)),
    ],
)  # fmt: skip
def test_tensors_outside_of_their_storage_are_refused(
    numel: object, offset: object, shape: object, stride: object, read: Read
) -> None:
    refusal(read, tensor(numel, offset, shape, stride))


def test_giant_of_stride_zero_is_never_made(read: Read) -> None:
    found = read(tensor(4, 0, (1 << 40,), (0,)))
    assert isinstance(found, StoredTensor)
    with pytest.raises(RefusedError, match="1099511627776 elements in a storage of 4"):
        found.load()
