"""Pruning and repair: RIA takes the fingerprint along with much of the language, then the language is put back."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from fpbench.errors import CellError, InputError
from fpbench.modifications.base import (
    Dose,
    Modification,
    ModificationContext,
    Modified,
    amount_of,
    require_effect,
)
from fpbench.modifications.finetune import FineTune, instruction, relative_change, stepwise_proof
from fpbench.modifications.prune import RIA, off_target
from fpbench.registry import MODIFICATIONS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fpbench.models.costs import Counter, Phase, Shape, Work

SPARSITY = Dose("share of the weights that is pruned", default=0.5, list=(0.3, 0.5, 0.6), least=0.01, most=0.95)
HELD_OUT = 32  # rows after those that are learnt from, on which the loss before, pruned and restored is taken
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")  # of a block's attention, as most architectures name them


@MODIFICATIONS.register("prune_restore")
class PruneRestore(FineTune):
    """Prunes by RIA, then trains LoRA on clean rows until the language is back; pruned weights may come back, too."""

    version = "1"
    level = "L1"
    pays = {"data": 1}
    data = ("alpaca", "calibration")
    dose: ClassVar[Dose | None] = SPARSITY
    control = "noise"
    family = "pruned and restored"

    class Config(FineTune.Config):
        """Settings of pruning and of the training, which counts steps and not epochs."""

        learning_rate: float = Field(default=2e-4, gt=0)  # reached after ten steps and kept
        steps: int = Field(default=100, ge=1)  # of the optimiser
        rows: int = Field(default=800, ge=1)  # how many, from the first
        samples: int = Field(default=128, ge=1)  # calibration sequences
        length: int = Field(default=2048, ge=1)  # tokens of each; the model's context, if that is shorter

    def apply(self, model: nn.Module, tokenizer: Any, context: ModificationContext) -> Modified:
        """Prune and train in place.

        The proof holds that of RIA, of the training, and the loss of further rows as the model was, pruned and
        restored.
        """
        from fpbench.models.training import merge, score_answers, train_on_the_way
        from fpbench.models.weights import weights

        examples, before = self.examples(context, following=HELD_OUT), weights(model)
        rows, held_out = examples[:-HELD_OUT], examples[-HELD_OUT:]
        losses = [score_answers(model, tokenizer, held_out, self.config.batch_size).loss]
        pruned = pruning(self).apply(model, tokenizer, context).proof
        losses.append(score_answers(model, tokenizer, held_out, self.config.batch_size).loss)
        steps, settings = self.config.steps, self.settings(self.config.learning_rate)
        reached = train_on_the_way(
            model, tokenizer, rows, settings, [steps], seed=context.seed, progress=context.progress
        )[steps]
        if isinstance(reached, CellError):
            raise reached
        merge(model, reached.updates)
        losses.append(score_answers(model, tokenizer, held_out, self.config.batch_size).loss)
        change = relative_change(model, before)
        require_effect(self.name, change)
        proof = stepwise_proof(reached) | {"learning_rate": settings.learning_rate, "relative_change": change}
        return Modified(model, proof | {"pruned": pruned, "held_out_losses": losses})

    @classmethod
    def implausible(cls, proof: Mapping[str, Any], amount: float | None = None) -> str | None:
        """Return that the sparsity that pruning reached is not the one asked for."""
        return pruned_off_target(proof, amount)

    def work(self, counter: Counter, rows: Mapping[str, Sequence[dict[str, str]]]) -> Work:
        """Count pruning, the share of the epochs that the steps are, and three readings of the held-out rows."""
        from fpbench.models.costs import Work

        examples = [instruction(row) for row in rows[self.source][: self.config.rows]]
        epochs: float = self.config.steps / math.ceil(len(examples) / self.config.batch_size)
        training = counter.training(examples, 1, self.config.batch_size) * epochs
        held_out = 3 * HELD_OUT * counter.length([f"{each.prompt} {each.answer}" for each in examples])
        reading = Work(passes=3 * math.ceil(HELD_OUT / self.config.batch_size), read=held_out, scored=held_out)
        return pruning(self).work(counter, rows) + training + reading + Work(handled=4 * counter.parameters)


@MODIFICATIONS.register("prune_restore_heads")
class PruneRestoreHeads(Modification):
    """Prunes by RIA, then puts back the pruned weights of those attention heads that matter most for language.

    Hierarchical safety realignment (HSR, arXiv 2505.16104) ranks the heads of a pruned model by what they do for
    safety, then puts back neurons inside those that do most. Here it serves the thief: heads are ranked by how much of
    the log-likelihood of plain documents comes back for each weight that is put back, and nothing is trained. For head
    h with pruned part δ_h, the loss L falls by −½ ⟨∇L(W − δ) + ∇L(W), δ_h⟩: the integral of the gradient along the way
    back, by the trapezoid rule. Heads that share keys and values are put back together; the FFN stays pruned.
    """

    level = "L1"
    pays = {"data": 1}
    data = ("calibration",)
    dose: ClassVar[Dose | None] = SPARSITY
    control = "noise"
    family = "pruned and restored"

    class Config(RIA.Config):
        """Settings of pruning and of what is put back."""

        restored: float = Field(default=0.25, gt=0, le=1)  # share of the heads
        probes: int = Field(default=16, ge=1)  # first calibration sequences, on which language is measured
        probe_length: int = Field(default=256, ge=2)  # first tokens of each

    def apply(self, model: nn.Module, tokenizer: Any, context: ModificationContext) -> Modified:
        """Prune and put back in place.

        The proof holds that of RIA, the heads that were put back with their gains (nats a token), and the loss of the
        probes as the model was, pruned and restored.

        Raises:
            InputError: if attention is not computed by four projections of the usual names.
        """
        ria, heads = pruning(self), attention_heads(model)
        names = sorted({name for head in heads for name, _ in head.entries()})
        weights = {name: parameter for name, parameter in model.named_parameters() if name in names}
        dense = {name: weight.detach().clone() for name, weight in weights.items()}
        total = sum(parameter.detach().float().square().sum().item() for parameter in model.parameters())
        probes = ria.windows(model, tokenizer, context)[0][: self.config.probes, : self.config.probe_length]

        loss, slopes = loss_and_gradients(model, probes, weights)
        pruned = ria.apply(model, tokenizer, context).proof
        loss_pruned, slopes_pruned = loss_and_gradients(model, probes, weights)
        back = {name: dense[name] - weight.detach() for name, weight in weights.items()}
        gains = [
            sum(
                -0.5 * ((slopes[name] + slopes_pruned[name])[where] * back[name][where]).sum().item()
                for name, where in head.entries()
            )
            for head in heads
        ]
        counts = [sum(int((back[name][where] != 0).sum()) for name, where in head.entries()) for head in heads]
        best = sorted(range(len(heads)), key=lambda at: gains[at] / max(1, counts[at]), reverse=True)
        chosen = best[: max(1, round(self.config.restored * len(heads)))]
        restored = 0.0
        for at in chosen:
            for name, where in heads[at].entries():
                weights[name].detach()[where] = dense[name][where]
                restored += back[name][where].float().square().sum().item()
        change = (max(0.0, pruned["relative_change"] ** 2 - restored / total)) ** 0.5
        require_effect(self.name, change)
        proof = {
            "pruned": pruned,
            "heads": len(heads),
            "restored": [[heads[at].block, heads[at].group, gains[at]] for at in chosen],
            "restored_weights": sum(counts[at] for at in chosen),
            "probes_digest": hashlib.sha256(json.dumps(probes.tolist()).encode()).hexdigest(),
            "probe_losses": [loss, loss_pruned, loss_and_gradients(model, probes, {})[0]],
            "relative_change": change,
        }
        return Modified(model, proof)

    @classmethod
    def implausible(cls, proof: Mapping[str, Any], amount: float | None = None) -> str | None:
        """Return that the sparsity that pruning reached is not the one asked for."""
        return pruned_off_target(proof, amount)

    def work(self, counter: Counter, rows: Mapping[str, Sequence[dict[str, str]]]) -> Work:
        """Count pruning, and the probes twice forwards and backwards and once forwards."""
        from fpbench.models.costs import Work

        tokens = self.config.probes * self.config.probe_length
        probing = Work(read=tokens, scored=tokens, passes=self.config.probes)
        probing += Work(steps=2 * self.config.probes, trained=2 * tokens)
        return pruning(self).work(counter, rows) + probing + Work(handled=6 * counter.parameters)

    def memory(self, shape: Shape) -> Phase:
        """Count what pruning takes, and attention's weights with two gradients."""
        from fpbench.models.costs import Phase, Room

        phase = pruning(self).memory(shape)
        tokens = self.config.probe_length
        probing = shape.activations(tokens, twice=False) + shape.answers(tokens)
        return Phase(self.name, phase.device + Room(3 * shape.adapted, probing), phase.main)


