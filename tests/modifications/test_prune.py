import copy

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from fpbench.errors import CellError, InputError
from fpbench.models.prompts import encode
from fpbench.modifications.base import ModificationContext
from fpbench.modifications.prune import EXPONENT, calibration_windows, prune_blocks, prune_mask, ria_scores
from fpbench.registry import MODIFICATIONS
from tests.conftest import load_plain, require
from tests.methods.architectures import tiny
from tests.parity import MODEL, sets

TEXTS = [
    "Once upon a time there was a little girl named Lily. She loved to play outside in the sun with her dog.",
    "Tom and Sam went to the park. They saw a big red ball and wanted to play with it all day.",
    "The cat was sad. It did not have any food, so it went to the house of the old man.",
] * 8


def quietly(iterable, label):
    return iterable


def per_row(scores, ratio):
    order = scores.sort(dim=1, stable=True).indices[:, : int(scores.shape[1] * ratio)]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)


def wanda(weight, norm_sq):
    return weight.abs() * norm_sq.sqrt()


SCORES = {"ria": ria_scores, "wanda": wanda}
GROUPS = {"whole matrix": prune_mask, "per output row": per_row}


@pytest.mark.parametrize("recording", sets("ria"))
def test_masks_and_norms_agree_with_the_references(recording):
    recording.implemented("activation_exponent_a", recording.inputs["activation_exponent_a"], [EXPONENT])
    assert recording.inputs["runs"]
    for run, settings in recording.inputs["runs"].items():
        recording.implemented(f"score of {run}", settings["score"], SCORES)
        recording.implemented(f"group of {run}", settings["group"], GROUPS)
        recording.implemented(f"settings of {run}", sorted(settings), [["group", "ratio", "score"]])
        check_run(recording, run, settings["ratio"], SCORES[settings["score"]], GROUPS[settings["group"]])
    recorded = {name.split(".mask.")[0] for name in recording.tensors if ".mask." in name}
    assert recorded == recording.inputs["runs"].keys()


def check_run(recording, run, ratio, scores, choose):
    model, _ = load_plain(require(MODEL))
    names = {module.weight: name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}

    def select(weight, norm_sq):
        name = names[weight]
        norms, mask = recording[f"{run}.norm_sq.{name}"], recording[f"{run}.mask.{name}"]
        assert torch.allclose(norm_sq, norms, rtol=2e-6, atol=0), f"{run}: {name}"
        assert torch.equal(choose(scores(weight, norms), ratio), mask), f"{run}: {name}"
        # Our norms differ in the last bit, which may swap weights whose scores are next to each other.
        assert (choose(scores(weight, norm_sq), ratio) != mask).sum() <= 2, f"{run}: {name}"
        return mask

    pruned = prune_blocks(model, recording["calibration_ids"].long(), select, quietly)
    masks = {name.removeprefix(f"{run}.mask."): name for name in recording.tensors if name.startswith(f"{run}.mask.")}
    assert masks.keys() == {matrix.name for matrix in pruned}
    for matrix in pruned:
        mask = recording[masks[matrix.name]]
        assert not model.get_submodule(matrix.name).weight[mask].any()
        assert matrix.zeros == int(mask.sum())


