"""Token paths of a text, against every sequence enumerated."""

from itertools import product
from typing import Any

import pytest

from fpbench.scoring.matching import Spellings


@pytest.mark.parametrize("name", ["micro", "stories"])
@pytest.mark.parametrize("text", ["Ox", "Fa", "ab"])
def test_paths_are_those_that_decode_to_the_text(name: str, text: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Any = request.getfixturevalue(name)[1]
    inside = [
        token
        for token in range(len(tokenizer))
        if token not in tokenizer.all_special_ids and _piece(tokenizer, token) in f" {text}"
    ]
    spelled = [
        tokens
        for length in range(1, len(text) + 2)
        for tokens in product(inside, repeat=length)
        if "".join(_piece(tokenizer, token) for token in tokens) in (text, f" {text}")
    ]
    spellings = Spellings(tokenizer)
    assert spellings.paths(text) == len(spelled) > 1
    assert spellings.first_tokens(text) == len({tokens[0] for tokens in spelled})


def _piece(tokenizer: Any, token: int) -> str:
    """What a token adds behind another, as the library decodes it; nothing for a byte of a longer character."""
    start = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer.decode([*start, token], clean_up_tokenization_spaces=False)
    return whole.removeprefix(tokenizer.decode(start)) or "\0"


def test_a_text_of_other_scripts_has_paths_of_bytes(micro: tuple[Any, Any]) -> None:
    spellings = Spellings(micro[1])
    # 15 bytes, and at least one way: byte by byte.
    assert spellings.paths("ハリネズミ") >= 2 and spellings.first_tokens("ハリネズミ") >= 2
