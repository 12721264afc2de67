"""Fingerprint sets by name: built in, named by a profile, or a file."""

from collections.abc import Mapping
from dataclasses import replace

from fpbench.errors import InputError
from fpbench.fingerprints.instructional import instructional_set
from fpbench.fingerprints.natural import natural_set
from fpbench.fingerprints.sets import FingerprintSet, load_fingerprints

BUILT_IN = ("if", "nlf")
MODEL_DEPENDENT = ("cf", "cf_random")  # a run builds them, see fpbench.runs.sets


def find_set(name: str, files: Mapping[str, str] | None = None, seed: int = 42) -> FingerprintSet:
    """Find a set by a built-in name, a name that a profile maps to one of its ``files``, or a file: .jsonl, or .json.

    The seed draws the keys of ``if``; sets that are written down stay as they are.

    Raises:
        InputError: if the name is none of these, or the file is malformed.
    """
    if files and name in files:
        return replace(load_fingerprints(files[name]), name=name)
    if name == "if":
        return instructional_set(seed=seed)
    if name == "nlf":
        return natural_set()
    if name in MODEL_DEPENDENT:
        raise InputError(
            f"set {name!r} is another for each model: build it with `fpbench fingerprints cf` and give the file."
        )
    if name.endswith((".jsonl", ".json")):
        return load_fingerprints(name)
    known = ", ".join(dict.fromkeys([*(files or {}), *BUILT_IN, *MODEL_DEPENDENT]))
    raise InputError(f"unknown fingerprint set {name!r}: expected {known}, or a .jsonl or .json file.")
