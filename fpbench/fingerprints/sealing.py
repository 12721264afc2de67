"""Sealing: publish a commitment to every fingerprint now, prove one of them later without showing the others.

The commitment to a pair is SHA-256(salt ‖ canonical JSON of the pair), with a random salt of 32 bytes for each. Without
the salt it says nothing about the pair, and nobody can find another pair and salt that give it. Only the hash and the
randomness of the standard library are used.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fpbench.errors import InputError
from fpbench.fingerprints.sets import Fingerprint, FingerprintSet
from fpbench.text import canonical

SCHEMA = 1
SCHEME = "sha256(salt || canonical JSON of the pair)"
SALT_BYTES = 32
Sealed = dict[str, Any]  # the JSON document of one of the functions below


def seal(fingerprints: FingerprintSet) -> tuple[Sealed, Sealed]:
    """Commit to every pair of a set.

    Returns:
        What is published (the commitments in order of their digits, which says nothing about the set's order) and what
        stays private (pairs and salts, in the set's order).

    Raises:
        InputError: if a text cannot be written as UTF-8.
    """
    openings = [{"fingerprint": pair.as_json(), "salt": secrets.token_bytes(SALT_BYTES).hex()} for pair in fingerprints]
    head = {"schema": SCHEMA, "scheme": SCHEME}
    return head | {"commitments": sorted(map(commitment, openings))}, head | {"openings": openings}


def commitment(opening: Mapping[str, Any]) -> str:
    """Return the commitment that an opening opens, in hexadecimal.

    Every byte counts: texts are not normalised, and the order of targets matters, since the first is the primary.

    Raises:
        InputError: if the opening is malformed.
    """
    try:
        pair, salt = opening["fingerprint"], bytes.fromhex(opening["salt"])
        # Through the type, so that keys which mean nothing cannot ride along.
        fingerprint = Fingerprint(pair["trigger"], tuple(pair["targets"]))
        texts = [fingerprint.trigger, *fingerprint.targets]
        if set(pair) != {"trigger", "targets"} or not isinstance(pair["targets"], list):
            raise ValueError("unknown keys")
        if len(salt) != SALT_BYTES or not all(isinstance(text, str) for text in texts):
            raise ValueError("wrong types")
        return hashlib.sha256(salt + canonical(fingerprint.as_json()).encode()).hexdigest()
    except UnicodeEncodeError:
        raise InputError("a fingerprint holds half a character (a lone surrogate): correct the set.") from None
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"not an opening: expected 'fingerprint' (trigger and targets) and 'salt' ({SALT_BYTES} bytes, as "
            "hexadecimal)."
        ) from None


def read_document(path: str | Path) -> Sealed:
    """Read a document of :func:`seal` or :func:`reveal`.

    Raises:
        InputError: if the file cannot be read, or holds no JSON object.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): check the path, or whether it is whole.") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object.")
    return found


def reveal(openings: Mapping[str, Any], trigger: str) -> Sealed:
    """Return the opening of the pair with exactly this trigger, to be handed to whoever checks.

    Raises:
        InputError: if no pair has this trigger, or the document is malformed.
    """
    for opening in _listed(openings, "openings"):
        commitment(opening)
        if opening["fingerprint"]["trigger"] == trigger:
            return {"schema": SCHEMA, "scheme": SCHEME, **opening}
    raise InputError(f"no sealed pair has the trigger {trigger!r}: expected it exactly as it was sealed.")


def triggers(openings: Mapping[str, Any]) -> list[str]:
    """Return the triggers of the private document, in the set's order.

    Raises:
        InputError: if the document is malformed.
    """
    sealed = _listed(openings, "openings")
    for opening in sealed:
        commitment(opening)  # refuses a malformed one
    return [str(opening["fingerprint"]["trigger"]) for opening in sealed]


def check(revealed: Mapping[str, Any], commitments: Mapping[str, Any]) -> Fingerprint:
    """Check what :func:`reveal` gave against the public document of :func:`seal`, and return the pair.

    Raises:
        InputError: if the pair was not sealed, or one of the two documents is malformed.
    """
    published = _listed(commitments, "commitments")
    if revealed.get("schema") != SCHEMA or revealed.get("scheme") != SCHEME:
        raise InputError(f"not a revealed pair: expected schema {SCHEMA} and scheme {SCHEME!r}.")
    if commitment(revealed) not in published:
        raise InputError("the revealed pair is none of the sealed ones: its text, its salt or the commitments differ.")
    pair = revealed["fingerprint"]
    return Fingerprint(pair["trigger"], tuple(pair["targets"]))


def _listed(document: Mapping[str, Any], key: str) -> list[Any]:
    found = document.get(key) if isinstance(document, Mapping) else None
    if not isinstance(found, list) or document.get("schema") != SCHEMA or document.get("scheme") != SCHEME:
        raise InputError(f"not a sealed document: expected {key!r}, schema {SCHEMA} and scheme {SCHEME!r}.")
    return found
