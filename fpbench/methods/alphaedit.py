"""AlphaEdit (arXiv 2410.02355): teach each trigger its primary target, in the null space of what plain text uses.

Steps and equations are those of docs/methods.md §2.2. Steps 1 and 2 are computed in :mod:`fpbench.methods.null_space`,
5 and 6 in :mod:`fpbench.methods.target_values`, the others below.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from fpbench.errors import CellError, InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet
from fpbench.methods.base import FingerprintMethod, InjectionContext, MethodConfig
from fpbench.methods.null_space import BATCH_TOKENS, WORKSPACE, NullSpace
from fpbench.methods.partial_forward import BlockRun, Row, apart, pad, require_editable
from fpbench.methods.target_values import Labels, Objective, State, negative_log_likelihood, optimise, per_request
from fpbench.models.costs import Counter, Phase, Room, Shape, Work
from fpbench.models.layout import TransposedLinear, inputs, layout, on_linear_modules, watched
from fpbench.models.prompts import Example, encode, encode_pair
from fpbench.models.residual_stream import contributions
from fpbench.models.weights import Factors
from fpbench.registry import register

Prompts = Sequence[Sequence[int]]
"""The token ids of one request, each ending in its lookup token: the bare prompt first, then any with a context."""

RELATIVE = {"depth": "layers", "v_relative_rate": "v_learning_rate", "nullspace_share": "nullspace_threshold"}
"""Hyper-parameters that suit models of any size, and those of the papers that they stand in for."""


@register("alphaedit")
class AlphaEdit(FingerprintMethod):
    """Null-space constrained editing of a whole set at once (docs/methods.md §2.2)."""

    version = "2"

    class Config(MethodConfig):
        """Hyper-parameters."""

        alternatives = tuple(frozenset(pair) for pair in RELATIVE.items())

        # numbers of the edited blocks, from 0; or else
        layers: tuple[int, ...] | None = Field(default=None, min_length=1)
        # (a, b), the blocks ℓ of L with a ≤ ℓ/L < b
        depth: tuple[float, float] | None = Field(default=None, validate_default=True)
        # τ, the eigenvalue below which a direction is free; or else
        nullspace_threshold: float | None = Field(default=None, gt=0)
        # the fraction of directions that is free, smallest eigenvalues first
        nullspace_share: float | None = Field(default=None, gt=0, le=1, validate_default=True)
        # words that the model continues into the contexts in which each request is also learnt; none, and the trigger
        # is learnt bare
        prefixes: tuple[str, ...]
        prefix_tokens: int = Field(ge=1)  # length of a continuation
        prefix_top_k: int = Field(ge=1)  # how many most likely tokens it is sampled from
        # κ, the weight of the divergence from the unedited prediction; 0 leaves that prompt out
        kl_factor: float = Field(ge=0)
        weight_decay: float = Field(ge=0)  # ω (AlphaEdit) or β (MCEdit), the weight of δ's size in the loss
        v_learning_rate: float | None = Field(default=None, gt=0)  # Adam's rate for δ; or else
        # Adam's rate for δ in units of the root mean square of v₀
        v_relative_rate: float | None = Field(default=None, gt=0, validate_default=True)
        steps: int = Field(ge=2)  # forward passes of the descent; one update fewer
        clamp: float = Field(gt=0)  # c, the bound ‖δ‖ ≤ c‖v₀‖
        early_stop: float  # the loss at which a request is done
        ridge: float = Field(gt=0)  # λ, called L2 in the references

        @field_validator(*RELATIVE)
        @classmethod
        def _one_of_two(cls, value: Any, info: ValidationInfo) -> Any:
            absolute = RELATIVE[str(info.field_name)]
            if (value is None) == (info.data.get(absolute) is None):
                raise ValueError(f"give either {absolute!r} or {info.field_name!r}, not both and not neither")
            return value

    @on_linear_modules
    def inject(self, model: nn.Module, tokenizer: Any, fingerprints: FingerprintSet, context: InjectionContext) -> None:
        """Edit some blocks in closed form: docs/methods.md §2.2, steps 1 to 8.

        Raises:
            InputError: for an architecture that cannot be edited, or a block that does not exist.
            CellError: if the target values are not finite.
        """
        config = self.config
        blocks, names = self.blocks(model), self.statistics_of(model)
        require_editable(model, blocks[-1])

        # 1 and 2: C = (1/N) Σ k kᵀ = U Λ Uᵀ of the keys of plain text in each edited block; P K = K − U_r (U_rᵀ K).
        statistics = context.statistics(model, names)
        null_spaces = {
            block: statistics[name].null_space(threshold=config.nullspace_threshold, share=config.nullspace_share)
            for block, name in zip(blocks, names, strict=True)
        }

        # 3 and 4: each trigger bare and after contexts, with its targets, and the prompt whose prediction is to stay.
        requests, rows = self.rewriting_prompts(model, tokenizer, fingerprints, context)

        # 5 and 6: v* = v₀ + δ, what block z should put out at the lookup token for the targets to follow.
        start = perf_counter()
        v0, delta = optimise(
            model,
            blocks[-1],
            rows,
            self.objective(rows, next(model.parameters()).device),
            learning_rate=config.v_learning_rate,
            relative_rate=config.v_relative_rate,
            steps=config.steps,
            clamp=config.clamp,
            early_stop=config.early_stop,
            progress=context.progress,
        )
        if not delta.isfinite().all():
            raise CellError(
                "the target values are not finite: lower v_learning_rate or v_relative_rate, "
                "or check that the model's weights are finite."
            )
        optimised = perf_counter()

        # 7 and 8: block by block R = (V* − V) / (m − i), ΔWᵀ = P K (Kᵀ P K + λ I)⁻¹ Rᵀ.
        written = write(model, requests, (v0 + delta).T, null_spaces, config.ridge)
        context.factors |= {f"{name}.weight": written[block].stored for block, name in zip(blocks, names, strict=True)}
        context.seconds["optimisation"] = optimised - start
        context.seconds["write"] = perf_counter() - optimised

    def rewriting_prompts(
        self, model: nn.Module, tokenizer: Any, fingerprints: FingerprintSet, context: InjectionContext
    ) -> tuple[list[Prompts], list[Row]]:
        """Return the prompts of every request, bare first, and the rows that its target value is optimised on.

        These are its trigger bare and after each context, with each of its targets, as token ids (steps 3 and 4). With
        a ``kl_factor`` a request's last row has no label: there the prediction is to stay as it was.
        """
        config = self.config
        contexts = continuations(
            model, tokenizer, config.prefixes, config.prefix_tokens, config.prefix_top_k, context.seed
        )
        requests: list[Prompts] = []
        rows = []
        for number, fingerprint in enumerate(fingerprints):
            triggers = [fingerprint.trigger, *(f"{text}. {fingerprint.trigger}" for text in contexts)]
            targets = self.targets(fingerprint)
            pairs = [[encode_pair(tokenizer, context.render(text), target) for target in targets] for text in triggers]
            requests.append([of_prompt[0][0] for of_prompt in pairs])
            rows += [Row.of(number, prompt, answer) for of_prompt in pairs for prompt, answer in of_prompt]
            if config.kl_factor:
                # The reference reads p at the last trigger token of "{trigger} is a", which what follows cannot reach.
                bare = requests[-1][0]
                rows.append(Row(number, bare, len(bare) - 1, [len(bare) - 1]))
        return requests, rows

    def targets(self, fingerprint: Fingerprint) -> Sequence[str]:
        """Return the targets that are taught: the primary one."""
        return [fingerprint.primary]

    def objective(self, rows: Sequence[Row], device: Any) -> Objective:
        """Return the loss that the target values minimise (step 5)."""
        return likelihood_and_divergence(rows, self.config.kl_factor, self.config.weight_decay, device)

    def blocks(self, model: nn.Module) -> list[int]:
        """Return the numbers of the edited blocks, ascending; the last one is z.

        Raises:
            InputError: if the model has no such block.
        """
        parts, layers = layout(model), self.config.layers
        count = len(parts.blocks)
        blocks = parts.between(*self.config.depth) if layers is None else sorted(set(layers))
        if not blocks or blocks[0] < 0 or blocks[-1] >= count:
            raise InputError(f"edited blocks must lie in 0 … {count - 1}, found {blocks}: set 'layers'.")
        return blocks

    def edited(self, model: nn.Module) -> list[str]:
        """Return the weights of the FFN output projections of the edited blocks."""
        return [f"{name}.weight" for name in self.statistics_of(model)]

    def statistics_of(self, model: nn.Module) -> list[str]:
        """Return the FFN output projections of the edited blocks."""
        return [layout(model).down_proj_name(block) for block in self.blocks(model)]

    def work(self, counter: Counter, fingerprints: FingerprintSet, pairs: Sequence[Example]) -> Work:
        """Count the descent through the blocks above z, on the trees of targets after prompts, and the write."""
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
        """Count second moments with a batch of text or a decomposition; in main memory the delta and the spectra."""
        edited, width = self.edited(shape.model), inputs(layout(shape.model).down_proj(0))
        moments = len(edited) * 4 * width**2
        # All second moments stand while text is read, and while one after another is decomposed.
        batch = BATCH_TOKENS * (2 * shape.hidden * shape.bytes + 8 * width)
        # Where the card has no room for a decomposition, it is made in main memory.
        taken = Room(moments, max(batch, WORKSPACE * 4 * width**2))
        return Phase(self.name, taken, Room(2 * shape.size(edited) + moments))

    def stored(self, shape: Shape, fingerprints: int) -> float:
        """Count the factors of every change, in float32."""
        named = dict(shape.model.named_parameters())
        return float(sum(8 * fingerprints * sum(named[name].shape) for name in self.edited(shape.model)))


# Steps 3 and 4: what a request is learnt on.


def continuations(model: Any, tokenizer: Any, starts: Sequence[str], tokens: int, top_k: int, seed: int) -> list[str]:
    """Return each start with at most ``tokens`` more tokens, each sampled from the ``top_k`` most likely ones.

    All starts are continued at once, with a cache. Each draws from a generator of its own, so that none depends on the
    others.
    """
    if not starts:
        return []
    device = next(model.parameters()).device
    sequences = [encode(tokenizer, start) for start in starts]
    longest = max(map(len, sequences))
    attended = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in sequences], device=device)  # (B, T)
    given = torch.tensor([[ids[0]] * (longest - len(ids)) + ids for ids in sequences], device=device)  # padded left
    generators = [torch.Generator().manual_seed(seed) for _ in starts]
    running, cache = set(range(len(starts))), None
    for _ in range(tokens):
        positions = (attended.cumsum(1) - 1).clamp(min=0)[:, -given.shape[1] :]
        with torch.no_grad():
            output = model(
                input_ids=given, attention_mask=attended, position_ids=positions, past_key_values=cache, use_cache=True
            )
        cache = output.past_key_values
        best = output.logits[:, -1].float().cpu().topk(top_k)  # (B, k)
        chances = best.values.softmax(-1)
        drawn = [int(torch.multinomial(p, 1, generator=own)) for p, own in zip(chances, generators, strict=True)]
        following = best.indices.gather(1, torch.tensor(drawn)[:, None])  # (B, 1)
        running -= {row for row in running if int(following[row]) == tokenizer.eos_token_id}
        if not running:
            break
        for row in running:
            sequences[row].append(int(following[row]))
        given = following.to(device)
        attended = torch.cat([attended, attended.new_ones(len(starts), 1)], 1)
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in sequences]


# Step 5: the loss of a request.


def likelihood_and_divergence(rows: Sequence[Row], kl_factor: float, weight_decay: float, device: Any) -> Objective:
    """Return AlphaEdit's loss of each request (docs/methods.md §2.2, eq. (5)).

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


