"""RLEdit's faithful mode against recorded runs of the reference, number by number (../shared/parity/README.md).

Faithful means as the reference code does it, where that departs from its paper: the regulariser has no gradient, the
locality term is propagated through the un-edited weights, gradients are clipped at every step. Not followed: the
running variance of a single token, which is NaN there and an error here.
"""

import copy
import re
from collections.abc import Sequence
from functools import cached_property

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fpbench.methods.hypernetwork import Hypernetwork, Observation, Policy
from fpbench.methods.trajectory import (
    Batch,
    EditBatch,
    MetaStep,
    MetaTraining,
    Predictions,
    Step,
    edit,
    meta_train,
    observe,
)
from fpbench.models.meter import no_progress
from tests.conftest import load_plain
from tests.parity import MODEL, Recording, sets


class Replay:
    """One set through our code: meta-training, one update of the network, editing with it."""

    def __init__(self, recording: Recording) -> None:
        self.expected = self.tensors = recording.tensors
        self.losses, config = recording.outputs, recording.inputs["config"]
        self.config = config["editor"]
        self.modules: list[str] = config["model"]["edit_modules"]
        recording.implemented("token", self.config["token"], ["ans"])
        recording.implemented("n_epochs", self.config["n_epochs"], [1])
        recording.implemented("full_curve", self.config["full_curve"], [False])
        self.model, _ = load_plain(MODEL)
        self.base = copy.deepcopy(self.model.state_dict())
        shapes = {name: tuple(self.model.get_submodule(name).weight.shape) for name in self.modules}
        recording.implemented("number of weight shapes", len(set(shapes.values())), [1])
        self.policy = Policy(shapes, self.config["rank"], self.config["n_blocks"], self.config["lr"], 0, "cpu")
        self.network.load_state_dict(self.network_state("net_init"))

    @property
    def network(self) -> Hypernetwork:
        return self.policy.of[self.modules[0]][0]

    def network_state(self, prefix: str, parameters_only: bool = False) -> dict[str, Tensor]:
        """The reference's numbers under our names."""
        state = {}
        own = dict(self.network.named_parameters()) if parameters_only else self.network.state_dict()
        for name in own:
            theirs = name.replace(".scale", ".scale.weight").replace(".shift", ".shift.weight")
            theirs = {"rate": "lr.weight", "log_ridge": "lamda.weight"}.get(theirs, theirs)
            theirs = theirs.replace("normalizer.squares", "normalizer.var").replace("normalizer.count", "normalizer.n")
            value = self.expected[f"{prefix}.{theirs}"]
            state[name] = value.reshape(own[name].shape)
        return state

    def steps(self, phase: str) -> list[Step]:
        numbers = sorted(
            {int(name.split(".")[1]) for name in self.tensors if re.match(rf"{phase}\.\d+\.edit_tuples\.", name)}
        )
        return [
            Step(
                self.lessons(f"{phase}.{number}.edit_tuples"),
                self.lessons(f"{phase}.{number}.equiv_tuples"),
                [lesson.batch for lesson in self.lessons(f"{phase}.{number}.unrel_tuples")],
            )
            for number in numbers
        ]

    def lessons(self, prefix: str) -> Sequence[EditBatch]:
        count = len({name.split(".")[3] for name in self.tensors if name.startswith(f"{prefix}.")})
        return [self.lesson(f"{prefix}.{index}") for index in range(count)]

    def lesson(self, prefix: str) -> EditBatch:
        labels = self.tensors[f"{prefix}.labels"].long()
        rows, positions = torch.nonzero(labels != -100, as_tuple=True)
        # The reference counts every answer token, also where two prompts are the same.
        batch = Batch(self.tensors[f"{prefix}.input_ids"].long(), (rows, positions), torch.arange(len(rows)))
        return EditBatch(batch, lambda logits: cross_entropy(logits, labels[rows, positions]))

    @cached_property
    def meta_training(self) -> list[MetaStep]:
        settings = MetaTraining(
            meta_learning_rate=self.config["meta_lr"],
            epochs=1,
            decay=self.config["time_decay"],
            depth=self.config["back_depth"],
            locality_weight=self.config["loc_coef"],
            regularisation=self.config["reg_coef"],
            clip=self.config["max_grad_norm"],
            mode="faithful",
        )
        return list(meta_train(self.model, self.policy, self.steps("train"), settings, no_progress))


