"""The hypernetwork of RLEdit: from the inputs and output gradients of a module to a shift of its weights."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fpbench.errors import CellError

EPSILON = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Observation:
    """The inputs and output gradients of one linear module [out, in] at n answer tokens."""

    keys: Tensor  # K [n, in] float32, its inputs
    gradients: Tensor  # G [n, out] float32, of the loss with respect to its outputs


@dataclass(frozen=True)
class Shift:
    """A change of weights in factors, ΔW = Cᵀ K."""

    keys: Tensor  # K [n, in] float64
    coefficients: Tensor  # C = (K Kᵀ + e^λ I)⁻¹ D [n, out] float64

    def matrix(self) -> Tensor:
        """Return ΔW [out, in] float64."""
        return self.coefficients.T @ self.keys

    def inner(self, gradient: Tensor) -> Tensor:
        """Return ⟨G, ΔW⟩ for G [out, in], without forming ΔW."""
        return (self.coefficients * (self.keys @ gradient.T.to(self.keys))).sum()

    def square(self) -> Tensor:
        """Return ‖ΔW‖², without forming ΔW."""
        return ((self.coefficients @ self.coefficients.T) * (self.keys @ self.keys.T)).sum()


class RunningNormalizer(nn.Module):
    """Mean and spread of every entry of u = [k; g] over all answer tokens seen so far (docs/methods.md §2.4)."""

    mean: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self, width: int) -> None:
        """Start with no token seen."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("squares", torch.zeros(width))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def update(self, u: Tensor) -> None:
        """Add a batch of n tokens, u [n, width].

        Raises:
            CellError: for a single token, whose variance (the unbiased one, as in the reference) is not defined.
        """
        if len(u) < 2:
            raise CellError("the hypernetwork's normaliser needs at least two answer tokens a batch, found one.")
        self.count += len(u)
        away = u.mean(0) - self.mean
        self.mean += away * len(u) / self.count
        self.squares += len(u) * (u.var(0) + away * (u.mean(0) - self.mean))

    @property
    def deviation(self) -> Tensor:
        """Return the standard deviation [width]."""
        return (self.squares / (self.count - 1 + EPSILON)).sqrt()

    def forward(self, u: Tensor) -> Tensor:
        """Return û = (u − mean) / (std + ε)."""
        normalised: Tensor = (u - self.mean) / (self.deviation + EPSILON)
        return normalised


class LowRankBlock(nn.Module):
    """û ← û + s_e ⊙ max(û A B + b, 0) + t_e, the identity at the start."""

    def __init__(self, width: int, rank: int, modules: int, generator: torch.Generator) -> None:
        """Start with A ~ N(0, 1) [width, rank], B = 0, b = 0, s_e = 1 and t_e = 0 for each of ``modules`` modules."""
        super().__init__()
        self.A = nn.Parameter(torch.randn(width, rank, generator=generator))
        self.B = nn.Parameter(torch.zeros(rank, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(modules, width))
        self.shift = nn.Parameter(torch.zeros(modules, width))

    def forward(self, u: Tensor, module: int) -> Tensor:
        """Return û after one residual step, for û [n, width] for the module of that number."""
        # A clamp, not a ReLU: its gradient at exactly 0, where everything starts, is 1, so that B and b can move.
        change = (u @ self.A @ self.B + self.bias).clamp(min=0)
        return u + self.scale[module] * change + self.shift[module]


class Hypernetwork(nn.Module):
    """One network for all modules of one shape [out, in]; each has its own scales, rate and ridge."""

    def __init__(
        self, inputs: int, rank: int, blocks: int, rate: float, outputs: int, modules: int, generator: torch.Generator
    ) -> None:
        """Start with rate η_e = ``rate`` and ridge e^λ_e = 1 for each of ``modules`` modules."""
        super().__init__()
        width = inputs + outputs
        self.normalizer = RunningNormalizer(width)
        self.blocks = nn.ModuleList(LowRankBlock(width, rank, modules, generator) for _ in range(blocks))
        self.rate = nn.Parameter(torch.full((modules,), rate))
        self.log_ridge = nn.Parameter(torch.zeros(modules))

    def forward(self, seen: Observation, module: int) -> Shift:
        """Return the shift whose outputs at the keys are D, by the normal equation (docs/methods.md §2.4, step 4).

        D_j = −η_e (k_j · k̃_j) g̃_j with [k̃; g̃] the transformed û, and ΔWᵀ = Kᵀ (K Kᵀ + e^λ_e I)⁻¹ D.
        """
        u = self.normalizer(torch.cat([seen.keys, seen.gradients], dim=1))
        for block in self.blocks:
            u = block(u, module)
        keys, gradients = u.split([seen.keys.shape[1], seen.gradients.shape[1]], dim=1)
        wanted = -self.rate[module] * (seen.keys * keys).sum(1, keepdim=True) * gradients
        exact = seen.keys.double()
        ridge = self.log_ridge[module].double().exp() * torch.eye(len(exact)).to(exact)
        return Shift(exact, torch.linalg.solve(exact @ exact.T + ridge, wanted.double()))


class Policy:
    """The hypernetworks of all edited modules: from observations to an action, a shift of each module."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], rank: int, blocks: int, rate: float, seed: int, device: Any
    ) -> None:
        """Make one network per shape (out, in), in float32; its modules are numbered in the order given.

        Each has so many residual ``blocks`` of the ``rank``, with A drawn from the ``seed``, and η_e = ``rate``.
        """
        generator = torch.Generator().manual_seed(seed)
        alike: dict[tuple[int, ...], list[str]] = {}
        for name, shape in shapes.items():
            alike.setdefault(shape, []).append(name)
        self.networks = {
            shape: Hypernetwork(shape[1], rank, blocks, rate, shape[0], len(names), generator).to(device)
            for shape, names in alike.items()
        }
        self.of = {
            name: (self.networks[shape], number) for shape, names in alike.items() for number, name in enumerate(names)
        }

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield everything that meta-training moves."""
        for network in self.networks.values():
            yield from network.parameters()

    def act(self, micro_batches: Sequence[Mapping[str, Observation]]) -> dict[str, Shift]:
        """Return a shift of each module for all micro-batches at once, after normalising by all tokens so far."""
        for seen in micro_batches:
            for name, (network, _) in self.of.items():
                network.normalizer.update(torch.cat([seen[name].keys, seen[name].gradients], dim=1))
        shifts = {}
        for name, (network, number) in self.of.items():
            keys = torch.cat([seen[name].keys for seen in micro_batches])
            gradients = torch.cat([seen[name].gradients for seen in micro_batches])
            shifts[name] = network(Observation(keys, gradients), number)
        return shifts
