"""The mathematics that the editors rest on."""

import copy
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fpbench.errors import InputError
from fpbench.methods import null_space
from fpbench.methods.alphaedit import continuations, solve
from fpbench.methods.base import InjectionContext
from fpbench.methods.hyperparameters import defaults
from fpbench.methods.mcedit import MCEditA, margin_shortfall, own_labels, siblings
from fpbench.methods.null_space import KeyStatistics, key_statistics, second_moment, text_windows
from fpbench.methods.partial_forward import Row
from fpbench.methods.target_values import State
from fpbench.models.layout import layout, watched
from fpbench.models.meter import no_progress
from fpbench.models.prompts import encode
from tests.benchmarks import plain


@pytest.fixture
def spectrum() -> KeyStatistics:
    keys = torch.randn(400, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keys *= torch.linspace(0.1, 2, 24, dtype=torch.float64)
    return KeyStatistics(*torch.linalg.eigh(keys.T @ keys / 400), 400, 1, 1)


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_projector_is_symmetric_idempotent_and_of_the_right_rank(spectrum: KeyStatistics) -> None:
    projector = spectrum.null_space(share=0.75).project(torch.eye(24, dtype=torch.float64))
    assert torch.allclose(projector, projector.T, atol=1e-12)
    assert torch.allclose(projector @ projector, projector, atol=1e-12)
    assert float(projector.trace()) == pytest.approx(18)
    # Free directions are those that the text uses least.
    assert torch.allclose(projector @ spectrum.eigenvectors[:, :18], spectrum.eigenvectors[:, :18], atol=1e-12)


def test_threshold_and_share_cut_the_same_spectrum(spectrum: KeyStatistics) -> None:
    between = float(spectrum.eigenvalues[17:19].mean())
    by_threshold, by_share = spectrum.null_space(threshold=between), spectrum.null_space(share=18 / 24)
    assert torch.equal(by_threshold.complement, by_share.complement)
    with pytest.raises(InputError, match="exactly one"):
        spectrum.null_space()


@pytest.mark.parametrize("earlier", [0, 3])
def test_small_solve_equals_the_dense_one(spectrum: KeyStatistics, earlier: int) -> None:
    null_space = spectrum.null_space(share=0.6)
    keys, residual, before = random(24, 5), random(7, 5, seed=2), random(24, earlier, seed=3)
    projector = null_space.project(torch.eye(24, dtype=torch.float64))
    dense = torch.linalg.solve(
        projector @ (keys @ keys.T + before @ before.T) + 0.3 * torch.eye(24), projector @ keys @ residual.T
    ).T
    found = solve(null_space, keys, residual, 0.3, before if earlier else None).product()
    assert torch.allclose(found, dense, atol=1e-12)
    assert torch.allclose(found @ null_space.complement, torch.zeros(7, null_space.complement.shape[1]).double())


def test_second_moment_ignores_padding(stories: Any) -> None:
    model, _ = stories
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(3, 4000, (length,), generator=generator).tolist() for length in (3, 40, 7, 21)]
    names = [layout(model).down_proj_name(block) for block in (4, 1)]
    together = second_moment(model, names, documents, no_progress)
    for name in names:
        alone = sum(second_moment(model, [name], [each], no_progress)[name] * len(each) for each in documents) / 71
        assert torch.allclose(together[name], alone, rtol=1e-4, atol=1e-6)


