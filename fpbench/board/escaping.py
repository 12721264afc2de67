"""Escaping of what submitters wrote: nothing is hidden, nothing acts as markup."""

import re

from fpbench.text import digest, visible, writable

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


def markdown(text: str) -> str:
    """Escape text for a cell or a line of Markdown."""
    return MARKDOWN.sub(lambda found: f"\\{found[0]}", visible(text))


def latex(text: str) -> str:
    """Escape text for LaTeX with T1 fonts; characters that pdfLaTeX may not know are left to the reader's fonts."""
    return "".join(LATEX.get(character, character) for character in visible(text))


def slug(text: str) -> str:
    """Return a name that is safe in file names and page anchors: the text itself, or its digest."""
    return text if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,79}", text) else digest(writable(text))[:12]
