"""Costs on one model, counted from its architecture and the lengths of texts: work in tokens, memory in bytes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import nn

from fpbench.models.layout import LINEAR, context_length, inputs, outputs
from fpbench.models.loading import Loading
from fpbench.models.prompts import Example, encode_all
from fpbench.models.training import PIECE, checkpointed

SAMPLE = 256  # texts that are tokenised to know the length of all
# Tokens of the longest rows of a training batch, where nobody has counted them.
TRAINING_LENGTH = 512
# Activations of a token in one block, in units of hidden size and of the width of its FFN: at once in a forward pass,
# and kept for a backward pass. Measured, like the rest, by tests/benchmarks/test_memory.py on the shape of a 3B model.
FORWARD_HIDDEN, FORWARD_WIDE = 4, 2
BACKWARD_HIDDEN, BACKWARD_WIDE = 6, 3
CACHE_COPIES = 2  # keys and values of a batch take so often their size
MASK_WIDTH = 512  # width of a packed batch, whose mask has as many places for each of its tokens
LOGIT_BYTES = 6  # of each logit of a training batch, were there one a token; half of its tokens are answers
ADAM_BYTES = 16  # of a trained float32 number: itself, its gradient, two moments


@dataclass(frozen=True)
class Work:
    """Amounts of computation, in the units that :class:`fpbench.runs.speed.Speed` has prices of."""

    passes: float = 0  # forward passes through all blocks
    read: float = 0  # tokens in them
    scored: float = 0  # tokens of these whose logits over the whole vocabulary are used
    steps: float = 0  # forward passes that are followed by a backward pass
    trained: float = 0  # tokens in these
    decomposed: float = 0  # d³, summed over the d×d matrices that are decomposed
    handled: float = 0  # parameters that are copied, compared or hashed
    questions: float = 0  # requests to lm-eval, each of which costs its own bookkeeping

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> "Work":
        return Work(*(times * each for each in astuple(self)))


class Counter:
    """Counts tokens on one model; its architecture, without weights, and its tokenizer are all that is needed."""

    def __init__(self, architecture: nn.Module, tokenizer: Any) -> None:
        """Count for a model, whose weights are not read."""
        self.model, self.tokenizer = architecture, tokenizer
        self.parameters = sum(parameter.numel() for parameter in architecture.parameters())
        self._lengths: dict[tuple[str, ...], float] = {}  # of texts that were asked for before: many checkpoints alike

    def length(self, texts: Sequence[Any]) -> float:
        """Return the mean length of texts or examples in tokens, from a sample spread over all of them."""
        if not texts:
            return 0.0
        some = texts[:: max(1, len(texts) // SAMPLE)]
        some = tuple(f"{each.prompt}{each.answer}" if isinstance(each, Example) else each for each in some)
        if some not in self._lengths:
            self._lengths[some] = sum(map(len, encode_all(self.tokenizer, some))) / len(some)
        return self._lengths[some]

    def tokens(self, texts: Sequence[str]) -> float:
        """Return the tokens of all texts together, from the same sample."""
        return self.length(texts) * len(texts)

    def training(self, examples: Sequence[Example], epochs: int, batch_size: int) -> Work:
        """Return the work of training on examples and the end-of-text token after each."""
        tokens = self.tokens([f"{each.prompt} {each.answer}" for each in examples]) + len(examples)
        return Work(steps=math.ceil(len(examples) / batch_size), trained=tokens) * epochs


@dataclass(frozen=True)
class Room:
    """Bytes of memory."""

    fixed: float = 0  # of weights, copies and statistics, which no smaller batch makes smaller
    passing: float = 0  # of activations and logits, which smaller batches make smaller

    @property
    def total(self) -> float:
        """Return both together."""
        return self.fixed + self.passing

    def __add__(self, other: "Room") -> "Room":
        return Room(self.fixed + other.fixed, self.passing + other.passing)


@dataclass(frozen=True)
class Phase:
    """The memory of one phase of a run besides the libraries."""

    name: str  # what is done
    device: Room  # on the card, or in main memory where there is none
    main: Room = Room()  # in main memory, whatever the device


class Shape:
    """The sizes of one model that decide what memory is taken."""

    def __init__(self, architecture: nn.Module, loading: Loading, training_length: int = TRAINING_LENGTH) -> None:
        """Read the shapes of a model without weights; ``training_length`` is tokens of the longest rows trained on."""
        self.model, self.loading, self.training_length = architecture, loading, training_length
        text: Any = architecture.config.get_text_config()  # type: ignore[operator, union-attr]
        self.bytes = getattr(torch, loading.precision).itemsize  # of one weight
        self.weights = self.size(None)  # bytes of all of them
        # hidden size, FFN width, number of blocks, size of the vocabulary
        self.hidden, self.wide = int(text.hidden_size), int(getattr(text, "intermediate_size", 4 * text.hidden_size))
        self.blocks, self.vocabulary = int(text.num_hidden_layers), int(text.vocab_size)
        heads = int(text.num_attention_heads)
        size = getattr(text, "head_dim", None) or self.hidden // heads
        # numbers of a token that one block's cache keeps
        self.cached = 2 * (getattr(text, "num_key_value_heads", None) or heads) * size
        head = architecture.get_output_embeddings()  # type: ignore[operator]
        # every linear module but the output head
        self.linears: list[Any] = [m for m in architecture.modules() if isinstance(m, LINEAR) and m is not head]

    def size(self, names: Iterable[str] | None) -> float:
        """Return the bytes of the named parameters, of all of them for ``None``."""
        parameters = dict(self.model.named_parameters())
        return float(sum(parameters[name].numel() for name in (parameters if names is None else names)) * self.bytes)

    @property
    def adapted(self) -> float:
        """Return the bytes of the weights that LoRA changes."""
        return float(sum(each.weight.numel() for each in self.linears) * self.bytes)

    def reading(self, tokens: int) -> float:
        """Return the bytes of a batch without logits: activations of one block, all keys and values, the mask."""
        held = tokens * (FORWARD_HIDDEN * self.hidden + FORWARD_WIDE * self.wide) * self.bytes
        cache = CACHE_COPIES * tokens * self.blocks * self.cached * self.bytes
        return float(held + cache + tokens * MASK_WIDTH * (self.bytes + 3))

    def training(self, rank: int, batch_size: int) -> Room:
        """Return the memory of adapters with their optimiser, and of activations, logits and gradients of a batch."""
        adapters = sum(rank * (inputs(each) + outputs(each)) for each in self.linears)
        length = min(self.training_length, context_length(self.model) or self.training_length)
        twice = bool(checkpointed(self.model))
        tokens = min(batch_size * length, max(PIECE, length))
        return Room(ADAM_BYTES * adapters, self.activations(tokens, twice) + self.answers(tokens))

    def activations(self, tokens: int, twice: bool) -> float:
        """Return the bytes that so many padded tokens keep for a backward pass.

        Those are of all blocks, or, if these are computed ``twice``, of one and the inputs of each.
        """
        block = tokens * (BACKWARD_HIDDEN * self.hidden + BACKWARD_WIDE * self.wide) * self.bytes
        return float(block + tokens * self.blocks * self.hidden * self.bytes if twice else block * self.blocks)

    def answers(self, tokens: int) -> float:
        """Return the bytes of a training batch's logits: those of the answers, also in float32, and gradients."""
        return float(tokens * self.vocabulary * LOGIT_BYTES)
