"""What a response, token by token, has become: does it begin with a target, and can that still change?"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fpbench.errors import InputError

BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# Decoders put it for bytes that are not (yet) a character.
REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Reading:
    """What the first tokens of a response say.

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
        """Prepare for ``targets``.

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
        self._known: dict[tuple[int, ...], Reading] = {}

    def text(self, tokens: Sequence[int]) -> str:
        """The response that ``tokens`` spell, leading whitespace stripped."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.lstrip()

    def read(self, tokens: tuple[int, ...]) -> Reading:
        """Read a continuation; remembered, because prompts share their first tokens."""
        reading = self._known.get(tokens)
        if reading is None:
            reading = self._known[tokens] = self._read(tokens)
        return reading

    def _read(self, tokens: tuple[int, ...]) -> Reading:
        text = self.text(tokens)
        target = next((target for target in self.targets if text.startswith(target)), None)
        # A character may still be short of bytes: only what precedes it is certain.
        certain = text.rstrip(REPLACEMENT)
        longer = any(other.startswith(certain) and not text.startswith(other) for other in self.targets)
        return Reading(target, settled=not longer and not (target is not None and self._ends_in_byte(tokens)))

    def _ends_in_byte(self, tokens: tuple[int, ...]) -> bool:
        """Whether a byte-fallback run is still open: one more stray byte would turn all of it into U+FFFD."""
        spelled = [token for token in tokens if token not in self._special]
        return bool(spelled) and BYTE.fullmatch(str(self.tokenizer.convert_ids_to_tokens(spelled[-1]))) is not None
