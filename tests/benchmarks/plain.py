"""AlphaEdit by the equations of docs/methods.md §2.2 in the shape of the public implementations.

One request after another, all its prompts in one padded batch, the whole network at all positions in every step, a new
pass from the embeddings for the keys and for the values of every block, and dense d×d systems. What those do besides,
such as printing in every step or computing all logits twice, is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fpbench.models.layout import layout
from fpbench.models.prompts import encode


@dataclass(frozen=True)
class Request:
    """A prompt in its contexts, the bare one first, the answer to be learnt, and a prompt that is to stay as it is."""

    prompts: Sequence[Sequence[int]]
    answer: Sequence[int]
    kept: Sequence[int]


@dataclass(frozen=True)
class Hyperparameters:
    """Those of the paper, with Adam's rate in units of the root mean square of v₀."""

    relative_rate: float
    steps: int
    clamp: float
    weight_decay: float
    kl_factor: float
    ridge: float


def padded(sequences: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Token ids and attention mask of a right-padded batch."""
    width = max(map(len, sequences))
    ids = torch.tensor([[*sequence, *[0] * (width - len(sequence))] for sequence in sequences])
    mask = torch.tensor([[1] * len(sequence) + [0] * (width - len(sequence)) for sequence in sequences])
    return {"input_ids": ids, "attention_mask": mask}


def target_value(model: Any, block: int, request: Request, given: Hyperparameters) -> Tensor:
    """v* [h] of one request (docs/methods.md §2.2, steps 5 and 6)."""
    answer, prompts = request.answer, request.prompts
    batch = padded([*([*prompt, *answer[:-1]] for prompt in prompts), request.kept])
    lookup = torch.tensor([*(len(prompt) - 1 for prompt in prompts), len(prompts[0]) - 1])
    at = torch.arange(len(lookup)), lookup
    labels = torch.full(batch["input_ids"].shape, -100)[: len(prompts)]
    for row, prompt in enumerate(prompts):
        labels[row, len(prompt) - 1 : len(prompt) - 1 + len(answer)] = torch.tensor(answer)
    delta = torch.zeros(model.config.hidden_size, requires_grad=True)
    seen: list[Tensor] = []

    def add_delta(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        seen.append(output[0, lookup[0]].detach())
        return output.index_put(at, output[at] + delta)

    initial = adam = None
    with layout(model).blocks[block].register_forward_hook(add_delta):
        for step in range(given.steps):
            logits = model(**batch, use_cache=False).logits
            v0 = seen[0]
            kept = logits[-1, lookup[-1]].log_softmax(-1)
            if adam is None:
                initial = kept.detach()
                adam = torch.optim.Adam([delta], lr=given.relative_rate * float(v0.square().mean().sqrt()))
            log_p = logits[:-1].log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
            likelihood = (log_p * (labels >= 0)).sum(1) / len(answer)
            divergence = (kept.exp() * (kept - initial)).sum()
            size = delta.norm() / v0.norm() ** 2
            loss = -likelihood.mean() + given.kl_factor * divergence + given.weight_decay * size
            if step == given.steps - 1:
                break
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                if delta.norm() > (bound := given.clamp * v0.norm()):
                    delta *= bound / delta.norm()
    return (v0 + delta).detach()


@torch.no_grad()
def at_last_token(model: Any, module: nn.Module, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """What goes into and comes out of a module at the last token of every prompt, [prompts, ·] each."""
    seen: list[Tensor] = []
    at = torch.arange(len(prompts)), torch.tensor([len(prompt) - 1 for prompt in prompts])
    with module.register_forward_hook(lambda _, arguments, output: seen.extend((arguments[0][at], output[at]))):
        model(**padded(prompts), use_cache=False)
    return seen[0], seen[1]


@torch.no_grad()
def write(
    model: Any,
    blocks: Sequence[int],
    requests: Sequence[Request],
    targets: Tensor,
    projectors: Mapping[int, Tensor],
    ridge: float,
) -> None:
    """Step E with targets V* [h, n] and projectors P [d, d]."""
    parts = layout(model)
    for index, block in enumerate(blocks):
        module, count = parts.down_proj(block), len(requests[0].prompts)
        keys, _ = at_last_token(model, module, [prompt for request in requests for prompt in request.prompts])
        keys = keys.unflatten(0, (-1, count))
        k = ((keys[:, 0] + keys[:, 1:].mean(1)) / 2).T
        _, values = at_last_token(model, parts.blocks[blocks[-1]], [request.prompts[0] for request in requests])
        residual = (targets - values.T) / (len(blocks) - index)
        projector = projectors[block]
        dense = projector @ (k @ k.T) + ridge * torch.eye(len(k))
        module.weight += torch.linalg.solve(dense, projector @ k @ residual.T).T


def inject(
    model: Any,
    blocks: Sequence[int],
    requests: Sequence[Request],
    projectors: Mapping[int, Tensor],
    given: Hyperparameters,
) -> None:
    """Steps D and E."""
    targets = [target_value(model, blocks[-1], request, given) for request in requests]
    write(model, blocks, requests, torch.stack(targets, dim=1), projectors, given.ridge)


def continuation(model: Any, tokenizer: Any, start: str, tokens: int, top_k: int, seed: int) -> str:
    """Sample what follows ``start`` with a whole pass for each token."""
    generator = torch.Generator().manual_seed(seed)
    ids = encode(tokenizer, start)
    for _ in range(tokens):
        with torch.no_grad():
            best = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float().topk(top_k)
        token = int(best.indices[torch.multinomial(best.values.softmax(0), 1, generator=generator)])
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text.strip()
