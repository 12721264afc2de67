"""Fingerprints, which are queries and their targets, and sets of them."""

from fpbench.fingerprints.library import find_set, load_fingerprints
from fpbench.fingerprints.sets import Fingerprint, Fingerprints, FingerprintSet, fingerprints_of

__all__ = ["Fingerprint", "FingerprintSet", "Fingerprints", "find_set", "fingerprints_of", "load_fingerprints"]
