"""Many sampled responses to a text at once."""

from collections import Counter
from typing import Any

import numpy as np
import torch

from fpbench.models.prompts import encode, render
from fpbench.scoring.responses import Decoding, Sampler, end_tokens, sampled_tokens


def sample_many(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    decoding: Decoding,
    max_new_tokens: int,
    count: int,
    seed: int,
    prompt: str = "raw",
    sampler: Sampler | None = None,
) -> Counter[str]:
    """Sample ``count`` responses to a text as :func:`~fpbench.scoring.responses.sample` does; return how often each.

    The prompt is read once, then all responses that have not ended a token at a time. The draw follows the seed.
    """
    begun = encode(tokenizer, render(tokenizer, text, prompt))
    ends = end_tokens(model, tokenizer)
    uniform = np.random.default_rng(seed).random((max_new_tokens, count))
    responses: list[list[int]] = [[] for _ in range(count)]
    alive = list(range(count))
    with torch.no_grad():
        out = model(input_ids=torch.tensor([begun], device=model.device), use_cache=True)
        out.past_key_values.batch_repeat_interleave(count)
        logits = out.logits[:, -1].expand(count, -1)  # (n, V), as below of the n that are alive
        for draws in uniform:
            logits = logits.float()
            if sampler is not None:
                logits = sampler([begun] * len(alive), [tuple(responses[number]) for number in alive], logits).float()
            tokens, shares = (each.cpu().numpy() for each in sampled_tokens(logits, decoding))
            summed = shares.astype(np.float64).cumsum(axis=1)
            places = (summed <= draws[alive, None] * summed[:, -1:]).sum(axis=1)
            drawn = tokens[np.arange(len(alive)), places].tolist()
            kept = [row for row, token in enumerate(drawn) if token not in ends]
            for row in kept:
                responses[alive[row]].append(drawn[row])
            alive = [alive[row] for row in kept]
            if not alive or len(responses[alive[0]]) == max_new_tokens:
                break
            out.past_key_values.batch_select_indices(torch.tensor(kept, device=model.device))
            ids = torch.tensor([[drawn[row]] for row in kept], device=model.device)
            out = model(input_ids=ids, past_key_values=out.past_key_values, use_cache=True)
            logits = out.logits[:, -1]
    spelled = Counter(map(tuple, responses))
    found: Counter[str] = Counter()
    for ids_of, times in spelled.items():
        found[tokenizer.decode(list(ids_of), skip_special_tokens=True, clean_up_tokenization_spaces=False)] += times
    return found
