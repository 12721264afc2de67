"""The speed of this machine: seconds of each unit of work, measured on a model of the same shape."""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import nn

from fpbench.models.costs import Work
from fpbench.models.loading import Loading
from fpbench.models.quiet import quiet
from fpbench.models.training import LoRAConfig, adapter, answer_loss
from fpbench.scoring.engine import log_likelihoods, read

# A probe must be quick: blocks are left out until so many parameters remain, and so much of the vocabulary.
PARAMETERS = 250_000_000
VOCABULARY = 8192
# Batches of a probe, rows by tokens: short, like triggers, and a full pass, as most of the work is done in.
SMALL, LARGE, TRAINED = (1, 8), (32, 64), (8, 64)
# A measurement is repeated for so many seconds, and so often if that takes no more than so many seconds.
ENOUGH, TIMES, MOST = 0.3, 5, 2.0
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


def measure_speed(architecture: nn.Module, loading: Loading) -> Speed:
    """Measure on random weights of the architecture's shape, a few blocks for all; takes a few seconds."""
    model, blocks = _cut(architecture, loading)
    size = model.config.get_text_config().vocab_size  # type: ignore[operator, union-attr]
    vocabulary = architecture.config.get_text_config().vocab_size / size  # type: ignore[operator, union-attr]

    def sequences(shape: tuple[int, int]) -> list[list[int]]:
        drawn = torch.randint(size, shape, generator=torch.Generator().manual_seed(0))
        return [list(map(int, row)) for row in drawn]

    def reading(shape: tuple[int, int]) -> float:
        ids = sequences(shape)
        return blocks * _least(lambda: read(model, ids, [1] * len(ids), lambda level: dict.fromkeys(level.nodes)))

    small, large, tokens, ids = reading(SMALL), reading(LARGE), LARGE[0] * LARGE[1], sequences(LARGE)
    scoring = _least(lambda: log_likelihoods(model, ids, [len(each) - 1 for each in ids]))
    scored = max(0.0, scoring - large / blocks) / tokens
    step, trained = _training(model, sequences)
    return Speed(
        passes=small,
        read=max(0.0, large - small) / tokens,
        scored=scored * vocabulary,
        steps=step * blocks,
        trained=trained * blocks,
        decomposed=_decomposition(loading.device),
        handled=_handling(loading),
    )


def _cut(architecture: nn.Module, loading: Loading) -> tuple[nn.Module, float]:
    """Return a random model of the same shape with fewer blocks, and how often the original has those."""
    config: Any = copy.deepcopy(architecture.config)
    text = config.get_text_config()
    total = text.num_hidden_layers
    embedding: Any = architecture.get_input_embeddings()  # type: ignore[operator]
    body = sum(p.numel() for p in architecture.parameters()) - embedding.weight.numel()
    kept = max(1, min(total, int(PARAMETERS / (body / total))))
    text.num_hidden_layers = kept
    text.vocab_size = min(text.vocab_size, VOCABULARY)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:kept]
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = type(architecture)._from_config(config, dtype=getattr(torch, loading.precision))  # type: ignore[attr-defined]
    return model.to(loading.device).eval().requires_grad_(False), total / kept


def _training(model: nn.Module, sequences: Callable[[tuple[int, int]], list[list[int]]]) -> tuple[float, float]:
    """Return the seconds of a training step however small, and of each token in one."""
    config = LoRAConfig(learning_rate=1e-4, epochs=1, batch_size=TRAINED[0])

    def step(shape: tuple[int, int]) -> float:
        batch = [(ids, len(ids) // 2) for ids in sequences(shape)]

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
