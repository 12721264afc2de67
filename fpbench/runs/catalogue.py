"""What is registered: methods, conditions, sets, models and profiles, each with what it says of itself."""

from collections.abc import Callable
from typing import Any

from fpbench.adversaries.conditions import PRESETS, known
from fpbench.errors import InputError
from fpbench.fingerprints.library import BUILT_IN, MODEL_DEPENDENT
from fpbench.registry import ADVERSARIES, METHODS, MODIFICATIONS
from fpbench.runs.profile import profile_names


def list_registered() -> dict[str, dict[str, dict[str, Any]]]:
    """Return every registered name by kind, as ``fpbench list --json`` does: what it does, level, payment and doses."""
    weights = [name for name in known() if name in MODIFICATIONS.names()]
    return {
        "methods": {name: _about(METHODS, name, _method) for name in METHODS.names()},
        "modifications": {name: _about(MODIFICATIONS, name, _part) for name in weights},
        "adversaries": {name: _about(ADVERSARIES, name, _part) for name in known() if name not in weights},
        "presets of conditions": {name: {"does": does} for name, does in PRESETS.items()},
        "fingerprint sets": {name: {} for name in (*BUILT_IN, *MODEL_DEPENDENT, "any .jsonl file")},
        "models": {name: {} for name in ("micro (bundled)", "smollm2 (one package)", "any folder", "any hub id")},
        "profiles": {name: {} for name in profile_names()},
    }


def _about(registry: Any, name: str, describe: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Return what a class says of itself, or why an installed package's cannot be imported."""
    try:
        return describe(registry.get(name))
    except InputError as error:
        return {"does": str(error)}


def _method(found: Any) -> dict[str, Any]:
    return {"does": _first_line(found)}


def _part(found: Any) -> dict[str, Any]:
    dose = found.dose and {"unit": found.dose.unit, "default": found.dose.default, "list": list(found.dose.list)}
    return {"does": _first_line(found), "level": found.level, "pays": dict(found.pays), "dose": dose}


def _first_line(found: Any) -> str:
    return (found.__doc__ or "").strip().partition("\n")[0]