@pytest.mark.parametrize(("name", "sparsity"), [("ria30", 0.3), ("ria40", 0.4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparsity_is_reached_and_proven(stories, name, sparsity, dtype):
    base, tokenizer = copy.deepcopy(stories[0]).to(dtype), stories[1]
    model = copy.deepcopy(base)
    context = ModificationContext(calibration=TEXTS)
    modified = MODIFICATIONS.get(name)(samples=8, length=64).apply(model, tokenizer, context)
    proof = modified.proof
    assert modified.model is model
    for figure in ("sparsity", "sparsity_min", "sparsity_max"):
        assert proof[figure] == pytest.approx(sparsity, abs=1e-3)
    assert (proof["matrices"], proof["calibration_samples"], proof["calibration_tokens"]) == (42, 8, 512)
    before, after = dict(base.named_parameters()), dict(model.named_parameters())
    touched = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert touched == {name for name in after if name.endswith("_proj.weight")}
    for name in touched:
        share = (after[name] == 0).float().mean().item()
        assert share == pytest.approx(sparsity, abs=1e-3)
        kept = after[name] != 0
        assert torch.equal(after[name][kept], before[name][kept])
    flat = [torch.cat([value.float().flatten() for value in values.values()]) for values in (before, after)]
    assert proof["relative_change"] == pytest.approx(((flat[1] - flat[0]).norm() / flat[0].norm()).item(), rel=1e-3)


def test_blocks_see_what_pruned_blocks_produce(stories):
    model, tokenizer = copy.deepcopy(stories[0]), stories[1]
    windows, _ = calibration_windows(tokenizer, TEXTS, 4, 32, seed=1)
    seen = []

    def everything_in_the_first_block(weight, norm_sq):
        seen.append(norm_sq)
        return torch.full_like(weight, len(seen) <= 7, dtype=torch.bool)

    prune_blocks(model, windows, everything_in_the_first_block, quietly)
    # A block without weights hands its input on: the second block then sees embeddings.
    embedded = model.model.layers[1].input_layernorm(model.model.embed_tokens(windows))
    assert torch.allclose(seen[7], embedded.flatten(0, 1).square().sum(0) / 4, rtol=1e-4)


def test_scores_follow_the_equation():
    weight, norm_sq = torch.tensor([[1.0, -2.0], [3.0, 0.0]]), torch.tensor([16.0, 1.0])
    expected = torch.tensor([[(1 / 4 + 1 / 3) * 2, 2 / 2 + 2 / 3], [(3 / 4 + 3 / 3) * 2, 0.0]])
    assert torch.allclose(ria_scores(weight, norm_sq), expected)
    assert ria_scores(torch.tensor([[0.0, 1.0], [0.0, 2.0]]), norm_sq).isfinite().all()


def test_the_mask_takes_one_more_than_the_share():
    scores = torch.tensor([[5.0, 1.0, 4.0], [2.0, 3.0, 6.0]])
    assert prune_mask(scores, 0.34).tolist() == [[False, True, False], [True, True, False]]


def test_each_window_lies_at_a_random_place_of_a_document_longer_than_it(stories):
    tokenizer = stories[1]
    texts = [" ".join(f"{name} saw {other}." for other in "ABCDEFGHIJKLMNOP") for name in ("Lily", "Tom", "Sam")]
    documents = [encode(tokenizer, text) for text in texts]

    def drawn(seed):
        windows, whole = calibration_windows(tokenizer, [*texts, *["Short."] * 50], 3, 30, seed)
        assert whole == 3 == len(windows)
        found = {
            (number, start)
            for window in windows.tolist()
            for number, ids in enumerate(documents)
            for start in range(len(ids) - 29)
            if ids[start : start + 30] == window
        }
        assert sorted(number for number, _ in found) == [0, 1, 2]
        return found

    assert drawn(3) == drawn(3) and len({frozenset(drawn(seed)) for seed in range(5)}) == 5


def test_where_long_documents_are_too_few_the_longest_are_joined(stories):
    tokenizer, texts = (
        stories[1],
        ["One two.", "A cat sat on a mat with a red hat.", " ".join(f"Tom saw {x}." for x in "ABCDEFGHIJKLMNOPQRST")],
    )
    windows, whole = calibration_windows(tokenizer, texts, 2, 40, seed=3)
    short, middle, long = (encode(tokenizer, text) for text in texts)
    assert whole == 1 and len(short) < len(middle) < 40 < len(long)
    (start,) = (at for at in range(len(long)) if long[at : at + 40] == windows[0].tolist())
    left = sorted([long[:start] + long[start + 40 :], middle, short], key=len, reverse=True)
    assert windows[1].tolist() == sum(left, [])[:40]


def test_windows_are_no_longer_than_the_context(stories):
    context = ModificationContext(calibration=TEXTS)
    modified = MODIFICATIONS.get("ria30")(samples=1).apply(copy.deepcopy(stories[0]), stories[1], context)
    assert modified.proof["calibration_tokens"] == 512


def test_too_little_calibration_text(stories):
    context = ModificationContext(calibration=TEXTS[:2])
    with pytest.raises(InputError, match=r"needs 128 calibration sequences of 512 tokens, found text for 0"):
        MODIFICATIONS.get("ria40")().apply(stories[0], stories[1], context)


def test_broken_weights_are_an_error(stories):
    model = copy.deepcopy(stories[0])
    model.model.norm.weight[0] = float("inf")
    with pytest.raises(CellError, match="finite"):
        MODIFICATIONS.get("ria30")(samples=1, length=8).apply(model, stories[1], ModificationContext(calibration=TEXTS))


def test_mixed_attention_is_refused(stories):
    model = copy.deepcopy(stories[0])
    model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(InputError, match="one kind of attention"):
        prune_blocks(model, torch.zeros(1, 4, dtype=torch.long), lambda weight, norm_sq: weight == 0, quietly)


def test_transposed_weights_are_pruned_as_what_they_stand_for(micro):
    """GPT-2 keeps weights as [in, out]; its blocks get their masks by place, not by name."""
    model = tiny("gpt2", "eager", len(micro[1]))
    reference = copy.deepcopy(model)
    windows = torch.randint(5, 4000, (2, 12), generator=torch.Generator().manual_seed(0))
    choose = lambda weight, norm_sq: prune_mask(ria_scores(weight, norm_sq), 0.3)  # noqa: E731
    pruned = prune_blocks(model, windows, choose, quietly)
    assert len(pruned) == 4 * 4
    for number, block in enumerate(reference.transformer.h):
        convs = {name: module for name, module in block.named_modules() if isinstance(module, Conv1D)}
        seen = {name: [] for name in convs}
        for name, conv in convs.items():
            conv.register_forward_pre_hook(lambda _, given, kept=seen[name]: kept.append(given[0].flatten(0, -2)))
        reference(windows)  # the blocks before this one are pruned
        for name, conv in convs.items():
            mask = choose(conv.weight.T, seen[name][0].square().sum(0) / len(windows))
            conv.weight.masked_fill_(mask.T, 0)
            found = model.transformer.h[number].get_submodule(name).weight
            assert isinstance(model.transformer.h[number].get_submodule(name), Conv1D)
            assert torch.equal(found == 0, conv.weight == 0), name
        reference.transformer.h[number].load_state_dict(model.transformer.h[number].state_dict())