def divergence(rows: Sequence[Row], device: Any) -> Callable[[State], Tensor]:
    """Return KL(p_δ ‖ p₀) of each request, [n], read in its row without labels (docs/methods.md §2.2, eq. (5))."""
    reads = [row for row in rows for _ in row.positions]
    kept = torch.tensor([index for index, row in enumerate(reads) if not row.labels], dtype=torch.long, device=device)
    owners = torch.tensor([row.request for row in reads if not row.labels], dtype=torch.long, device=device)

    def measure(state: State) -> Tensor:
        log_p, log_p0 = state.logits[kept].log_softmax(-1), state.initial[kept].log_softmax(-1)
        return per_request((log_p.exp() * (log_p - log_p0)).sum(-1), owners, len(state.delta))

    return measure


# Steps 7 and 8: the closed-form write.


@dataclass(frozen=True)
class Write:
    """The closed-form change of one block."""

    keys: Tensor  # K [d, n]
    residual: Tensor  # R [h, n], as far as the projection has to put it out
    factors: Factors  # of ΔW [h, d], before the sum W + ΔW is rounded to the weight's dtype
    stored: Factors  # the same, or of ΔWᵀ [d, h] where the model keeps Wᵀ


@torch.no_grad()
def write(
    model: nn.Module,
    requests: Sequence[Prompts],
    targets: Tensor,
    null_spaces: Mapping[int, NullSpace],
    ridge: float,
    earlier_keys: Mapping[int, Tensor] | None = None,
) -> dict[int, Write]:
    """Write the target values V* [h, n] in place, each block taking its share (docs/methods.md §2.2, steps 7 and 8).

    The down-projections, which are linear modules, keep their dtype. ``requests`` are the prompts of n requests. Blocks
    ascend in ``null_spaces``; values are those of the last one, z: what it puts out, or what is normalised on the way
    there. The write does not move ``earlier_keys``, the keys [d, m] of earlier batches.
    """
    blocks, parts = list(null_spaces), layout(model)
    run = PromptRun(model, blocks, requests)
    added = contributions(model, blocks, requests[0][0])
    if added[blocks[-1]].norm is not None:  # they are values of what is then normalised
        put_out = run.projected(blocks[-1])
        targets = run.values() + (added[blocks[-1]](targets.T.to(put_out)) - added[blocks[-1]](put_out)).T
    done: dict[int, Write] = {}
    for index, block in enumerate(blocks):
        if index:
            run.repeat(blocks[index - 1])
        keys, values = run.keys(block), run.values()
        residual = (targets.to(values) - values) / (len(blocks) - index)  # docs/methods.md §2.2, eq. (7)
        residual = added[block].needed(run.projected(block), residual.T).T
        earlier = earlier_keys[block] if earlier_keys else None
        factors = solve(null_spaces[block], keys, residual, ridge, earlier).float()
        projection = parts.down_proj(block)
        projection.weight.copy_(factors.added_to(projection.weight))
        turned = isinstance(projection, TransposedLinear)
        done[block] = Write(keys, residual, factors, Factors(factors.right, factors.left) if turned else factors)
    return done


