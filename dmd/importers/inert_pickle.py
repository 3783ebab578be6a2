"""Reads the data in a pickle without running code that the file names.

It interprets the opcodes of plain data. A global is looked up by its exact (module, name) in a table of makers, which
are this package's own functions without side effects; everything else in a pickle (extension codes, classes by INST or
OBJ, objects by persistent id, attributes by BUILD) is refused. Python's Unpickler, even with a restricted find_class,
would still hash nested objects, let the file choose the size of its memo, and set attributes of objects on its stack.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple, cast

from dmd.importers.bounded_stream import BoundedStream

MAX_OPERATIONS = 2_000_000
MAX_PROTOCOL = 5
_KEYS = (str, int, float, bool, bytes, type(None))
_VALUES = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 "
    "SHORT_BINBYTES BINBYTES BINBYTES8 SHORT_BINSTRING BINSTRING".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Global(NamedTuple):
    """The name of a global in a pickle."""

    module: str
    name: str


class Stateful:
    """Base class of objects whose state a BUILD opcode may set; BUILD on any other object is refused."""

    def set_state(self, state: Any) -> None:
        """Sets the state; ValueError if it is invalid."""
        raise ValueError(f"{type(self).__name__} takes no state")


Makers = Mapping[Global, Callable[..., Any]]


def load(stream: BoundedStream, makers: Makers, *, persistent: Callable[[Any], Any] | None = None) -> Any:
    """The object of a pickle; the stream is then positioned after it.

    Args:
        makers: the function that is called for each allowed global; it must have no side effects.
        persistent: maps the id of an object stored elsewhere to a value; None refuses such ids.

    Raises:
        ValueError: the file is damaged, or has anything but plain data and globals of `makers`.
    """
    machine = _Machine(makers, persistent)
    try:
        for num, (opcode, argument, _) in enumerate(pickletools.genops(cast(BinaryIO, stream))):
            if num >= MAX_OPERATIONS:
                raise ValueError(f"more than {MAX_OPERATIONS} operations")
            machine.step(opcode.name, argument)
        return machine.result()
    except ValueError:
        raise
    except Exception as error:  # a damaged file can fail in many ways: an empty stack, a missing memo entry
        raise ValueError(f"damaged: {type(error).__name__} {error}") from error


class _Machine:
    """The interpreter's state: the stack, the stacks saved at each mark, and the memo."""

    def __init__(self, makers: Makers, persistent: Callable[[Any], Any] | None) -> None:
        self._makers, self._persistent = makers, persistent
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._given = 0  # items of lists that makers were given, which may be the same list again and again

    def step(self, name: str, argument: Any) -> None:
        """Executes one opcode."""
        if name in _VALUES:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            items = [self._stack.pop() for _ in range(_TUPLES[name])]
            self._stack.append(tuple(reversed(items)))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[argument] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self._stack.append(self._memo[argument])
        elif action := getattr(self, f"_on_{name.lower()}", None):
            action(argument)
        else:
            raise ValueError(f"opcode {name} is refused: plain data does not need it")

    def result(self) -> Any:
        """The result of the pickle."""
        if self._below or len(self._stack) != 1:
            raise ValueError("damaged: the pickle does not end with exactly one object")
        return self._stack[0]

    def _on_proto(self, version: int) -> None:
        if version > MAX_PROTOCOL:
            raise ValueError(f"pickle protocol {version} is unknown")

    def _on_frame(self, size: int) -> None:
        """Frames only group bytes."""

    _on_stop = _on_frame  # nothing to do: genops ends here

    def _on_mark(self, _: None) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _on_memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _on_tuple(self, _: None) -> None:
        items = tuple(self._pop_to_mark())
        self._stack.append(items)

    def _on_append(self, _: None) -> None:
        item = self._stack.pop()
        self._top(list).append(item)

    def _on_appends(self, _: None) -> None:
        items = self._pop_to_mark()
        self._top(list).extend(items)

    def _on_setitem(self, _: None) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._top(dict)[check_key(key)] = value

    def _on_setitems(self, _: None) -> None:
        items = self._pop_to_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._top(dict)[check_key(key)] = value

    def _on_additems(self, _: None) -> None:
        items = self._pop_to_mark()
        self._top(set).update(check_key(item) for item in items)

    def _on_global(self, names: str) -> None:
        self._look_up(*names.split(" ", 1))

    def _on_stack_global(self, _: None) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._look_up(module, name)

    def _on_reduce(self, _: None) -> None:
        arguments, target = self._stack.pop(), self._stack.pop()
        if type(target) is not Global or type(arguments) is not tuple:
            raise ValueError("damaged: REDUCE needs a global and a tuple of arguments")
        self._given += sum(len(each) for each in arguments if isinstance(each, (list, tuple)))
        if self._given > MAX_OPERATIONS:
            raise ValueError(f"objects made of more than {MAX_OPERATIONS} items")
        try:
            self._stack.append(self._makers[target](*arguments))
        except TypeError as error:
            raise ValueError(f"{'.'.join(target)}: unexpected arguments") from error

    _on_newobj = _on_reduce

    def _on_build(self, _: None) -> None:
        state = self._stack.pop()
        if not isinstance(self._stack[-1], Stateful):
            raise ValueError(f"BUILD on a {type(self._stack[-1]).__name__} is refused")
        self._stack[-1].set_state(state)

    def _on_binpersid(self, _: None) -> None:
        if self._persistent is None:
            raise ValueError("opcode BINPERSID is refused: the file has no objects stored elsewhere")
        self._stack.append(self._persistent(self._stack.pop()))

    def _look_up(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("damaged: module or name of a global is not text")
        if (target := Global(module, name)) not in self._makers:
            raise ValueError(f"global {module[:80]}.{name[:80]} is refused: it is not part of such files")
        self._stack.append(target)

    def _pop_to_mark(self) -> list[Any]:
        """Removes and returns the items above the last mark."""
        items, self._stack = self._stack, self._below.pop()
        return items

    def _top(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise ValueError(f"damaged: a {kind.__name__} was expected, found a {type(self._stack[-1]).__name__}")
        return self._stack[-1]


def check_key(key: Any) -> Any:
    """The key, if its hash is cheap; the hash of nested tuples may take very long. ValueError for another one."""
    if type(key) not in _KEYS:
        raise ValueError(f"damaged: a {type(key).__name__} as a key")
    return key
