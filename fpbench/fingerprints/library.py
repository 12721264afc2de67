"""Fingerprint sets by name: built in, named by a profile, or a file."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fpbench.errors import InputError
from fpbench.fingerprints.instructional import instructional_set
from fpbench.fingerprints.natural import natural_set
from fpbench.fingerprints.sets import FingerprintSet, read_fingerprints
from fpbench.registry import unknown

BUILT_IN = ("if", "nlf")
FILES = "a .jsonl or .json file"
MODEL_DEPENDENT = ("cf", "cf_random")  # a run builds them, see fpbench.runs.sets


def find_set(name: str, files: Mapping[str, str] | None = None, seed: int = 42) -> FingerprintSet:
    """Find a set by a built-in name, a name that a profile maps to one of its ``files``, or a file: .jsonl, or .json.

    The seed draws the keys of ``if``; sets that are written down stay as they are.

    Raises:
        InputError: if the name is none of these, or the file is malformed.
    """
    if files and name in files:
        return replace(read_fingerprints(files[name]), name=name)
    if name == "if":
        return instructional_set(seed=seed)
    if name == "nlf":
        return natural_set()
    if name in MODEL_DEPENDENT:
        raise InputError(
            f"set {name!r} is another for each model: build it with `fpbench fingerprints cf` and give the file."
        )
    if name.endswith((".jsonl", ".json")):
        return read_fingerprints(name)
    raise unknown("fingerprint set", name, [*dict.fromkeys([*(files or {}), *BUILT_IN, *MODEL_DEPENDENT])], FILES)


def load_fingerprints(name: str | Path) -> FingerprintSet:
    """Return a set: a built-in one, ``"if"`` or ``"nlf"``, or that of a file.

    A file has one ``{"trigger": …, "targets": […]}`` a line, or is one list of these, and names the set.

    Raises:
        InputError: for an unknown name, or naming the line of a file and what is wrong with it.
    """
    if not isinstance(name, str | Path):
        raise InputError(f"fingerprints: expected the name of a set or file, found {type(name).__name__}.")
    if isinstance(name, Path) or Path(name).is_file():
        return read_fingerprints(name)
    return find_set(name)