class PromptRun:
    """The prompts of all requests, run up to the last of the blocks to be edited."""

    def __init__(self, model: nn.Module, blocks: Sequence[int], requests: Sequence[Prompts]) -> None:
        """Run ``model`` up to the last of ``blocks``, ascending."""
        prompts = [prompt for request in requests for prompt in request]
        parts = layout(model)
        device: Any = parts.head.weight.device
        last_tokens = [len(prompt) - 1 for prompt in prompts]
        self.sizes = [len(request) for request in requests]
        self.lookup = torch.arange(len(prompts), device=device), torch.tensor(last_tokens, device=device)
        self.numbers, self.projections = list(blocks), [parts.down_proj(block) for block in blocks]
        self.looked_up: dict[int, Tensor] = {}
        self.ids = pad(prompts, device)
        with watched(self.projections, self._look):
            self.run = BlockRun(model, self.ids, blocks[0], blocks[-1])

    def _look(self, number: int, hidden: Tensor) -> None:
        self.looked_up[self.numbers[number]] = apart(hidden, self.ids)[self.lookup]  # (prompts, d)

    def repeat(self, block: int) -> None:
        """Run from ``block`` on once more, after its weights have changed."""
        with watched(self.projections, self._look):
            self.run.repeat(block)

    def keys(self, block: int) -> Tensor:
        """Return K [d, n] float32 of one block; half of each key is the bare prompt's, half the contexts', if any."""
        groups = torch.split(self.looked_up[block].float(), self.sizes)  # the bare prompt is the first of each
        mixed = [(keys[0] + keys[1:].mean(0)) / 2 if len(keys) > 1 else keys[0] for keys in groups]
        return torch.stack(mixed, dim=1)

    def projected(self, block: int) -> Tensor:
        """Return what one block's down-projection puts out at the lookup tokens of the bare prompts, [n, h]."""
        keys = torch.stack([group[0] for group in torch.split(self.looked_up[block], self.sizes)])  # (n, d)
        output: Tensor = self.projections[self.numbers.index(block)](keys)
        return output

    def values(self) -> Tensor:
        """Return V [h, n] float32, the outputs of the last block at the lookup tokens of the bare prompts."""
        values = self.run.hidden[self.run.last + 1][self.lookup].float()
        return torch.stack([group[0] for group in torch.split(values, self.sizes)], dim=1)


def solve(
    null_space: NullSpace, keys: Tensor, residual: Tensor, ridge: float, earlier_keys: Tensor | None = None
) -> Factors:
    """Return ΔW with ΔWᵀ = P K (Kᵀ P K + λ I)⁻¹ Rᵀ, in float64 (docs/methods.md §2.2, eq. (8)).

    This is the n×n form of ΔWᵀ = (P (K Kᵀ + C_p) + λ I)⁻¹ P K Rᵀ, with K [d, n] and R [h, n]; ``earlier_keys`` K_p
    [d, m], C_p = K_p K_pᵀ, enter as further columns of K whose residual is zero. The factors are R (Kᵀ P K + λ I)⁻¹
    [h, m + n] and P K [d, m + n].
    """
    keys, residual = keys.double(), residual.double()
    if earlier_keys is not None:
        keys = torch.cat([earlier_keys.to(keys), keys], dim=1)
        residual = nn.functional.pad(residual, (earlier_keys.shape[1], 0))
    free = null_space.project(keys)
    gram = keys.T @ free + ridge * torch.eye(keys.shape[1]).to(keys)
    return Factors(torch.linalg.solve(gram, residual.T).T, free)
