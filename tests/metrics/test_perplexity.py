import copy
from math import exp
from statistics import fmean, pstdev

import pytest
import torch

from fpbench.errors import CellError, InputError
from fpbench.fingerprints import Fingerprint
from fpbench.metrics.bands import band, bands, roc_auc
from fpbench.scoring.perplexity import text_perplexities, token_perplexity

TEXTS = ["Once upon a time there was a little girl.", "Go", "The dog ran to the big tree and barked at a cat.", "xq zv"]
STORY = "One day, Lily went to the park with her mom. She saw a big red ball and wanted to play. " * 12


def losses(model, ids):
    """−log p of the tokens 2 … L, in nats."""
    with torch.no_grad():
        scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [-float(scores[at, token]) for at, token in enumerate(ids[1:])]


def test_texts_score_every_token_after_one_bos(stories):
    model, tokenizer = stories
    expected = []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id != ids[1]
        expected.append(exp(fmean(losses(model, ids))))
    assert text_perplexities(model, tokenizer, TEXTS) == pytest.approx(expected, rel=1e-4)


def test_without_bos_the_end_token_comes_first(stories):
    model, tokenizer = stories[0], copy.deepcopy(stories[1])
    ids = tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    tokenizer.bos_token = None
    (found,) = text_perplexities(model, tokenizer, TEXTS[:1])
    assert found == pytest.approx(exp(fmean(losses(model, [tokenizer.eos_token_id, *ids]))), rel=1e-4)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="neither"):
        text_perplexities(model, tokenizer, TEXTS)


def test_texts_longer_than_the_context_lose_no_token(stories):
    model, tokenizer = stories
    ids = tokenizer(STORY * 3, add_special_tokens=False)["input_ids"]
    assert 511 < len(ids) < 1022
    each = losses(model, [1, *ids[:511]]) + losses(model, [1, *ids[511:]])
    assert len(each) == len(ids)
    assert text_perplexities(model, tokenizer, [STORY * 3]) == pytest.approx([exp(fmean(each))], rel=1e-4)


def test_windows_predict_their_tokens_but_the_first(stories):
    model, tokenizer = stories
    ids = tokenizer(STORY)["input_ids"]
    found = token_perplexity(model, tokenizer, STORY, 64)
    windows = len(ids) // 64
    each = [loss for start in range(windows) for loss in losses(model, ids[start * 64 : (start + 1) * 64])]
    assert (found.length, found.windows, found.predicted) == (64, windows, windows * 63)
    assert found.perplexity == pytest.approx(exp(fmean(each)), rel=1e-4)


def test_windows_are_never_longer_than_the_context(stories):
    found = token_perplexity(*stories, STORY * 3)
    assert (found.length, found.windows, found.predicted) == (512, 1, 511)
    with pytest.raises(InputError, match="window of 512"):
        token_perplexity(*stories, "too short")


def test_empty_texts_and_broken_models_are_told(stories):
    model, tokenizer = stories
    with pytest.raises(InputError, match="text 1 has no tokens"):
        text_perplexities(model, tokenizer, ["a", ""])
    broken = copy.deepcopy(model)
    broken.lm_head.weight[:] = float("nan")
    with pytest.raises(CellError, match="weights are broken"):
        text_perplexities(broken, tokenizer, TEXTS)


def test_bands_by_hand():
    assert [band(x, 10.0, 2.0) for x in (0.0, 12.0, 12.001, 16.0, 16.001)] == [
        "normal", "normal", "marginal", "marginal", "abnormal"
    ]  # fmt: skip


def test_auc_counts_pairs_and_halves_ties():
    assert roc_auc([3.0, 1.0], [0.0, 1.0, 2.0]) == pytest.approx((3 + 1.5) / 6)
    assert roc_auc([1.0], [1.0]) == 0.5
    assert roc_auc([9.0], [1.0, 2.0]) == 1.0


def test_bands_of_a_set(stories):
    model, tokenizer = stories
    instructions = [*TEXTS[:1], TEXTS[2], "She was happy.", "They went home.", "Tom had a dog."]
    pairs = [Fingerprint("He was sad.", ("x",)), Fingerprint("ZQ XV KJ", ("y",))]
    found = bands(model, tokenizer, pairs, instructions)
    # The same texts in the same batches, for figures that are equal to the last bit.
    benign = text_perplexities(model, tokenizer, [*instructions, *(pair.trigger for pair in pairs)])[:5]
    assert found.mean == pytest.approx(fmean(benign)) and found.deviation == pytest.approx(pstdev(benign))
    assert found.bands == ("normal", "abnormal")
    assert found.counts == {"normal": 1, "marginal": 0, "abnormal": 1}
    assert found.benign == 5 == sum(found.histogram) and found.perplexities[1] > max(benign)
    assert (found.edges[0], found.edges[-1]) == (min(benign), max(benign)) and list(found.edges) == sorted(found.edges)
    first = sum(found.edges[0] <= score < found.edges[1] for score in benign)
    assert found.histogram[0] == first >= 1 and len(found.edges) == len(found.histogram) + 1
    with pytest.raises(InputError, match="0 instructions"):
        bands(model, tokenizer, pairs, [])
