"""How many token paths spell a text: a response may take any of them (protocol §3)."""

from collections import Counter
from typing import Any

from fpbench.models.matching import Matcher

SENTENCEPIECE_SPACE = "▁".encode()


class Spellings:
    """Counts the token sequences of a vocabulary that spell a text, with or without one space before it."""

    def __init__(self, tokenizer: Any) -> None:
        """Read the bytes of every token that is not special."""
        matcher = Matcher(tokenizer, ["-"])
        special = set(tokenizer.all_special_ids)
        spelled = (matcher.bytes_of(token) for token in range(len(tokenizer)) if token not in special)
        self._tokens = Counter(each.replace(SENTENCEPIECE_SPACE, b" ") for each in spelled)
        self._longest = max(map(len, self._tokens))

    def paths(self, text: str) -> int:
        """Number of token sequences that spell exactly ``text``."""
        return sum(self._ways(spelled)[0] for spelled in _spelled(text))

    def first_tokens(self, text: str) -> int:
        """Number of tokens that such a sequence can begin with."""
        return sum(
            self._tokens[spelled[:end]]
            for spelled in _spelled(text)
            for end, ways in enumerate(self._ways(spelled))
            if end and ways
        )

    def _ways(self, spelled: bytes) -> list[int]:
        """How many sequences spell the rest, from every place on."""
        ways = [0] * len(spelled) + [1]
        for start in reversed(range(len(spelled))):
            ends = range(start + 1, min(len(spelled), start + self._longest) + 1)
            ways[start] = sum(self._tokens[spelled[start:end]] * ways[end] for end in ends)
        return ways


def _spelled(text: str) -> tuple[bytes, bytes]:
    return f" {text}".encode(), text.encode()
