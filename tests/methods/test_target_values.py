"""What is computed once or taken up half-way equals what the whole model gives."""

import copy
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from fpbench.errors import InputError
from fpbench.methods import partial_forward
from fpbench.methods.alphaedit import PromptRun, write
from fpbench.methods.null_space import NullSpace
from fpbench.methods.partial_forward import Row, UpperBlocks
from fpbench.methods.target_values import Labels, negative_log_likelihood, optimise
from fpbench.models.layout import layout
from fpbench.models.meter import no_progress


def rows_of_many_shapes() -> list[Row]:
    """Two requests: candidates that share beginnings, a prompt with a context, and a read before the lookup token."""
    bare, context, other = [1, 11, 12], [1, 21, 22, 23, 24, 25, 26, 27, 11, 12], [1, 31]
    early = Row(1, [*other, 8], 1, [0, 1, 2], [31, 8, 9])
    kept = Row(0, bare, 2, [2])
    answers = [[5, 6, 7], [5, 6, 8], [5, 9], [10]]
    return [Row.of(0, bare, each) for each in answers] + [Row.of(0, context, [5, 6]), early, kept]


def tiny(kind: str, attention: str) -> Any:
    """A model of 5 blocks, with sliding windows of 4 tokens where there are such; others: architectures.py."""
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 5}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    windows = {"sliding_window": 4} if kind != "llama" else {}
    config = AutoConfig.for_model(kind, **sizes, **heads, **windows, initializer_range=0.3)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.eval().requires_grad_(False)


def whole_model(model: Any, block: int, row: Row, delta: Tensor) -> tuple[Tensor, Tensor]:
    """All of the model on one row, δ added to the output of a block: predictions at the reads, and that output."""
    value = None

    def add(module: Any, arguments: Any, output: Tensor) -> Tensor:
        nonlocal value
        value = output[0, row.lookup].detach()
        return output.index_put((torch.tensor([0]), torch.tensor([row.lookup])), delta, accumulate=True)

    with layout(model).blocks[block].register_forward_hook(add):
        logits = model(torch.tensor([row.ids]), use_cache=False).logits[0, list(row.positions)]
    assert value is not None
    return logits, value


def test_only_what_depends_on_delta_is_run() -> None:
    model, rows = tiny("llama", "sdpa"), rows_of_many_shapes()
    upper = UpperBlocks.of(model, 2, rows)
    seen: list[tuple[int, ...]] = []
    with ExitStack() as hooks:
        for block in layout(model).blocks:
            note = lambda module, arguments: seen.append(tuple(arguments[0].shape))  # noqa: E731
            hooks.enter_context(block.register_forward_pre_hook(note))
        logits = upper.logits(torch.zeros(2, 16))
        # The last two blocks, three prompts; the tree of the first has the lookup token and 5, 5 6.
        assert seen == [(3, 3, 16)] * 2
        upper.only(torch.tensor([False, True]), logits).logits(torch.zeros(2, 16))
    assert seen[2:] == [(1, 3, 16)] * 2


def test_requests_that_are_done_keep_their_predictions() -> None:
    model, rows = tiny("llama", "sdpa"), rows_of_many_shapes()
    upper = UpperBlocks.of(model, 2, rows)
    delta = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))
    before = upper.logits(delta)
    for active in ([False, True], [True, False]):
        fewer = upper.only(torch.tensor(active), before)
        of_active = torch.tensor([active[row.request] for row in rows for _ in row.positions])
        expected = torch.where(of_active[:, None], upper.logits(-delta), before)
        assert torch.allclose(fewer.logits(-delta), expected, atol=1e-5)


def test_attention_without_masks_is_refused() -> None:
    model = tiny("llama", "sdpa")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="needs attention 'sdpa' or 'eager', found 'flash_attention_2'"):
        UpperBlocks.of(model, 2, rows_of_many_shapes())


