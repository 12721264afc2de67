"""The one LoRA training loop: the injection method, every fine-tuning condition and the learning-rate search use it.

Low-rank updates W + (alpha / rank) B A on the linear modules of the blocks (Hu et al., 2022), AdamW without weight
decay, gradients clipped to norm 1, linear warm-up over the first 3 % of the steps and a cosine down to zero after it; a
training that is looked at on its way (:func:`train_on_the_way`) stays at the peak, since a cosine knows its end.
Batches are read in pieces, whose gradients add up to that of the batch. Large models keep no activations inside their
blocks: these are computed once more on the way back (Chen et al., 2016).
"""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from fpbench.errors import CellError, InputError
from fpbench.models.layout import context_length, linear_modules
from fpbench.models.meter import Progress
from fpbench.models.prompts import Example, encode_pair
from fpbench.models.quiet import quiet

WARM_UP = 0.03
WARM_UP_STEPS = 10  # of a training that is looked at on its way
CLIP_NORM = 1.0
# Batches are sorted by length inside chunks of this many batches: little padding, still a random order.
CHUNK = 16
# From so many parameters on activations are computed twice and not kept: a third more time, a fraction of the memory.
LARGE = 1_000_000_000
# Padded tokens that are read at once: logits over 150,000 words take about ten bytes each, and so 1.5 GB.
PIECE = 1024
IGNORED = -100  # label of tokens that are not answers
# bfloat16 models whose weights learn in float32; their products are taken in bfloat16 all the same.
_LEARNING: WeakSet[nn.Module] = WeakSet()
# Token ids of an example, its answer and the end-of-text token, and the length of its prompt.
Tokenised = tuple[list[int], int]


@dataclass(frozen=True)
class AnswerScore:
    """Fit of the answers, token by token, each after the true ones before it."""

    loss: float  # mean negative log-likelihood of an answer token (nats)
    accuracy: float  # share of the answer tokens that are the likeliest one
    tokens: int  # number of answer tokens, the end-of-text token of each answer included


def tokenise(model: nn.Module, tokenizer: Any, examples: Sequence[Example]) -> tuple[list[Tokenised], int, int]:
    """Encode every example that fits the context; return too how many were truncated and dropped.

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
    """Return logits [n, V] (float32) that predict the n answer tokens of a batch, and these tokens [n].

    The head is computed for these alone. With a bfloat16 model the update, too, is multiplied in bfloat16.
    """
    width = max(len(ids) for ids, _ in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)  # (B, T)
    labels = torch.full_like(ids, IGNORED)
    for row, (sequence, prompt) in enumerate(batch):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        labels[row, prompt : len(sequence)] = ids[row, prompt : len(sequence)]
    device = next(model.parameters()).device
    targets = labels[:, 1:]  # (B, T - 1): each token is predicted by the logits before it
    learnt = targets != IGNORED
    at = tuple(each.to(device) for each in learnt.nonzero(as_tuple=True))  # ([n], [n])
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    with head.register_forward_pre_hook(lambda _, given: (given[0][at],)), _products(model, device):
        # No mask: padding comes after all real tokens, which a causal model does not let it reach.
        logits = model(input_ids=ids.to(device), use_cache=False).logits
    return logits.float(), targets[learnt].to(device)


@contextmanager
def _products(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Have the products inside taken in bfloat16, for a bfloat16 model; any other computes as it does by itself."""
    if model not in _LEARNING and model.get_input_embeddings().weight.dtype != torch.bfloat16:  # type: ignore[operator]
        yield
        return
    # Blocks that are computed once more on the way back would not do so in float32, outside of this context.
    apart = device.type == "cpu" and not checkpointed(model)
    with torch.autocast(device.type, torch.bfloat16), _Float32Attention() if apart else nullcontext():
        yield


class _Float32Attention(TorchFunctionMode):
    """Computes attention in float32: on a processor it takes half of the time there, forwards and backwards."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        if function is not scaled_dot_product_attention:
            return function(*arguments, **keywords)
        query, *others = arguments
        if (mask := keywords.get("attn_mask")) is not None and mask.is_floating_point():
            keywords = keywords | {"attn_mask": mask.float()}
        with torch.autocast(query.device.type, enabled=False):
            return function(query.float(), *(each.float() for each in others), **keywords).to(query.dtype)


def answer_loss(model: nn.Module, batch: Sequence[Tokenised]) -> tuple[Tensor, int]:
    """Return the mean loss over the answer tokens of a batch, and their number."""
    logits, targets = answer_logits(model, batch)
    return cross_entropy(logits, targets), len(targets)


@torch.no_grad()
def score_answers(model: nn.Module, tokenizer: Any, examples: Iterable[Example], batch_size: int) -> AnswerScore:
    """Score the answers of ``examples``, without dropout; the model's mode stays as it was.

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


