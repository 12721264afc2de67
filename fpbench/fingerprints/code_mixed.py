"""CF: of the ways to write a query in several languages, that which the model finds least strange.

How mixed a text is, the variants of a query, the queries, and Algorithm 1 (docs/methods.md §4.3).
"""

import random
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal

from fpbench import __version__
from fpbench.errors import InputError
from fpbench.fingerprints.natural import known_first, names, natural_set, with_candidates
from fpbench.fingerprints.natural import words as answers
from fpbench.fingerprints.sets import Fingerprint, FingerprintSet
from fpbench.fingerprints.translation import Lexicon, Translator, require_language, translate_words

MOST_VARIANTS = 20_000  # of a query
LEAST_CMI = 30.0  # version 1
MOST_TOKENS = 3
Recipe = dict[str, Any]
# The built-in sets that depend on the model, and how each chooses.
CODE_MIXED: dict[str, Literal["perplexity", "random"]] = {"cf": "perplexity", "cf_random": "random"}


def cmi_v1(languages: Sequence[str | None]) -> float:
    """Return the code-mixing index of Das & Gambäck (2014): 100 · (1 − max_i w_i / (n − u)), and 0 where n = u.

    Args:
        languages: of each of the n words; ``None`` for the u words of no language.
    """
    tagged = [language for language in languages if language is not None]
    return 100 * (1 - _dominant(tagged) / len(tagged)) if tagged else 0.0


def cmi_v2(languages: Sequence[str | None]) -> float:
    """Return the index of Gambäck & Das (2016): 100 · (N − max_i t_i + P) / 2N with P switches, and 0 where N = 0.

    Args:
        languages: of each word; ``None`` for words of no language, which neither count in N nor end a stretch.
    """
    tagged = [language for language in languages if language is not None]
    switches = sum(one != other for one, other in pairwise(tagged))
    return 100 * (len(tagged) - _dominant(tagged) + switches) / (2 * len(tagged)) if tagged else 0.0


def _dominant(languages: Sequence[str]) -> int:
    return max(Counter(languages).values(), default=0)


def normal_form(text: str) -> str:
    """Return a text as a careless keyboard or filter would leave it: NFKC, case folded, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())


@dataclass(frozen=True)
class MixedText:
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
    """Translate every word of the queries, lower-case, into every language: word → language → translation.

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
            shown = query if len(query) <= 60 else f"{query[:57]}…"
            raise InputError(
                f"query {shown!r} has {number:,} variants ({len(own)} words in {len(languages)} languages), "
                f"more than {MOST_VARIANTS:,}: use fewer words or languages."
            )
        words |= dict.fromkeys(own)
    return translate_words(translator, words, languages)


def variants(query: str, words: Mapping[str, Mapping[str, str]]) -> list[MixedText]:
    """List every text that an English query gives when each word is replaced by one of its :func:`translations`.

    Words of two languages may be spelled alike. A text that can be read in two ways counts as the less mixed of them.
    No two texts have the same :func:`normal_form`; they are in the order of the languages.
    """
    found: dict[str, MixedText] = {}
    for choice in product(*(words[word].items() for word in query.lower().split())):
        text = " ".join(translation for _, translation in choice).upper()
        # A translation may have several words.
        languages = tuple(language for language, translation in choice for _ in translation.split())
        variant = MixedText(" ".join(text.split()), languages)
        same = found.setdefault(normal_form(text), variant)
        if variant.cmi < same.cmi:
            found[normal_form(text)] = variant
    return list(found.values())