@pytest.fixture(scope="module", params=sets("rledit"))
def recording(request: pytest.FixtureRequest) -> Replay:
    return Replay(request.param)


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Relative Frobenius error."""
    assert found.shape == expected.shape
    error = (found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)
    assert error <= tolerance, f"relative error {error:.1e} above {tolerance:g}"


def test_keys_and_gradients(recording: Replay) -> None:
    """Of the first step: those of the second depend on the first shift."""
    predictions = Predictions(recording.model, recording.policy.of)
    seen = [observe(predictions, lesson) for lesson in recording.steps("train")[0].edits]
    for name in recording.modules:
        close(torch.cat([each[name].keys for each in seen]), recording.expected[f"train.0.keys.{name}"], 1e-5)
        close(torch.cat([each[name].gradients for each in seen]), recording.expected[f"train.0.grads.{name}"], 1e-5)


def test_trajectory(recording: Replay) -> None:
    """Shifts, losses in call order, weight gradients and the norm of the network's gradient, step by step."""
    losses, divergences = [], []
    for number, taken in enumerate(recording.meta_training):
        for name in recording.modules:
            close(taken.shifts[name].matrix().detach(), recording.expected[f"train.{number}.dW.{name}"], 1e-4)
            gradient = recording.expected[f"train.{number}.weight_grad.{name}"]
            close(taken.weight_gradients[name], gradient, 1e-4)
        losses += taken.edit_losses
        divergences += taken.divergences
    assert [taken.gradient_norm for taken in recording.meta_training] == pytest.approx(
        recording.losses["gradient_norm_before_clip"], rel=1e-4
    )
    micro_batches = len(recording.steps("train")[0].equivalents)
    per_call = [each["cross_entropy"] for each in recording.losses["edit_losses_in_call_order"]]
    assert losses == pytest.approx(added_up(per_call, micro_batches), abs=1e-4)
    per_call = [each["kl"] for each in recording.losses["locality_kl_in_call_order"]]
    assert divergences == pytest.approx(added_up(per_call, micro_batches), rel=1e-3, abs=1e-6)


def added_up(per_call: list[float], count: int) -> list[float]:
    """The recording has one entry for each micro-batch; ours is their sum."""
    return [sum(per_call[start : start + count]) for start in range(0, len(per_call), count)]


def test_update_of_the_network(recording: Replay) -> None:
    """One Adam step, within one per cent of its size."""
    assert recording.meta_training
    expected = recording.network_state("net_after")
    for name, parameter in recording.network.named_parameters():
        away = (parameter.detach() - expected[name]).abs().max()
        assert away <= 0.01 * recording.config["meta_lr"], f"{name}: {away:.1e}"
    assert all(torch.equal(value, recording.base[name]) for name, value in recording.model.state_dict().items()), (
        "meta-training leaves the model as it was"
    )


def test_editing_with_the_trained_network(recording: Replay) -> None:
    assert recording.meta_training
    for number, shifts in enumerate(edit(recording.model, recording.policy, recording.steps("valid"), no_progress)):
        for name in recording.modules:
            close(shifts[name].matrix(), recording.expected[f"valid.{number}.dW.{name}"], 1e-4)
    for name in recording.modules:
        moved = recording.model.get_submodule(name).weight - recording.base[f"{name}.weight"]
        close(moved, recording.expected[f"valid.final_minus_base.{name}"], 1e-4)
    normalizer = recording.network.normalizer
    close(normalizer.mean, recording.expected["net_final.normalizer.mean"], 1e-5)
    close(normalizer.deviation, recording.expected["net_final.normalizer.std"], 1e-5)


@pytest.mark.parametrize("recorded", sets("rledit"))
def test_the_networks_gradient(recorded: Recording) -> None:
    """∂/∂φ Σ_e ⟨G_e, ΔW_e(φ)⟩, accumulated and clipped step by step, from the recorded observations and G."""
    recording = Replay(recorded)
    for number, step in enumerate(recording.steps("train")):
        sizes = [len(lesson.batch.reads[0]) for lesson in step.edits]
        parts = {
            name: [recording.expected[f"train.{number}.{kind}.{name}"].split(sizes) for kind in ("keys", "grads")]
            for name in recording.modules
        }
        seen = [
            {name: Observation(keys[index], gradients[index]) for name, (keys, gradients) in parts.items()}
            for index in range(len(sizes))
        ]
        shifts = recording.policy.act(seen)
        sum(
            shift.inner(recording.expected[f"train.{number}.weight_grad.{name}"]) for name, shift in shifts.items()
        ).backward()
        torch.nn.utils.clip_grad_norm_(recording.policy.parameters(), recording.config["max_grad_norm"])
        expected = recording.network_state(f"train.{number}.hyper_grad_accumulated_clipped", parameters_only=True)
        for name, parameter in recording.network.named_parameters():
            close(parameter.grad, expected[name], 1e-4)
