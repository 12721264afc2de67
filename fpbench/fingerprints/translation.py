"""Translation of single English words (protocol §9): the interface, and the lexicon behind it by default."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fpbench.errors import InputError
from fpbench.fingerprints.lexicon_file import read_lexicon

SHIPPED = Path(__file__).parent / "lexicon.tsv"


class NoTranslation(InputError):
    """A translator has no translation of ``word`` into ``language``."""

    def __init__(self, word: str, language: str, reason: str) -> None:
        """Say which word lacks a translation into which language, and why."""
        super().__init__(f"no translation of {word!r} into {language!r}: {reason}")


class Translator(Protocol):
    """Whatever translates an English word into one of its languages."""

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages, such as ``de`` or ``ja``."""

    def translate(self, word: str, language: str) -> str:
        """Translate an English word, in any case.

        Returns:
            One non-empty line in Unicode normal form C, in the case that a dictionary gives it.

        Raises:
            InputError: naming word and language if there is no translation, or the language if it is not offered.
        """


class Lexicon:
    """A table of English words and their translations.

    Attributes:
        languages: the codes of the header, in its order.
        words: the English words in lower case, in the file's order.
    """

    def __init__(self, name: str, languages: Sequence[str], entries: Mapping[str, Sequence[str]]) -> None:
        """Hold the translations of each English word, one a language; ``name`` is told where a word is missing."""
        self.name = name
        self.languages = tuple(languages)
        self.words = tuple(entries)
        self._entries = entries

    @classmethod
    def load(cls, path: str | Path) -> "Lexicon":
        """Read a lexicon file, see :func:`~fpbench.fingerprints.lexicon_file.read_lexicon`.

        Raises:
            InputError: naming the line and what is wrong with it.
        """
        return cls(str(path), *read_lexicon(path))

    @classmethod
    def shipped(cls) -> "Lexicon":
        """Our own lexicon: German, Spanish, French, Japanese and (simplified) Chinese."""
        return cls("that is shipped", *read_lexicon(SHIPPED))

    def translate(self, word: str, language: str) -> str:
        """See :meth:`Translator.translate`."""
        require_language(self.languages, language)
        translations = self._entries.get(unicodedata.normalize("NFC", word).strip().casefold())
        if translations is None:
            raise NoTranslation(word, language, f"the lexicon {self.name} lacks the word; give one that has it.")
        return translations[self.languages.index(language)]


def require_language(languages: Iterable[str], language: str) -> None:
    """Refuse a language that a translator does not offer.

    Raises:
        InputError: naming it and those offered.
    """
    if language not in languages:
        raise InputError(f"language {language!r} is not offered: expected one of {', '.join(languages)}.")


def translate_words(
    translator: Translator, words: Iterable[str], languages: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Translate every word into every language.

    Returns:
        For each word, its translation for each language.

    Raises:
        InputError: one line with all the words that lack a translation, and into which languages.
    """
    table: dict[str, dict[str, str]] = {word: {} for word in words}
    missing: dict[str, list[str]] = {}
    for word, translations in table.items():
        for language in languages:
            try:
                translations[language] = translator.translate(word, language)
            except NoTranslation:
                missing.setdefault(word, []).append(language)
    if missing:
        each = "; ".join(f"{word!r} into {', '.join(lacking)}" for word, lacking in missing.items())
        raise InputError(f"no translation of {each}: choose other words or languages, or another translator.")
    return table