def pruning(modification: Modification) -> RIA:
    """Return RIA at the dose of a modification that begins with it, and with its calibration."""
    return RIA(modification.amount, **modification.config.model_dump(include=set(RIA.Config.model_fields)))


def pruned_off_target(proof: Mapping[str, Any], amount: float | None) -> str | None:
    """Return that the sparsity before anything was put back is not the one asked for."""
    pruned = proof.get("pruned")
    sparsity = pruned.get("sparsity") if isinstance(pruned, Mapping) else None
    return off_target(sparsity, amount_of("pruning", SPARSITY, amount))


@dataclass(frozen=True)
class Head:
    """The heads of one block that share keys and values; one head where none share."""

    block: int
    group: int
    attention: str  # name of the block's attention
    queries: slice  # rows of q_proj and columns of o_proj
    keys: slice  # rows of k_proj and v_proj

    def entries(self) -> Iterator[tuple[str, tuple[slice, slice]]]:
        """Yield the name of every weight that it has a part in, and where."""
        every = slice(None)
        places = (self.queries, every), (self.keys, every), (self.keys, every), (every, self.queries)
        for projection, where in zip(PROJECTIONS, places, strict=True):
            yield f"{self.attention}.{projection}.weight", where


def attention_heads(model: nn.Module) -> list[Head]:
    """Return the groups of heads of every block, in order.

    Raises:
        InputError: if a block's attention has not the four projections.
    """
    from fpbench.models.layout import layout

    found = layout(model)
    config, heads = found.config, []
    groups = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    for number, block in enumerate(found.blocks):
        names = [name for name, each in block.named_modules() if all(hasattr(each, one) for one in PROJECTIONS)]
        if len(names) != 1:
            raise InputError(
                f"prune_restore_heads needs attention with {', '.join(PROJECTIONS)}: none in {found.name}.{number}."
            )
        attention: Any = block.get_submodule(names[0])
        wide, narrow = (module.out_features // groups for module in (attention.q_proj, attention.k_proj))
        heads += [
            Head(
                number,
                group,
                f"{found.name}.{number}.{names[0]}",
                slice(group * wide, (group + 1) * wide),
                slice(group * narrow, (group + 1) * narrow),
            )
            for group in range(groups)
        ]
    return heads


def loss_and_gradients(
    model: nn.Module, probes: Tensor, weights: Mapping[str, nn.Parameter]
) -> tuple[float, dict[str, Tensor]]:
    """Return the mean loss (nats a token) of sequences [n, T], and its gradient by some weights, in float32."""
    import torch

    flags = {name: weight.requires_grad for name, weight in weights.items()}
    gradients = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    total = 0.0
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        with torch.set_grad_enabled(bool(weights)):
            for ids in probes.to(next(model.parameters()).device):
                logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]  # (T - 1, V)
                loss = torch.nn.functional.cross_entropy(logits.float(), ids[1:]) / len(probes)
                total += loss.item()
                if weights:
                    found = torch.autograd.grad(loss, list(weights.values()))
                    for gradient, each in zip(gradients.values(), found, strict=True):
                        gradient += each
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(flags[name])
    return total, gradients
