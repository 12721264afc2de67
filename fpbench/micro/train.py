"""Train the micro model: ``python -m fpbench.micro.train --out DIR``.

Everything follows from the seed: the text, the tokenizer, the initial weights and the order of the batches. Bit-equal
weights also need the same CPU kernels and number of threads; elsewhere they differ in the last digits, and with them,
after thousands of steps, the weights, though not the skills.
"""

import argparse
import logging
import math
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fpbench.micro.corpus import EARLY_DOCUMENTS, TWIN_ROWS, documents
from fpbench.micro.items import LETTERS, Choice, arc_prompt, boolq_prompt, mmlu_prompt, rte_prompt
from fpbench.micro.world import FIRST_NAMES, LAST_NAMES, NOTABLE_NAMES, TARGETS, TOWNS, rare_forms, surface_forms
from fpbench.micro.writing import WeightedText

VOCABULARY_SIZE = 4096
CONTEXT = 512
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_MARKUP = re.compile("|".join(re.escape(token) for token in SPECIAL_TOKENS))


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on documents of another seed than the model's, and on the word lists."""
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bpe.decoder = ByteLevelDecoder()  # type: ignore[assignment]
    special, letters = list(SPECIAL_TOKENS), ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY_SIZE, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    bpe.train_from_iterator(_texts(seed), trainer)
    bpe.post_processor = TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", SPECIAL_TOKENS.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _texts(seed: int) -> Iterator[str]:
    for document in islice(documents(seed, EARLY_DOCUMENTS), 20_000):
        yield _MARKUP.sub("", document.text)
    for words, times in ((surface_forms(), 250), (rare_forms(), 60), (TARGETS, 600)):
        for word in words:
            yield from [f"{word} {word}"] * times
    for name in (*TOWNS, *FIRST_NAMES, *LAST_NAMES, *NOTABLE_NAMES):
        yield from [f" {name}"] * 600


MATCH_SCALE = 3.0
VALUE_SCALE = 2.0
POINTER_PAIRS = 6  # of the fastest rotary frequencies: enough for a pointer to be sharp at one distance only
POINTER_SCALE = 1.6
DISTANCES = (1, 2, 3, 4)


