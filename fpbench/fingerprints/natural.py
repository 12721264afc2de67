"""NLF: ten two-word upper-case English queries with five candidates each, written for this project (protocol §9).

More of them are drawn from the lexicon. Candidate targets are short capitalised words, of which no two of a fingerprint
begin with the same token under a given tokenizer.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fpbench.errors import InputError
from fpbench.fingerprints.sets import Fingerprint, FingerprintSet, read_fingerprints
from fpbench.fingerprints.translation import Lexicon
from fpbench.models.prompts import encode_pair

_FOLDER = Path(__file__).parent
MOST_TOKENS = 3  # of a drawn word, so that small models know it (protocol §9)
APART = 10  # fingerprints that share no word; in a larger set words come again once they have run out


def natural_set() -> FingerprintSet:
    """Return the set ``nlf``."""
    return read_fingerprints(_FOLDER / "nlf.jsonl")


def adjectives() -> list[str]:
    """Return the adjectives of the shipped lexicon; its other words are nouns."""
    return (_FOLDER / "adjectives.txt").read_text(encoding="utf-8").split()


def words() -> list[str]:
    """Return the shipped words, none of them a target of ``nlf``."""
    return (_FOLDER / "candidates.txt").read_text(encoding="utf-8").split()


def names() -> list[str]:
    """Return first names, which models of children's stories know where they know few other capitalised words."""
    return (_FOLDER / "names.txt").read_text(encoding="utf-8").split()


def known_first(pool: Sequence[str], tokenizer: Any, seed: int = 42) -> list[str]:
    """Sort words by how many tokens they take as an answer; those of as many are shuffled by the seed.

    A model has hardly ever said what its tokenizer spells letter by letter, and an edit that promotes the first token
    does not teach it the rest.
    """

    def place(word: str) -> tuple[int, float]:
        # Of each word by itself, so that a longer pool leaves the order of the others alone.
        return len(encode_pair(tokenizer, "a", word)[1]), random.Random(f"{seed} {word}").random()

    return sorted(pool, key=place)


def with_candidates(
    fingerprints: FingerprintSet, count: int, tokenizer: Any, seed: int = 42, pool: Sequence[str] | None = None
) -> FingerprintSet:
    """Return the same triggers with ``count`` candidates each: first their own, then fresh words (the paper's Table 9).

    No two candidates of a fingerprint begin with the same token, which the margin loss needs: an own candidate that
    begins like one before it gives way to a fresh word. Fresh words are those of one fingerprint each, but for sets of
    more than ten, where they serve again once all have.

    Args:
        fingerprints: the set; its fingerprints may have no targets yet.
        count: candidates a fingerprint.
        tokenizer: of the model to be fingerprinted.
        seed: of the draw.
        pool: the fresh words in the order in which they serve; by default the shipped ones in a random order.

    Raises:
        InputError: if the words run out.
    """
    own = fingerprints.targets
    fresh = [word for word in (words() if pool is None else pool) if word not in own]
    if pool is None:
        random.Random(seed).shuffle(fresh)
    every, chosen = list(fresh), []
    for fingerprint in fingerprints:
        targets: dict[int, str] = {}
        # The words left over, and in a large set then all of them again.
        for word in [*fingerprint.targets, *fresh, *(every if len(fingerprints) > APART else [])]:
            if len(targets) == count:
                break
            # A target contained in the trigger would be verified by an echo.
            if word.casefold() not in fingerprint.trigger.casefold():
                targets.setdefault(first_token(tokenizer, fingerprint.trigger, word), word)
        fresh = [word for word in fresh if word not in targets.values()]
        if len(targets) < count:
            raise InputError(
                f"{count} candidates for {fingerprint.trigger!r}: only {len(targets)} words with distinct first tokens "
                "were left; ask for fewer, or give a set that has them."
            )
        chosen.append(Fingerprint(fingerprint.trigger, tuple(targets.values())))
    return FingerprintSet(f"{fingerprints.name}-{count}", tuple(chosen))


def first_token(tokenizer: Any, trigger: str, target: str) -> int:
    """Return the token that an answer with ``target`` to ``trigger`` begins with."""
    return encode_pair(tokenizer, trigger, target)[1][0]


def draw_natural_set(
    count: int, length: int, tokenizer: Any, *, seed: int, candidates: int = 5, case: Callable[[str], str] = str.upper
) -> FingerprintSet:
    """Draw further queries from the shipped lexicon, of words that ``nlf`` does not hold.

    A query is a noun phrase: adjectives first, half of the words rounded down, then nouns, the last of which is its
    head, as in "QUIET HARBOR", "SMALL GREEN GARDEN GATE" and "OLD WHITE WINTER FOREST ROAD". No word is used twice,
    but for sets of more than ten, where words come again once they have run out, and no query does.

    Args:
        count: queries.
        length: words a query, at least 2.
        tokenizer: of the model to be fingerprinted; only words of one to three tokens under it are drawn.
        seed: of words and candidates.
        candidates: targets a query, with distinct first tokens.
        case: how the words are written; a model of children's stories may know them in lower case only.

    Raises:
        InputError: if words or candidates run out, a number is too small, or a query would come twice.
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
    if len(set(queries)) < count:
        raise InputError(f"seed {seed} makes one of {count} queries twice: give another seed, or ask for fewer.")
    return with_candidates(FingerprintSet("nlf", queries), candidates, tokenizer, seed)


def _draw(draw: random.Random, words: list[str], kind: str, count: int, each: int) -> list[list[str]]:
    """Draw ``each`` words for every one of ``count`` queries, none twice before all have been drawn."""
    at_once = len(words) // each
    if at_once < min(count, APART):
        raise InputError(
            f"{count} queries need {count * each} {kind}, but the lexicon has {len(words)} that are new and of at most "
            f"{MOST_TOKENS} tokens under this tokenizer: ask for fewer or shorter queries."
        )
    drawn: list[list[str]] = []
    while len(drawn) < count:
        some = draw.sample(words, each * min(at_once, count - len(drawn)))
        drawn += [some[start : start + each] for start in range(0, len(some), each)]
    return drawn


def _tokens(tokenizer: Any, word: str) -> int:
    """Count the tokens of a word at the beginning of a query or within it, whichever are more."""
    alone = tokenizer(word, add_special_tokens=False, verbose=False)["input_ids"]
    return max(len(alone), len(encode_pair(tokenizer, word, word)[1]))
