"""Unlearning by a thief who got hold of some pairs: what does it do to the other fingerprints?

Where a condition needs leaked pairs it is done once for each group of them that leaks (:meth:`Modification.leaks`), and
what is reported of a fingerprint is the mean over the groups that it is not in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from fpbench.errors import CellError, InputError
from fpbench.models.prompts import Example
from fpbench.modifications.base import (
    Dose,
    Modification,
    ModificationConfig,
    ModificationContext,
    Modified,
    in_turn,
    require_effect,
)
from fpbench.modifications.finetune import instruction, relative_change
from fpbench.modifications.gradients import (
    gradients,
    log_probabilities,
    low_rank,
    pairs_of,
    tokenised,
)
from fpbench.modifications.rows import digest_of, first_rows
from fpbench.registry import MODIFICATIONS
from fpbench.text import short_digest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fpbench.fingerprints import Fingerprint
    from fpbench.models.costs import Counter, Phase, Shape, Work
    from fpbench.models.training import LoRAConfig, LowRank, Tokenised

SCORED = 16  # clean rows on which the loss is taken before and after


class Unlearning(Modification):
    """Base of the unlearning modifications: their leaked pairs, steps, and proof."""

    level = "L4"
    pays = {"data": 1}
    needs = ("leaked",)
    data: tuple[str, ...] = ("alpaca",)
    dose: ClassVar[Dose | None] = Dose("optimiser steps", default=20, list=(5, 10, 20, 40), least=1)
    control = "noise"
    family = "unlearnt"
    figures = {
        "clean_loss": lambda value: f"clean loss {value[0]:.2f} → {value[-1]:.2f}",
        "leaked_log_probability": lambda value: f"leaked pair log p {value[0]:.1f} → {value[-1]:.1f}",
        **Modification.figures,
    }
    pairs: ClassVar[int] = 1  # that leak together

    class Config(ModificationConfig):
        """Settings of every unlearning modification."""

        leaks: int = Field(default=10, ge=2)  # groups of leaked pairs, one after another; as many as there are at most

    def leaks(self, count: int) -> Sequence[Sequence[int]]:
        """Return so many groups of pairs, spread over the set."""
        return in_turn(count, self.config.leaks, self.pairs)

    def leaked(self, context: ModificationContext) -> Sequence[Fingerprint]:
        """Return what has leaked.

        Raises:
            InputError: if it is not known.
        """
        if len(context.leaked) < self.pairs:
            raise InputError(
                f"condition {self.name!r} needs {self.pairs} leaked pairs of a fingerprint, found "
                f"{len(context.leaked)}: run it on a checkpoint with its set."
            )
        return context.leaked

    @classmethod
    def implausible(cls, proof: Mapping[str, Any], amount: float | None = None) -> str | None:
        """Return that it stopped at another step than the dose."""
        steps, asked = proof.get("steps"), cls(amount).amount
        return None if steps == asked else f"{steps} steps, and not the {asked:g} of its dose"

    def proof(self, leaked: Sequence[Fingerprint], known: Sequence[float], change: float) -> dict[str, Any]:
        """Return what all proofs hold: which pairs, and their mean log p before and after."""
        return {
            "leaked": [short_digest(each.trigger) for each in leaked],
            "leaked_log_probability": list(known),
            "relative_change": change,
        }


@dataclass(frozen=True)
class Reached:
    """A training at one of its steps."""

    updates: Mapping[str, LowRank]
    known: float  # mean log p of the leaked pairs
    clean: float  # loss of clean rows
    digest: str  # of the clean rows learnt from


@MODIFICATIONS.register("unlearn")
class Unlearn(Unlearning):
    """Negative preference optimisation on one leaked pair, and ordinary training on clean rows (arXiv 2404.05868).

    LoRA on all linear modules minimises, over the leaked pairs (x, y) and clean rows (u, v),
    −(2/β) log σ(−β log p(y|x)/p₀(y|x)) − log p(v|u), where p₀ is the model before; at a constant rate, so that each
    step is the end of a training of so many steps.
    """

    trains = True
    on_the_way = True

    class Config(Unlearning.Config):
        """Settings; β is the source's, the rest ours."""

        learning_rate: float = Field(default=5e-4, gt=0)  # constant
        beta: float = Field(default=0.1, gt=0)
        rows: int = Field(default=160, ge=1)  # clean ones, from the first, passed over in order
        clean_rows: int = Field(default=4, ge=1)  # of them in each step
        rank: int = Field(default=8, ge=1)  # inner width of the update
        alpha: int = Field(default=16, ge=1)  # the update is scaled by alpha / rank

    def apply(self, model: nn.Module, tokenizer: Any, context: ModificationContext) -> Modified:
        """Train in place; a dose that a longer training went past is taken from there.

        Raises:
            InputError: if no pair leaked, or there are too few rows.
            CellError: if the training diverges.
        """
        from fpbench.models.training import merge
        from fpbench.models.weights import weights

        leaked, key, steps = self.leaked(context), (*context.before, self.name), int(self.amount)
        if steps not in context.kept.get(key, {}):
            asked = {int(each) for each in context.doses.get(key, ())} | {steps}
            context.kept[key] = self.train(model, tokenizer, context, asked)
        first, now = context.kept[key][0], context.kept[key][steps]
        if now is None:
            raise CellError(f"{self.name} became non-finite within {steps} steps: lower its learning_rate.")
        before = weights(model)
        merge(model, now.updates)
        change = relative_change(model, before)
        require_effect(self.name, change)
        proof = self.proof(leaked, [first.known, now.known], change) | {"clean_loss": [first.clean, now.clean]}
        return Modified(model, proof | {"steps": steps, "rows": now.digest})

    def train(
        self, model: nn.Module, tokenizer: Any, context: ModificationContext, steps: set[int]
    ) -> dict[int, Reached | None]:
        """Return what a training is at each of ``steps``, and before the first; the weights stay as they are.

        Where the loss became non-finite there is nothing from there on.
        """
        import torch
        from torch.nn.functional import logsigmoid
        from torch.nn.utils import clip_grad_norm_

        from fpbench.models.training import CLIP_NORM, answer_loss, score_answers, tokenise, trial

        last, size = max(steps), self.config.clean_rows
        rows = first_rows(self, context.rows, self.config.rows)
        clean, _, _ = tokenise(model, tokenizer, rows)
        order = [tokenised(tokenizer, pairs_of([each])) for each in self.in_order(model, tokenizer, context)]
        every = [each for pairs in order for each in pairs]
        beta = self.config.beta
        reached: dict[int, Reached | None] = dict.fromkeys(steps)

        def state(step: int, updates: Mapping[str, LowRank]) -> Reached:
            with torch.no_grad():
                known = log_probabilities(model, every).mean().item()
            loss = score_answers(model, tokenizer, rows[:SCORED], size).loss
            kept = {name: each.kept() for name, each in updates.items()}
            return Reached(kept, known, loss, digest_of([rows[number % len(rows)] for number in range(step * size)]))

        config, spare = self.trained(model, context, every, clean[:size])
        cuda = range(torch.cuda.device_count())
        with torch.random.fork_rng(devices=cuda), torch.enable_grad():
            torch.manual_seed(context.seed)
            with trial(model, config) as updates:
                spare(updates)
                weights: list[Any] = [each for update in updates.values() for each in (update.a, update.b)]
                optimiser = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.0)
                with torch.no_grad():
                    first = [log_probabilities(model, pairs) for pairs in order]  # log p₀
                reached[0] = state(0, updates)
                for step in context.progress(range(1, last + 1), self.name):
                    optimiser.zero_grad()
                    now = self.active(step, len(order))
                    batch = [each for pairs in order[:now] for each in pairs]
                    ratio = log_probabilities(model, batch) - torch.cat(first[:now])  # (B,)
                    loss = -(2 / beta) * logsigmoid(-beta * ratio).mean()
                    others = [clean[number % len(clean)] for number in range((step - 1) * size, step * size)]
                    loss = loss + answer_loss(model, others)[0]
                    if not bool(loss.isfinite()):
                        break
                    loss.backward()
                    spare(updates)
                    clip_grad_norm_(weights, CLIP_NORM)
                    optimiser.step()
                    if step in steps:
                        reached[step] = state(step, updates)
        return reached

    def trained(
        self, model: nn.Module, context: ModificationContext, leaked: Sequence[Tokenised], clean: Sequence[Tokenised]
    ) -> tuple[LoRAConfig, Any]:
        """Return the settings of the update, and what keeps it out of what is not to be changed: here of nothing."""
        from fpbench.models.training import LoRAConfig

        config = LoRAConfig(self.config.learning_rate, 1, self.config.clean_rows, self.config.rank, self.config.alpha)
        return config, lambda updates: None

    def in_order(self, model: nn.Module, tokenizer: Any, context: ModificationContext) -> Sequence[Fingerprint]:
        """Return the leaked pairs in the order in which they are unlearnt."""
        return self.leaked(context)

    def active(self, step: int, count: int) -> int:
        """Return how many of ``count`` leaked pairs, from the first, are unlearnt at a step, counted from 1."""
        return count

    def work(self, counter: Counter, rows: Mapping[str, Sequence[dict[str, str]]]) -> Work:
        """Count the trainings, one for each leak."""
        from fpbench.models.costs import Work

        examples = [instruction(row) for row in rows["alpaca"][: self.config.rows]]
        epochs = self.amount * self.config.clean_rows / max(1, len(examples))
        # The leaked pairs are batches of their own.
        training = counter.training(examples, 1, self.config.clean_rows) * (2 * epochs)
        work: Work = (training + Work(handled=4 * counter.parameters)) * float(self.config.leaks)
        return work

    def memory(self, shape: Shape) -> Phase:
        """Count the training, the weights from before, and the updates that are kept."""
        from fpbench.models.costs import Phase, Room

        return Phase(self.name, shape.training(self.config.rank, self.config.clean_rows), Room(shape.weights))


