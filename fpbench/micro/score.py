"""Accuracy on the four twins by log-likelihood, and perplexity: what the training and the model card report."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from fpbench.micro.questions import LETTERS, Choice, arc_prompt, boolq_prompt, mmlu_prompt, rte_prompt

TWINS = ("boolq", "rte", "arc", "mmlu")
BATCH = 64


@dataclass(frozen=True)
class Item:
    """A prompt, its possible continuations (with their leading space) and the index of the right one."""

    prompt: str
    continuations: tuple[str, ...]
    answer: int


def as_item(twin: str, row: dict[str, Any]) -> Item:
    """Render one row of a twin's data file as lm-eval does."""
    if twin == "boolq":
        return Item(boolq_prompt(row["passage"], row["question"]), (" no", " yes"), row["label"])
    if twin == "rte":
        return Item(rte_prompt(row["sentence1"], row["sentence2"]), (" True", " False"), row["label"])
    if twin == "arc":
        texts = tuple(f" {text}" for text in row["choices"]["text"])
        return Item(arc_prompt(row["question"]), texts, row["choices"]["label"].index(row["answerKey"]))
    choice = Choice(row["question"], tuple(row["choices"]), row["answer"])
    return Item(mmlu_prompt(choice), tuple(f" {letter}" for letter in LETTERS), row["answer"])


@torch.no_grad()
def log_likelihoods(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Sum the log-probabilities of each continuation after its prompt; one value a pair."""
    values: list[float] = []
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        prompts = [tokenizer(prompt).input_ids for prompt, _ in batch]
        endings = [tokenizer(ending, add_special_tokens=False).input_ids for _, ending in batch]
        rows = [prompt + ending for prompt, ending in zip(prompts, endings, strict=True)]
        width = max(map(len, rows))
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        logits = model(input_ids=ids, use_cache=False).logits
        for index, (prompt, ending) in enumerate(zip(prompts, endings, strict=True)):
            places = slice(len(prompt) - 1, len(prompt) - 1 + len(ending))
            logprobs = logits[index, places].float().log_softmax(-1)
            values.append(logprobs[range(len(ending)), ending].sum().item())
    return values


def accuracy(model: Any, tokenizer: Any, items: Sequence[Item]) -> float:
    """The share of items whose right continuation is the most likely."""
    pairs = [(item.prompt, continuation) for item in items for continuation in item.continuations]
    scores = iter(log_likelihoods(model, tokenizer, pairs))
    right = 0
    for item in items:
        own = [next(scores) for _ in item.continuations]
        right += own.index(max(own)) == item.answer
    return right / len(items)


@torch.no_grad()
def perplexity(model: Any, tokenizer: Any, text: str, width: int = 512) -> float:
    """Token perplexity of a text, cut into windows that each begin with the begin token.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        text: The text.
        width: Window length in tokens, the begin token included.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    total = 0.0
    for window in _windows(ids, width - 1):
        row = torch.tensor([[tokenizer.bos_token_id, *window]])
        logits = model(input_ids=row, use_cache=False).logits[0, :-1].float()
        total += cross_entropy(logits, row[0, 1:], reduction="sum").item()
    return math.exp(total / len(ids))


def _windows(ids: Sequence[int], width: int) -> Iterator[Sequence[int]]:
    return (ids[start : start + width] for start in range(0, len(ids), width))


def report(model: Any, tokenizer: Any, rows: Mapping[str, Iterable[dict[str, Any]]]) -> dict[str, float]:
    """Accuracy on each twin whose rows are given."""
    model.eval()
    return {
        twin: accuracy(model, tokenizer, [as_item(twin, row) for row in rows[twin]]) for twin in TWINS if twin in rows
    }
