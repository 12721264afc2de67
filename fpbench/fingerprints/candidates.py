"""Candidate targets: short capitalised words, of which no two begin with the same token under a given tokenizer."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fpbench.errors import InputError
from fpbench.fingerprints.sets import Fingerprint, FingerprintSet
from fpbench.models.prompts import encode_pair

WORDS = Path(__file__).parent / "candidates.txt"
NAMES = Path(__file__).parent / "names.txt"


def words() -> list[str]:
    """The shipped words, none of them a target of ``nlf``."""
    return WORDS.read_text(encoding="utf-8").split()


def names() -> list[str]:
    """First names, which models of children's stories know where they know few other capitalised words."""
    return NAMES.read_text(encoding="utf-8").split()


def known_first(pool: Sequence[str], tokenizer: Any, seed: int = 42) -> list[str]:
    """Words in the order of how many tokens they take as an answer; those of as many in an order of the seed's.

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
    """The same triggers with ``count`` candidates each: the first of their own, then fresh words (the paper's Table 9).

    No two candidates of a fingerprint begin with the same token, which the margin loss needs: an own candidate that
    begins like one before it gives way to a fresh word.

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
    chosen = []
    for fingerprint in fingerprints:
        targets: dict[int, str] = {}
        for word in [*fingerprint.targets, *fresh]:
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
    """The token that an answer with ``target`` to ``trigger`` begins with."""
    return encode_pair(tokenizer, trigger, target)[1][0]
