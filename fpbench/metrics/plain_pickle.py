"""Pickle files of numbers, read without running them: NumPy arrays and built-in containers, and nothing else.

The one place of the project that touches pickle, for the one file that is published in no other form (tinyBenchmarks'
parameters). A file is scanned first, which executes nothing: only opcodes that build containers, numbers and text may
occur. Then it is loaded with stand-ins of ours for the few names that NumPy's arrays are pickled under; any other name
is refused, and so are objects inside arrays and arrays larger than their bytes.
"""

import io
import pickle  # noqa: TID251 - read through a closed list of names, see above
import pickletools
from math import prod
from typing import Any

import numpy as np

from fpbench.errors import InputError

LARGEST = 64 * 2**20
# A file of arrays takes far fewer. More opcodes only cost time; deep tuples overflow the stack when they are hashed.
OPCODES = 2_000_000
TUPLES = 10_000
BINARY = frozenset(
    "PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT "
    "BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES BYTEARRAY8 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM "
    "SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL "
    "REDUCE BUILD".split()
)
PLAIN = frozenset(kind + size for kind in "fiu" for size in "1248") - {"f1"} | {"b1"}

# What a file that is not of this kind makes the scan, the reader or NumPy raise.
_REFUSED = (pickle.UnpicklingError, ValueError, TypeError, LookupError, AttributeError, EOFError, ArithmeticError)


def read_plain(content: bytes, label: str) -> Any:
    """Load a pickle of arrays, numbers, text, lists, tuples and dictionaries.

    Args:
        content: the whole file, pickled with protocol 2 or newer, of at most 64 MiB.
        label: what error messages call it.

    Returns:
        What was pickled; arrays as :class:`Array`, whose ``value`` is the NumPy array, or ``None`` without numbers.

    Raises:
        InputError: for anything else in the file; nothing of it was executed.
    """
    try:
        if len(content) > LARGEST:
            raise ValueError(f"{len(content)} bytes, more than {LARGEST}")
        _scan(content)
        return _PlainUnpickler(io.BytesIO(content)).load()
    except (*_REFUSED, MemoryError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{label}: expected a pickle of NumPy arrays and plain containers, found: {reason}; nothing in it was "
            "executed; fetch the file again from its authors."
        ) from None


class Array:
    """What stands for an array while a file is read: its bytes are looked at only once they fit its shape and type."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        """Empty, and so it stays if the file gives it no numbers."""
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        """Take NumPy's (version, shape, type, column order, bytes)."""
        _, shape, kind, by_column, raw = state
        self.value = _numbers(kind, shape, raw, "F" if by_column else "C")


class _Kind:
    """What stands for a dtype: one of the plain numbers, little or big endian."""

    __slots__ = ("code",)

    def __init__(self, code: str) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Take NumPy's (version, byte order, subarray, names, fields, …); structured types are refused."""
        _, order, *rest = state
        if order not in ("<", ">", "|", "=") or any(each not in (None, -1, 0) for each in rest):
            raise ValueError(f"an array type with the state {state!r}")
        self.code = order + self.code.lstrip("<>|=")


class _Name:
    """A name that NumPy pickles arrays under. Files can call it and do nothing else with it."""

    __slots__ = ("_build",)

    def __init__(self, build: Any) -> None:
        self._build = build

    def __call__(self, *arguments: Any) -> Any:
        return self._build(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a state for a function")


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        build = _NAMES.get(f"{module.replace('numpy._core', 'numpy.core')}.{name}")
        if build is None:
            raise ValueError(f"the name {module}.{name}")
        return _Name(build)


def _scan(content: bytes) -> None:
    """Walk the opcodes without executing any.

    Raises:
        ValueError: for an opcode out of place, too many of them, a damaged file, or something behind its end.
    """
    tuples = end = 0
    for count, (opcode, argument, position) in enumerate(pickletools.genops(content), start=1):
        tuples += opcode.name.startswith("TUPLE")
        if opcode.name not in BINARY:
            raise ValueError(f"the pickle instruction {opcode.name}")
        # Python's reader allocates its memo up to the largest index.
        if argument is not None and opcode.name.endswith("BINPUT") and argument > count:
            raise ValueError(f"the memo index {argument}")
        if count > OPCODES or tuples > TUPLES:
            raise ValueError(f"more than {OPCODES} instructions or {TUPLES} tuples")
        end = (position or 0) + 1
    if end != len(content):
        raise ValueError(f"{len(content) - end} bytes behind the end")


def _numbers(kind: Any, shape: Any, raw: Any, order: Any) -> np.ndarray:
    if not isinstance(kind, _Kind) or not isinstance(shape, tuple) or not isinstance(raw, bytes | bytearray):
        raise ValueError(f"an array of {type(kind).__name__} and {type(raw).__name__}, not of plain numbers")
    if not all(type(length) is int and length >= 0 for length in shape) or order not in ("C", "F"):
        raise ValueError(f"an array of shape {shape!r}")
    dtype = np.dtype(kind.code)
    if prod(shape) * dtype.itemsize != len(raw):
        raise ValueError(f"an array of shape {shape} in {len(raw)} bytes")
    return np.frombuffer(raw, dtype).reshape(shape, order=order)


def _kind(code: Any, *_: Any) -> _Kind:
    if not isinstance(code, str) or code.lstrip("<>|=") not in PLAIN:
        raise ValueError(f"an array of type {code!r}, not of plain numbers")
    return _Kind(code)


def _empty(*_: Any) -> Array:
    return Array()


def _scalar(kind: Any, raw: Any) -> Any:
    return _numbers(kind, (), raw, "C").item()


def _from_buffer(raw: Any, kind: Any, shape: Any, order: Any) -> Array:
    array = Array()
    array.value = _numbers(kind, shape, raw, order)
    return array


def _refuse(*_: Any) -> None:
    raise ValueError("a call of numpy.ndarray")


_NAMES = {
    "numpy.dtype": _kind,
    "numpy.ndarray": _refuse,
    "numpy.core.multiarray._reconstruct": _empty,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _from_buffer,
}
