"""The hyper-parameters of a method on a model: ``hyperparameters.toml``, overlaid by what a user gives."""

import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from fpbench.errors import InputError
from fpbench.registry import METHODS

SMALL = 1_000_000_000
"""Below this many parameters an unknown model is of the family ``small``."""

FAMILIES = {
    ("llama", 3072, 28): "llama-3.2-3b",
    ("mistral", 4096, 32): "mistral-7b",
    ("qwen3", 4096, 36): "qwen3-8b",
    ("llama", 576, 30): "smollm2-135m",
}
"""Model type, hidden size and number of blocks of the families that have values of their own."""


def defaults(method: str, family: str) -> dict[str, Any]:
    """Return the hyper-parameters of ``method`` on a model family; empty if the method has no table there."""
    tables = _of(method)
    return {} if family not in tables else overlay(tables.get("all", {}), tables[family], alternatives_of(method))


def _of(method: str) -> Mapping[str, Mapping[str, Any]]:
    return _tables().get(method) or METHODS.get(method).hyperparameters


def alternatives_of(method: str) -> tuple[frozenset[str], ...]:
    """Return the sets of keys of which a method takes one at a time."""
    # A stranger's Config may be any pydantic model.
    return getattr(METHODS.get(method).Config, "alternatives", ())


def overlay(
    values: Mapping[str, Any], instead: Mapping[str, Any], alternatives: Iterable[frozenset[str]] = ()
) -> dict[str, Any]:
    """Return ``values`` with ``instead`` on top; a key also replaces its alternatives, as ``layers`` does ``depth``."""
    replaced = {key for keys in alternatives if keys & instead.keys() for key in keys}
    return {key: value for key, value in values.items() if key not in replaced} | dict(instead)


def family_of(model: Any) -> str:
    """Return the family of a model, by facts of its architecture.

    Raises:
        InputError: if it is none of the known ones and too large for values tuned on small models.
    """
    config = model.config
    facts = (config.model_type, getattr(config, "hidden_size", None), getattr(config, "num_hidden_layers", None))
    if facts in FAMILIES:
        return FAMILIES[facts]
    if not is_small(model):
        raise InputError(
            f"no hyper-parameters are known for model type {config.model_type!r} with {_size(model) / 1e9:.1f} billion "
            f"parameters: expected one of {', '.join(FAMILIES.values())} or a model below {SMALL / 1e9:.0f} billion; "
            "give all hyper-parameters yourself."
        )
    return "small"


def is_small(model: Any) -> bool:
    """Tell whether a model takes the values of ``small`` where its own family has none."""
    return _size(model) < SMALL


def _size(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def hyperparameters(method: str, model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return what to construct ``method`` with: the defaults of the model's family, overlaid by what the user gave.

    A small model takes those of ``small`` where the method has none for its family. A user's values for a model of no
    known family stand alone; the method then names what it still misses.

    Raises:
        InputError: if the family is unknown and nothing was given.
    """
    if not _of(method):
        return given
    try:
        family = family_of(model)
    except InputError:
        if given:
            return given
        raise
    if family not in _of(method) and is_small(model):
        family = "small"
    return overlay(defaults(method, family), given, alternatives_of(method))


@cache
def _tables() -> dict[str, dict[str, dict[str, Any]]]:
    return tomllib.loads(files("fpbench.methods").joinpath("hyperparameters.toml").read_text(encoding="utf-8"))