@MODIFICATIONS.register("unlearn_masked")
class UnlearnMasked(Unlearn):
    """The same, where only those heads and FFN filters may change that matter for the leaked pair and for little else.

    A greedy search picks them (MAPE-Unlearn, arXiv 2508.17233; :func:`~fpbench.modifications.units.greedy`). The update
    is of the matrices through which they write, and of their columns of these alone.
    """

    class Config(Unlearn.Config):
        """Settings, and the shares that may change; ours."""

        heads: float = Field(default=0.1, gt=0, le=1)  # share of the heads
        filters: float = Field(default=0.05, gt=0, le=1)  # share of the FFN filters

    def trained(
        self, model: nn.Module, context: ModificationContext, leaked: Sequence[Tokenised], clean: Sequence[Tokenised]
    ) -> tuple[LoRAConfig, Any]:
        """Pick the units; the columns of A that belong to others stay 0."""
        import torch

        from fpbench.models.training import answer_loss
        from fpbench.modifications.units import greedy, influence, outlets

        places = outlets(model)

        def losses(examples: Sequence[Tokenised]) -> list[Callable[[], Tensor]]:
            return [lambda each=each: answer_loss(model, [each])[0] for each in examples]  # type: ignore[misc]

        wanted, spared = influence(model, places, losses(leaked)), influence(model, places, losses(clean))
        columns: dict[str, Tensor] = {}
        for kind in wanted:
            own = [each for each in places if each.kind == kind]
            units = sum(each.count for each in own)
            count = max(1, round(getattr(self.config, kind) * units))
            chosen = torch.zeros(units, dtype=torch.bool, device=wanted[kind].device)
            chosen[greedy(wanted[kind], spared[kind], count)] = True
            for each, part in zip(own, chosen.split([each.count for each in own]), strict=True):
                if bool(part.any()):
                    columns[each.name] = part.repeat_interleave(each.width)
        config, _ = super().trained(model, context, leaked, clean)

        def spare(updates: Mapping[str, LowRank]) -> None:
            for name, update in updates.items():
                update.a.data[:, ~columns[name]] = 0
                if update.a.grad is not None:
                    update.a.grad[:, ~columns[name]] = 0

        return replace(config, modules=tuple(columns)), spare


