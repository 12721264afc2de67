"""RLEdit's trajectory: edited weights are the states, the hypernetwork's shifts the actions (docs/methods.md §2.4)."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import fsum
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fpbench.errors import CellError
from fpbench.methods.base import MethodConfig
from fpbench.methods.hypernetwork import Observation, Policy, Shift
from fpbench.methods.partial_forward import BlockRun, Row, apart
from fpbench.models.layout import layout, stream
from fpbench.models.meter import Progress
from fpbench.scoring.forward import attention_mask, tree_tensors
from fpbench.scoring.packing import rows_of, side_by_side

# Places of a row that several short sequences are laid into, one after another.
ROW = 256


@dataclass(frozen=True, eq=False)
class Batch:
    """Some sequences and where their predictions are read.

    What sequences of one request share at their beginning may stand once: they are then paths of a tree.
    """

    ids: Tensor  # token ids [B, T], right-padded
    reads: tuple[Tensor, ...]  # row and place of the S answer tokens' predictions, two tensors [S]
    token: Tensor  # which of n distinct tokens each read is, [S]
    depths: Tensor | None = None  # position of each place in its sequence, [B, T]; of plain rows not needed
    seen: Tensor | None = None  # which places each place attends to, [B, T, T]; of plain rows not needed

    @classmethod
    def of(cls, rows: Sequence[Row], device: Any) -> "Batch":
        """Pack ``rows``; where rows begin alike, as the candidates of a trigger do, they read one token."""
        requests: dict[int, dict[int, Sequence[int]]] = {}
        for index, row in enumerate(rows):
            requests.setdefault(row.request, {})[index] = row.ids
        wanted = [len(row.positions) for row in rows]  # the last places of each
        longest = sum(len(row.ids) for row in rows)
        trees = [tree for each in requests.values() for tree in rows_of(each, wanted, longest, 0.0)]
        laid = side_by_side(trees, ROW)
        places = {number: (index, each) for index, row in enumerate(laid) for number, each in row.places.items()}
        reads = [(places[index][0], place) for index in range(len(rows)) for place in places[index][1]]
        beginnings: dict[tuple[int, ...], int] = {}
        begun = [tuple(row.ids[: position + 1]) for row in rows for position in row.positions]
        token = [beginnings.setdefault(each, len(beginnings)) for each in begun]
        ids, depths, seen = tree_tensors(laid, device)
        where = tuple(torch.tensor(reads, device=device).T)
        return cls(ids, where, torch.tensor(token, device=device), depths, seen)

    @cached_property
    def distinct(self) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return row and column of the U distinct places read, ([U], [U]), and the number of each read's place, [S]."""
        width = self.ids.shape[1]
        places, number = torch.unique(self.reads[0] * width + self.reads[1], return_inverse=True)
        return (places // width, places % width), number


@dataclass(frozen=True, eq=False)
class EditBatch:
    """A batch to be learnt, with its loss: logits [S, V] to a scalar."""

    batch: Batch
    loss: Callable[[Tensor], Tensor]


class Predictions:
    """The predictions of a model of which some modules change: what lies below the first is run once for each batch."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        """Predict with ``model``, of which nothing but the named modules changes."""
        self.model, self.parts = model, layout(model)
        self.modules = {name: model.get_submodule(name) for name in names}
        edited = set(self.modules.values())
        blocks = enumerate(self.parts.blocks)
        self.first = next(number for number, block in blocks if not edited.isdisjoint(block.modules()))
        self._begun: dict[Batch, tuple[Tensor, dict[int, dict[str, Any]]]] = {}

    def logits(self, batch: Batch) -> Tensor:
        """Return the predictions at the read positions, [S, V] float32."""
        hidden, keywords = self._start(batch)
        for number in range(self.first, len(self.parts.blocks)):
            hidden = stream(self.parts.blocks[number](hidden, **keywords[number]))  # (B, T, h)
        places, read = batch.distinct
        return self.parts.logits(self.parts.norm(hidden[places]))[read]  # of (U, V)

    def loss(self, edits: EditBatch) -> Tensor:
        """Return the loss of a batch that is to be learnt."""
        return edits.loss(self.logits(edits.batch))

    def _start(self, batch: Batch) -> tuple[Tensor, dict[int, dict[str, Any]]]:
        """Return what goes into the first block that changes, [B, T, h], and what each block is called with besides."""
        if batch not in self._begun:
            given: dict[str, Any] = {}
            if batch.depths is not None and batch.seen is not None:
                mask = attention_mask(self.model, batch.depths, batch.depths, batch.seen)
                given = {"attention_mask": mask, "position_ids": batch.depths}
            run = BlockRun(self.model, batch.ids, self.first, len(self.parts.blocks) - 1, **given)
            self._begun[batch] = run.hidden[self.first], run.keywords
        return self._begun[batch]


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
    state, predictions = EditedWeights(model, policy.of), Predictions(model, policy.of)
    for step in progress(list(steps), "editing"):
        with torch.no_grad():
            shifts = policy.act([observe(predictions, each) for each in step.edits])
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
    state, predictions = EditedWeights(model, policy.of), Predictions(model, policy.of)
    adam = torch.optim.Adam(list(policy.parameters()), lr=config.meta_learning_rate)
    try:
        for epoch in range(1, config.epochs + 1):
            history: deque[Step] = deque(maxlen=config.depth)
            known = _Known()
            for step in progress(steps, f"trajectory {epoch} of {config.epochs}"):
                history.appendleft(step)
                yield _step(predictions, policy, state, history, known, config)
                if config.mode == "faithful":
                    nn.utils.clip_grad_norm_(policy.parameters(), config.clip)
            nn.utils.clip_grad_norm_(policy.parameters(), config.clip)
            adam.step()
            adam.zero_grad()
            state.reset()
    finally:
        state.reset()


def observe(predictions: Predictions, edits: EditBatch) -> dict[str, Observation]:
    """Return inputs and output gradients of each edited module at the batch's distinct answer tokens (step 1)."""
    with torch.enable_grad(), _noted(predictions.modules) as notes:
        gradients = torch.autograd.grad(predictions.loss(edits), list(notes.outputs.values()))
    return notes.observation(edits.batch, gradients)


@dataclass(frozen=True)
class _Notes:
    """What went into and came out of each edited module in a forward pass, [B, T, ·], by name."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)

    def observation(self, batch: Batch, gradients: Sequence[Tensor]) -> dict[str, Observation]:
        """Return the inputs, and the gradients of the outputs, at the distinct answer tokens of ``batch``."""
        places, read = batch.distinct
        token = torch.empty(len(places[0]), dtype=torch.long, device=read.device)
        token[read] = batch.token  # (U,)
        size = int(token.max()) + 1
        seen = {}
        for name, gradient in zip(self.outputs, gradients, strict=True):
            # Keys of one token are equal; its gradient is what all that read it ask for.
            keys = torch.zeros(size, self.inputs[name].shape[-1], device=token.device)
            total = torch.zeros(size, gradient.shape[-1], device=token.device)
            keys[token] = apart(self.inputs[name], batch.ids)[places].float()
            seen[name] = Observation(keys, total.index_add(0, token, apart(gradient, batch.ids)[places].float()))
        return seen


@contextmanager
def _noted(modules: Mapping[str, nn.Module]) -> Iterator[_Notes]:
    """Note what passes through modules in a forward pass inside."""
    notes = _Notes()

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            # Below the first edited module nothing needs a gradient; its output is where differentiation ends.
            if not output.requires_grad:
                output.requires_grad_()
            notes.inputs[name], notes.outputs[name] = arguments[0].detach(), output

        return hook

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(note(name)))
        yield notes


@dataclass
class _Known:
    """What the passes of one step found at its new weights, from which the next step starts."""

    observations: dict[EditBatch, dict[str, Observation]] = field(default_factory=dict)
    logits: dict[Batch, Tensor] = field(default_factory=dict)


def _step(
    predictions: Predictions,
    policy: Policy,
    state: EditedWeights,
    history: Sequence[Step],
    known: _Known,
    config: MetaTraining,
) -> MetaStep:
    """Act, then add the losses' gradient at the new weights to the policy's (docs/methods.md §2.4, steps 6 and 7).

    What is ``known`` of the old weights is not computed again, and replaced by what is found of the new ones.
    """
    edits = history[0].edits
    seen = [known.observations.get(each) or observe(predictions, each) for each in edits]
    with torch.enable_grad():
        shifts = policy.act(seen)
    # A step that comes back is one loss with the sum of its weights, not several passes.
    ages: dict[int, float] = {}
    for steps_back, step in enumerate(history):
        ages[id(step)] = ages.get(id(step), 0.0) + config.decay**steps_back
    remembered = list({id(step): step for step in history}.values())
    with torch.no_grad():
        kept_logits = [
            [known.logits[batch] if batch in known.logits else predictions.logits(batch) for batch in step.unrelated]
            for step in remembered
        ]
        references = [[logits.log_softmax(-1) for logits in each] for each in kept_logits]
    known.observations.clear()
    known.logits.clear()
    held = {} if config.mode == "repaired" else state.weights
    before = {name: weight.detach().clone() for name, weight in held.items()}
    state.apply(shifts)

    # The weights' gradient of J_t, docs/methods.md §2.4, eq. (15).
    totals = {name: torch.zeros_like(exact) for name, exact in state.exact.items()}
    edit_losses, divergences = [], []
    with state.differentiable() as weights, torch.enable_grad():
        for step in remembered:
            age, lost = ages[id(step)], []
            for each in step.equivalents:
                with _noted(predictions.modules) as notes:
                    loss = predictions.loss(each)
                gradients = torch.autograd.grad(loss, [*weights, *notes.outputs.values()])
                _add(totals, gradients[: len(weights)], age)
                if each in edits:  # as it will be again, if the set is one step for ever
                    known.observations[each] = notes.observation(each.batch, gradients[len(weights) :])
                lost.append(loss.item())
            edit_losses.append(fsum(lost))
        for step, kept in zip(remembered, references, strict=True):
            age, moved = ages[id(step)], 0.0
            for batch, reference in zip(step.unrelated, kept, strict=True):
                logits = predictions.logits(batch)
                known.logits[batch] = logits.detach()
                divergence = _divergence(reference, logits)
                with _weights_set_to(state.weights, before):
                    _add(totals, torch.autograd.grad(divergence, weights), age * config.locality_weight)
                moved += divergence.item()
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


def _add(totals: dict[str, Tensor], gradients: Sequence[Tensor], factor: float) -> None:
    """Add ``factor`` times the gradients of the weights to the totals."""
    for name, gradient in zip(totals, gradients, strict=True):
        totals[name] += factor * gradient


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
