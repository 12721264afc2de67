"""The hypernetwork and its trajectory, beyond what the recorded runs show."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from fpbench.errors import CellError, InputError
from fpbench.fingerprints import FingerprintSet
from fpbench.methods import trajectory
from fpbench.methods.base import InjectionContext
from fpbench.methods.hypernetwork import Observation, Policy, RunningNormalizer, Shift
from fpbench.methods.hyperparameters import defaults
from fpbench.methods.partial_forward import Row
from fpbench.methods.trajectory import ROW, Batch, MetaTraining, Predictions, meta_train, observe
from fpbench.models.meter import no_progress
from fpbench.registry import METHODS

MakeContext = Callable[[], InjectionContext]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(name: str, **config: Any) -> Any:
    return METHODS.get(name)(**(defaults(name, "small") | config))


def training(**changes: Any) -> MetaTraining:
    given = {"meta_learning_rate": 1e-3, "epochs": 1, "decay": 0.9, "depth": 3, "locality_weight": 0.6}
    return MetaTraining(**(given | {"regularisation": 0.0, "clip": 1.0, "mode": "repaired"} | changes))


def test_factors_are_the_dense_normal_equation() -> None:
    keys, wanted = random(7, 12).double(), random(7, 5, seed=1).double()
    gram = keys @ keys.T + 2.0 * torch.eye(7).double()
    shift = Shift(keys, torch.linalg.solve(gram, wanted))
    dense = torch.linalg.solve(keys.T @ keys + 2.0 * torch.eye(12).double(), keys.T @ wanted).T
    assert torch.allclose(shift.matrix(), dense)
    gradient = random(5, 12, seed=2).double()
    assert shift.inner(gradient).item() == pytest.approx((gradient * dense).sum().item())
    assert shift.square().item() == pytest.approx(dense.square().sum().item())


def test_at_the_start_the_blocks_do_nothing_and_the_bias_can_move() -> None:
    policy = Policy({"m": (5, 12)}, rank=3, blocks=2, rate=0.1, seed=0, device="cpu")
    seen = Observation(random(7, 12), random(7, 5, seed=1))
    shift = policy.act([{"m": seen}])["m"]
    network, _ = policy.of["m"]
    keys, gradients = network.normalizer(torch.cat([seen.keys, seen.gradients], dim=1)).split([12, 5], dim=1)
    wanted = -0.1 * (seen.keys * keys).sum(1, keepdim=True) * gradients
    gram = seen.keys @ seen.keys.T + torch.eye(7)
    assert torch.allclose(shift.coefficients.float(), torch.linalg.solve(gram, wanted), atol=1e-6)
    shift.square().backward()
    assert network.blocks[0].bias.grad.abs().max() > 0 and network.blocks[0].B.grad.abs().max() > 0


def test_modules_of_a_shape_share_a_network() -> None:
    policy = Policy({"a": (5, 12), "b": (4, 12), "c": (5, 12)}, rank=3, blocks=1, rate=0.1, seed=0, device="cpu")
    assert policy.of["a"][0] is policy.of["c"][0] is not policy.of["b"][0]
    assert (policy.of["a"][1], policy.of["c"][1], policy.of["b"][1]) == (0, 1, 0)
    again = Policy({"a": (5, 12), "b": (4, 12), "c": (5, 12)}, rank=3, blocks=1, rate=0.1, seed=0, device="cpu")
    assert all(torch.equal(one, two) for one, two in zip(policy.parameters(), again.parameters(), strict=True))


def test_normaliser_needs_two_tokens() -> None:
    with pytest.raises(CellError, match="at least two answer tokens"):
        RunningNormalizer(3).update(torch.ones(1, 3))


def test_candidates_read_their_common_beginning_once(stories: Any) -> None:
    rows = [Row.of(0, [1, 5, 6], [9, 8]), Row.of(0, [1, 5, 6], [7, 8]), Row.of(1, [1, 4], [9])]
    assert Batch.of(rows, "cpu").token.tolist() == [0, 1, 0, 2, 3]


def test_packed_rows_are_predicted_as_each_by_itself(stories: Any) -> None:
    model, _ = stories
    rows = [
        Row.of(0, [1, 50, 60], [9, 8, 4]),
        Row.of(0, [1, 50, 60], [7, 8]),
        Row.of(1, [1, 50], [60, 9]),  # begins like another request's, of which it is to know nothing
        *(Row.of(number, [1, *range(40, 40 + number)], [9]) for number in range(2, 40)),
    ]
    batch = Batch.of(rows, "cpu")
    assert batch.ids.numel() < sum(len(row.ids) for row in rows) + ROW and batch.ids.shape[1] <= ROW
    found = Predictions(model, ["model.layers.3.mlp.up_proj"]).logits(batch)
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([row.ids])).logits[0, list(row.positions)] for row in rows]
    assert torch.allclose(found, torch.cat(alone), atol=1e-4)


def test_what_a_step_found_is_not_computed_again(
    stories: Any, stories_set: FingerprintSet, context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass over the edits and one over the unrelated pairs a step, and the same shifts as without any memory."""
    model = copy.deepcopy(stories[0])
    passes: list[Batch] = []
    logits = Predictions.logits
    monkeypatch.setattr(Predictions, "logits", lambda self, batch: passes.append(batch) or logits(self, batch))
    shifts = []
    known = trajectory._Known
    for memory in (dict, Forgetful):
        passes.clear()
        monkeypatch.setattr(trajectory, "_Known", partial(known, memory(), memory()))
        _, policy, step = lesson((model, stories[1]), stories_set, context())
        taken = list(meta_train(model, policy, [step] * 3, training(), no_progress))
        shifts.append([each.matrix() for figures in taken for each in figures.shifts.values()])
        assert len(passes) == (2 + 2 * 3 if memory is dict else 4 * 3)
    assert all(torch.allclose(one, two, rtol=1e-4, atol=1e-9) for one, two in zip(*shifts, strict=True))


