"""MMLU from 100 anchor items: item response theory, p-IRT and gp-IRT (tinyBenchmarks, arXiv 2402.14992)."""

import io
import pickle  # noqa: TID251 - read through a closed list of names, see read_plain
import pickletools
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from fpbench.errors import InputError

Floats = NDArray[np.float64]
CLIP = 30.0
TINY = 1e-10
# The reference stops its search at a slope of 1e-5, found by finite differences; this lands within 1e-6 of it in p-IRT.
PRECISION = 1e-6
# The data set whose rows are in the order of the anchors; rows from elsewhere say which item they are.
PUBLISHED = "hub:tinyBenchmarks/tinyMMLU"


@dataclass(frozen=True)
class Parameters:
    """Item parameters fitted on many models: N items in D dimensions, of which some are anchors.

    Attributes:
        A: discrimination of every item, [D, N].
        B: difficulty of every item, [D, N].
        anchor_items: numbers of the items that are asked.
        anchor_weights: how many items each of them stands for, as shares.
        gp_lambda: weight of the anchors' own score in gp-IRT, 0 … 1.
        subject_sizes: items of each subject; items are ordered by subject.
    """

    A: NDArray[np.floating]
    B: NDArray[np.floating]
    anchor_items: NDArray[np.integer]
    anchor_weights: Floats
    gp_lambda: float
    subject_sizes: NDArray[np.integer]

    @staticmethod
    def load(path: Path) -> "Parameters":
        """Read an ``.npz`` of plain arrays named as the attributes.

        Raises:
            InputError: if the file is missing, damaged or incomplete, or its arrays do not fit each other.
        """
        names = [field.name for field in fields(Parameters)]
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in names}
        except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"IRT parameters {path}: expected an .npz file with plain arrays {', '.join(names)}, found: {error}; "
                "fetch the file again."
            ) from None
        parameters = Parameters(**found | {"gp_lambda": float(found["gp_lambda"])})
        parameters.check(str(path))
        return parameters

    def check(self, label: str) -> None:
        """Refuse arrays whose shapes or ranges do not fit each other, as InputError."""
        items = int(self.subject_sizes.sum())
        anchors = self.anchor_items
        if not (
            self.A.ndim == 2
            and self.A.shape == self.B.shape
            and self.A.shape[1] == items
            and anchors.shape == self.anchor_weights.shape
            and 0 < len(anchors) == len(np.unique(anchors)) < items
            and 0 <= anchors.min() <= anchors.max() < items
        ):
            raise InputError(
                f"IRT parameters {label}: expected A and B [D, {items}] for the {items} items of all subjects and one "
                f"weight for each of the distinct anchors among them, found A {self.A.shape}, B {self.B.shape}, "
                f"{anchors.size} anchors, {self.anchor_weights.size} weights; fetch the file again."
            )

    @property
    def balance(self) -> Floats:
        """Return b_i = N / (S · size of i's subject), [N]: so weighted, all S subjects count alike."""
        sizes = self.subject_sizes.astype(np.float64)
        return np.repeat(sizes.sum() / (len(sizes) * sizes), self.subject_sizes)


@dataclass(frozen=True)
class AccuracyEstimate:
    """Accuracy on all N items, estimated from the anchors.

    Attributes:
        theta: the model's ability, [D].
        irt: the anchors' weighted accuracy, 0 … 1.
        pirt: what was seen on the anchors and what θ predicts for all others, every subject alike.
        gpirt: λ · irt + (1 − λ) · pirt.
    """

    theta: tuple[float, ...]
    irt: float
    pirt: float
    gpirt: float


def estimate(correct: Sequence[bool], parameters: Parameters) -> AccuracyEstimate:
    """Estimate accuracy on all items from the answers to the anchors, in the order of ``parameters.anchor_items``.

    Raises:
        InputError: if there is not one entry per anchor.
    """
    anchors = parameters.anchor_items
    if len(correct) != len(anchors):
        raise InputError(
            f"tinyMMLU estimate: expected {len(anchors)} answers, one per anchor, found {len(correct)}; "
            "score the whole anchor set."
        )
    y = np.asarray(correct, dtype=np.float64)
    theta = ability(y, parameters.A[:, anchors], parameters.B[:, anchors])
    others = np.ones(parameters.A.shape[1], dtype=bool)
    others[anchors] = False
    balance, predicted = parameters.balance, probability(theta, parameters.A, parameters.B)
    seen = len(anchors) / len(others)
    irt, share = float(parameters.anchor_weights @ y), parameters.gp_lambda
    pirt = float(seen * np.mean(balance[anchors] * y) + (1 - seen) * np.mean((balance * predicted)[others]))
    return AccuracyEstimate(tuple(theta.tolist()), irt, pirt, share * irt + (1 - share) * pirt)


