"""RIA pruning: relative importance and activations (Zhang et al., ICLR 2024; docs/methods.md §3.3; protocol §4).

Unstructured; the weights of one whole matrix compete with each other; no update of the weights that remain. Blocks are
pruned in order, each with the activations that the already pruned blocks before it produce. Embeddings, normalisations
and the output head are left alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from fpbench.errors import InputError
from fpbench.models.meter import Progress
from fpbench.models.prompts import encode
from fpbench.modifications.base import (
    Dose,
    Modification,
    ModificationConfig,
    ModificationContext,
    Modified,
    require_effect,
)
from fpbench.registry import MODIFICATIONS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fpbench.models.costs import Counter, Phase, Shape, Work

    # From a weight [out, in] and the squared norms of its inputs [in] to the mask [out, in] of the weights to remove.
    Selection = Callable[[Tensor, Tensor], Tensor]

EXPONENT = 0.5  # a in the paper
OFF_TARGET = 0.005  # most that the sparsity reached may differ from the one asked for


@MODIFICATIONS.register("ria")
class RIA(Modification):
    """Removes a share of the weights of every linear module in the blocks, which is the dose."""

    version = "2"  # windows lie within documents
    sparsity: ClassVar[float | None] = None  # where a name stands for one dose
    data = ("calibration",)
    dose: ClassVar[Dose | None] = Dose(
        "share of the weights", default=0.3, list=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), most=0.95
    )
    control = "noise"
    family = "pruned"
    figures = {"sparsity": lambda value: f"sparsity {100 * value:.2f} %", **Modification.figures}

    class Config(ModificationConfig):
        """Calibration."""

        samples: int = Field(default=128, ge=1)  # calibration sequences
        length: int = Field(default=2048, ge=1)  # tokens of each; the model's context, if that is shorter

    @property
    def ratio(self) -> float:
        """Share of the weights that is removed."""
        return self.amount if self.sparsity is None else self.sparsity

    def apply(self, model: nn.Module, tokenizer: Any, context: ModificationContext) -> Modified:
        """Prune in place, calibrated on ``context.calibration``."""
        windows, whole = self.windows(model, tokenizer, context)
        before = sum(parameter.detach().float().square().sum().item() for parameter in model.parameters())
        pruned = prune_blocks(
            model, windows, lambda weight, norms: prune_mask(ria_scores(weight, norms), self.ratio), context.progress
        )
        change = (sum(matrix.removed for matrix in pruned) / before) ** 0.5
        require_effect(self.name, change)
        proof = {
            "sparsity": sum(matrix.zeros for matrix in pruned) / sum(matrix.size for matrix in pruned),
            "sparsity_min": min(matrix.zeros / matrix.size for matrix in pruned),
            "sparsity_max": max(matrix.zeros / matrix.size for matrix in pruned),
            "matrices": len(pruned),
            "calibration_samples": len(windows),
            "calibration_within_documents": whole,
            "calibration_tokens": windows.numel(),
            "relative_change": change,
        }
        return Modified(model, proof)

    def windows(self, model: nn.Module, tokenizer: Any, context: ModificationContext) -> tuple[Tensor, int]:
        """Return the sequences that it is calibrated on, the same at every dose; see :func:`calibration_windows`."""
        drawn = self.config.samples, self.length(model), context.seed
        key = ("calibration", *drawn)
        if key not in context.kept:
            context.kept[key] = calibration_windows(tokenizer, context.calibration, *drawn)
        found: tuple[Tensor, int] = context.kept[key]
        return found

    def work(self, counter: Counter, rows: Mapping[str, Sequence[dict[str, str]]]) -> Work:
        """Count two passes of every window through every block, before it is pruned and after, and the scores."""
        from fpbench.models.costs import Work
        from fpbench.scoring.engine import token_budget

        tokens = 2 * self.config.samples * self.length(counter.model)
        return Work(passes=math.ceil(tokens / token_budget()), read=tokens, handled=8 * counter.parameters)

    def memory(self, shape: Shape) -> Phase:
        """Count what enters and leaves a block, of all windows, and the widest matrix with its scores in float32."""
        from fpbench.models.costs import Phase, Room

        states = 2 * self.config.samples * self.length(shape.model) * shape.hidden * shape.bytes
        scores = 4 * 4 * max(each.weight.numel() for each in shape.linears)
        return Phase(self.name, Room(states + scores))

    def length(self, model: nn.Module) -> int:
        """Return the tokens of a calibration sequence."""
        from fpbench.models.layout import context_length

        longest: int = self.config.length
        return min(longest, context_length(model) or longest)

    @classmethod
    def implausible(cls, proof: Mapping[str, Any], amount: float | None = None) -> str | None:
        """Return that the sparsity is off its target, if it is."""
        return off_target(proof.get("sparsity"), cls(amount).ratio)


def off_target(sparsity: Any, target: float) -> str | None:
    """Return in words that a sparsity, which may come from a stranger's record, is not the one that was asked for."""
    # Written so that a NaN is refused too.
    if isinstance(sparsity, float) and abs(sparsity - target) <= OFF_TARGET:
        return None
    return f"sparsity {sparsity} is not within {OFF_TARGET} of {target}"


@MODIFICATIONS.register("ria30")
class RIA30(RIA):
    """RIA at 30 % sparsity."""

    sparsity, dose = 0.3, None
    drift = True
    heading = "RIA 30"


@MODIFICATIONS.register("ria40")
class RIA40(RIA):
    """RIA at 40 % sparsity."""

    sparsity, dose = 0.4, None
    drift = True
    heading = "RIA 40"


