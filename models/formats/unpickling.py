"""A reader of pickles that runs nothing: it rebuilds plain data, and everything else becomes an inert record.

The opcodes are interpreted here and not by `pickle.Unpickler`. That one calls what a file names; and even where it may
call nothing, a file of nine bytes makes it allocate gigabytes (LONG_BINPUT of a large index), and a nested tuple as the
key of a dict overflows the C stack. Here no global is ever looked up, lengths are checked against what is left of the
file before anything is allocated, bytes stay in the (memory-mapped) file, only strings and small integers are hashed,
and each opcode is paid for from a budget.

Memory bound: a unit of the budget stands for at most 512 bytes, and a file has 500,000 units plus one for each 128
bytes, so that reading one takes at most 256 MB and four times its size.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from models.formats.checkpoint_tree import Name, Node, RefusedError, StoredTensor, shown

BYTES_A_UNIT = 128
_FREE_UNITS = 500_000
_MAX_INTEGER_BYTES = 256
_MAX_NAME_BYTES = 256
_MAX_ARGUMENTS = 64  # of a call; code objects have 18
_MAX_KEY = 2**61 - 1  # integers below it hash to themselves; a file could choose larger ones to collide


@dataclass(slots=True)
class Budget:
    """What reading one file may cost, nested pickles included."""

    units: int

    @classmethod
    def of_file(cls, size_bytes: int) -> Budget:
        """The budget of a file of that size."""
        return cls(_FREE_UNITS + size_bytes // BYTES_A_UNIT)

    def spend(self, units: int) -> None:
        """Pay, or refuse the file."""
        self.units -= units
        if self.units < 0:
            raise RefusedError("it builds far more objects than a checkpoint of its size has")


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be in a pickle: `calls` has the meaning of names, `is_inert` says which others become a `Node`."""

    calls: Mapping[str, Callable[..., object]]
    is_inert: Callable[[str, str], bool]
    persistent: Callable[[object], object] | None = None  # the meaning of a persistent id


def unpickle(data: memoryview, position: int, rules: Rules, budget: Budget) -> tuple[object, int]:
    """Read the pickle that begins at `position`. Returns its value and the position of its end.

    Raises:
        RefusedError: it is damaged or holds what `rules` do not have.
    """
    machine = _Machine(data, position, rules, budget)
    try:
        return machine.run(), machine.position
    except RefusedError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, MemoryError, struct.error) as error:
        reason = shown(error or type(error).__name__)
        raise RefusedError(f"damaged, or no pickle: {reason} (at byte {machine.position})") from error