def probability(theta: Floats, A: NDArray[np.floating], B: NDArray[np.floating]) -> Floats:
    """Return p_i = σ(Σ_k clip(A_ki θ_k − B_ki, ±30)), the chance of a right answer to each item, [N]."""
    p: Floats = 1 / (1 + np.exp(-np.clip(A * theta[:, None] - B, -CLIP, CLIP).sum(0)))
    return p


def ability(y: Floats, A: NDArray[np.floating], B: NDArray[np.floating]) -> Floats:
    """Return the θ [D] that makes the answers likeliest, by BFGS from 0.

    If all answers are right or all are wrong there is no finite optimum, and θ is where the search levels out.
    """
    theta: Floats = minimize(surprise, np.zeros(len(A)), (y, A, B), "BFGS", jac=True, options={"gtol": PRECISION}).x
    return theta


def surprise(theta: Floats, y: Floats, A: NDArray[np.floating], B: NDArray[np.floating]) -> tuple[float, Floats]:
    """Return −Σ [y log(p + ε) + (1 − y) log(1 − p + ε)] with ε = 1e-10, and its gradient in θ, [D]."""
    p = probability(theta, A, B)
    value = -np.sum(y * np.log(p + TINY) + (1 - y) * np.log(1 - p + TINY))
    by_exponent = p * (1 - p) * ((1 - y) / (1 - p + TINY) - y / (p + TINY))
    inside = np.abs(A * theta[:, None] - B) < CLIP
    gradient: Floats = (A * inside * by_exponent).sum(1)
    return float(value), gradient


def anchor_scores(
    correct: Sequence[bool], rows: Sequence[Mapping[str, Any]], source: str, parameters: Parameters | None
) -> dict[str, Any]:
    """Score the answers to the anchors beyond plain accuracy, for a record.

    ``correct`` has one entry per row that was scored, from the first on. Of all rows of the data source
    ``anchor_weight`` and ``mmlu_index`` are used where they are given; without item parameters there is no p-IRT.

    Returns:
        ``anchor_weighted`` accuracy, ``pirt`` and ``gpirt``, each ``None`` where something is missing for it, and
        ``scored_by``, which says what was reported and why not more.

    Raises:
        InputError: if the rows are other items than the parameters' anchors.
    """
    none = {"anchor_weighted": None, "pirt": None, "gpirt": None}
    if len(correct) != len(rows):
        return none | {"scored_by": f"plain accuracy: {len(correct)} of {len(rows)} rows were scored"}
    y = np.asarray(correct, dtype=np.float64)
    weighted: float | None = None
    if all("anchor_weight" in row for row in rows):
        weights = np.array([row["anchor_weight"] for row in rows], dtype=np.float64)
        weighted = float(weights @ y / weights.sum())
    plain = "plain accuracy" if weighted is None else "plain and anchor-weighted accuracy"
    scores = none | {"anchor_weighted": weighted}
    known = all("mmlu_index" in row for row in rows)
    if not known and not source.startswith(PUBLISHED):
        return scores | {"scored_by": f"{plain}: the rows do not say which MMLU items they are (mmlu_index)"}
    if parameters is None:
        return scores | {"scored_by": f"{plain}: the item parameters are not here (fpbench fetch)"}
    anchors = parameters.anchor_items.tolist()
    answers = dict(zip((row["mmlu_index"] for row in rows) if known else anchors, y, strict=True))
    if answers.keys() != set(anchors):
        raise InputError(f"tinyMMLU {source}: expected the anchors of the item parameters, found other items.")
    found = estimate([bool(answers[item]) for item in anchors], parameters)
    figures = {"anchor_weighted": found.irt, "pirt": found.pirt, "gpirt": found.gpirt}
    return figures | {"scored_by": f"{plain}, p-IRT and gp-IRT"}


BENCHMARK = "mmlu"  # of the several that the authors' file holds
ITEMS = 100_000  # more than any benchmark has: one long list can stand for many subjects in a small file


