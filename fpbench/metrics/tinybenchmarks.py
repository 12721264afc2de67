"""The parameters that tinyBenchmarks publishes as a pickle file, as plain arrays (arXiv 2402.14992)."""

import io
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from fpbench.errors import InputError
from fpbench.metrics.plain_pickle import Array, read_plain
from fpbench.metrics.tinymmlu import Parameters

BENCHMARK = "mmlu"
ITEMS = 100_000


def convert(content: bytes, label: str) -> bytes:
    """Turn the authors' file into an ``.npz`` file that :meth:`Parameters.load` reads.

    The file maps benchmarks to ``irt_parameters`` (``A``, ``B``: [1, D, N]), ``seen_examples`` (the anchors' numbers),
    and, by scenario, ``examples_weights``, ``optimal_lambdas`` and ``subscenarios_position`` (subject → its items).

    Args:
        content: ``tinyBenchmarks.pkl``.
        label: what error messages call it.

    Returns:
        The file's bytes, always the same for the same parameters.

    Raises:
        InputError: if the file holds more than numbers and containers, or lacks or misshapes any of these.
    """
    table = read_plain(content, label)
    try:
        parameters = _parameters(table[BENCHMARK])
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise InputError(
            f"{label}: expected tinyBenchmarks' parameters of {BENCHMARK!r}, found: {type(error).__name__} {error}; "
            "fetch the file again from its authors."
        ) from None
    parameters.check(label)
    out = io.BytesIO()
    np.savez(out, **{field.name: getattr(parameters, field.name) for field in fields(parameters)})
    return out.getvalue()


def _parameters(benchmark: Mapping[str, Any]) -> Parameters:
    irt = benchmark["irt_parameters"]
    return Parameters(
        A=_matrix(irt["A"]),
        B=_matrix(irt["B"]),
        anchor_items=_vector(benchmark["seen_examples"], np.int64),
        anchor_weights=_vector(benchmark["examples_weights"][BENCHMARK], np.float64),
        gp_lambda=float(benchmark["optimal_lambdas"][BENCHMARK]),
        subject_sizes=_sizes(benchmark["subscenarios_position"][BENCHMARK]),
    )


def _matrix(found: Any) -> np.ndarray:
    """[1, D, N] without its first axis, as finite float64."""
    matrix = _vector(found, np.float64)
    if matrix.ndim != 3 or len(matrix) != 1 or not np.isfinite(matrix).all():
        raise ValueError(f"A or B of shape {matrix.shape} or not finite, not [1, D, N]")
    plain: np.ndarray = matrix[0]
    return plain


def _vector(found: Any, dtype: type) -> np.ndarray:
    values = found.value if isinstance(found, Array) else found
    if not isinstance(values, np.ndarray) and not _numbers(values):
        raise ValueError(f"{type(found).__name__} instead of numbers")
    return np.asarray(values, dtype=dtype)


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and len(values) <= ITEMS and all(type(each) in (int, float) for each in values)


def _sizes(positions: Mapping[str, Any]) -> np.ndarray:
    """How many items each subject has, in the order of the items; subjects must follow each other without gaps."""
    subjects: list[list[int]] = []
    items = 0
    for found in positions.values():
        subjects.append(_vector(found, np.int64).tolist())
        # One long list can stand for many subjects in a small file.
        items += len(subjects[-1])
        if items > ITEMS:
            raise ValueError(f"more than {ITEMS} items")
    subjects.sort(key=min)
    if [item for subject in subjects for item in subject] != list(range(items)):
        raise ValueError("subjects whose items do not follow each other")
    return np.array([len(subject) for subject in subjects])
