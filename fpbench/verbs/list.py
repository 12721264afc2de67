"""``fpbench list``: what is registered."""

import argparse
import json
from collections.abc import Callable
from typing import Any

from fpbench.errors import InputError

HELP = "what is registered: methods, conditions, adversaries, sets, profiles"


def arguments(verb: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("--json", action="store_true", help="as one JSON object, with dose, level and payment of each")


def do(options: argparse.Namespace) -> int:
    """Print every registered name, one line each: what it does, its threat level and its doses."""
    from fpbench.adversaries.conditions import PRESETS, known
    from fpbench.fingerprints.library import BUILT_IN, MODEL_DEPENDENT
    from fpbench.registry import ADVERSARIES, METHODS, MODIFICATIONS
    from fpbench.runs.profile import profile_names

    weights = [name for name in known() if name in MODIFICATIONS.names()]
    found: dict[str, dict[str, dict[str, Any]]] = {
        "methods": {name: _about(METHODS, name, _method) for name in METHODS.names()},
        "modifications": {name: _about(MODIFICATIONS, name, _part) for name in weights},
        "adversaries": {name: _about(ADVERSARIES, name, _part) for name in known() if name not in weights},
        "presets of conditions": {name: {"does": does} for name, does in PRESETS.items()},
        "fingerprint sets": {name: {} for name in (*BUILT_IN, *MODEL_DEPENDENT, "any .jsonl file")},
        "models": {name: {} for name in ("micro (bundled)", "smollm2 (one package)", "any folder", "any hub id")},
        "profiles": {name: {} for name in profile_names()},
    }
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    for title, entries in found.items():
        print(f"{title}:")
        for name, about in entries.items():
            level = f"{about['level']}  " if "level" in about else ""
            doses = f"  [{about['dose']['unit']}: {about['dose']['list']}]" if about.get("dose") else ""
            print(f"  {name:<28}{level}{about.get('does', '')}{doses}".rstrip())
    return 0


def _about(registry: Any, name: str, describe: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Return what a class says of itself, or why an installed package's cannot be imported."""
    try:
        return describe(registry.get(name))
    except InputError as error:
        return {"does": str(error)}


def _method(found: Any) -> dict[str, Any]:
    """Return what a class of methods says of itself."""
    return {"does": _first_line(found)}


def _part(found: Any) -> dict[str, Any]:
    """Return what a class of modifications or adversaries says of itself."""
    dose = found.dose and {"unit": found.dose.unit, "default": found.dose.default, "list": list(found.dose.list)}
    return {"does": _first_line(found), "level": found.level, "pays": dict(found.pays), "dose": dose}


def _first_line(found: Any) -> str:
    return (found.__doc__ or "").strip().partition("\n")[0]
