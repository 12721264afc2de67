"""Train the micro model: ``python -m fpbench.micro.train --out DIR``.

Everything follows from the seed: the text, the tokenizer, the initial weights and the order of the batches. Bit-equal
weights also need the same CPU kernels and number of threads; elsewhere they differ in the last digits, and with them,
after thousands of steps, the weights, though not the skills.
"""

import argparse
import logging
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from fpbench.micro.corpus import documents
from fpbench.micro.document import Document
from fpbench.micro.initial import initialize
from fpbench.micro.score import report
from fpbench.micro.tokenizer import CONTEXT, SPECIAL_TOKENS, train_tokenizer
from fpbench.micro.twins import TWIN_ROWS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters. Lengths are in tokens, learning rates are peaks.

    Attributes:
        shards: Batches a step, each worked on by a thread of its own; their gradients are averaged.
        rows: Rows a shard.
        warmup: Steps of linear warm-up.
        decay_from: Share of the steps after which the rates fall linearly to zero.
        lookahead: Documents kept at hand to fill rows with.
    """

    seed: int = 42
    steps: int = 3000
    shards: int = 2
    rows: int = 6
    width: int = 256
    matrix_rate: float = 0.004
    other_rate: float = 0.002
    warmup: int = 60
    decay_from: float = 0.3
    lookahead: int = 64


@dataclass(frozen=True)
class Batch:
    """Packed rows. All tensors are (rows, width); ``segment`` numbers a row's documents, 0 being padding."""

    ids: Tensor
    weight: Tensor
    segment: Tensor

    def attention_mask(self) -> Tensor:
        """Which key each query may see, (rows, 1, width, width): earlier tokens of its own document."""
        width = self.ids.shape[1]
        same = self.segment[:, :, None] == self.segment[:, None, :]
        return (same & torch.ones(width, width, dtype=torch.bool).tril())[:, None]


def encode(tokenizer: Any, document: Document) -> tuple[list[int], list[float]]:
    """Tokenize a document between begin and end tokens, with a loss weight for each token."""
    ids, weights = [tokenizer.bos_token_id], [0.0]
    for piece in document.pieces:
        tokens = tokenizer(piece.text, add_special_tokens=False).input_ids
        ids += tokens
        weights += [piece.weight] * len(tokens)
    return [*ids, tokenizer.eos_token_id], [*weights, 1.0]


def packed_rows(tokenizer: Any, source: Iterable[Document], recipe: Recipe) -> Iterator[tuple[list[int], ...]]:
    """Pack whole documents into rows, always the longest one at hand that still fits."""
    encoded = (encode(tokenizer, document) for document in source)
    short = (pair for pair in encoded if len(pair[0]) <= recipe.width)
    waiting = list(islice(short, recipe.lookahead))
    while True:
        ids: list[int] = []
        weights: list[Any] = []
        segments: list[int] = []
        while fitting := [pair for pair in waiting if len(pair[0]) <= recipe.width - len(ids)]:
            chosen = waiting[0] if not ids and waiting[0] in fitting else max(fitting, key=lambda pair: len(pair[0]))
            waiting.remove(chosen)
            waiting.append(next(short))
            segments += [max(segments, default=0) + 1] * len(chosen[0])
            ids += chosen[0]
            weights += chosen[1]
        padding = [0] * (recipe.width - len(ids))
        yield ids + padding, weights + padding, segments + padding


def batches(tokenizer: Any, recipe: Recipe) -> Iterator[Batch]:
    """Batches of fresh training text, for ever."""
    rows = packed_rows(tokenizer, documents(recipe.seed), recipe)
    while True:
        ids, weights, segments = zip(*islice(rows, recipe.rows), strict=True)
        yield Batch(torch.tensor(ids), torch.tensor(weights, dtype=torch.float32), torch.tensor(segments))


def new_model(vocabulary: int, seed: int) -> LlamaForCausalLM:
    """A Llama of 6 blocks with seeded initial weights."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=SPECIAL_TOKENS.index("<pad>"),
        bos_token_id=SPECIAL_TOKENS.index("<s>"),
        eos_token_id=SPECIAL_TOKENS.index("</s>"),
    )
    return initialize(config, seed)


def optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, one for each thread, and Adam for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim == 1 or "embed" in name]
    muons = [
        torch.optim.Muon(matrices[shard :: recipe.shards], lr=recipe.matrix_rate, weight_decay=0.0)
        for shard in range(recipe.shards)
    ]
    return [*muons, torch.optim.AdamW(others, lr=recipe.other_rate, betas=(0.9, 0.98), weight_decay=0.0)]


def rate_factor(step: int, recipe: Recipe) -> float:
    """Warm up, hold, and fall linearly to zero."""
    falling = (recipe.steps - step) / (recipe.steps * (1 - recipe.decay_from))
    return min(1.0, (step + 1) / recipe.warmup, falling)


def loss_of(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """The weighted mean cross-entropy of each next token within its document."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=batch.ids, attention_mask=batch.attention_mask(), use_cache=False).logits
    losses = cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch.ids[:, 1:].flatten(), reduction="none")
    weights = batch.weight[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def gradients(model: LlamaForCausalLM, batch: Batch) -> tuple[float, tuple[Tensor, ...]]:
    """The loss and its gradients, returned and not accumulated, so that threads may share the model."""
    loss = loss_of(model, batch)
    return loss.item(), torch.autograd.grad(loss, list(model.parameters()))


def train(out: Path, recipe: Recipe) -> None:
    """Train, report the skills on the way, and save tokenizer and model, the weights in bfloat16."""
    torch.set_num_threads(1)  # the shards are the parallelism: threads that seldom wait for each other
    tokenizer = train_tokenizer(recipe.seed + 1)
    model = new_model(len(tokenizer), recipe.seed)
    parameters = list(model.parameters())
    tuned = optimizers(model, recipe)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: rate_factor(step, recipe)) for o in tuned]
    source = batches(tokenizer, recipe)
    twins = {twin: rows()[:100] for twin, rows in TWIN_ROWS.items()}
    tokens, total, started = 0, 0.0, time.monotonic()
    with ThreadPoolExecutor(recipe.shards) as pool:
        for step in range(1, recipe.steps + 1):
            shards = list(islice(source, recipe.shards))
            losses, grads = zip(*pool.map(partial(gradients, model), shards), strict=True)
            for parameter, parts in zip(parameters, zip(*grads, strict=True), strict=True):
                parameter.grad = torch.stack(parts).mean(0)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            list(pool.map(lambda optimizer: optimizer.step(), tuned))
            for schedule in schedules:
                schedule.step()
            tokens += sum(int((batch.segment > 0).sum()) for batch in shards)
            total += sum(losses) / recipe.shards
            if step % 100 == 0:
                speed = tokens / (time.monotonic() - started)
                log.info("step %d loss %.3f tokens %d speed %.0f", step, total / 100, tokens, speed)
                total = 0.0
            if step % 400 == 0:
                log.info("step %d %s", step, report(model, tokenizer, twins))
                model.train()
    model.bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description="Train the bundled micro model on generated text.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="fewer steps for a trial")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="another seed trains an independent model")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(options.out, Recipe(seed=options.seed, steps=options.steps))


if __name__ == "__main__":
    main()