def test_the_check_of_the_head_is_not_one_of_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 a row alone and in a batch round apart: by 9 % in an edited SmolLM2, which was refused for it."""
    checked: list[float] = []
    monkeypatch.setattr(partial_forward, "away", lambda found, own: checked.append(float((found - own).norm())) or 0.0)
    rows = [Row.of(0, [1, 11], [5]), Row.of(1, list(range(1, 31)), [7])]
    UpperBlocks.of(tiny("llama", "sdpa").bfloat16(), 2, rows)
    assert checked[0] == 0.0


def plain_descent(model: Any, block: int, rows: list[Row], descent: dict[str, Any]) -> Tensor:
    """δ of one request as in docs/methods.md §2.2, steps 5 and 6: the whole model, every row by itself."""
    delta = torch.zeros(model.config.hidden_size, requires_grad=True)
    v0 = whole_model(model, block, rows[0], delta.detach())[1]
    adam = torch.optim.Adam([delta], lr=float(descent["relative_rate"]) * float(v0.square().mean().sqrt()))
    for step in range(descent["steps"]):
        losses = []
        for row in rows:
            log_p = whole_model(model, block, row, delta)[0].log_softmax(-1)
            losses += [-log_p[range(len(row.labels)), row.labels].mean()] if row.labels else []
        loss = torch.stack(losses).mean()
        if loss < descent["early_stop"] or step == descent["steps"] - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            delta *= (descent["clamp"] * v0.norm() / delta.norm()).clamp(max=1)
    return delta.detach()


def test_descent_equals_the_plain_one() -> None:
    model, rows = tiny("llama", "sdpa"), rows_of_many_shapes()
    labels = Labels.of(rows, "cpu")
    # The second request is done after four updates and leaves the batch; the first never is.
    descent: dict[str, Any] = {"relative_rate": 0.3, "steps": 12, "clamp": 1.5, "early_stop": 2.8}
    objective = lambda state: negative_log_likelihood(state.logits, labels)  # noqa: E731
    _, found = optimise(model, 2, rows, objective, **descent, progress=no_progress)
    expected = [plain_descent(model, 2, [row for row in rows if row.request == n], descent) for n in range(2)]
    assert torch.allclose(found, torch.stack(expected), atol=1e-5)
    _, endless = optimise(model, 2, rows, objective, **(descent | {"early_stop": -1}), progress=no_progress)
    assert torch.equal((endless - found).norm(dim=1) > 0.1, torch.tensor([False, True]))


def test_writing_goes_on_from_the_block_just_written() -> None:
    model = tiny("mistral", "sdpa")
    again = copy.deepcopy(model)
    requests = [[[1, 11, 12], [1, 21, 22, 23, 24, 25, 11, 12]], [[1, 31]]]
    targets = torch.randn(16, 2, generator=torch.Generator().manual_seed(5))
    null_spaces = dict.fromkeys((1, 2, 3), NullSpace(torch.eye(24)[:, :6]))
    done = write(model, requests, targets, null_spaces, 0.1)
    for left, block in zip((3, 2, 1), done, strict=True):
        run = PromptRun(again, [block, 3], requests)
        assert torch.allclose(done[block].keys, run.keys(block), atol=1e-6)
        assert torch.allclose(done[block].residual, (targets - run.values()) / left, atol=1e-5)
        weight = layout(again).down_proj(block).weight
        weight.copy_(done[block].factors.added_to(weight))
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))


def test_descent_of_many_requests_equals_one_after_another(stories: Any) -> None:
    model, _ = stories
    requests = [[[700, 701], [702]], [[703]], [[704, 705, 706]]]
    descent: dict[str, Any] = {"learning_rate": 0.2, "steps": 25, "clamp": 2.0, "early_stop": 0.5}

    def run(some: list[list[list[int]]], first: int) -> Tensor:
        rows = [Row.of(n, [1, 400 + n + first, 9], answer) for n, answers in enumerate(some) for answer in answers]
        labels = Labels.of(rows, "cpu")
        objective = lambda state: negative_log_likelihood(state.logits, labels)  # noqa: E731
        v0, delta = optimise(model, 2, rows, objective, **descent, progress=no_progress)
        assert bool((delta.norm(dim=1) <= 2.0 * v0.norm(dim=1) * 1.0001).all())
        return delta

    together = run(requests, 0)
    alone = torch.cat([run([request], number) for number, request in enumerate(requests)])
    assert torch.allclose(together, alone, atol=1e-3)
    assert float(together.norm()) > 1
