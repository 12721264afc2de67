"""The speed of a machine: seconds of each unit of work, measured on a model of the same shape.

Of a model that is not here, they are counted from what the device computes and moves in a second.
"""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, cast

import torch
from torch import nn

from fpbench.models.costs import Shape, Work
from fpbench.models.loading import Loading
from fpbench.models.quiet import quiet
from fpbench.models.training import LoRAConfig, adapter, answer_loss, checkpointed
from fpbench.scoring.engine import log_likelihoods, read

# A probe must be quick: blocks are left out until so many parameters remain, and so much of the vocabulary.
PARAMETERS = 250_000_000
VOCABULARY = 8192
# Batches of a probe, rows by tokens: short, like triggers, and a full pass, as most of the work is done in.
SMALL, LARGE, TRAINED = (1, 8), (32, 64), (8, 64)
# A measurement is repeated for so many seconds, and so often if that takes no more than so many seconds.
ENOUGH, TIMES, MOST = 0.3, 5, 2.0
# The share of the speed of products of matrices alone that a model gets out of a device; what a decomposition of a d×d
# matrix takes at that speed, in operations over d³; and what calling the modules of a block takes at least, in seconds.
# Measured on two cores, on the shape of Llama-3.2-3B-Instruct in bfloat16 and on the micro model.
UTILISATION, DECOMPOSITION, CALLS = 0.65, 70, 5e-4
# Questions to lm-eval take this much each besides the model: its requests, samples and metrics are plain Python.
QUESTION = 1e-3


@dataclass(frozen=True)
class Speed:
    """Seconds of each unit of :class:`fpbench.models.costs.Work`."""

    passes: float
    read: float
    scored: float
    steps: float
    trained: float
    decomposed: float
    handled: float
    questions: float = QUESTION

    def of(self, work: Work) -> float:
        """Return the seconds that some work takes."""
        return float(sum(getattr(self, unit) * amount for unit, amount in vars(work).items()))


@dataclass(frozen=True)
class Rate:
    """Rates of a device, each in units a second."""

    operations: float  # in products of matrices
    bytes: float  # of weights read from memory
    handled: float  # parameters copied to main memory and hashed there


# A card to count with where there is none: an A100, two thirds of its data sheet, and a processor that hashes 1.5 GB/s.
CARD = Rate(operations=2 / 3 * 312e12, bytes=2 / 3 * 2.0e12, handled=0.75e9)


def measure_rate(loading: Loading, width: int = 2048) -> Rate:
    """Measure the device in the precision that models are loaded in; takes a second."""
    dtype = getattr(torch, loading.precision)
    left, right = (torch.ones(width, width, dtype=dtype, device=loading.device) for _ in range(2))
    wide = torch.ones(width, 2**14, dtype=dtype, device=loading.device)  # more than caches hold
    few = left[: SMALL[1]]
    moved = wide.numel() * dtype.itemsize
    operations, read = 2 * width**3 / _least(lambda: left @ right), moved / _least(lambda: few @ wide)
    return Rate(operations, read, 1 / _handling(loading))


def count_speed(architecture: nn.Module, loading: Loading, rate: Rate) -> Speed:
    """Count the seconds of each unit of work from the architecture's shape and the rate of a device."""
    text = architecture.config.get_text_config()  # type: ignore[operator, union-attr]
    shape = Shape(architecture, loading)
    weights = sum(each.weight.numel() for each in shape.linears)
    operation = 1 / (UTILISATION * rate.operations)
    passes = weights * shape.bytes / rate.bytes + text.num_hidden_layers * CALLS
    token = 2 * weights * operation  # a product and a sum for each weight
    return Speed(
        passes=passes,
        read=token,
        scored=2 * shape.hidden * shape.vocabulary * operation,
        steps=2 * passes,  # forwards, and backwards to what goes into each module: weights get no gradients
        trained=(3 if checkpointed(architecture) else 2) * token,
        decomposed=DECOMPOSITION / rate.operations,
        handled=1 / rate.handled,
    )