class Forgetful(dict[Any, Any]):
    """A dictionary that nothing can be put into."""

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def lesson(stories: Any, stories_set: FingerprintSet, context: InjectionContext, **config: Any) -> tuple[Any, Any, Any]:
    method = make("mcedit_r", gate_proj=[2], up_proj=[3], **config)
    model = stories[0]
    shapes = {name: tuple(model.get_submodule(name).weight.shape) for name in method.modules(model)}
    policy = Policy(shapes, rank=4, blocks=1, rate=1e-4, seed=0, device="cpu")
    return method, policy, method.step(model, stories[1], stories_set, context)


def test_observed_gradients_are_those_of_the_shared_tokens(
    stories: Any, stories_set: FingerprintSet, context: MakeContext
) -> None:
    """What a shift C at the distinct tokens' outputs does to the loss, to first order, is ⟨G, C⟩."""
    _, policy, step = lesson(stories, stories_set, context())
    model, edits = stories[0], step.edits[0]
    name = "model.layers.3.mlp.up_proj"
    predictions = Predictions(model, policy.of)
    seen = observe(predictions, edits)[name]
    assert len(seen.keys) == len(set(edits.batch.token.tolist())) < len(edits.batch.token)
    nudge = 1e-3 * random(*seen.gradients.shape)

    def moved(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        return output.index_put(edits.batch.reads, output[edits.batch.reads] + nudge[edits.batch.token])

    with torch.no_grad():
        before = predictions.loss(edits)
        hook = model.get_submodule(name).register_forward_hook(moved)
        after = predictions.loss(edits)
        hook.remove()
    assert (after - before).item() == pytest.approx((seen.gradients * nudge).sum().item(), rel=0.05)


def test_a_step_that_comes_back_is_one_loss(stories: Any, stories_set: FingerprintSet, context: MakeContext) -> None:
    """The same step three times, and three steps that are equal but not the same, teach the network the same."""
    model = copy.deepcopy(stories[0])
    networks = []
    for share in (True, False):
        method, policy, step = lesson((model, stories[1]), stories_set, context())
        others = [method.step(model, stories[1], stories_set, context()) for _ in range(2)]
        list(meta_train(model, policy, [step, step, step] if share else [step, *others], training(), no_progress))
        networks.append(list(policy.parameters()))
    assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(*networks, strict=True))
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), stories[0].parameters(), strict=True))


def test_the_regulariser_acts_only_where_repaired(
    stories: Any, stories_set: FingerprintSet, context: MakeContext
) -> None:
    norms = {}
    for mode in ("repaired", "faithful"):
        for weight in (0.0, 10.0):
            _, policy, step = lesson(stories, stories_set, context())
            settings = training(mode=mode, regularisation=weight)
            (taken,) = meta_train(stories[0], policy, [step], settings, no_progress)
            norms[mode, weight] = taken.gradient_norm
    assert norms["faithful", 10.0] == norms["faithful", 0.0]
    assert norms["repaired", 10.0] != pytest.approx(norms["repaired", 0.0], rel=1e-3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"gate_proj": [9]}, r"must lie in 0 … 5, found \[9\]: set 'gate_proj'"),
        ({"gate_proj": [], "up_proj": []}, "no module is edited"),
    ],
)
def test_wrong_blocks_are_named(stories: Any, config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make("rledit", **config).edited(stories[0])


def test_a_rate_that_blows_up_is_a_failed_cell(stories: Any, stories_set: FingerprintSet, context: MakeContext) -> None:
    model = copy.deepcopy(stories[0])
    with pytest.raises(CellError, match="not finite: lower its 'rate'"):
        make("rledit", rate=1e30, steps=4).inject(model, stories[1], stories_set, context())
