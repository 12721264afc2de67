"""RLEdit's trajectory: edited weights are the states, the hypernetwork's shifts the actions (docs/methods.md §2.4)."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import fsum
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fpbench.errors import CellError
from fpbench.methods.base import MethodConfig
from fpbench.methods.hypernetwork import Observation, Policy, Shift
from fpbench.methods.partial_forward import Row, apart, pad
from fpbench.models.layout import layout
from fpbench.models.meter import Progress


@dataclass(frozen=True)
class Batch:
    """Some sequences and where their predictions are read."""

    ids: Tensor  # token ids [b, T], right-padded
    reads: tuple[Tensor, ...]  # row and position of the S answer tokens' predictions, two tensors [S]
    token: Tensor  # which of n distinct tokens each read is, [S]

    @classmethod
    def of(cls, rows: Sequence[Row], device: Any) -> "Batch":
        """Collect ``rows``; where rows begin alike, as the candidates of a trigger do, they read one token."""
        reads = [(index, position) for index, row in enumerate(rows) for position in row.positions]
        beginnings: dict[tuple[int, ...], int] = {}
        for index, position in reads:
            beginnings.setdefault(tuple(rows[index].ids[: position + 1]), len(beginnings))
        token = [beginnings[tuple(rows[index].ids[: position + 1])] for index, position in reads]
        return cls(
            pad([row.ids for row in rows], device),
            tuple(torch.tensor(reads, device=device).T),
            torch.tensor(token, device=device),
        )

    def logits(self, model: Any) -> Tensor:
        """Return the predictions at the read positions, [S, V] float32."""
        hidden = model.base_model(input_ids=self.ids, use_cache=False).last_hidden_state
        return layout(model).logits(hidden[self.reads])


@dataclass(frozen=True)
class EditBatch:
    """A batch to be learnt, with its loss: logits [S, V] to a scalar."""

    batch: Batch
    loss: Callable[[Tensor], Tensor]

    def loss_of(self, model: nn.Module) -> Tensor:
        """Return the loss of ``model``."""
        return self.loss(self.batch.logits(model))


@dataclass(frozen=True)
class Step:
    """One step of a trajectory in micro-batches: what is edited, what shall follow from it, and what shall stay."""

    edits: Sequence[EditBatch]
    equivalents: Sequence[EditBatch]
    unrelated: Sequence[Batch]


class MetaTraining(MethodConfig):
    """Settings of the hypernetwork's training.

    Attributes:
        meta_learning_rate: Adam's, for the hypernetwork.
        epochs: trajectories, each with one update of the network after its last step.
        decay: γ of the memory back-tracking, the weight of a step per step of its age.
        depth: how many steps back a trajectory's losses reach.
        locality_weight: c, of the divergence on unrelated batches.
        regularisation: η of ‖ΔW‖².
        clip: largest norm of the network's gradient.
        mode: ``"faithful"`` to the reference code, or ``"repaired"`` to what the paper says where the code departs from
            it: ‖ΔW‖² has a gradient, the locality term is differentiated at the weights that it was computed with, and
            clipping waits for the whole trajectory instead of shrinking what earlier steps left at every further one.
    """

    meta_learning_rate: float = Field(ge=0)
    epochs: int = Field(ge=0)
    decay: float = Field(ge=0, le=1)
    depth: int = Field(ge=1)
    locality_weight: float = Field(ge=0)
    regularisation: float = Field(ge=0)
    clip: float = Field(gt=0)
    mode: Literal["faithful", "repaired"]


@dataclass(frozen=True)
class MetaStep:
    """The figures of one step of meta-training."""

    shifts: Mapping[str, Shift]  # the action
    edit_losses: tuple[float, ...]  # one per remembered step, newest first
    divergences: tuple[float, ...]  # likewise
    weight_gradients: Mapping[str, Tensor]  # of the decayed losses with respect to the shifted weights, [out, in] each
    gradient_norm: float  # of the network's gradient, accumulated so far, before any clipping


class EditedWeights:
    """The weights of the edited modules, and what they were.

    Shifts are added up in float32: of a bfloat16 weight, most steps would move nothing.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        """Hold the weights of ``model``, which follows every change."""
        self.weights = {name: model.get_submodule(name).get_parameter("weight") for name in names}
        self.originals = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.exact = {name: weight.detach().float().clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def apply(self, shifts: Mapping[str, Shift]) -> None:
        """W ← W + ΔW.

        Raises:
            CellError: if a shift is not finite; no weight has moved then.
        """
        if not all(bool(shift.coefficients.isfinite().all()) for shift in shifts.values()):
            raise CellError("the hypernetwork's shift is not finite: lower its 'rate'.")
        for name, shift in shifts.items():
            self.exact[name] += shift.matrix()
            self.weights[name].copy_(self.exact[name])

    @torch.no_grad()
    def reset(self) -> None:
        """Set the weights back to what they were."""
        for name, original in self.originals.items():
            self.weights[name].copy_(original)
            self.exact[name].copy_(original)

    @contextmanager
    def differentiable(self) -> Iterator[list[nn.Parameter]]:
        """Yield the weights, which have a gradient inside."""
        weights = list(self.weights.values())
        for weight in weights:
            weight.requires_grad_()
        try:
            yield weights
        finally:
            for weight in weights:
                weight.requires_grad_(False)


def edit(model: nn.Module, policy: Policy, steps: Iterable[Step], progress: Progress) -> list[dict[str, Shift]]:
    """Let the policy shift the model's weights step after step, in place; return the shifts.

    Raises:
        CellError: if a shift is not finite.
    """
    done = []
    state = EditedWeights(model, policy.of)
    for step in progress(list(steps), "editing"):
        with torch.no_grad():
            shifts = policy.act([observe(model, policy, each) for each in step.edits])
        state.apply(shifts)
        done.append(shifts)
    return done


def meta_train(
    model: nn.Module, policy: Policy, steps: Sequence[Step], config: MetaTraining, progress: Progress
) -> Iterator[MetaStep]:
    """Train the policy on trajectories over ``steps``; the model's weights are afterwards as before.

    Yields:
        The figures of every step: as large as the edited modules, so that none are kept here.

    Raises:
        CellError: if a shift is not finite.
    """
    state = EditedWeights(model, policy.of)
    adam = torch.optim.Adam(list(policy.parameters()), lr=config.meta_learning_rate)
    try:
        for epoch in range(1, config.epochs + 1):
            history: deque[Step] = deque(maxlen=config.depth)
            for step in progress(steps, f"trajectory {epoch} of {config.epochs}"):
                history.appendleft(step)
                yield _step(model, policy, state, history, config)
                if config.mode == "faithful":
                    nn.utils.clip_grad_norm_(policy.parameters(), config.clip)
            nn.utils.clip_grad_norm_(policy.parameters(), config.clip)
            adam.step()
            adam.zero_grad()
            state.reset()
    finally:
        state.reset()


def observe(model: nn.Module, policy: Policy, edits: EditBatch) -> dict[str, Observation]:
    """Return inputs and output gradients of each edited module at the batch's distinct answer tokens (step 1)."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            # Below the first edited module nothing needs a gradient; its output is where differentiation ends.
            if not output.requires_grad:
                output.requires_grad_()
            inputs[name], outputs[name] = apart(arguments[0].detach(), edits.batch.ids), output

        return hook

    with ExitStack() as hooks, torch.enable_grad():
        for name in policy.of:
            hooks.enter_context(model.get_submodule(name).register_forward_hook(note(name)))
        gradients = torch.autograd.grad(edits.loss_of(model), list(outputs.values()))
    reads, token = edits.batch.reads, edits.batch.token
    seen = {}
    for name, gradient in zip(outputs, gradients, strict=True):
        # Keys of one token are equal; its gradient is what all that read it ask for.
        size = int(token.max()) + 1
        keys = torch.zeros(size, inputs[name].shape[-1], device=token.device)
        total = torch.zeros(size, gradient.shape[-1], device=token.device)
        keys[token] = inputs[name][reads].float()
        seen[name] = Observation(keys, total.index_add(0, token, apart(gradient, edits.batch.ids)[reads].float()))
    return seen


def _step(
    model: nn.Module, policy: Policy, state: EditedWeights, history: Sequence[Step], config: MetaTraining
) -> MetaStep:
    """Act, then add the losses' gradient at the new weights to the policy's (docs/methods.md §2.4, steps 6 and 7)."""
    seen = [observe(model, policy, each) for each in history[0].edits]
    with torch.enable_grad():
        shifts = policy.act(seen)
    # A step that comes back is one loss with the sum of its weights, not several passes.
    ages: dict[int, float] = {}
    for steps_back, step in enumerate(history):
        ages[id(step)] = ages.get(id(step), 0.0) + config.decay**steps_back
    remembered = list({id(step): step for step in history}.values())
    with torch.no_grad():
        references = [[batch.logits(model).log_softmax(-1) for batch in step.unrelated] for step in remembered]
    held = {} if config.mode == "repaired" else state.weights
    before = {name: weight.detach().clone() for name, weight in held.items()}
    state.apply(shifts)

    # The weights' gradient of J_t, docs/methods.md §2.4, eq. (15).
    totals = {name: torch.zeros_like(exact) for name, exact in state.exact.items()}
    edit_losses, divergences = [], []
    with state.differentiable() as weights, torch.enable_grad():
        for step in remembered:
            age = ages[id(step)]
            edit_losses.append(fsum(_add(totals, weights, each.loss_of(model), age) for each in step.equivalents))
        for step, kept in zip(remembered, references, strict=True):
            age, moved = ages[id(step)], 0.0
            for batch, reference in zip(step.unrelated, kept, strict=True):
                divergence = _divergence(reference, batch.logits(model))
                with _weights_set_to(state.weights, before):
                    moved += _add(totals, weights, divergence, age * config.locality_weight)
            divergences.append(moved)
    # Held fixed, it is differentiated through the shifts alone.
    with torch.enable_grad():
        objective = torch.stack([shift.inner(totals[name]) for name, shift in shifts.items()]).sum()
        if config.mode == "repaired":
            sizes = torch.stack([shift.square() for shift in shifts.values()])
            objective = objective + config.regularisation * sizes.sum()
        objective.backward()
    norm = torch.stack([p.grad.norm() for p in policy.parameters() if p.grad is not None]).norm()
    return MetaStep(shifts, tuple(edit_losses), tuple(divergences), totals, float(norm))


def _divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """Return KL(p_ref ‖ p), the mean over the answer tokens; both [S, V]."""
    return (reference.exp() * (reference - logits.log_softmax(-1))).sum(-1).mean()


def _add(totals: dict[str, Tensor], weights: Sequence[nn.Parameter], loss: Tensor, factor: float) -> float:
    """Add ``factor`` times the gradient of ``loss`` to the totals; return the loss."""
    for name, gradient in zip(totals, torch.autograd.grad(loss, weights), strict=True):
        totals[name] += factor * gradient
    return loss.item()


@contextmanager
def _weights_set_to(weights: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Put other weights under a graph that is being differentiated, as the reference does without meaning to."""
    now = {name: weights[name].detach().clone() for name in values}
    _set(weights, values)
    try:
        yield
    finally:
        _set(weights, now)


def _set(weights: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        weights[name].data.copy_(value)  # past autograd's version counter: a graph may be alive
