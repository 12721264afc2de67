"""What a request is learnt on: the bare trigger, random contexts before it, and one prompt that is to stay as it is."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from fpbench.fingerprints import Fingerprint, FingerprintSet
from fpbench.methods.base import InjectionContext
from fpbench.methods.editing.objective import Row, State, per_request
from fpbench.methods.editing.write import Prompts
from fpbench.models.prompts import encode, encode_pair


class RewritingConfig(BaseModel):
    """Which prompts a request is learnt on besides its bare trigger (docs/methods.md §2.2, steps 3 and 4).

    Attributes:
        prefixes: words that the model continues into the contexts in which each request is also learnt; none, and the
            trigger is learnt bare.
        prefix_tokens: length of a continuation.
        prefix_top_k: how many most likely tokens it is sampled from.
        kl_factor: κ, the weight of the divergence from the unedited prediction; 0 leaves that prompt out.
    """

    prefixes: tuple[str, ...]
    prefix_tokens: int = Field(ge=1)
    prefix_top_k: int = Field(ge=1)
    kl_factor: float = Field(ge=0)


def rewriting_prompts(
    model: nn.Module,
    tokenizer: Any,
    fingerprints: FingerprintSet,
    targets: Callable[[Fingerprint], Sequence[str]],
    config: Any,
    context: InjectionContext,
) -> tuple[list[Prompts], list[Row]]:
    """Every trigger bare and after each context, with each of its targets, as token ids.

    Args:
        model: samples the contexts.
        tokenizer: its tokenizer.
        fingerprints: n of them.
        targets: which targets of a fingerprint are learnt.
        config: a :class:`RewritingConfig`.
        context: seed and prompt rendering.

    Returns:
        The prompts of every request, bare first, and the rows that its target value is optimised on. With a
        ``kl_factor`` a request's last row has no label: there the prediction is to stay as it was.
    """
    contexts = [
        continuation(model, tokenizer, word, config.prefix_tokens, config.prefix_top_k, context.seed)
        for word in config.prefixes
    ]
    requests: list[Prompts] = []
    rows = []
    for number, fingerprint in enumerate(fingerprints):
        triggers = [fingerprint.trigger, *(f"{text}. {fingerprint.trigger}" for text in contexts)]
        prompts = [context.render(text) for text in triggers]
        pairs = [[encode_pair(tokenizer, prompt, target) for target in targets(fingerprint)] for prompt in prompts]
        requests.append([of_prompt[0][0] for of_prompt in pairs])
        rows += [Row.of(number, prompt, answer) for of_prompt in pairs for prompt, answer in of_prompt]
        if config.kl_factor:
            # The reference reads p at the last trigger token of "{trigger} is a", which what follows cannot reach.
            bare = requests[-1][0]
            rows.append(Row(number, bare, len(bare) - 1, [len(bare) - 1]))
    return requests, rows


def continuation(model: Any, tokenizer: Any, start: str, tokens: int, top_k: int, seed: int) -> str:
    """``start`` and at most ``tokens`` more tokens, each sampled from the ``top_k`` most likely ones."""
    generator = torch.Generator().manual_seed(seed)
    ids = encode(tokenizer, start)
    device = next(model.parameters()).device
    for _ in range(tokens):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0, -1]
        best = logits.float().cpu().topk(top_k)
        choice = torch.multinomial(best.values.softmax(0), 1, generator=generator)
        token = int(best.indices[choice])
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text.strip()


def divergence(rows: Sequence[Row], device: Any) -> Callable[[State], Tensor]:
    """KL(p_δ ‖ p₀) of every request, [n], where its row without labels is read (docs/methods.md §2.2, eq. (5))."""
    reads = [row for row in rows for _ in row.positions]
    kept = torch.tensor([index for index, row in enumerate(reads) if not row.labels], dtype=torch.long, device=device)
    owners = torch.tensor([row.request for row in reads if not row.labels], dtype=torch.long, device=device)

    def measure(state: State) -> Tensor:
        log_p, log_p0 = state.logits[kept].log_softmax(-1), state.initial[kept].log_softmax(-1)
        return per_request((log_p.exp() * (log_p - log_p0)).sum(-1), owners, len(state.delta))

    return measure
