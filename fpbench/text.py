"""Texts as bytes: made harmless where they are shown, canonical where they are compared."""

import hashlib
import json
import unicodedata
from collections.abc import Iterable
from math import isfinite
from typing import Any

# Marks that turn the direction of the text around them.
DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

MARKS = frozenset("\"'`*_~#>+-|<")  # quotes, angle brackets and Markdown, beside those of Unicode's own categories


def visible(text: str) -> str:
    r"""Write control characters, marks of direction and lone surrogates as ``\u202e``; line breaks become spaces."""
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in "\r\n\t":
        return " "
    if character in DIRECTION or unicodedata.category(character) in ("Cc", "Cs"):
        return f"\\u{ord(character):04x}"
    return character


def printable(text: str, length: int = 300) -> str:
    """Return :func:`visible` text in one line without repeated spaces, cut after ``length`` characters."""
    shown = " ".join(visible(text).split())
    return shown if len(shown) <= length else f"{shown[:length]}…"


def writable(text: str) -> str:
    """Return a text that UTF-8 can hold: half a character (a lone surrogate) becomes its escape, as in JSON."""
    return text.encode("utf-8", "backslashreplace").decode()


def lenient(text: str) -> str:
    """Return a text without what hides a match (protocol §3): NFKC, no Cf, no opening marks, case folded."""
    kept = "".join(character for character in text if unicodedata.category(character) != "Cf")
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", kept).casefold())
    return folded[next((place for place, character in enumerate(folded) if not _opens(character)), len(folded)) :]


def _opens(character: str) -> bool:
    """Return True for white space, quotes, brackets and Markdown marks, as they stand before words."""
    return character.isspace() or character in MARKS or unicodedata.category(character) in ("Ps", "Pi", "Pf")


def canonical(value: Any) -> str:
    """Return JSON with sorted keys and no spaces, so that equal values have equal digests; NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


DEEPEST, LARGEST_INTEGER = 32, 2**63  # levels of brackets, and the magnitude that other readers of JSON hold


def parsed(text: str) -> Any:
    """Return the value of a JSON text that anybody may have written.

    Raises:
        ValueError: if it is no JSON, or holds a number that is not finite or of more than 64 bits, half a character, or
            more than 32 levels of brackets.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"more than {DEEPEST} levels of brackets") from None
    pending = [(value, 0)]
    while pending:
        each, depth = pending.pop()
        if isinstance(each, dict | list):
            if depth == DEEPEST:
                raise ValueError(f"more than {DEEPEST} levels of brackets")
            inner = [*each, *each.values()] if isinstance(each, dict) else each
            pending += [(found, depth + 1) for found in inner]
        elif isinstance(each, str):
            each.isascii() or each.encode()  # UnicodeEncodeError, a ValueError, for half a character
        elif isinstance(each, float) and not isfinite(each):
            raise ValueError(f"a number that is not finite, {each}")
        elif isinstance(each, int) and abs(each) >= LARGEST_INTEGER:
            raise ValueError("a whole number of more than 64 bits")
    return value


def json_lines(rows: Iterable[Any]) -> str:
    """Return JSON Lines: one value a line, keys in the order given."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def digest(text: str) -> str:
    """Return the SHA-256 of a text as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def short_digest(text: str) -> str:
    """Return the first 16 digits of :func:`digest`: records name prompts by it and do not spell triggers out."""
    return digest(text)[:16]
