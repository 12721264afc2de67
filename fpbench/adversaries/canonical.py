"""Canonical form: queries are brought to lower case, one script and one language before the model sees them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import ClassVar

from fpbench.adversaries.base import Adversary
from fpbench.fingerprints.translation import Lexicon
from fpbench.modifications.base import Dose
from fpbench.registry import ADVERSARIES


def lower_case(text: str) -> str:
    """Return the text without differences of case."""
    return text.casefold()


def plain_letters(text: str) -> str:
    """Return the text without accents, and without the letters of scripts other than that of most of its letters.

    Compatible forms, such as letters of full width, become plain ones. Chinese and Japanese are of one script here; of
    two scripts with as many letters the one that comes first stays.
    """
    letters = unicodedata.normalize("NFC", _without_accents(unicodedata.normalize("NFKD", text)))
    counts = Counter(script for script in map(_script, letters) if script)
    if not counts:
        return letters
    most = max(counts, key=counts.__getitem__)  # a counter keeps the order of the first of each
    return "".join(character for character in letters if _script(character) in ("", most))


def english_words(text: str) -> str:
    """Return the text, as the steps before leave it, with every word that the lexicon knows in English.

    What is an English word, too, stays; of several meanings the lexicon's first counts.
    """
    return _foreign().sub(lambda found: _meanings()[found[0]], text)


def single_blanks(text: str) -> str:
    """Return the text with single blanks between its words and none around."""
    return " ".join(text.split())


STEPS: tuple[Callable[[str], str], ...] = (lower_case, plain_letters, english_words, single_blanks)


@ADVERSARIES.register("canonical")
class Canonical(Adversary):
    """Takes the first d steps: lower case, plain letters of one script, words in English, single blanks.

    An enemy of sets in upper case and of code-mixed ones.
    """

    dose: ClassVar[Dose | None] = Dose("steps", default=len(STEPS), list=(1, 2, 3, 4), most=len(STEPS))

    def input(self, text: str) -> str | Sequence[str] | None:
        """Return the query after its steps."""
        for step in STEPS[: int(self.amount)]:
            text = step(text)
        return text


def _without_accents(decomposed: str) -> str:
    """Drop the marks on letters that have case; those of other scripts, such as Japanese, tell letters apart."""
    kept, cased = [], False
    for character in decomposed:
        mark = unicodedata.category(character) == "Mn"
        if not mark:
            cased = character.lower() != character.upper()
        if not (mark and cased):
            kept.append(character)
    return "".join(kept)


# English words that are spelled as foreign ones of the lexicon, once these have lost their accents: those that stand in
# ordinary instructions. French tea would be in every other sentence.
ENGLISH = frozenset(
    "the or main piece large brief kind still see cuisine land bar cafe grand court pain route tour pan sale pre "
    "fatigue auto pin arm lit queue chat gross motor cache crayon violet pastel raisin teller stark".split()
)
_TOGETHER = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "KATAKANA-HIRAGANA": "CJK", "IDEOGRAPHIC": "CJK"}


@cache
def _script(character: str) -> str:
    """Return the script of a letter, which Unicode's name of it begins with; empty for what is no letter."""
    if not unicodedata.category(character).startswith("L"):
        return ""
    script = unicodedata.name(character, "").partition(" ")[0]
    return _TOGETHER.get(script, script)


@cache
def _meanings() -> dict[str, str]:
    """Return the English word of every foreign one, which is spelled as the steps before leave it."""
    lexicon = Lexicon.shipped()
    found: dict[str, str] = {}
    for word in lexicon.words:
        for language in lexicon.languages:
            found.setdefault(plain_letters(lower_case(lexicon.translate(word, language))), word)
    return {foreign: word for foreign, word in found.items() if foreign not in ENGLISH.union(lexicon.words)}


@cache
def _foreign() -> re.Pattern[str]:
    """Return what finds them, the longest first, since some are of several words."""
    longest_first = sorted(_meanings(), key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")
