"""Code-mixing: how mixed a text is, and the ways to write a query in several languages (docs/methods.md §4.3)."""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from fpbench.errors import InputError
from fpbench.fingerprints.translation import Translator, translate_words

MOST_VARIANTS = 20_000


def cmi_v1(languages: Sequence[str | None]) -> float:
    """Code-mixing index of Das & Gambäck (2014): 100 · (1 − max_i w_i / (n − u)), and 0 where n = u.

    Args:
        languages: of each of the n words; ``None`` for the u words of no language.
    """
    tagged = [language for language in languages if language is not None]
    return 100 * (1 - _dominant(tagged) / len(tagged)) if tagged else 0.0


def cmi_v2(languages: Sequence[str | None]) -> float:
    """Code-mixing index of Gambäck & Das (2016): 100 · (N − max_i t_i + P) / 2N with P switches, and 0 where N = 0.

    Args:
        languages: of each word; ``None`` for words of no language, which neither count in N nor end a stretch.
    """
    tagged = [language for language in languages if language is not None]
    switches = sum(one != other for one, other in pairwise(tagged))
    return 100 * (len(tagged) - _dominant(tagged) + switches) / (2 * len(tagged)) if tagged else 0.0


def _dominant(languages: Sequence[str]) -> int:
    """Number of words of the most frequent language."""
    return max(Counter(languages).values(), default=0)


def normal_form(text: str) -> str:
    """A text as a careless keyboard or filter would leave it: NFKC, case folded, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())


@dataclass(frozen=True)
class Variant:
    """One way to write a query.

    Attributes:
        text: the words in the query's order, upper-case where the script has case, separated by single spaces.
        languages: of every word of ``text``.
    """

    text: str
    languages: tuple[str, ...]

    @property
    def cmi(self) -> float:
        """Version 1, which decides."""
        return cmi_v1(self.languages)


def translations(queries: Sequence[str], translator: Translator, languages: Sequence[str]) -> dict[str, dict[str, str]]:
    """Every word of the queries, lower-case, in every language.

    Raises:
        InputError: if a query is empty or has more than 20,000 variants, or a word has no translation.
    """
    words: dict[str, None] = {}
    for query in queries:
        own = query.lower().split()
        if not own:
            raise InputError("a query is empty: expected English words separated by spaces.")
        number = len(languages) ** len(own)
        if number > MOST_VARIANTS:
            raise InputError(
                f"query {_short(query)!r} has {number:,} variants ({len(own)} words in {len(languages)} languages), "
                f"more than {MOST_VARIANTS:,}: use fewer words or languages."
            )
        words |= dict.fromkeys(own)
    return translate_words(translator, words, languages)


def variants(query: str, words: Mapping[str, Mapping[str, str]]) -> list[Variant]:
    """Every text that a query gives, each word replaced by one of its translations.

    Words of two languages may be spelled alike. A text that can be read in two ways counts as the less mixed of them.

    Args:
        query: English words.
        words: what :func:`translations` found.

    Returns:
        Texts of which no two have the same :func:`normal_form`, in the order of the languages.
    """
    found: dict[str, Variant] = {}
    for choice in product(*(words[word].items() for word in query.lower().split())):
        text = " ".join(translation for _, translation in choice).upper()
        # A translation may have several words.
        languages = tuple(language for language, translation in choice for _ in translation.split())
        variant = Variant(" ".join(text.split()), languages)
        same = found.setdefault(normal_form(text), variant)
        if variant.cmi < same.cmi:
            found[normal_form(text)] = variant
    return list(found.values())


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"
