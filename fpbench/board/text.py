"""What submitters wrote, made harmless for where it is shown: nothing hides, nothing acts as markup."""

import hashlib
import re
import unicodedata

# Marks that turn the direction of the text around them.
DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
MARKDOWN = re.compile(r"[\\`*\[\]<>|~$]|\b_|_\b|&(?=[#\w])")
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "–": "--",
    "·": r"\textperiodcentered{}",
    "Δ": r"$\Delta$",
    **{each: f"\\{each}" for each in "{}$&#_%"},
}


def visible(text: str) -> str:
    r"""Write control characters, marks of direction and lone surrogates as ``\u202e``; line breaks become spaces."""
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in "\r\n\t":
        return " "
    if character in DIRECTION or unicodedata.category(character) in ("Cc", "Cs"):
        return f"\\u{ord(character):04x}"
    return character


def markdown(text: str) -> str:
    """Text for a cell or a line of Markdown."""
    return MARKDOWN.sub(lambda found: f"\\{found[0]}", visible(text))


def latex(text: str) -> str:
    """Text for LaTeX with T1 fonts; what pdfLaTeX may not know is left to the reader's fonts."""
    return "".join(LATEX.get(character, character) for character in visible(text))


def slug(text: str) -> str:
    """A name that is safe in file names and page anchors: the text itself, or its digest."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,79}", text):
        return text
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:12]
