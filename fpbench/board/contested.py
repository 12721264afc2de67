"""Methods whose figures somebody has contested: ``contested.toml`` beside the records, a method and a reason a line."""

import tomllib
from collections.abc import Collection
from pathlib import Path

from fpbench.errors import InputError

FILE = "contested.toml"


def contested(folder: Path, methods: Collection[str]) -> dict[str, str]:
    """Why each contested method is unreliable; empty where there is no such file.

    Args:
        folder: of the records.
        methods: that have records there.

    Raises:
        InputError: if the file is no TOML of ``method = "reason"``, or names a method that has no record.
    """
    path = folder / FILE
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable TOML file: {error}") from None
    for method, reason in found.items():
        if not isinstance(reason, str) or not reason.strip():
            raise InputError(f'{path}, key {method!r}: expected a reason, as in {method} = "why", found {reason!r}.')
        if method not in methods:
            raise InputError(f"{path} contests method {method!r}, of which there is no record: remove it.")
    return found
