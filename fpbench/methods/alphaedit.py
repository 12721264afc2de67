"""AlphaEdit (arXiv 2410.02355): teach each trigger its primary target, in the null space of what plain text uses."""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fpbench.fingerprints import FingerprintSet
from fpbench.methods.base import InjectionContext
from fpbench.methods.editing.editor import EditingConfig, NullSpaceEditor, Problem
from fpbench.methods.editing.objective import (
    Labels,
    Objective,
    Row,
    State,
    negative_log_likelihood,
    per_request,
)
from fpbench.models.prompts import encode, encode_pair
from fpbench.registry import register


@register("alphaedit")
class AlphaEdit(NullSpaceEditor):
    """Null-space constrained editing of ten requests at once (methods.md §1.2)."""

    version = "1"

    class Config(EditingConfig):
        """The shared hyper-parameters and AlphaEdit's own.

        Attributes:
            kl_factor: κ, the weight of the divergence from the unedited prediction.
            prefixes: words that the model continues into the contexts in which each request is also learnt.
            prefix_tokens: length of a continuation.
            prefix_top_k: how many most likely tokens it is sampled from.
        """

        kl_factor: float = Field(ge=0)
        prefixes: tuple[str, ...]
        prefix_tokens: int = Field(ge=1)
        prefix_top_k: int = Field(ge=1)

    def problem(
        self, model: nn.Module, tokenizer: Any, fingerprints: FingerprintSet, context: InjectionContext
    ) -> Problem:
        """Every trigger bare and after each context, and once more to hold its prediction near the unedited one."""
        config = self.config
        contexts = [
            continuation(model, tokenizer, word, config.prefix_tokens, config.prefix_top_k, context.seed)
            for word in config.prefixes
        ]
        requests, rows = [], []
        for number, fingerprint in enumerate(fingerprints):
            triggers = [fingerprint.trigger, *(f"{text}. {fingerprint.trigger}" for text in contexts)]
            pairs = [encode_pair(tokenizer, context.render(text), fingerprint.primary) for text in triggers]
            requests.append([prompt for prompt, _ in pairs])
            rows += [Row.of(number, prompt, answer) for prompt, answer in pairs]
            # The reference reads p at the last trigger token of "{trigger} is a", which what follows cannot reach.
            bare = requests[-1][0]
            rows.append(Row(number, bare, len(bare) - 1, [len(bare) - 1]))
        device = next(model.parameters()).device
        return Problem(requests, rows, likelihood_and_divergence(rows, config.kl_factor, config.weight_decay, device))


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


def likelihood_and_divergence(rows: Sequence[Row], kl_factor: float, weight_decay: float, device: Any) -> Objective:
    """AlphaEdit's loss of each request, step D.5 of methods.md §1.2.

    L(δ) = mean_j [−(1/|y|) Σ_t log p(y_t | prompt_j, y_<t)] + κ KL(p_δ ‖ p₀) + ω ‖δ‖/‖v₀‖², where j runs over the
    request's rows that have labels, and p is read from its row that has none.
    """
    labels = Labels.of(rows, device)
    owners = torch.tensor([row.request for row in rows for _ in row.positions], device=device)
    kept = torch.ones_like(owners, dtype=torch.bool).index_fill(0, labels.read, 0)

    def loss(state: State) -> Tensor:
        log_p, log_p0 = state.logits[kept].log_softmax(-1), state.initial[kept].log_softmax(-1)
        divergence = per_request((log_p.exp() * (log_p - log_p0)).sum(-1), owners[kept], len(state.delta))
        size = state.delta.norm(dim=1) / state.v0.norm(dim=1) ** 2
        total: Tensor = negative_log_likelihood(state, labels) + kl_factor * divergence + weight_decay * size
        return total

    return loss
