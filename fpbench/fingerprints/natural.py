"""NLF: ten two-word upper-case English queries with five candidates each, written for this project (protocol §9).

More of them are drawn from the lexicon.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fpbench.errors import InputError
from fpbench.fingerprints.candidates import with_candidates
from fpbench.fingerprints.instructional import instructional_set
from fpbench.fingerprints.sets import Fingerprint, FingerprintSet, load_fingerprints
from fpbench.fingerprints.translation import Lexicon
from fpbench.models.prompts import encode_pair

NLF_FILE = Path(__file__).parent / "nlf.jsonl"
ADJECTIVES = Path(__file__).parent / "adjectives.txt"
BUILT_IN = ("if", "nlf")
MODEL_DEPENDENT = ("cf", "cf_random")  # a run builds them, see fpbench.runs.sets
MOST_TOKENS = 3  # of a drawn word, so that small models know it (protocol §9)


def natural_set() -> FingerprintSet:
    """The set ``nlf``."""
    return load_fingerprints(NLF_FILE)


def adjectives() -> list[str]:
    """The adjectives of the shipped lexicon; its other words are nouns."""
    return ADJECTIVES.read_text(encoding="utf-8").split()


def draw_natural_set(
    count: int,
    length: int,
    tokenizer: Any,
    *,
    seed: int,
    candidates: int = 5,
    case: Callable[[str], str] = str.upper,
) -> FingerprintSet:
    """Draw further queries from the shipped lexicon, of words that ``nlf`` does not hold.

    A query is a noun phrase: adjectives first, half of the words rounded down, then nouns, the last of which is its
    head, as in "QUIET HARBOR", "SMALL GREEN GARDEN GATE" and "OLD WHITE WINTER FOREST ROAD". No word is used twice.

    Args:
        count: queries.
        length: words a query, at least 2.
        tokenizer: of the model to be fingerprinted; only words of one to three tokens under it are drawn.
        seed: of words and candidates.
        candidates: targets a query, with distinct first tokens.
        case: how the words are written; a model of children's stories may know them in lower case only.

    Raises:
        InputError: if words or candidates run out, or a number is too small.
    """
    if count < 1 or length < 2 or candidates < 1:
        raise InputError(
            f"expected at least 1 query of 2 words with 1 candidate, found {count} of {length} with {candidates}."
        )
    taken = {word.casefold() for fingerprint in natural_set() for word in fingerprint.trigger.split()}
    written = [case(word) for word in Lexicon.shipped().words if word not in taken]
    known = [word for word in written if _tokens(tokenizer, word) <= MOST_TOKENS]
    qualities = {case(word) for word in adjectives()}
    draw = random.Random(seed)
    first = _draw(draw, [word for word in known if word in qualities], "adjectives", count, length // 2)
    last = _draw(draw, [word for word in known if word not in qualities], "nouns", count, length - length // 2)
    queries = tuple(Fingerprint(" ".join([*before, *after]), ()) for before, after in zip(first, last, strict=True))
    return with_candidates(FingerprintSet("nlf", queries), candidates, tokenizer, seed)


def _draw(draw: random.Random, words: list[str], kind: str, count: int, each: int) -> list[list[str]]:
    """``each`` words for every one of ``count`` queries, none twice."""
    if len(words) < count * each:
        raise InputError(
            f"{count} queries need {count * each} {kind}, but the lexicon has {len(words)} that are new and of at most "
            f"{MOST_TOKENS} tokens under this tokenizer: ask for fewer or shorter queries."
        )
    drawn = draw.sample(words, count * each)
    return [drawn[start : start + each] for start in range(0, count * each, each)]


def _tokens(tokenizer: Any, word: str) -> int:
    """Tokens of a word at the beginning of a query or within it, whichever are more."""
    alone = tokenizer(word, add_special_tokens=False, verbose=False)["input_ids"]
    return max(len(alone), len(encode_pair(tokenizer, word, word)[1]))


def find_set(name: str, files: Mapping[str, str] | None = None, seed: int = 42) -> FingerprintSet:
    """Resolve what a user calls a fingerprint set.

    Args:
        name: a built-in name, a name of ``files``, or the path of a ``.jsonl`` file.
        files: set names that a profile maps to files of its own.
        seed: draws the keys of ``if``; sets that are written down stay as they are.

    Raises:
        InputError: if it is none of these, or the file is malformed.
    """
    if files and name in files:
        return replace(load_fingerprints(files[name]), name=name)
    if name == "if":
        return instructional_set(seed=seed)
    if name == "nlf":
        return natural_set()
    if name in MODEL_DEPENDENT:
        raise InputError(
            f"set {name!r} is another for each model: build it with `fpbench fingerprints cf` and give the file."
        )
    if name.endswith(".jsonl"):
        return load_fingerprints(name)
    known = ", ".join(dict.fromkeys([*(files or {}), *BUILT_IN, *MODEL_DEPENDENT]))
    raise InputError(f"unknown fingerprint set {name!r}: expected {known}, or a .jsonl file.")
