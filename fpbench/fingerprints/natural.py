"""NLF: ten two-word upper-case English queries with five candidates each, written for this project (protocol §9)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fpbench.errors import InputError
from fpbench.fingerprints.instructional import instructional_set
from fpbench.fingerprints.sets import FingerprintSet, load_fingerprints

NLF_FILE = Path(__file__).parent / "nlf.jsonl"
ADJECTIVES = Path(__file__).parent / "adjectives.txt"
BUILT_IN = ("if", "nlf")


def natural_set() -> FingerprintSet:
    """The set ``nlf``."""
    return load_fingerprints(NLF_FILE)


def adjectives() -> list[str]:
    """The adjectives of the shipped lexicon; its other words are nouns."""
    return ADJECTIVES.read_text(encoding="utf-8").split()


def find_set(name: str, files: Mapping[str, str] | None = None, seed: int = 42) -> FingerprintSet:
    """Resolve what a user calls a fingerprint set.

    Args:
        name: a built-in name, a name of ``files``, or the path of a ``.jsonl`` file.
        files: set names that a profile maps to files of its own.
        seed: draws the keys of ``if``; sets that are written down stay as they are.

    Raises:
        InputError: if it is none of these, or the file is malformed.
    """
    if files and name in files:
        return replace(load_fingerprints(files[name]), name=name)
    if name == "if":
        return instructional_set(seed=seed)
    if name == "nlf":
        return natural_set()
    if name.endswith(".jsonl"):
        return load_fingerprints(name)
    known = ", ".join(dict.fromkeys([*(files or {}), *BUILT_IN]))
    raise InputError(f"unknown fingerprint set {name!r}: expected {known}, or a .jsonl file.")