def convert(content: bytes, label: str) -> bytes:
    """Turn the authors' ``tinyBenchmarks.pkl`` into an ``.npz`` file, as bytes, that :meth:`Parameters.load` reads.

    Equal parameters give equal bytes. Error messages call the authors' file ``label``. It maps benchmarks to
    ``irt_parameters`` (``A``, ``B``: [1, D, N]), ``seen_examples`` (the anchors' numbers), and, by scenario,
    ``examples_weights``, ``optimal_lambdas`` and ``subscenarios_position`` (subject → its items).

    Raises:
        InputError: if the file holds more than numbers and containers, or lacks or misshapes any of these.
    """
    table = read_plain(content, label)
    try:
        benchmark = table[BENCHMARK]
        parameters = Parameters(
            A=_matrix(benchmark["irt_parameters"]["A"]),
            B=_matrix(benchmark["irt_parameters"]["B"]),
            anchor_items=_vector(benchmark["seen_examples"], np.int64),
            anchor_weights=_vector(benchmark["examples_weights"][BENCHMARK], np.float64),
            gp_lambda=float(benchmark["optimal_lambdas"][BENCHMARK]),
            subject_sizes=_sizes(benchmark["subscenarios_position"][BENCHMARK]),
        )
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise InputError(
            f"{label}: expected tinyBenchmarks' parameters of {BENCHMARK!r}, found: {type(error).__name__} {error}; "
            "fetch the file again from its authors."
        ) from None
    parameters.check(label)
    out = io.BytesIO()
    np.savez(out, **{field.name: getattr(parameters, field.name) for field in fields(parameters)})
    return out.getvalue()


def _matrix(found: Any) -> np.ndarray:
    """Return [1, D, N] without its first axis, as finite float64."""
    matrix = _vector(found, np.float64)
    if matrix.ndim != 3 or len(matrix) != 1 or not np.isfinite(matrix).all():
        raise ValueError(f"A or B of shape {matrix.shape} or not finite, not [1, D, N]")
    return np.asarray(matrix[0])


def _vector(found: Any, dtype: type) -> np.ndarray:
    values = found.value if isinstance(found, Array) else found
    numbers = isinstance(values, list) and len(values) <= ITEMS and all(type(each) in (int, float) for each in values)
    if not isinstance(values, np.ndarray) and not numbers:
        raise ValueError(f"{type(found).__name__} instead of numbers")
    return np.asarray(values, dtype=dtype)


def _sizes(positions: Mapping[str, Any]) -> np.ndarray:
    """Count the items of each subject, in the order of the items; subjects must follow each other without gaps."""
    subjects: list[list[int]] = []
    items = 0
    for found in positions.values():
        subjects.append(_vector(found, np.int64).tolist())
        items += len(subjects[-1])
        if items > ITEMS:
            raise ValueError(f"more than {ITEMS} items")
    subjects.sort(key=min)
    if [item for subject in subjects for item in subject] != list(range(items)):
        raise ValueError("subjects whose items do not follow each other")
    return np.array([len(subject) for subject in subjects])


# The one place of the project that touches pickle, for the one file that is published in no other form.

LARGEST = 64 * 2**20  # bytes
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
    """Load a pickle of arrays, numbers, text, lists, tuples and dictionaries without running what is in it.

    It is scanned first, which executes nothing: only opcodes that build containers, numbers and text may occur. Then it
    is loaded with stand-ins of ours for the few names that NumPy's arrays are pickled under; any other name is refused,
    and so are objects inside arrays and arrays larger than their bytes. The file, which error messages call ``label``,
    is pickled with protocol 2 or newer and has at most 64 MiB.

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
    """Stands for an array while a file is read: its bytes are looked at only once they fit its shape and type."""

    __slots__ = ("value",)

    def __init__(self, value: np.ndarray | None = None) -> None:
        """Start empty; so it stays if the file gives no numbers."""
        self.value = value

    def __setstate__(self, state: Any) -> None:
        """Take NumPy's (version, shape, type, column order, bytes)."""
        _, shape, kind, by_column, raw = state
        self.value = _numbers(kind, shape, raw, "F" if by_column else "C")


class _Kind:
    """Stands for a dtype: one of the plain numbers, little or big endian."""

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
    """Stands for a name that NumPy pickles arrays under; a file can call it and do nothing else with it."""

    __slots__ = ("_build",)

    def __init__(self, build: Any) -> None:
        self._build = build

    def __call__(self, *arguments: Any) -> Any:
        return self._build(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a state for a function")


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        key = f"{module.replace('numpy._core', 'numpy.core')}.{name}"
        if key not in _NAMES:
            raise ValueError(f"the name {module}.{name}")
        return _Name(_NAMES[key])


def _scan(content: bytes) -> None:
    """Walk the opcodes without executing any; refuse any out of place, too many, and bytes after the end."""
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


# What a file may call, by name; numpy.ndarray only stands as an argument, and calling it is a TypeError.
_NAMES: dict[str, Any] = {
    "numpy.dtype": _kind,
    "numpy.ndarray": None,
    "numpy.core.multiarray._reconstruct": lambda *_: Array(),
    "numpy.core.multiarray.scalar": lambda kind, raw: _numbers(kind, (), raw, "C").item(),
    "numpy.core.numeric._frombuffer": lambda raw, kind, shape, order: Array(_numbers(kind, shape, raw, order)),
}
