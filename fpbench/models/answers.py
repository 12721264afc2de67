"""Teacher forcing: how well a model continues prompts with given answers, for training and for held-out rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fpbench.errors import InputError
from fpbench.models.examples import Example
from fpbench.models.prompts import encode_pair
from fpbench.models.scoring import context_length

IGNORED = -100

# Token ids of an example, its answer and the end-of-text token, and the length of its prompt.
Tokenised = tuple[list[int], int]


@dataclass(frozen=True)
class AnswerScore:
    """How well answers are predicted, token by token, each after the true ones before it.

    Attributes:
        loss: mean negative log-likelihood of an answer token (nats).
        accuracy: share of the answer tokens that are the likeliest one.
        tokens: number of answer tokens, the end-of-text token of each answer included.
    """

    loss: float
    accuracy: float
    tokens: int


def tokenise(model: nn.Module, tokenizer: Any, examples: Sequence[Example]) -> tuple[list[Tokenised], int, int]:
    """Token ids of every example that fits the context, and how many were truncated and dropped.

    Raises:
        InputError: if the tokenizer has no end-of-text token, or no example has a prompt that fits.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("training needs a tokenizer with an end-of-text token, found none: set its eos_token.")
    context = context_length(model)
    sequences: list[Tokenised] = []
    truncated = 0
    for example in examples:
        prompt, answer = encode_pair(tokenizer, example.prompt, example.answer)
        ids = [*prompt, *answer, tokenizer.eos_token_id]
        if context is None or len(prompt) < context:
            sequences.append((ids[:context], len(prompt)))
            truncated += len(sequences[-1][0]) < len(ids)
    if not sequences:
        raise InputError(
            f"training needs at least one example whose prompt fits into {context} tokens, found none among "
            f"{len(examples)}: give more or shorter examples."
        )
    return sequences, truncated, len(examples) - len(sequences)


def answer_logits(model: nn.Module, batch: Sequence[Tokenised]) -> tuple[Tensor, Tensor]:
    """Logits [n, V] (float32) that predict the n answer tokens of a batch, and these tokens [n]."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for row, (sequence, prompt) in enumerate(batch):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
        labels[row, prompt : len(sequence)] = ids[row, prompt : len(sequence)]
    device = next(model.parameters()).device
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    targets = labels[:, 1:]
    learnt = targets != IGNORED
    return logits[:, :-1][learnt.to(device)].float(), targets[learnt].to(device)


def answer_loss(model: nn.Module, batch: Sequence[Tokenised]) -> tuple[Tensor, int]:
    """Mean loss over the answer tokens of a batch, and their number."""
    logits, targets = answer_logits(model, batch)
    return cross_entropy(logits, targets), len(targets)


@torch.no_grad()
def score_answers(model: nn.Module, tokenizer: Any, examples: Iterable[Example], batch_size: int) -> AnswerScore:
    """Loss and accuracy over the answers of ``examples``, without dropout; the model's mode stays as it was.

    Raises:
        InputError: as :func:`tokenise`.
    """
    sequences, _, _ = tokenise(model, tokenizer, list(examples))
    sequences.sort(key=lambda sequence: len(sequence[0]))
    training = model.training
    model.eval()
    loss, right, tokens = 0.0, 0, 0
    try:
        for start in range(0, len(sequences), batch_size):
            logits, targets = answer_logits(model, sequences[start : start + batch_size])
            loss += cross_entropy(logits, targets, reduction="sum").item()
            right += int((logits.argmax(-1) == targets).sum())
            tokens += len(targets)
    finally:
        model.train(training)
    return AnswerScore(loss / tokens, right / tokens, tokens)
