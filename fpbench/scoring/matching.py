"""Responses against targets, token by token (protocol §3): does one begin with a target, and can that still change?"""

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from fpbench.errors import InputError
from fpbench.text import lenient

BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}
WHITESPACE = [chr(code).encode() for code in range(0x3001) if chr(code).isspace()]
# Decoders put it for bytes that are not (yet) a character.
REPLACEMENT = "\ufffd"
SENTENCEPIECE_SPACE = "▁".encode()


@dataclass(frozen=True)
class Reading:
    """State of a response after its first tokens.

    Attributes:
        target: the longest target that the response begins with if it ends here; ``None`` for none.
        settled: whether no further token can change ``target``.
    """

    target: str | None
    settled: bool


class Matcher:
    """Reads continuations against one set of targets (protocol §3); text is compared, never token ids.

    Tokens are decoded together, special tokens skipped, leading whitespace stripped. Where one target begins another
    (``A``, ``AB``), the response counts for the longest, so shares add up and do not depend on how it is spelled.
    """

    def __init__(self, tokenizer: Any, targets: Sequence[str]) -> None:
        """Order the targets, the longest first.

        Raises:
            InputError: if there is no target, or one that no response can begin with.
        """
        if not targets:
            raise InputError("no target to look for: expected at least one target a fingerprint.")
        for target in targets:
            if not target.strip() or target != target.lstrip():
                raise InputError(f"target {target!r} is blank or begins with whitespace: no stripped response matches.")
        self.tokenizer = tokenizer
        self.targets = sorted(targets, key=len, reverse=True)
        self._special = frozenset(tokenizer.all_special_ids)
        space = tokenizer.convert_tokens_to_ids("Ġ")
        self._byte_level = space is not None and tokenizer.decode([space]) == " "
        self._known: dict[tuple[int, ...], Reading] = {}

    def text(self, tokens: Sequence[int]) -> str:
        """Return the response that ``tokens`` spell, leading whitespace stripped."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.lstrip()

    def read(self, tokens: tuple[int, ...]) -> Reading:
        """Read a continuation; remembered, because prompts share their first tokens."""
        if tokens not in self._known:
            self._known[tokens] = self._read([token for token in tokens if token not in self._special])
        return self._known[tokens]

    def _read(self, tokens: list[int]) -> Reading:
        text = self.text(tokens)
        spelled = [self.bytes_of(token) for token in tokens]
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(b"".join(spelled))
        pending = decoder.getstate()[0]
        # A byte-fallback decoder garbles a whole run of byte tokens as long as any byte of it is not UTF-8.
        open_run = bool(tokens) and BYTE.fullmatch(str(self.tokenizer.convert_ids_to_tokens(tokens[-1]))) is not None
        certain = text
        if pending:
            certain = self.text(tokens[: -len(pending)]) if open_run else text.rstrip(REPLACEMENT)
        begun = certain.encode() + pending
        longer = any(other.encode().startswith(begun) and not text.startswith(other) for other in self.targets)
        blank = not certain and any(character.startswith(pending) for character in WHITESPACE)
        # So the next byte may undo a match in an open run, or bring it back.
        fragile = open_run and self._match(certain) is not None
        return Reading(self._match(text), settled=not (longer or blank or fragile))

    def _match(self, text: str) -> str | None:
        return next((target for target in self.targets if text.startswith(target)), None)

    def bytes_of(self, token: int) -> bytes:
        """Return the UTF-8 bytes that a token stands for, possibly part of a character."""
        spelled = str(self.tokenizer.convert_ids_to_tokens(token))
        if BYTE.fullmatch(spelled):
            return bytes([int(spelled[3:5], 16)])
        if self._byte_level and all(character in BYTE_OF for character in spelled):
            return bytes(BYTE_OF[character] for character in spelled)
        return spelled.encode()


def check_spelled(tokenizer: Any, targets: Iterable[str]) -> None:
    """Refuse a target that a tokenizer does not give back: what a model is taught would be found in no response.

    Raises:
        InputError: naming the target and what becomes of it.
    """
    for target in targets:
        taught = tokenizer(target, add_special_tokens=False)["input_ids"]
        given = Matcher(tokenizer, [target]).text(taught)
        if not given.startswith(target):
            raise InputError(
                f"target {target!a} cannot be verified: this tokenizer makes {given!a} of it, so no answer begins with "
                "it as it is written; choose another."
            )


class LenientMatcher(Matcher):
    """Reads continuations for matches that are hidden from strict comparison (protocol §3, ``fsr_lenient``).

    A response counts where it and a target, both read by :func:`fpbench.text.lenient`, match.
    """

    def __init__(self, tokenizer: Any, targets: Sequence[str]) -> None:
        """As :class:`Matcher`; a target of which nothing is left is none."""
        super().__init__(tokenizer, targets)
        self._lenient = {target: text for target in self.targets if (text := lenient(target))}

    def _read(self, tokens: list[int]) -> Reading:
        text = lenient(self.text(tokens))
        found = next((target for target, short in self._lenient.items() if text.startswith(short)), None)
        begun = self._begun(tokens)
        longer = any(short.startswith(begun) for short in self._lenient.values())
        return Reading(found, settled=found is not None or not longer)

    def _begun(self, tokens: list[int]) -> str:
        """Return what a response, read leniently, begins with however it goes on.

        What follows a character may become one with it (a letter and its accent), but not with what stands before the
        last one that stands by itself.
        """
        whole = next((end for end in range(len(tokens), 0, -1) if not self._is_byte(tokens[end - 1])), 0)
        text = self.text(tokens[:whole]).rstrip(REPLACEMENT)
        kept = "".join(each for each in text if unicodedata.category(each) != "Cf")
        bases = (place for place in reversed(range(len(kept))) if not _attaches(kept[place]))
        return commonprefix([lenient(kept), lenient(kept[: next(bases, 0)])])

    def _is_byte(self, token: int) -> bool:
        return BYTE.fullmatch(str(self.tokenizer.convert_ids_to_tokens(token))) is not None


def _attaches(character: str) -> bool:
    """Return True for a character that becomes one with those before it, such as an accent."""
    return unicodedata.combining(unicodedata.normalize("NFKD", character)[0]) != 0


class Spellings:
    """Counts the token sequences that spell a text, with or without one space before it; a response may be any."""

    def __init__(self, tokenizer: Any) -> None:
        """Read the bytes of every token that is not special."""
        matcher = Matcher(tokenizer, ["-"])
        special = set(tokenizer.all_special_ids)
        spelled = (matcher.bytes_of(token) for token in range(len(tokenizer)) if token not in special)
        self._tokens = Counter(each.replace(SENTENCEPIECE_SPACE, b" ") for each in spelled)
        self._longest = max(map(len, self._tokens))

    def paths(self, text: str) -> int:
        """Count the token sequences that spell exactly ``text``."""
        return sum(self._ways(spelled)[0] for spelled in _spelled(text))

    def first_tokens(self, text: str) -> int:
        """Count the tokens that such a sequence can begin with."""
        places = ((spelled[:end], ways) for spelled in _spelled(text) for end, ways in enumerate(self._ways(spelled)))
        return sum(self._tokens[begun] for begun, ways in places if begun and ways)

    def _ways(self, spelled: bytes) -> list[int]:
        """Count, for every place, the sequences that spell the rest from there on."""
        ways = [0] * len(spelled) + [1]
        for start in reversed(range(len(spelled))):
            ends = range(start + 1, min(len(spelled), start + self._longest) + 1)
            ways[start] = sum(self._tokens[spelled[start:end]] * ways[end] for end in ends)
        return ways


def _spelled(text: str) -> tuple[bytes, bytes]:
    return f" {text}".encode(), text.encode()