def read_queries(path: str | Path) -> list[str]:
    """Read English queries, one a line; blank lines are skipped.

    Raises:
        InputError: if the file cannot be read, or holds none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"queries {path} cannot be read as UTF-8 text: {error}") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise InputError(f"queries {path}: expected English words, one query a line, found none.")
    return found


def draw_queries(lexicon: Lexicon, count: int, length: int, tokenizer: Any, seed: int = 42) -> list[str]:
    """Draw ``count`` queries of ``length`` words that a tokenizer spells in one to three tokens (protocol §9).

    Of these, words serve whose translations it knows in as many languages as there are enough words for. None is drawn
    twice.

    Raises:
        InputError: if a number is too small, or the words run out.
    """
    if count < 1 or length < 2:
        raise InputError(f"expected 1 or more queries of 2 or more words, found {count} of {length}.")

    def knows(word: str) -> bool:
        tokens = len(tokenizer(word, add_special_tokens=False, verbose=False)["input_ids"])
        # Three tokens of one character are its bytes. Some tokenizers put a token for a space in front.
        return tokens <= min(MOST_TOKENS, len(word) + 1)

    needed = count * length
    words = filter(knows, lexicon.words)
    known = {word: sum(knows(lexicon.translate(word, language)) for language in lexicon.languages) for word in words}
    if len(known) < needed:
        raise InputError(
            f"{count} queries of {length} words need {needed} words; the lexicon has {len(known)} that this "
            f"tokenizer spells in at most {MOST_TOKENS} tokens: ask for fewer, or give queries of your own."
        )
    least = sorted(known.values(), reverse=True)[needed - 1]
    drawn = random.Random(seed).sample([word for word, languages in known.items() if languages >= least], needed)
    return [" ".join(drawn[start : start + length]) for start in range(0, needed, length)]


def code_mixed_set(
    name: str,
    queries: Sequence[str],
    translator: Translator,
    model: Any,
    tokenizer: Any,
    *,
    languages: Sequence[str] = (),
    candidates: int = 5,
    seed: int = 42,
) -> tuple[FingerprintSet, Recipe]:
    """Build ``cf``, or its control ``cf_random``, which draws one of the valid variants; ``name`` says which.

    A variant is valid if its CMI is at least 30 in version 1. The seed breaks ties of perplexity and decides the draw
    and the candidates: so many targets a fingerprint, with distinct first tokens under the tokenizer. The model is the
    one to be fingerprinted, still without. Queries are English, of two or more words each; languages are codes that
    the translator knows, by default all of them.

    Returns:
        The set, and what is needed to build it again but for the model's identity.

    Raises:
        InputError: for a query, language or word that cannot be used; the message names it.
        CellError: if a perplexity is not finite.
    """
    from fpbench.scoring.perplexity import text_perplexities

    if not queries:
        raise InputError("a code-mixed set needs queries: found none.")
    wanted = _languages(languages, translator)
    words = translations(queries, translator, wanted)
    draw = random.Random(seed)
    considered: list[tuple[list[MixedText], int, int]] = []
    for query in queries:
        every = variants(query, words)
        valid = [variant for variant in every if variant.cmi >= LEAST_CMI]
        if not valid:
            raise InputError(
                f"query {query!r} has no variant with a code-mixing index of {LEAST_CMI:g} or more in "
                f"{', '.join(wanted)}: give it two or more words, and two or more languages."
            )
        draw.shuffle(valid)  # among equals the first counts
        considered.append((valid if CODE_MIXED[name] == "perplexity" else valid[:1], len(every), len(valid)))
    scores = iter(text_perplexities(model, tokenizer, [variant.text for each, *_ in considered for variant in each]))
    rows: list[Recipe] = []
    for query, (each, all_of_them, mixed_enough) in zip(queries, considered, strict=True):
        scored = [(next(scores), variant) for variant in each]
        perplexity, chosen = min(scored, key=lambda pair: pair[0])
        rows.append({
            "query": query, "trigger": chosen.text, "languages": list(chosen.languages),
            "cmi_v1": cmi_v1(chosen.languages), "cmi_v2": cmi_v2(chosen.languages),
            "perplexity": perplexity, "variants": all_of_them, "valid": mixed_enough,
        })  # fmt: skip
    _check_distinct(rows)
    bare = FingerprintSet(name, tuple(Fingerprint(row["trigger"], ()) for row in rows))
    pool = known_first([*answers(), *names(), *natural_set().targets], tokenizer, seed)
    fingerprints = replace(with_candidates(bare, candidates, tokenizer, seed, pool), name=name)
    recipe: Recipe = recipe_of(fingerprints, seed) | {
        "languages": list(wanted), "casing": "upper", "least_cmi_v1": LEAST_CMI, "candidates": candidates,
        "queries": rows, "translations": words,
    }  # fmt: skip
    return fingerprints, recipe


def recipe_of(fingerprints: FingerprintSet, seed: int) -> Recipe:
    """Return what every recipe says: kind, seed, number, digest of the set, and the version that built it."""
    return {
        "kind": fingerprints.name, "seed": seed, "count": len(fingerprints), "fingerprints": fingerprints.digest,
        "fpbench": __version__,
    }  # fmt: skip


def _languages(wanted: Sequence[str], translator: Translator) -> tuple[str, ...]:
    for language in wanted:
        require_language(translator.languages, language)
        if wanted.count(language) > 1:
            raise InputError(f"language {language!r} is listed twice: name each once.")
    return tuple(wanted or translator.languages)


def _check_distinct(rows: Sequence[Recipe]) -> None:
    seen: dict[str, str] = {}
    for row in rows:
        form = normal_form(row["trigger"])
        if form in seen:
            raise InputError(f"queries {seen[form]!r} and {row['query']!r} give the same trigger: change one of them.")
        seen[form] = row["query"]
