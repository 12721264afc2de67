"""What strangers wrote, made harmless for where it is shown: nothing hides, nothing acts on a terminal."""

import unicodedata

# Marks that turn the direction of the text around them.
DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    r"""Write control characters, marks of direction and lone surrogates as ``\u202e``; line breaks become spaces."""
    return "".join(map(_visible, text))


def printable(text: str, length: int = 300) -> str:
    """The same in one line without repeated spaces, cut after ``length`` characters."""
    shown = " ".join(visible(text).split())
    return shown if len(shown) <= length else f"{shown[:length]}…"


def writable(text: str) -> str:
    """A text that UTF-8 can hold: half a character (a lone surrogate) becomes its escape, which JSON knows too."""
    return text.encode("utf-8", "backslashreplace").decode()


def _visible(character: str) -> str:
    if character in "\r\n\t":
        return " "
    if character in DIRECTION or unicodedata.category(character) in ("Cc", "Cs"):
        return f"\\u{ord(character):04x}"
    return character
