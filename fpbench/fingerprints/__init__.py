"""Fingerprints, which are queries and their targets, and sets of them."""

from fpbench.fingerprints.library import find_set
from fpbench.fingerprints.sets import Fingerprint, FingerprintSet, load_fingerprints

__all__ = ["Fingerprint", "FingerprintSet", "find_set", "load_fingerprints"]