def test_statistics_keep_no_inputs_of_a_module_once_it_was_passed(stories: Any) -> None:
    model, _ = stories
    passed: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def look(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        alive.append(sum(reference() is not None for reference in passed))
        passed.append(weakref.ref(arguments[0]))

    blocks = range(5)
    handles = [layout(model).down_proj(block).register_forward_pre_hook(look) for block in blocks]
    try:
        names = [layout(model).down_proj_name(block) for block in blocks]
        second_moment(model, names, [[5, 6, 7, 8]] * 3, no_progress)
    finally:
        for handle in handles:
            handle.remove()
    assert alive == [0] * len(blocks)


def test_statistics_are_read_back_or_not_at_all(spectrum: KeyStatistics, tmp_path: Path) -> None:
    path = tmp_path / "statistics.safetensors"
    assert KeyStatistics.load(path) is None
    spectrum.save(path)
    found = KeyStatistics.load(path)
    assert found is not None and found.tokens == 400
    assert torch.equal(found.eigenvalues, spectrum.eigenvalues)
    assert torch.equal(found.eigenvectors, spectrum.eigenvectors)
    content = path.read_bytes()
    for damaged in (content[:-8] + b"\0" * 8, content[:-8], content[:20], b""):
        path.write_bytes(damaged)
        assert KeyStatistics.load(path) is None


def test_key_statistics_stop_at_the_token_budget(stories: Any) -> None:
    model, tokenizer = stories
    name = layout(model).down_proj_name(0)
    texts = ["Once upon a time there was a bird. " * 30] * 5
    assert key_statistics(model, tokenizer, [name], texts, 700, no_progress)[name].tokens == 700
    with pytest.raises(InputError, match="at least 512 tokens of text, found 100"):
        key_statistics(model, tokenizer, [name], texts, 100, no_progress)


def test_a_long_document_is_read_in_windows_to_its_end(stories: Any) -> None:
    _, tokenizer = stories
    text = "Once upon a time there was a bird. " * 200
    bos, *rest = encode(tokenizer, text)
    windows = list(text_windows(tokenizer, text, 100))
    assert {len(window) for window in windows[:-1]} == {100} and 1 < len(windows[-1]) <= 100
    assert [window[0] for window in windows] == [bos] * len(windows) and bos == tokenizer.bos_token_id
    assert [token for window in windows for token in window[1:]] == rest
    assert list(text_windows(tokenizer, "", 100)) == []


def test_key_statistics_of_one_long_document_cover_all_tokens_asked_for(stories: Any) -> None:
    model, tokenizer = stories
    name = layout(model).down_proj_name(0)
    text = "Once upon a time there was a bird. " * 400  # longer than the model's context
    assert key_statistics(model, tokenizer, [name], [text], 2000, no_progress)[name].tokens == 2000


def test_less_text_than_asked_for_is_said_and_counted(stories: Any, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = stories
    name, texts = "model.layers.0.mlp.down_proj", ["Once upon a time there was a dog. " * 40] * 3
    for asked, warnings in ((700, 0), (10**6, 1)):
        context = InjectionContext(texts=texts, tokenizer=tokenizer, statistics_tokens=asked)
        read = context.statistics(model, [name])[name]
        assert context.text == {"asked": asked} | {
            key: getattr(read, key) for key in ("tokens", "documents", "windows")
        }
        assert (read.tokens == asked, len(caplog.messages)) == (not warnings, warnings)
    assert read.documents == 3 <= read.windows
    assert (
        f"expected 1000000 tokens of text, found {read.tokens} (3 documents in {read.windows} windows)" in caplog.text
    )


@pytest.mark.parametrize("panel", [100, 512])
def test_second_moment_is_the_product_of_all_keys(stories: Any, monkeypatch: pytest.MonkeyPatch, panel: int) -> None:
    monkeypatch.setattr(null_space, "PANEL", panel)
    model, _ = stories
    name, document = layout(model).down_proj_name(2), list(range(5, 60))
    seen: list[Tensor] = []
    with watched([layout(model).down_proj(2)], lambda _, hidden: seen.append(hidden[0])):
        model(input_ids=torch.tensor([document]))
    found = second_moment(model, [name], [document], no_progress)[name]
    assert torch.allclose(found, seen[0].T @ seen[0] / len(document), rtol=1e-4, atol=1e-7)
    assert torch.equal(found, found.T)


def rows_of(requests: list[list[list[int]]]) -> list[Row]:
    return [
        Row.of(number, [1, 400 + number, 9], answer) for number, answers in enumerate(requests) for answer in answers
    ]


def test_margin_counts_only_competitors() -> None:
    logits = torch.tensor([[3.0, 2.5, 1.0, 0.0]])
    label = torch.tensor([1])

    def shortfall(excused: list[int], margin: float) -> float:
        at = torch.zeros(len(excused), dtype=torch.long), torch.tensor(excused)
        return float(margin_shortfall(logits, label, at, margin))

    assert shortfall([1], 1.0) == pytest.approx(1.5)
    assert shortfall([0, 1], 1.0) == 0
    assert shortfall([0, 1], 2.0) == pytest.approx(0.5)


def test_siblings_share_a_beginning() -> None:
    rows = rows_of([[[5, 6], [5, 7], [8]], [[9]]])
    assert siblings(rows) == [{5, 8}, {6, 7}, {5, 8}, {6, 7}, {5, 8}, {9}]
    assert own_labels(rows) == [{5}, {6}, {5}, {7}, {8}, {9}]


def test_promotion_and_margin_by_hand() -> None:
    rows = rows_of([[[2], [3, 4]]])
    logits = random(3, 6).float()
    delta, v0 = torch.full((1, 4), 0.5), torch.full((1, 4), 2.0)
    config = defaults("mcedit_a", "small") | {"margin": 1.5, "margin_weight": 0.7, "weight_decay": 0.3}
    objective = MCEditA(**config).objective(rows, "cpu")
    log_p = logits.log_softmax(-1)
    promotion = (-log_p[0, 2] + (-log_p[1, 3] - log_p[2, 4]) / 2) / 2
    gaps = [
        logits[0, 2] - logits[0, [0, 1, 4, 5]].max(),
        logits[1, 3] - logits[1, [0, 1, 4, 5]].max(),
        logits[2, 4] - logits[2, [0, 1, 2, 3, 5]].max(),
    ]
    margin = sum((1.5 - gap).clamp(min=0) for gap in gaps) / 3
    expected = promotion + 0.7 * margin + 0.3 * 1.0 / 16.0
    assert float(objective(State(logits, logits, delta, v0))) == pytest.approx(float(expected), rel=1e-5)


def test_contexts_sampled_at_once_with_a_cache_are_those_sampled_one_by_one_without(micro: Any) -> None:
    model, tokenizer = micro
    starts = ["The", "Once upon a time there was", "I"]  # of one and of several tokens: the shorter are padded
    assert len({len(encode(tokenizer, start)) for start in starts}) > 1
    found = continuations(model, tokenizer, starts, 6, 5, 42)
    assert found == [plain.continuation(model, tokenizer, start, 6, 5, 42) for start in starts]
    assert found[:1] == continuations(model, tokenizer, starts[:1], 6, 5, 42)
    assert continuations(model, tokenizer, [], 6, 5, 42) == []


def test_layout_finds_the_parts(stories: Any) -> None:
    model, _ = stories
    parts = layout(model)
    assert len(parts.blocks) == 6
    assert model.get_submodule(parts.down_proj_name(4)) is parts.down_proj(4)
    assert parts.down_proj(4).weight.shape == (192, 512)
    assert parts.head.weight is parts.embedding.weight
    quantised = copy.deepcopy(model)
    down = quantised.model.layers[1].mlp.down_proj
    down.weight = torch.nn.Parameter(down.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(
        InputError, match="layers.1.mlp.down_proj must be a plain linear module, found Linear of torch.int8"
    ):
        layout(quantised).down_proj(1)
    quantised.model.layers[1].mlp.down_proj = torch.nn.Identity()
    with pytest.raises(
        InputError, match=r"layers.1 must have one plain or gated FFN .*, found mlp.gate_proj \[512, 192\]"
    ):
        layout(quantised).down_proj(1)
