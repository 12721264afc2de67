import copy

import pytest
import torch

from fpbench.errors import CellError, InputError
from fpbench.models.scoring import Decoding, limited_to, packed, read_prompts, sampling_distribution, token_budget

TEXTS = ("Once upon a time", "The dog", "Lily went to the park with her mom and", "", "Tom saw a big red ball. He")


@pytest.fixture(scope="module")
def prompts(stories):
    return [stories[1](text)["input_ids"] for text in TEXTS]


def alone(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]


@pytest.mark.parametrize("budget", [1, 24, 8192])
def test_packed_prompts_score_as_each_alone(stories, prompts, budget):
    model, _ = stories
    found = {}
    with limited_to(budget):
        for batch in read_prompts(model, prompts):
            found |= dict(zip(batch.indices, batch.logits, strict=True))
    assert sorted(found) == list(range(len(prompts)))
    for index, ids in enumerate(prompts):
        torch.testing.assert_close(found[index], alone(model, ids), atol=1e-4, rtol=0)


def test_continuations_score_as_the_whole_text_and_leave_the_batch_as_it_was(stories, prompts):
    model, _ = stories
    (batch,) = read_prompts(model, prompts)
    rows, tails = [2, 0, 2, 1, 4], [(300, 301), (40, 50), (7, 8), (300, 301), (1000, 9)]
    for _ in range(2):
        for budget in (1, 8192):
            seen = 0
            with limited_to(budget):
                for span, logits in batch.extend(rows, tails):
                    for index, row in zip(span, logits, strict=True):
                        whole = [*prompts[batch.indices[rows[index]]], *tails[index]]
                        torch.testing.assert_close(row, alone(model, whole), atol=1e-4, rtol=0)
                        seen += 1
            assert seen == len(rows)


def test_the_budget_is_given_back_and_refused_below_one():
    before = token_budget()
    with limited_to(7):
        assert token_budget() == 7
    assert token_budget() == before
    with pytest.raises(InputError, match="at least 1"), limited_to(0):
        pass


def test_packing_keeps_the_budget_and_every_index():
    lengths = [5, 100, 7, 7, 30, 1]
    batches = list(packed(lengths, tokens=40, rows=3))
    assert sorted(index for batch in batches for index in batch) == list(range(6))
    assert batches[0] == [1]
    assert all(len(batch) <= 3 and len(batch) * max(lengths[i] for i in batch) <= 40 for batch in batches[1:])


def test_too_long_empty_and_training_are_refused(stories):
    model, _ = stories
    with pytest.raises(InputError, match="513 tokens, the model's context holds 512"):
        next(read_prompts(model, [[1, 2], [5] * 513]))
    with pytest.raises(InputError, match="no tokens"):
        next(read_prompts(model, [[]]))
    with pytest.raises(InputError, match="training mode"):
        next(read_prompts(copy.deepcopy(model).train(), [[1, 2]]))


def test_broken_weights_are_a_failed_cell(stories):
    broken = copy.deepcopy(stories[0])
    broken.lm_head.weight[:] = float("nan")
    with pytest.raises(CellError, match="not finite"):
        next(read_prompts(broken, [[1, 2]]))


@pytest.mark.parametrize("numbers", [(0.6, 0.9, 50), (1.0, 1.0, 50), (1.0, 1.0, 0), (0.7, 0.8, 0), (1.3, 0.01, 5)])
def test_distribution_is_the_one_generate_samples_from(stories, prompts, numbers):
    model, _ = stories
    temperature, top_p, top_k = numbers
    ids = torch.tensor([prompts[0]])
    given = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=temperature, top_p=top_p, top_k=top_k,
        max_new_tokens=1, return_dict_in_generate=True, output_scores=True, pad_token_id=0,
    )  # fmt: skip
    expected = torch.softmax(given.scores[0], dim=-1)
    (batch,) = read_prompts(model, [prompts[0]])
    found = sampling_distribution(batch.logits, Decoding(*numbers))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert torch.equal(found > 0, expected > 0)


@pytest.mark.parametrize(
    ("numbers", "name"),
    [((0, 0.9, 50), "temperature"), ((float("nan"), 1, 0), "temperature"), ((1, 0, 50), "top_p"),
     ((1, 1.1, 50), "top_p"), ((1, 1, -1), "top_k")],
)  # fmt: skip
def test_decoding_numbers_out_of_range_are_refused(numbers, name):
    with pytest.raises(InputError, match=name):
        Decoding(*numbers)