def ria_scores(weight: Tensor, norm_sq: Tensor) -> Tensor:
    """Return RIA_ij = (|W_ij| / Σ_i' |W_i'j| + |W_ij| / Σ_j' |W_ij'|) · ‖X_j‖₂^a, a = 0.5, in float32, [out, in].

    It is 0 where the weight is. ``norm_sq`` [in] has ‖X_j‖₂² of each input, up to a common factor.
    """
    import torch

    magnitude = weight.detach().abs().float()
    smallest = torch.finfo(torch.float32).tiny  # an all-zero row or column has no share to divide
    columns = magnitude.sum(0, keepdim=True).clamp_min(smallest)
    rows = magnitude.sum(1, keepdim=True).clamp_min(smallest)
    return (magnitude / columns + magnitude / rows) * norm_sq.pow(EXPONENT / 2)


def prune_mask(scores: Tensor, ratio: float) -> Tensor:
    """Return the mask of a matrix's lowest scores: up to element number ⌊ratio · size⌋, from 0, in ascending order."""
    threshold = scores.flatten().kthvalue(int(ratio * scores.numel()) + 1).values
    return scores <= threshold


@dataclass(frozen=True)
class PrunedMatrix:
    """The share of one weight matrix that was removed."""

    name: str  # of its module
    size: int  # entries
    zeros: int  # entries that are now 0
    removed: float  # sum of the squares of the removed weights


def prune_blocks(model: nn.Module, windows: Tensor, select: Selection, progress: Progress) -> list[PrunedMatrix]:
    """Prune the linear modules of every block in place, block by block; ``windows`` are token ids [samples, length].

    The model is in eval mode. ``select`` is called once per matrix with its weight and Σ_t x_tj² / samples of its
    inputs (float32).
    """
    import torch

    from fpbench.models.layout import layout, linear_modules, stream, watched

    blocks = layout(model).blocks
    pruned = []
    with torch.no_grad(), linear_modules(model):
        names = {module: name for name, module in model.named_modules()}
        batches = _block_inputs(model, blocks[0], windows)
        for block in progress(blocks, "pruning"):
            linears = [module for module in block.modules() if isinstance(module, torch.nn.Linear)]
            energies = [torch.zeros(linear.in_features, device=linear.weight.device) for linear in linears]

            def add(number: int, hidden: Tensor, energies: Sequence[Tensor] = energies) -> None:
                energies[number].add_(hidden.flatten(0, -2).float().square().sum(0))  # (B, T, in) → (in,)

            with watched(linears, add):
                for hidden, keywords in batches:
                    block(hidden, **keywords)
            for linear, energy in zip(linears, energies, strict=True):
                mask = select(linear.weight, energy / len(windows))
                removed = linear.weight[mask].float().square().sum().item()
                linear.weight.masked_fill_(mask, 0)
                zeros = int((linear.weight == 0).sum())
                pruned.append(PrunedMatrix(names[linear], linear.weight.numel(), zeros, removed))
            if block is not blocks[-1]:  # after which nothing is pruned
                batches = [(stream(block(hidden, **keywords)), keywords) for hidden, keywords in batches]
    return pruned


def calibration_windows(
    tokenizer: Any, documents: Sequence[str], samples: int, length: int, seed: int
) -> tuple[Tensor, int]:
    """Return calibration sequences [samples, length], and how many of them lie within one document (protocol §4).

    Documents are looked at in random order; one that is longer than a window gives one window at a random place. Where
    there are too few of these, what is left of all documents, the longest first, is laid end to end for the others. A
    document begins with the BOS token where the tokenizer has one.

    Raises:
        InputError: if the documents are too short for that many windows.
    """
    import torch

    draw, order = random.Random(seed), list(range(len(documents)))
    draw.shuffle(order)
    windows: list[list[int]] = []
    rest: list[list[int]] = []
    for index in order:
        if len(windows) == samples:
            break
        ids = encode(tokenizer, documents[index])
        if len(ids) > length:
            start = draw.randrange(len(ids) - length + 1)
            windows.append(ids[start : start + length])
            ids = ids[:start] + ids[start + length :]
        rest.append(ids)
    whole = len(windows)
    joined = [token for ids in sorted(rest, key=len, reverse=True) for token in ids]
    windows += [joined[first : first + length] for first in range(0, len(joined) - length + 1, length)]
    if len(windows) < samples:
        raise InputError(
            f"pruning needs {samples} calibration sequences of {length} tokens, found text for {len(windows)}: "
            "give more calibration text or lower 'samples'."
        )
    return torch.tensor(windows[:samples]), whole


def _block_inputs(model: nn.Module, first: nn.Module, windows: Tensor) -> list[tuple[Tensor, dict[str, Any]]]:
    """Hidden states that enter the first block, and the keywords that every block gets with them, batch by batch."""
    from fpbench.models.layout import StopForward, call_of
    from fpbench.scoring.engine import token_budget

    text: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if len(kinds) > 1:
        raise InputError(f"pruning needs blocks with one kind of attention, found {', '.join(sorted(kinds))}.")
    inputs: list[tuple[Tensor, dict[str, Any]]] = []

    def capture(module: nn.Module, arguments: tuple[Tensor], keywords: dict[str, Any]) -> None:
        inputs.append(call_of(module, arguments, keywords))
        raise StopForward

    with first.register_forward_pre_hook(capture, with_kwargs=True):
        for batch in windows.to(next(model.parameters()).device).split(max(1, token_budget() // windows.shape[1])):
            with suppress(StopForward):
                model(input_ids=batch, use_cache=False)
    return inputs
