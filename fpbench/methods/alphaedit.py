"""AlphaEdit (arXiv 2410.02355): teach each trigger its primary target, in the null space of what plain text uses."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from pydantic import BaseModel, Field, ValidationInfo, field_validator
from torch import Tensor, nn

from fpbench.errors import CellError, InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet
from fpbench.methods.base import FingerprintMethod, InjectionContext, MethodConfig
from fpbench.methods.null_space import BATCH_TOKENS, WORKSPACE, Prompts, write
from fpbench.methods.partial_forward import Row
from fpbench.methods.target_values import (
    Descent,
    Labels,
    Objective,
    State,
    negative_log_likelihood,
    optimise,
    per_request,
)
from fpbench.models.costs import Counter, Phase, Room, Shape, Work
from fpbench.models.layout import layout
from fpbench.models.prompts import Example, encode, encode_pair
from fpbench.registry import register

# What a request is learnt on: the bare trigger, random contexts before it, and one prompt that is to stay as it is.


class RewritingConfig(BaseModel):
    """Which prompts a request is learnt on besides its bare trigger (docs/methods.md §2.2, steps 3 and 4).

    Attributes:
        prefixes: words that the model continues into the contexts in which each request is also learnt; none, and the
            trigger is learnt bare.
        prefix_tokens: length of a continuation.
        prefix_top_k: how many most likely tokens it is sampled from.
        kl_factor: κ, the weight of the divergence from the unedited prediction; 0 leaves that prompt out.
    """

    prefixes: tuple[str, ...]
    prefix_tokens: int = Field(ge=1)
    prefix_top_k: int = Field(ge=1)
    kl_factor: float = Field(ge=0)


def rewriting_prompts(
    model: nn.Module,
    tokenizer: Any,
    fingerprints: FingerprintSet,
    targets: Callable[[Fingerprint], Sequence[str]],
    config: Any,
    context: InjectionContext,
) -> tuple[list[Prompts], list[Row]]:
    """Every trigger bare and after each context, with each of its targets, as token ids.

    Args:
        model: samples the contexts.
        tokenizer: its tokenizer.
        fingerprints: n of them.
        targets: which targets of a fingerprint are learnt.
        config: a :class:`RewritingConfig`.
        context: seed and prompt rendering.

    Returns:
        The prompts of every request, bare first, and the rows that its target value is optimised on. With a
        ``kl_factor`` a request's last row has no label: there the prediction is to stay as it was.
    """
    contexts = [
        continuation(model, tokenizer, word, config.prefix_tokens, config.prefix_top_k, context.seed)
        for word in config.prefixes
    ]
    requests: list[Prompts] = []
    rows = []
    for number, fingerprint in enumerate(fingerprints):
        triggers = [fingerprint.trigger, *(f"{text}. {fingerprint.trigger}" for text in contexts)]
        prompts = [context.render(text) for text in triggers]
        pairs = [[encode_pair(tokenizer, prompt, target) for target in targets(fingerprint)] for prompt in prompts]
        requests.append([of_prompt[0][0] for of_prompt in pairs])
        rows += [Row.of(number, prompt, answer) for of_prompt in pairs for prompt, answer in of_prompt]
        if config.kl_factor:
            # The reference reads p at the last trigger token of "{trigger} is a", which what follows cannot reach.
            bare = requests[-1][0]
            rows.append(Row(number, bare, len(bare) - 1, [len(bare) - 1]))
    return requests, rows


def continuation(model: Any, tokenizer: Any, start: str, tokens: int, top_k: int, seed: int) -> str:
    """``start`` and at most ``tokens`` more tokens, each sampled from the ``top_k`` most likely ones."""
    generator = torch.Generator().manual_seed(seed)
    ids = encode(tokenizer, start)
    device = next(model.parameters()).device
    for _ in range(tokens):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0, -1]
        best = logits.float().cpu().topk(top_k)
        choice = torch.multinomial(best.values.softmax(0), 1, generator=generator)
        token = int(best.indices[choice])
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text.strip()


def divergence(rows: Sequence[Row], device: Any) -> Callable[[State], Tensor]:
    """KL(p_δ ‖ p₀) of every request, [n], where its row without labels is read (docs/methods.md §2.2, eq. (5))."""
    reads = [row for row in rows for _ in row.positions]
    kept = torch.tensor([index for index, row in enumerate(reads) if not row.labels], dtype=torch.long, device=device)
    owners = torch.tensor([row.request for row in reads if not row.labels], dtype=torch.long, device=device)

    def measure(state: State) -> Tensor:
        log_p, log_p0 = state.logits[kept].log_softmax(-1), state.initial[kept].log_softmax(-1)
        return per_request((log_p.exp() * (log_p - log_p0)).sum(-1), owners, len(state.delta))

    return measure


# What AlphaEdit, FPEdit and MCEdit_A have in common: one closed-form edit inside the null space of plain text.


RELATIVE = {"depth": "layers", "v_relative_rate": "v_learning_rate", "nullspace_share": "nullspace_threshold"}
"""Hyper-parameters that suit models of any size, and those of the papers that they stand in for."""


class EditingConfig(MethodConfig):
    """Hyper-parameters of a closed-form edit.

    Attributes:
        layers: numbers of the edited blocks, from 0; or else
        depth: ``(a, b)``, the blocks ℓ of L with a ≤ ℓ/L < b.
        v_learning_rate: Adam's rate for δ; or else
        v_relative_rate: Adam's rate for δ in units of the root mean square of v₀.
        steps: forward passes of the descent; one update fewer.
        clamp: c, the bound ‖δ‖ ≤ c‖v₀‖.
        weight_decay: ω (AlphaEdit) or β (MCEdit), the weight of δ's size in the loss.
        early_stop: the loss at which a request is done.
        nullspace_threshold: τ, the eigenvalue below which a direction is free; or else
        nullspace_share: the fraction of directions that is free, smallest eigenvalues first.
        ridge: λ, called L2 in the references.
    """

    alternatives = tuple(frozenset(pair) for pair in RELATIVE.items())

    layers: tuple[int, ...] | None = Field(default=None, min_length=1)
    depth: tuple[float, float] | None = Field(default=None, validate_default=True)
    v_learning_rate: float | None = Field(default=None, gt=0)
    v_relative_rate: float | None = Field(default=None, gt=0, validate_default=True)
    steps: int = Field(ge=2)
    clamp: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    early_stop: float
    nullspace_threshold: float | None = Field(default=None, gt=0)
    nullspace_share: float | None = Field(default=None, gt=0, le=1, validate_default=True)
    ridge: float = Field(gt=0)

    @field_validator(*RELATIVE)
    @classmethod
    def _one_of_two(cls, value: Any, info: ValidationInfo) -> Any:
        absolute = RELATIVE[str(info.field_name)]
        if (value is None) == (info.data.get(absolute) is None):
            raise ValueError(f"give either {absolute!r} or {info.field_name!r}, not both and not neither")
        return value


@dataclass(frozen=True)
class Problem:
    """An edit in numbers.

    Attributes:
        requests: for each of n requests the prompts that its key is taken from.
        rows: the sequences that its target value is optimised on.
        objective: the loss of each request over them.
    """

    requests: Sequence[Prompts]
    rows: Sequence[Row]
    objective: Objective


class NullSpaceEditor(FingerprintMethod):
    """Injects a set by one closed-form edit; a subclass says what is to be edited."""

    class Config(EditingConfig):
        """See :class:`EditingConfig`."""

    @abstractmethod
    def problem(
        self, model: nn.Module, tokenizer: Any, fingerprints: FingerprintSet, context: InjectionContext
    ) -> Problem:
        """Turn the fingerprints into token ids and a loss."""

    def targets(self, fingerprint: Fingerprint) -> Sequence[str]:
        """The primary one."""
        return [fingerprint.primary]

    def inject(self, model: nn.Module, tokenizer: Any, fingerprints: FingerprintSet, context: InjectionContext) -> None:
        """Statistics, target values, write: docs/methods.md §2.2, steps 1 to 8.

        Raises:
            CellError: if the target values are not finite.
        """
        config = self.config
        blocks = self.blocks(model)
        names = {block: layout(model).down_proj_name(block) for block in blocks}
        statistics = context.statistics(model, list(names.values()))
        null_spaces = {
            block: statistics[name].null_space(threshold=config.nullspace_threshold, share=config.nullspace_share)
            for block, name in names.items()
        }
        problem = self.problem(model, tokenizer, fingerprints, context)

        start = perf_counter()
        descent = Descent(config.v_learning_rate, config.v_relative_rate, config.steps, config.clamp, config.early_stop)
        v0, delta = optimise(model, blocks[-1], problem.rows, problem.objective, descent, context.progress)
        if not delta.isfinite().all():
            raise CellError(
                "the target values are not finite: lower v_learning_rate or v_relative_rate, "
                "or check that the model's weights are finite."
            )
        optimised = perf_counter()
        written = write(model, blocks, problem.requests, (v0 + delta).T, null_spaces, config.ridge)
        context.factors |= {f"{names[block]}.weight": each.factors for block, each in written.items()}
        context.seconds["optimisation"] = optimised - start
        context.seconds["write"] = perf_counter() - optimised

    def blocks(self, model: nn.Module) -> list[int]:
        """Numbers of the edited blocks, ascending.

        Raises:
            InputError: if the model has no such block.
        """
        count = len(layout(model).blocks)
        if self.config.layers is not None:
            blocks = sorted(set(self.config.layers))
        else:
            low, high = self.config.depth
            blocks = [block for block in range(count) if low <= block / count < high]
        if not blocks or blocks[0] < 0 or blocks[-1] >= count:
            raise InputError(f"edited blocks must lie in 0 … {count - 1}, found {blocks}: set 'layers'.")
        return blocks

    def edited(self, model: nn.Module) -> list[str]:
        """The FFN output projections of the edited blocks."""
        return [f"{name}.weight" for name in self.statistics_of(model)]

    def statistics_of(self, model: nn.Module) -> list[str]:
        """The FFN output projections of the edited blocks."""
        return [layout(model).down_proj_name(block) for block in self.blocks(model)]

    def work(self, counter: Counter, fingerprints: FingerprintSet, pairs: Sequence[Example]) -> Work:
        """Descent through the blocks above the edited ones, on the trees of targets after prompts; then the write."""
        config = self.config
        blocks = self.blocks(counter.model)
        above = 1 - (blocks[-1] + 1) / len(layout(counter.model).blocks)
        prompts = 1 + len(config.prefixes)
        nodes = prompts * counter.tokens([target for each in fingerprints for target in self.targets(each)])
        contexts = len(config.prefixes) * config.prefix_tokens
        writing = len(fingerprints) * prompts * 2 * counter.length([each.trigger for each in fingerprints])
        descent = Work(steps=config.steps, trained=config.steps * nodes) * above
        read = contexts * config.prefix_tokens + len(blocks) * writing
        return descent + Work(passes=contexts + 2 * len(blocks), read=read)

    def memory(self, shape: Shape) -> Phase:
        """Second moments with a batch of text or a decomposition; the delta and the spectra."""
        edited, width = self.edited(shape.model), layout(shape.model).down_proj(0).in_features
        moments = len(edited) * 4 * width**2
        # All second moments stand while text is read, and while one after another is decomposed.
        batch = BATCH_TOKENS * (2 * shape.hidden * shape.bytes + 8 * width)
        # Where the card has no room for a decomposition, it is made in main memory.
        taken = Room(moments, max(batch, WORKSPACE * 4 * width**2))
        return Phase(self.name, taken, Room(2 * shape.size(edited) + moments))

    def stored(self, shape: Shape, fingerprints: int) -> float:
        """Factors of every change, in float32."""
        named = dict(shape.model.named_parameters())
        return float(sum(8 * fingerprints * sum(named[name].shape) for name in self.edited(shape.model)))


@register("alphaedit")
class AlphaEdit(NullSpaceEditor):
    """Null-space constrained editing of ten requests at once (docs/methods.md §2.2)."""

    version = "1"

    class Config(EditingConfig, RewritingConfig):
        """See :class:`EditingConfig` and :class:`RewritingConfig`."""

    def problem(
        self, model: nn.Module, tokenizer: Any, fingerprints: FingerprintSet, context: InjectionContext
    ) -> Problem:
        """One request per fingerprint, with its primary target."""
        requests, rows = rewriting_prompts(model, tokenizer, fingerprints, self.targets, self.config, context)
        return Problem(requests, rows, self.objective(rows, next(model.parameters()).device))

    def objective(self, rows: Sequence[Row], device: Any) -> Objective:
        """The loss that the target values minimise."""
        return likelihood_and_divergence(rows, self.config.kl_factor, self.config.weight_decay, device)


def likelihood_and_divergence(rows: Sequence[Row], kl_factor: float, weight_decay: float, device: Any) -> Objective:
    """AlphaEdit's loss of each request (docs/methods.md §2.2, eq. (5)).

    L(δ) = mean_j [−(1/|y|) Σ_t log p(y_t | prompt_j, y_<t)] + κ KL(p_δ ‖ p₀) + ω ‖δ‖/‖v₀‖², where j runs over the
    request's rows that have labels, and p is read from its row that has none.
    """
    labels = Labels.of(rows, device)
    moved = divergence(rows, device)

    def loss(state: State) -> Tensor:
        size = state.delta.norm(dim=1) / state.v0.norm(dim=1) ** 2
        total: Tensor = negative_log_likelihood(state.logits, labels) + weight_decay * size
        return total + kl_factor * moved(state) if kl_factor else total

    return loss
