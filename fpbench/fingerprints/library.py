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
SIZE = 10  # fingerprints of a built-in set, unless another number is asked for (protocol §9)
FILES = "a .jsonl or .json file"
MODEL_DEPENDENT = ("cf", "cf_random")  # a run builds them, see fpbench.runs.sets


def find_set(name: str, files: Mapping[str, str] | None = None, seed: int = 42, size: int = SIZE) -> FingerprintSet:
    """Find a set by a built-in name, a name that a profile maps to one of its ``files``, or a file: .jsonl, or .json.

    The seed draws the keys of ``if``, and ``size`` is the number of fingerprints of a built-in set; sets that are
    written down stay as they are, and ``nlf`` is one: fewer than its ten are the first.

    Raises:
        InputError: if the name is none of these, the file is malformed, or ``nlf`` is to be larger than it is.
    """
    if files and name in files:
        return replace(read_fingerprints(files[name]), name=name)
    if name == "if":
        return instructional_set(size, seed)
    if name == "nlf":
        written = natural_set()
        if size > len(written):
            raise InputError(f"set 'nlf' holds {len(written)}: `fpbench fingerprints nlf --model M` draws {size}.")
        return replace(written, fingerprints=written.fingerprints[:size])
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