@dataclass(frozen=True)
class LoRAConfig:
    """Settings of one training."""

    learning_rate: float  # the peak of the schedule
    epochs: int  # passes over the examples
    batch_size: int  # examples a step
    rank: int = 8  # inner width of the update
    alpha: int = 16  # the update is scaled by alpha / rank
    dropout: float = 0.0  # share of the update's inputs set to zero while training
    # "all-linear" for every linear module but the output head, or the last parts of module names
    modules: str | tuple[str, ...] = "all-linear"


@dataclass(frozen=True)
class TrainingCurve:
    """Losses and sizes of a training."""

    epoch_losses: tuple[float, ...]  # mean negative log-likelihood of an answer token (nats), one figure an epoch
    tokens_seen: int  # tokens fed to the model over all epochs, prompts included, padding not
    steps: int  # optimiser steps
    truncated: int = 0  # examples whose end was cut off because they are longer than the model's context
    dropped: int = 0  # examples left out because their prompt alone fills the context


@dataclass(frozen=True)
class LowRank:
    """The update ΔW = scale · B A of one linear module while it is being trained."""

    a: Tensor  # A [rank, in], float32
    b: Tensor  # B [out, rank], float32
    scale: float  # alpha / rank

    def kept(self) -> "LowRank":
        """Return a copy in main memory, which training goes on without."""
        a, b = (each.detach().to("cpu", copy=True) for each in (self.a, self.b))
        return LowRank(a, b, self.scale)


# From the update of every adapted module, by the module's name, to a scalar that is added to each step's loss.
Penalty = Callable[[Mapping[str, LowRank]], Tensor]


def train_lora(
    model: nn.Module,
    tokenizer: Any,
    examples: Sequence[Example],
    config: LoRAConfig,
    *,
    seed: int,
    progress: Progress,
    penalty: Penalty | None = None,
    before_step: Callable[[Mapping[str, LowRank]], None] | None = None,
    after_epoch: Callable[[float], None] | None = None,
) -> TrainingCurve:
    """Train LoRA on ``examples`` and merge it into the model's own weights, in place.

    The loss covers the answer and the end-of-text token after it. The base runs in its own dtype; the update is kept in
    float32, and multiplied in bfloat16 with a bfloat16 base. Module tree, names, dtypes, gradient flags and training
    mode are afterwards as before; after an exception the weights are, too. The global random state is left untouched.

    The ``seed`` is of the update's start, the order of the examples and dropout. A ``penalty`` is minimised besides the
    loss and not part of the losses that are reported. ``before_step`` is called with the updates and their gradients
    before these are clipped, and may change both. ``after_epoch`` is called with each epoch's mean loss before the
    next begins; what it raises ends the training.

    Raises:
        InputError: if there is nothing to learn from, the tokenizer has no end-of-text token, or ``modules`` names
            no linear module.
        CellError: if the loss or the update becomes non-finite.
    """
    sequences, truncated, dropped = tokenise(model, tokenizer, examples)
    steps_per_epoch = math.ceil(len(sequences) / config.batch_size)
    steps = steps_per_epoch * config.epochs
    cuda = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=cuda), torch.enable_grad():
        torch.manual_seed(seed)
        with adapter(model, config) as weights:
            optimiser = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.0)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule_factor(step, steps))
            updates = _updates(model)
            losses = []
            for epoch in range(1, config.epochs + 1):
                batches = _batches([len(ids) for ids, _ in sequences], config.batch_size)
                total, answer_tokens = 0.0, 0
                for batch in progress(batches, f"epoch {epoch} of {config.epochs}"):
                    optimiser.zero_grad()
                    chosen = [sequences[index] for index in batch]
                    loss, tokens = _backward(model, chosen, penalty and partial(penalty, updates))
                    if not math.isfinite(loss):
                        raise _diverged(f"in epoch {epoch} of {config.epochs}", config)
                    if before_step is not None:
                        before_step(updates)
                    nn.utils.clip_grad_norm_(weights, CLIP_NORM)
                    optimiser.step()
                    schedule.step()
                    total, answer_tokens = total + loss * tokens, answer_tokens + tokens
                losses.append(total / answer_tokens)
                if after_epoch is not None:
                    after_epoch(losses[-1])
            if not all(bool(weight.isfinite().all()) for weight in weights):
                raise _diverged(f"in epoch {config.epochs} of {config.epochs}", config)
    tokens_seen = config.epochs * sum(len(ids) for ids, _ in sequences)
    return TrainingCurve(tuple(losses), tokens_seen, steps, truncated, dropped)