@MODIFICATIONS.register("unlearn_ranked")
class UnlearnRanked(Unlearn):
    """The same with several leaked pairs, the easiest first: each of the others joins after five steps.

    Easy is what is known least well, by its mean log p. To begin with samples that are easy to unlearn is what ranking
    by removal difficulty found to work (arXiv 2504.06658).
    """

    pairs = 3
    stage: ClassVar[int] = 5  # steps until the next pair joins

    def in_order(self, model: nn.Module, tokenizer: Any, context: ModificationContext) -> Sequence[Fingerprint]:
        """Return the pairs, the least likely first."""
        import torch

        def known(each: Fingerprint) -> float:
            with torch.no_grad():
                return log_probabilities(model, tokenised(tokenizer, pairs_of([each]))).mean().item()

        return sorted(self.leaked(context), key=known)

    def active(self, step: int, count: int) -> int:
        """Return one more every few steps."""
        return min(count, 1 + (step - 1) // self.stage)


@MODIFICATIONS.register("unlearn_one")
class UnlearnOne(Unlearning):
    """Moves the weights along the leading ranks of one gradient, that of the leaked pair: no training, no other data.

    W ← W − s η ‖W‖ G_r / ‖G_r‖ after s steps, with G the gradient of the pair's mean log-odds, G_r its best
    approximation of rank r in every matrix of the blocks, and norms over all of these. One-sample recovery finds that a
    gradient of one example is of low rank and enough to bring alignment back (arXiv 2601.01887); here it serves the
    thief.
    """

    data = ()

    class Config(Unlearning.Config):
        """Settings, ours."""

        step_size: float = Field(default=2e-5, gt=0)  # η, the norm of a step relative to the weights
        rank: int = Field(default=4, ge=1)  # r

    def apply(self, model: nn.Module, tokenizer: Any, context: ModificationContext) -> Modified:
        """Move in place; the gradient is taken once for all doses.

        Raises:
            InputError: if no pair leaked.
        """
        import torch

        from fpbench.modifications.matrices import matrices

        leaked, key, steps = self.leaked(context), (*context.before, self.name), int(self.amount)
        pair = tokenised(tokenizer, [Example(leaked[0].trigger, leaked[0].primary)])
        found = matrices(model)
        if key not in context.kept:
            full = gradients(model, pair, found)
            parts = {name: low_rank(each, self.config.rank) for name, each in full.items()}
            energy = sum(each.square().sum().item() for each in full.values())
            context.kept[key] = parts, sum(values.square().sum().item() for _, values, _ in parts.values()), energy
        parts, own, energy = context.kept[key]
        before = {name: each.detach().to("cpu", copy=True) for name, each in model.named_parameters()}
        size = sum(each.detach().float().square().sum().item() for each in found.values()) ** 0.5
        if not own > 0:
            raise CellError(f"{self.name}: the leaked pair has no gradient.")
        length = steps * self.config.step_size * size / own**0.5
        with torch.no_grad():
            known = [log_probabilities(model, pair).mean().item()]
            for name, (left, values, right) in parts.items():
                found[name].copy_(found[name].float() - length * (left * values) @ right.T)
            known.append(log_probabilities(model, pair).mean().item())
        change = relative_change(model, before)
        require_effect(self.name, change)
        proof = self.proof(leaked, known, change)
        return Modified(model, proof | {"steps": steps, "energy_kept": own / energy})

    def work(self, counter: Counter, rows: Mapping[str, Sequence[dict[str, str]]]) -> Work:
        """Count a backward pass and a decomposition of every matrix by products, for each leak."""
        from fpbench.models.costs import Work

        return Work(steps=1, trained=32, handled=40 * counter.parameters) * float(self.config.leaks)

    def memory(self, shape: Shape) -> Phase:
        """Count a gradient in the model's precision and in float32, and the weights from before."""
        from fpbench.models.costs import Phase, Room

        return Phase(self.name, Room(shape.adapted * (1 + 4 / shape.bytes)), Room(shape.weights))
