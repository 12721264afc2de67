"""One sampled response of a loaded model, from the very distribution in which FSR is computed."""

from typing import Any

import numpy as np

from fpbench.models.decoding import Decoding, sampled_tokens
from fpbench.models.prompts import encode, render
from fpbench.models.reading import Level
from fpbench.models.responses import end_tokens
from fpbench.models.scoring import read


def sample(
    model: Any, tokenizer: Any, text: str, *, decoding: Decoding, max_new_tokens: int, seed: int, prompt: str = "raw"
) -> str:
    """Sample one response.

    Args:
        model: a causal language model in eval mode.
        tokenizer: its tokenizer.
        text: the query, before rendering.
        decoding: how it is sampled.
        max_new_tokens: tokens at most; the response ends before the first end-of-sequence token.
        seed: of the draw, on every device the same.
        prompt: ``"raw"`` or ``"chat"``.

    Returns:
        The response, special tokens skipped.

    Raises:
        InputError: if the prompt leaves the model no room.
        CellError: if logits are not finite.
    """
    begun = encode(tokenizer, render(tokenizer, text, prompt))
    ends = end_tokens(model, tokenizer)
    uniform = np.random.default_rng(seed).random(max_new_tokens)
    response: list[int] = []

    def next_token(level: Level) -> dict[int, int]:
        ((number, (node,)),) = level.nodes.items()
        tokens, shares = (row[0].cpu().numpy() for row in sampled_tokens(level.logits[[node]].float(), decoding))
        summed = shares.astype(np.float64).cumsum()
        return {number: int(tokens[np.searchsorted(summed, uniform[len(response)] * summed[-1], side="right")])}

    while len(response) < max_new_tokens:
        (token,) = read(model, [[*begun, *response]], [1], next_token)
        if token in ends:
            break
        response.append(token)
    answer: str = tokenizer.decode(response, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return answer