@dataclass(slots=True)
class _Machine:
    """The stack machine that a pickle is a program of. A mark sets the stack aside and begins a new one."""

    data: memoryview
    position: int
    rules: Rules
    budget: Budget
    stack: list[object] = field(default_factory=list)
    aside: list[list[object]] = field(default_factory=list)
    memo: dict[int, object] = field(default_factory=dict)

    def run(self) -> object:
        """Interpret opcodes up to STOP, whose operand is the value."""
        while (opcode := self.unsigned(1)) != _STOP:
            self.budget.spend(1)
            action = _ACTIONS.get(opcode)
            if action is None:
                what = f"opcode {_KNOWN[opcode]}" if opcode in _KNOWN else f"byte 0x{opcode:02x}, no opcode,"
                raise RefusedError(f"refused: {what} at byte {self.position - 1} is not of a checkpoint's pickle")
            action(self)
        return self.stack.pop()

    def take(self, count: int) -> memoryview:
        """The next bytes, which stay where they are."""
        if count > len(self.data) - self.position:
            raise RefusedError(f"cut short: {count} bytes wanted at byte {self.position} of {len(self.data)}")
        self.position += count
        return self.data[self.position - count : self.position]

    def unsigned(self, width: int) -> int:
        if width == 1 and self.position < len(self.data):  # the most frequent by far
            self.position += 1
            return self.data[self.position - 1]
        return int.from_bytes(self.take(width), "little")

    def signed(self, width: int) -> int:
        if width > _MAX_INTEGER_BYTES:
            raise RefusedError(f"refused: an integer of {width} bytes")
        return int.from_bytes(self.take(width), "little", signed=True)

    def text(self, length: int, encoding: str) -> str:
        raw = self.take(length)
        self.budget.spend(length // BYTES_A_UNIT)
        return str(raw, encoding)

    def line(self) -> str:
        start = self.position
        end = bytes(self.data[start : start + _MAX_NAME_BYTES]).find(b"\n")
        if end < 0:
            raise RefusedError(f"refused: a name of more than {_MAX_NAME_BYTES} bytes at byte {start}")
        self.position += end + 1
        return str(self.data[start : start + end], "ascii")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.aside.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[object]:
        items, self.stack = self.stack, self.aside.pop()
        return items

    def pop_tuple(self, count: int) -> tuple[object, ...]:
        if count > len(self.stack):
            raise RefusedError(f"damaged: an empty stack at byte {self.position}")
        values = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return values

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        self.push(self.memo[index])

    def extend(self, values: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, list | Node):
            (target if isinstance(target, list) else target.items).extend(values)
        else:
            raise RefusedError(f"refused: items for {_kind(target)}")

    def set_items(self, values: list[object]) -> None:
        target, pairs = self.stack[-1], list(zip(values[::2], values[1::2], strict=True))
        if isinstance(target, dict):
            target.update((_key(key), value) for key, value in pairs)
        elif isinstance(target, Node):
            target.entries.extend(pairs)
        else:
            raise RefusedError(f"refused: entries for {_kind(target)}")

    def inert_set(self, items: list[object]) -> None:
        # items are kept in a list: to hash what a file chose could take forever
        self.push(Node(Name("builtins", "set"), items=items))

    def name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise RefusedError("refused: a global whose name is not text")
        found = Name(module, name)
        if "." in name:
            raise RefusedError(f"refused: {found} asks for attributes of an object")
        if f"{module}.{name}" not in self.rules.calls and not self.rules.is_inert(module, name):
            raise RefusedError(f"refused: {found} is not of a checkpoint's data; nothing of this pickle was executed")
        self.push(found)

    def call(self, function: object, args: object, *keywords: object) -> None:
        """What calling would give: the meaning in the rules, else a record of it."""
        if not isinstance(function, Name | Node) or not isinstance(args, tuple):
            raise RefusedError(f"refused: a call of {_kind(function)} with {_kind(args)}")
        if len(args) > _MAX_ARGUMENTS:  # what a call copies must not grow with the file
            raise RefusedError(f"refused: a call of {_kind(function)} with {len(args)} arguments")
        if isinstance(function, Name) and (meaning := self.rules.calls.get(f"{function.module}.{function.name}")):
            try:
                self.push(self.charged(meaning(*args, *keywords)))
            except TypeError as error:
                raise RefusedError(f"refused: {function} with other arguments than a checkpoint has") from error
        else:
            cls = function if isinstance(function, Name) else function.cls
            self.push(Node(cls, (args, *keywords) if keywords else args))

    def charged(self, value: object) -> object:
        if isinstance(value, memoryview):
            self.budget.spend(len(value) // BYTES_A_UNIT)
        return value

    def build(self, target: object, state: object) -> None:
        if isinstance(target, Node | StoredTensor):
            target.set_state(state)
        elif not isinstance(target, dict):  # attributes of a dict are not of interest
            raise RefusedError(f"refused: a state for {_kind(target)}")
        self.push(target)

    def persistent(self, identity: object) -> None:
        if self.rules.persistent is None:
            raise RefusedError("refused: a persistent id, which only files of torch.save have")
        self.push(self.rules.persistent(identity))


def _kind(value: object) -> str:
    return str(value) if isinstance(value, Name) else f"a {type(value).__name__}"


def _key(key: object) -> object:
    """What may be hashed as it is; anything else becomes a key that is like no other."""
    is_plain = key is None or type(key) is str or (isinstance(key, int) and abs(key) < _MAX_KEY)
    return key if is_plain else Node(Name("", "key"), (key,))


def _protocol(machine: _Machine) -> None:
    if (version := machine.unsigned(1)) > 5:
        raise RefusedError(f"pickle protocol {version}; known are 2 to 5")


def _frame(machine: _Machine) -> None:
    if (length := machine.unsigned(8)) > len(machine.data) - machine.position:
        raise RefusedError(f"cut short: a frame of {length} bytes at byte {machine.position} of {len(machine.data)}")


_STOP = ord(".")
_DOUBLE = struct.Struct(">d")
# What picklers of protocols 2 to 5 write. The others are refused by name: the text opcodes of protocol 0, INST and OBJ,
# the extension registry (EXT1, EXT2, EXT4), buffers outside of the file, and DUP, which no pickler writes.
_OPCODES: dict[str, Callable[[_Machine], object]] = {
    "PROTO": _protocol,
    "FRAME": _frame,
    "MARK": lambda m: m.mark(),
    "POP": lambda m: m.stack.pop() if m.stack else m.pop_mark(),
    "POP_MARK": lambda m: m.pop_mark(),
    "NONE": lambda m: m.push(None),
    "NEWTRUE": lambda m: m.push(True),
    "NEWFALSE": lambda m: m.push(False),
    "BININT": lambda m: m.push(m.signed(4)),
    "BININT1": lambda m: m.push(m.unsigned(1)),
    "BININT2": lambda m: m.push(m.unsigned(2)),
    "LONG1": lambda m: m.push(m.signed(m.unsigned(1))),
    "LONG4": lambda m: m.push(m.signed(m.unsigned(4))),
    "BINFLOAT": lambda m: m.push(_DOUBLE.unpack(m.take(8))[0]),
    "SHORT_BINBYTES": lambda m: m.push(m.take(m.unsigned(1))),
    "BINBYTES": lambda m: m.push(m.take(m.unsigned(4))),
    "BINBYTES8": lambda m: m.push(m.take(m.unsigned(8))),
    "BYTEARRAY8": lambda m: m.push(m.take(m.unsigned(8))),
    "SHORT_BINUNICODE": lambda m: m.push(m.text(m.unsigned(1), "utf-8")),
    "BINUNICODE": lambda m: m.push(m.text(m.unsigned(4), "utf-8")),
    "BINUNICODE8": lambda m: m.push(m.text(m.unsigned(8), "utf-8")),
    "SHORT_BINSTRING": lambda m: m.push(m.text(m.unsigned(1), "latin-1")),
    "BINSTRING": lambda m: m.push(m.text(m.unsigned(4), "latin-1")),
    "EMPTY_TUPLE": lambda m: m.push(()),
    "TUPLE1": lambda m: m.push(m.pop_tuple(1)),
    "TUPLE2": lambda m: m.push(m.pop_tuple(2)),
    "TUPLE3": lambda m: m.push(m.pop_tuple(3)),
    "TUPLE": lambda m: m.push(tuple(m.pop_mark())),
    "EMPTY_LIST": lambda m: m.push([]),
    "APPEND": lambda m: m.extend([m.stack.pop()]),
    "APPENDS": lambda m: m.extend(m.pop_mark()),
    "EMPTY_DICT": lambda m: m.push({}),
    "SETITEM": lambda m: m.set_items(list(m.pop_tuple(2))),
    "SETITEMS": lambda m: m.set_items(m.pop_mark()),
    "EMPTY_SET": lambda m: m.inert_set([]),
    "ADDITEMS": lambda m: m.extend(m.pop_mark()),
    "FROZENSET": lambda m: m.inert_set(m.pop_mark()),
    "BINPUT": lambda m: m.remember(m.unsigned(1)),
    "LONG_BINPUT": lambda m: m.remember(m.unsigned(4)),
    "MEMOIZE": lambda m: m.remember(len(m.memo)),
    "BINGET": lambda m: m.recall(m.unsigned(1)),
    "LONG_BINGET": lambda m: m.recall(m.unsigned(4)),
    "GLOBAL": lambda m: m.name(m.line(), m.line()),
    "STACK_GLOBAL": lambda m: m.name(*m.pop_tuple(2)),
    "REDUCE": lambda m: m.call(*m.pop_tuple(2)),
    "NEWOBJ": lambda m: m.call(*m.pop_tuple(2)),
    "NEWOBJ_EX": lambda m: m.call(*m.pop_tuple(3)),
    "BUILD": lambda m: m.build(*m.pop_tuple(2)),
    "BINPERSID": lambda m: m.persistent(m.stack.pop()),
}
_KNOWN = {ord(op.code): op.name for op in pickletools.opcodes}
_ACTIONS = {opcode: _OPCODES[name] for opcode, name in _KNOWN.items() if name in _OPCODES}
