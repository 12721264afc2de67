"""What the Wiktionary word lists say about the shipped lexicon."""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

FOLDER = Path("data") / "wordlists" / "wiktionary"
COMBINED = "en-zh-de-fr-es-ja.combined.tsv"
# The lists spell their headwords either way.
SPELLINGS = {"harbor": "harbour", "grey": "gray", "armor": "armour", "theater": "theatre", "airplane": "aeroplane"}
# Endings with which the lists cite an adjective before a noun; the lexicon holds the bare word.
ATTRIBUTIVE = {"ja": ("な", "の"), "zh": ("的",)}


def read_listed(folder: Path, language: str, words: set[str]) -> Mapping[str, set[str]]:
    """The translations that the lists give for nouns and adjectives, in any sense, bare and as listed."""
    english = {spelling: word for word in words for spelling in (word, SPELLINGS.get(word, word))}
    listed: dict[str, set[str]] = {word: set() for word in words}
    for headword, kind, cell in _cells(folder, language):
        if headword in english and kind in ("n", "adj"):
            for form in _forms(cell):
                bare = [form.removesuffix(ending) for ending in ATTRIBUTIVE.get(language, ()) if form != ending]
                listed[english[headword]].update([form, *bare])
    return listed


def _cells(folder: Path, language: str) -> Iterator[tuple[str, str, str]]:
    for line in (folder / f"en-{language}.tsv").read_text(encoding="utf-8").split("\n"):
        if line:
            headword, kind, _, cell = line.split("\t")
            yield headword, kind, cell
    header, *lines = (folder / COMBINED).read_text(encoding="utf-8").split("\n")
    column = header.split("\t").index(language)
    for line in filter(None, lines):
        cells = line.split("\t")
        yield cells[0], cells[1], cells[column]


def _forms(cell: str) -> Iterator[str]:
    # A reading may follow after two spaces, a second form after a comma, and a form may open with a backslash.
    for form in re.split(r"\||  |，", unicodedata.normalize("NFC", cell)):
        if form.strip("\\ "):
            yield form.strip("\\ ")