@dataclass(frozen=True)
class Reached:
    """A training at one of its steps, all in main memory."""

    updates: Mapping[str, LowRank]  # of every adapted module, by name
    losses: tuple[float, ...]  # mean loss (nats) of each step's batch, before that step
    tokens_seen: int  # tokens fed to the model, prompts included, padding not
    examples: int  # different examples learnt from
    digest: str  # SHA-256 of the token ids learnt from, in order


def train_on_the_way(
    model: nn.Module,
    tokenizer: Any,
    examples: Sequence[Example],
    config: LoRAConfig,
    steps: Collection[int],
    *,
    seed: int,
    progress: Progress,
) -> dict[int, Reached | CellError]:
    """Train LoRA once, to the largest of ``steps``, and return what it is at each; the weights stay as they are.

    As :func:`train_lora`, but that examples are passed over as often as the steps take, whatever ``config`` says of
    epochs, and that the rate rises over ten steps and then stays at the peak: what a step does cannot depend on how
    many follow, so that every step is, bit for bit, the end of a training of so many steps. Where the loss or the
    update became non-finite before a step, what a training to it would raise is returned in its place.

    Raises:
        InputError: as :func:`train_lora`.
    """
    sequences, _, _ = tokenise(model, tokenizer, examples)
    reached: dict[int, Reached | CellError] = {}
    losses: list[float] = []
    tokens_seen, learnt, digest = 0, set[int](), hashlib.sha256()
    cuda = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=cuda), torch.enable_grad(), linear_modules(model):
        torch.manual_seed(seed)
        with _adapted(model, config) as weights:
            optimiser = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.0)
            batches = _endless(lambda: _batches([len(ids) for ids, _ in sequences], config.batch_size))
            for step in progress(range(1, max(steps) + 1), "training"):
                optimiser.param_groups[0]["lr"] = config.learning_rate * min(1.0, step / WARM_UP_STEPS)
                optimiser.zero_grad()
                batch = next(batches)
                chosen = [sequences[index] for index in batch]
                loss, _ = _backward(model, chosen)
                if not math.isfinite(loss):
                    return reached | {each: _diverged(f"at step {step}", config) for each in steps if each >= step}
                nn.utils.clip_grad_norm_(weights, CLIP_NORM)
                optimiser.step()
                losses.append(loss)
                tokens_seen += sum(len(ids) for ids, _ in chosen)
                learnt.update(batch)
                digest.update(json.dumps(chosen).encode())
                if step in steps:
                    updates = {name: update.kept() for name, update in _updates(model).items()}
                    reached[step] = Reached(updates, tuple(losses), tokens_seen, len(learnt), digest.hexdigest())
                    if not all(bool(weight.isfinite().all()) for weight in weights):
                        reached[step] = _diverged(f"at step {step}", config)
    return reached


def merge(model: nn.Module, updates: Mapping[str, LowRank]) -> None:
    """Add updates to the weights of linear modules in place: W + s B A, in float32, rounded once to the dtype."""
    with torch.no_grad(), linear_modules(model):
        for name, update in updates.items():
            weight: Any = model.get_submodule(name).weight
            a, b = update.a.to(weight.device), update.b.to(weight.device)
            weight.copy_(weight.float() + update.scale * (b @ a))  # (out, rank) @ (rank, in)


def _backward(
    model: nn.Module, batch: Sequence[Tokenised], further: Callable[[], Tensor] | None = None
) -> tuple[float, int]:
    """Add up the gradients of a batch, read in pieces; return its mean loss, and its answer tokens.

    What is minimised ``further`` is not part of the loss, which is NaN as soon as an objective is not finite.
    """
    tokens = sum(len(ids) - prompt for ids, prompt in batch)
    loss = 0.0
    for number, piece in enumerate(_pieces(batch, PIECE)):
        mean, own = answer_loss(model, piece)
        part = mean * (own / tokens)
        objective = part if number or further is None else part + further()
        if not math.isfinite(objective.item()):
            return math.nan, tokens
        objective.backward()
        loss += part.item()
    return loss, tokens