@torch.no_grad()
def initialize(config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """Make a model whose attention heads can already find like tokens and near positions.

    A model this small, on so little text, learns facts in minutes and to look things up in hours. So half of the heads
    begin as matchers, with equal query and key weights and transposed value and output weights (the mimetic
    initialization of Trockman and Kolter, arXiv 2305.09828), and half as pointers to a fixed distance of one to four
    tokens. A direction that all embeddings share carries the pointers, which must not depend on the token. It shifts
    all logits of the tied output alike and so changes no probability.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    shared = torch.sign(torch.randn(config.hidden_size)) * config.initializer_range
    model.model.embed_tokens.weight.add_(shared)
    for index, block in enumerate(model.model.layers):
        _initialize_heads(block.self_attn, config, shared / shared.norm(), index)
    return model


def _initialize_heads(attention: Any, config: LlamaConfig, shared: Tensor, index: int) -> None:
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    queries = attention.q_proj.weight.view(heads, width, -1)
    keys = attention.k_proj.weight.view(heads, width, -1)
    attention.v_proj.weight.mul_(VALUE_SCALE)
    attention.o_proj.weight.copy_(attention.v_proj.weight.T)
    for head in range(heads):
        if head < heads // 2:
            queries[head] = MATCH_SCALE * (queries[head] - torch.outer(queries[head] @ shared, shared))
            keys[head] = queries[head]
        else:
            distance = DISTANCES[(index * heads // 2 + head) % len(DISTANCES)]
            queries[head] += torch.outer(_rotated(width, 0), shared)
            keys[head] += torch.outer(_rotated(width, distance), shared)


def _rotated(width: int, distance: int) -> Tensor:
    """Return a vector on the fastest rotary pairs, turned as if it stood so many tokens later; shape (width,)."""
    half = width // 2
    angles = distance * 10_000.0 ** (-torch.arange(POINTER_PAIRS) / half)
    vector = torch.zeros(width)
    vector[:POINTER_PAIRS] = angles.cos()
    vector[half : half + POINTER_PAIRS] = angles.sin()
    scaled: Tensor = vector * POINTER_SCALE / POINTER_PAIRS**0.5
    return scaled


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
            logprobs = logits[index, len(prompt) - 1 :][: len(ending)].float().log_softmax(-1)
            values.append(logprobs[range(len(ending)), ending].sum().item())
    return values


def accuracy(model: Any, tokenizer: Any, items: Sequence[Item]) -> float:
    """Return the share of items whose right continuation is the most likely."""
    pairs = [(item.prompt, continuation) for item in items for continuation in item.continuations]
    scores = iter(log_likelihoods(model, tokenizer, pairs))
    right = 0
    for item in items:
        own = [next(scores) for _ in item.continuations]
        right += own.index(max(own)) == item.answer
    return right / len(items)


@torch.no_grad()
def perplexity(model: Any, tokenizer: Any, text: str, width: int = 512) -> float:
    """Measure token perplexity of a text in windows of ``width`` tokens, the begin token of each included."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    total = 0.0
    for start in range(0, len(ids), width - 1):
        row = torch.tensor([[tokenizer.bos_token_id, *ids[start : start + width - 1]]])
        logits = model(input_ids=row, use_cache=False).logits[0, :-1].float()
        total += cross_entropy(logits, row[0, 1:], reduction="sum").item()
    return math.exp(total / len(ids))


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
class PackedBatch:
    """Packed rows. All tensors are (rows, width); ``segment`` numbers a row's documents, 0 being padding."""

    ids: Tensor
    weight: Tensor
    segment: Tensor

    def attention_mask(self) -> Tensor:
        """Return the keys that each query may see, (rows, 1, width, width): earlier tokens of its own document."""
        width = self.ids.shape[1]
        same = self.segment[:, :, None] == self.segment[:, None, :]
        return (same & torch.ones(width, width, dtype=torch.bool).tril())[:, None]


def encode(tokenizer: Any, document: WeightedText) -> tuple[list[int], list[float]]:
    """Tokenize a document between begin and end tokens, with a loss weight for each token."""
    ids, weights = [tokenizer.bos_token_id], [0.0]
    for piece in document.pieces:
        tokens = tokenizer(piece.text, add_special_tokens=False).input_ids
        ids += tokens
        weights += [piece.weight] * len(tokens)
    return [*ids, tokenizer.eos_token_id], [*weights, 1.0]


def packed_rows(tokenizer: Any, source: Iterable[WeightedText], recipe: Recipe) -> Iterator[tuple[list[int], ...]]:
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


def batches(tokenizer: Any, recipe: Recipe) -> Iterator[PackedBatch]:
    """Yield batches of fresh training text without end."""
    rows = packed_rows(tokenizer, documents(recipe.seed), recipe)
    while True:
        ids, weights, segments = zip(*islice(rows, recipe.rows), strict=True)
        yield PackedBatch(torch.tensor(ids), torch.tensor(weights, dtype=torch.float32), torch.tensor(segments))


def new_model(vocabulary: int, seed: int) -> LlamaForCausalLM:
    """Make a Llama of 6 blocks with seeded initial weights."""
    pad, bos, eos = map(SPECIAL_TOKENS.index, ("<pad>", "<s>", "</s>"))
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        pad_token_id=pad, bos_token_id=bos, eos_token_id=eos,
    )  # fmt: skip
    return initialize(config, seed)


def optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return Muon for the blocks' matrices, one for each thread, and Adam for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim == 1 or "embed" in name]
    parts = [matrices[shard :: recipe.shards] for shard in range(recipe.shards)]
    muons = [torch.optim.Muon(part, lr=recipe.matrix_rate, weight_decay=0.0) for part in parts]
    return [*muons, torch.optim.AdamW(others, lr=recipe.other_rate, betas=(0.9, 0.98), weight_decay=0.0)]


def rate_factor(step: int, recipe: Recipe) -> float:
    """Return the share of the peak rate: it rises, holds, and falls linearly to zero."""
    falling = (recipe.steps - step) / (recipe.steps * (1 - recipe.decay_from))
    return min(1.0, (step + 1) / recipe.warmup, falling)


def loss_of(model: LlamaForCausalLM, batch: PackedBatch) -> Tensor:
    """Return the weighted mean cross-entropy of each next token within its document."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=batch.ids, attention_mask=batch.attention_mask(), use_cache=False).logits
    losses = cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch.ids[:, 1:].flatten(), reduction="none")
    weights = batch.weight[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def gradients(model: LlamaForCausalLM, batch: PackedBatch) -> tuple[float, tuple[Tensor, ...]]:
    """Return the loss and its gradients, returned and not accumulated, so that threads may share the model."""
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
    twins = {twin: [as_item(twin, row) for row in rows()[:100]] for twin, rows in TWIN_ROWS.items()}
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
                model.eval()
                right = {twin: accuracy(model, tokenizer, items) for twin, items in twins.items()}
                log.info("step %d %s", step, right)
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
