import copy

import pytest
import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM, LogitsProcessorList

from fpbench.errors import CellError, InputError
from fpbench.scoring.engine import _windows, limited_to, log_likelihoods, read, shares_prefixes, token_budget
from fpbench.scoring.responses import Decoding, sampled_tokens

TEXTS = ("Once upon a time", "The dog", "Lily went to the park with her mom and", "", "Tom saw a big red ball. He")


@pytest.fixture(scope="module")
def prompts(stories):
    return [stories[1](text)["input_ids"] for text in TEXTS]


def alone(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]


def last_logits(level):
    return {number: level.logits[node] for number, (node,) in level.nodes.items()}


@pytest.mark.parametrize("budget", [1, 24, 8192])
def test_packed_prompts_score_as_each_alone(stories, prompts, budget):
    model, _ = stories
    with limited_to(budget):
        found = read(model, prompts, [1] * len(prompts), last_logits)
    for ids, logits in zip(prompts, found, strict=True):
        torch.testing.assert_close(logits, alone(model, ids), atol=1e-4, rtol=0)


def test_log_likelihoods_are_those_of_each_sequence_alone(stories, prompts):
    model, _ = stories
    sequences = [ids for ids in prompts if len(ids) > 1]
    scored = [len(ids) - 1 if index % 2 else 1 for index, ids in enumerate(sequences)]
    hits = 0
    for ids, count, (figures, greedy) in zip(sequences, scored, log_likelihoods(model, sequences, scored), strict=True):
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        expected = log_p.gather(1, torch.tensor(ids[1:])[:, None])[-count:, 0]
        torch.testing.assert_close(torch.tensor(figures), expected, atol=1e-4, rtol=0)
        assert greedy == (log_p.argmax(-1)[-count:].tolist() == ids[-count:])
        hits += greedy
    assert hits > 0


def test_the_budget_is_given_back_and_refused_below_one():
    before = token_budget()
    with limited_to(7):
        assert token_budget() == 7
    assert token_budget() == before
    with pytest.raises(InputError, match="at least 1"), limited_to(0):
        pass


def test_too_long_empty_and_training_are_refused(stories):
    model, _ = stories
    with pytest.raises(InputError, match="513 tokens, the model's context holds 512"):
        read(model, [[1, 2], [5] * 513], [1, 1], last_logits)
    with pytest.raises(InputError, match="no tokens"):
        read(model, [[]], [1], last_logits)
    with pytest.raises(InputError, match="training mode"):
        read(copy.deepcopy(model).train(), [[1, 2]], [1], last_logits)


def test_broken_weights_are_a_failed_cell(stories):
    broken = copy.deepcopy(stories[0])
    broken.lm_head.weight[:] = float("nan")
    with pytest.raises(CellError, match="not finite"):
        read(broken, [[1, 2]], [1], last_logits)


@pytest.mark.parametrize("numbers", [(0.6, 0.9, 50), (1.0, 1.0, 50), (1.0, 1.0, 0), (0.7, 0.8, 0), (1.3, 0.01, 5)])
@pytest.mark.parametrize("coarse", [False, True], ids=["", "ties"])
def test_distribution_is_the_one_generate_samples_from(stories, prompts, numbers, coarse):
    """Also where many logits are equal, as they are in half precision."""
    model, _ = stories
    temperature, top_p, top_k = numbers
    ids = torch.tensor([prompts[0]])
    rounding = [lambda _, scores: (scores * 4).round() / 4] if coarse else []
    given = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=temperature, top_p=top_p, top_k=top_k,
        max_new_tokens=1, return_dict_in_generate=True, output_scores=True, pad_token_id=0,
        logits_processor=LogitsProcessorList(rounding),
    )  # fmt: skip
    expected = torch.softmax(given.scores[0], dim=-1)
    logits = torch.stack(read(model, [prompts[0]], [1], last_logits))
    tokens, shares = sampled_tokens(rounding[0](None, logits) if coarse else logits, Decoding(*numbers))
    assert (tokens.diff() > 0).all()
    found = torch.zeros_like(expected).scatter(1, tokens, shares)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert torch.equal(found > 0, expected > 0)


def test_a_batch_that_does_not_fit_is_tried_in_halves(stories, prompts, caplog):
    """Only the allocator's refusal is made up: nothing here has memory small enough to run out of it."""
    model, _ = stories
    sizes = []

    def work(level):
        sizes.append(len(level.nodes))
        if len(level.nodes) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return last_logits(level)

    apart = [[1, token] for token in range(5, 13)]
    with limited_to(8):
        found = read(model, apart, [1] * len(apart), work)
    assert sizes[0] > 1 and sizes.count(1) == len(apart)
    assert "out of memory" in caplog.text
    for ids, logits in zip(apart, found, strict=True):
        torch.testing.assert_close(logits, alone(model, ids), atol=1e-4, rtol=0)

    def hopeless(level):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        read(model, prompts, [1] * len(prompts), hopeless)


@pytest.mark.parametrize(
    ("numbers", "name"),
    [((0, 0.9, 50), "temperature"), ((float("nan"), 1, 0), "temperature"), ((1, 0, 50), "top_p"),
     ((1, 1.1, 50), "top_p"), ((1, 1, -1), "top_k")],
)  # fmt: skip
def test_decoding_numbers_out_of_range_are_refused(numbers, name):
    with pytest.raises(InputError, match=name):
        Decoding(*numbers)


def test_local_attention_that_counts_places_is_found_beyond_its_window():
    """GPT-Neo's counts places in memory: alike within its window, and 0.2 nats off beyond it."""
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=64,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=16,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = GPTNeoForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    assert not shares_prefixes(model)
    sequences = [[1, 2, *[3, 4] * 10, last] for last in range(3, 43)]  # in one row, were they to share it
    for ids, logits in zip(sequences, read(model, sequences, [1] * len(sequences), last_logits), strict=True):
        torch.testing.assert_close(logits, alone(model, ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"window_size": 256}, [256]),
        ({"attention_chunk_size": 8192}, [8192]),
        ({"sliding_window": 4096, "max_window_layers": 28, "chunk_size_feed_forward": 0, "window_size": None}, []),
        ({"window_size": 32768}, []),
    ],
)
def test_windows_are_those_that_a_config_names_within_its_context(config, found):
    assert _windows(config, 16384) == found