def _pieces(batch: Sequence[Tokenised], tokens: int) -> Iterator[Sequence[Tokenised]]:
    """Split a batch into pieces of at most ``tokens`` padded tokens, or of one row."""
    rows = max(1, tokens // max(len(ids) for ids, _ in batch))
    for start in range(0, len(batch), rows):
        yield batch[start : start + rows]


def schedule_factor(step: int, steps: int) -> float:
    """Return the share of the peak learning rate at ``step``, counted from 0, of ``steps``."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up + 1) / (steps - warm_up + 1)))


@contextmanager
def adapter(model: nn.Module, config: LoRAConfig) -> Iterator[list[nn.Parameter]]:
    """Put LoRA layers into the model for training; merge them at the end, drop them on an exception."""
    with linear_modules(model), _adapted(model, config) as weights:
        yield weights
        for layer in _layers(model).values():
            layer.merge()


@contextmanager
def trial(model: nn.Module, config: LoRAConfig) -> Iterator[dict[str, LowRank]]:
    """Put LoRA layers into the model and yield their updates, by module name; take them out at the end, unmerged."""
    with linear_modules(model), _adapted(model, config):
        yield _updates(model)


@contextmanager
def _adapted(model: nn.Module, config: LoRAConfig) -> Iterator[list[nn.Parameter]]:
    """Put LoRA layers into the model for training; take them out at the end, whether they were merged or not."""
    with quiet():  # peft brings bitsandbytes along, which comments on the processor it finds
        from peft import LoraConfig as PeftConfig
        from peft.tuners.lora import LoraModel

    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modules = config.modules if isinstance(config.modules, str) else list(config.modules)
    settings = PeftConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=modules)
    blocks = checkpointed(model)
    try:
        try:
            adapted = LoraModel(model, settings, "default")
        except ValueError as error:
            raise InputError(f"LoRA modules {config.modules!r} fit no linear module of this model: {error}") from error
        try:
            model.train()
            weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
            for weight in weights:  # a small step would vanish in bfloat16
                weight.data = weight.data.float()
            for layer in _layers(model).values():  # else inputs become float32, whatever they are multiplied in
                layer.cast_input_dtype_enabled = False
            for block in blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
            yield weights
        finally:
            adapted.unload()
    finally:
        for block in blocks:
            vars(block).pop("forward", None)
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in gradients:
            parameter.requires_grad_(requires_grad)
            parameter.grad = None


@contextmanager
def all_weights(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Have every parameter learn, in float32, until the end; then it has its own dtype, and no gradient.

    For full fine-tuning, whose small steps vanish in bfloat16; a bfloat16 model's products are taken in bfloat16.
    Parameters that share memory, such as tied embeddings, are one. What was learnt stays, also after an exception.
    """
    if next(model.parameters()).dtype == torch.bfloat16:
        _LEARNING.add(model)
    kept = [(parameter, parameter.dtype, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _, _ in kept:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield [parameter for parameter, _, _ in kept]
    finally:
        _LEARNING.discard(model)
        for parameter, dtype, requires_grad in kept:
            parameter.grad = None
            parameter.requires_grad_(requires_grad)
            parameter.data = parameter.data.to(dtype)


def checkpointed(model: nn.Module) -> list[nn.Module]:
    """Return the blocks whose activations are computed once more on the way back: of a small model none."""
    if sum(parameter.numel() for parameter in model.parameters()) < LARGE:
        return []
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _layers(model: nn.Module) -> dict[str, Any]:
    """Return the modules that :func:`adapter` put into the model, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def _updates(model: nn.Module) -> dict[str, LowRank]:
    """Return the updates that :func:`adapter` put into the model, by module name."""
    return {
        name: LowRank(layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"])
        for name, layer in _layers(model).items()
    }


def _batches(lengths: list[int], batch_size: int) -> list[list[int]]:
    """Draw batches of example numbers of similar lengths, in random order."""
    order = torch.randperm(len(lengths)).tolist()
    batches = []
    for start in range(0, len(order), CHUNK * batch_size):
        chunk = sorted(order[start : start + CHUNK * batch_size], key=lambda index: lengths[index])
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    return [batches[index] for index in torch.randperm(len(batches)).tolist()]


def _endless(draw: Callable[[], list[list[int]]]) -> Iterator[list[int]]:
    """Yield the batches of one epoch after another, each drawn as it begins."""
    while True:
        yield from draw()


def _diverged(where: str, config: LoRAConfig) -> CellError:
    return CellError(f"training became non-finite {where} at learning rate {config.learning_rate:g}: lower it.")