def measure_speed(architecture: nn.Module, loading: Loading) -> Speed:
    """Measure on random weights of the architecture's shape, a few blocks for all; takes a few seconds a model."""
    text = architecture.config.get_text_config()  # type: ignore[operator, union-attr]
    total, kept = text.num_hidden_layers, _blocks_kept(architecture)
    model, tokens = _cut(architecture, loading, kept), LARGE[0] * LARGE[1]
    small, large, (step, trained) = _reading(model, SMALL), _reading(model, LARGE), _training(model)
    # So few blocks are not computed once more on the way back, as those of a large model are.
    twice = bool(checkpointed(architecture)) and not checkpointed(model)
    if kept < total:
        # The last block computes no more than is asked for, so what a block takes is what further ones add.
        model = _cut(architecture, loading, 1)
        last_small, last = _reading(model, SMALL), _reading(model, LARGE)
        block = max(0.0, large - last) / (kept - 1)
        small += (total - kept) * max(0.0, small - last_small) / (kept - 1)
        large += (total - kept) * block
        # Where every token is asked for, the last block computes as much as the others, and the head all of its logits.
        head = max(0.0, _scoring(model, LARGE) - block) * text.vocab_size / _size(model)
        scored = max(0.0, block - last) + head
    else:
        scored = max(0.0, _scoring(model, LARGE) - large)
    reading = max(0.0, large - small) / tokens
    return Speed(
        passes=small,
        read=reading,
        scored=scored / tokens,
        steps=step * total / kept,
        trained=trained * total / kept + reading * twice,
        decomposed=_decomposition(loading.device),
        handled=_handling(loading),
    )


def _blocks_kept(architecture: nn.Module) -> int:
    """Return how many blocks a probe has: two at least, where the model has them."""
    total = architecture.config.get_text_config().num_hidden_layers  # type: ignore[operator, union-attr]
    embedding: Any = architecture.get_input_embeddings()  # type: ignore[operator]
    body = sum(p.numel() for p in architecture.parameters()) - embedding.weight.numel()
    return int(min(total, max(2, PARAMETERS // (body // total))))


def _cut(architecture: nn.Module, loading: Loading, blocks: int) -> nn.Module:
    """Return a random model of the same shape with fewer blocks and a smaller vocabulary."""
    config: Any = copy.deepcopy(architecture.config)
    text = config.get_text_config()
    text.num_hidden_layers = blocks
    text.vocab_size = min(text.vocab_size, VOCABULARY)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:blocks]
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = type(architecture)._from_config(config, dtype=getattr(torch, loading.precision))  # type: ignore[attr-defined]
    return cast(nn.Module, model.to(loading.device).eval().requires_grad_(False))


def _size(model: nn.Module) -> int:
    return int(model.config.get_text_config().vocab_size)  # type: ignore[operator, union-attr]


def _sequences(model: nn.Module, shape: tuple[int, int]) -> list[list[int]]:
    drawn = torch.randint(_size(model), shape, generator=torch.Generator().manual_seed(0))
    return [list(map(int, row)) for row in drawn]


def _reading(model: nn.Module, shape: tuple[int, int]) -> float:
    """Return the seconds of reading a batch, of which the last predictions are asked for."""
    ids = _sequences(model, shape)
    return _least(lambda: read(model, ids, [1] * len(ids), lambda level: dict.fromkeys(level.nodes)))


def _scoring(model: nn.Module, shape: tuple[int, int]) -> float:
    """Return the seconds of scoring every token of a batch."""
    ids = _sequences(model, shape)
    return _least(lambda: log_likelihoods(model, ids, [len(each) - 1 for each in ids]))


def _training(model: nn.Module) -> tuple[float, float]:
    """Return the seconds of a training step however small, and of each token in one."""
    config = LoRAConfig(learning_rate=1e-4, epochs=1, batch_size=TRAINED[0])

    def step(shape: tuple[int, int]) -> float:
        batch = [(ids, len(ids) // 2) for ids in _sequences(model, shape)]

        def once() -> None:
            loss, _ = answer_loss(model, batch)
            loss.backward()
            for weight in weights:
                weight.grad = None

        return _least(once)

    with torch.random.fork_rng(devices=[]), torch.enable_grad(), adapter(model, config) as weights:
        small, large = step(SMALL), step(TRAINED)
    return small, max(0.0, large - small) / (TRAINED[0] * TRAINED[1])


def _decomposition(device: str, width: int = 512) -> float:
    """Return the seconds of a symmetric eigendecomposition over d³."""
    keys = torch.randn(width, width, generator=torch.Generator().manual_seed(0)).to(device)
    return _least(lambda: torch.linalg.eigh(keys @ keys.T)) / width**3


def _handling(loading: Loading, count: int = 2**22) -> float:
    """Return the seconds of copying and hashing a parameter, the dearest of what is done with all of them."""
    values = torch.zeros(count, dtype=getattr(torch, loading.precision), device=loading.device)

    def hashed() -> None:
        hashlib.sha256(values.to("cpu", copy=True).view(torch.uint8).numpy().tobytes())

    return _least(hashed) / count


def _least(work: Callable[[], Any]) -> float:
    times: list[float] = []
    work()  # a first time that does not count
    while sum(times) < ENOUGH or (len(times) < TIMES and sum(times) < MOST):
        start = perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(perf_counter() - start)
    return min(times)
