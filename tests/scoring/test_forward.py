"""Prefix-shared, packed and continued reading against the model alone, on every architecture that it is meant for."""

import copy
import random
from dataclasses import replace

import pytest
import torch
import transformers as hf

from fpbench.modifications.base import ModificationContext
from fpbench.registry import MODIFICATIONS
from fpbench.scoring import forward
from fpbench.scoring.engine import limited_to, read, shares_prefixes
from fpbench.scoring.forward import attention_mask, read_apart, read_trees
from fpbench.scoring.packing import apart, rows_of
from tests.conftest import load_plain

SMALL = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GROUPED = SMALL | {"num_key_value_heads": 2}
# Windows of six positions: most sequences reach beyond.
SHARING = {
    "llama": hf.LlamaConfig(**GROUPED),
    "mistral": hf.MistralConfig(**GROUPED, sliding_window=6),
    "qwen3": hf.Qwen3Config(**GROUPED, head_dim=8),
    "qwen2-window": hf.Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "gemma": hf.GemmaConfig(**GROUPED, head_dim=8),
    "gemma3": hf.Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=6,
                                  layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "gpt2": hf.GPT2Config(vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=256),
    "gpt_neox": hf.GPTNeoXConfig(**SMALL),
}  # fmt: skip
NOT_SHARING = {"bloom": hf.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4)}


def random_model(config):
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        # Freshly initialised models hardly look back: nothing would show a wrong mask.
        parameter.data.mul_(4 if parameter.dim() > 1 else 1)
    return model


def texts(size, count=30):
    draw = random.Random(1)
    made = []
    for _ in range(count // 3):
        stem = [draw.randrange(3, size) for _ in range(draw.randint(1, 25))]
        made += [stem + [draw.randrange(3, size) for _ in range(draw.randint(0, 5))] for _ in range(3)]
    return made


def continued(level):
    """Every sequence with 5, 5 7, 5 8 and 9 after it: next-token logits by continuation."""
    found = {number: {(): level.logits[node]} for number, (node,) in level.nodes.items()}
    order = [(number, token) for number in level.nodes for token in (5, 9)]
    for part, below in level.extend([level.nodes[number][0] for number, _ in order], [token for _, token in order]):
        for at, index in enumerate(part):
            number, token = order[index]
            found[number][(token,)] = below.logits[at]
            if token == 5:
                for again, deepest in below.extend([at, at], [7, 8]):
                    for node, which in enumerate(again):
                        found[number][5, (7, 8)[which]] = deepest.logits[node]
    return found


def continued_at_end(level):
    """The same of a level that has a node for every token, after the last one."""
    return continued(replace(level, nodes={number: nodes[-1:] for number, nodes in level.nodes.items()}))


def worst(model, sequences, found):
    """Largest difference from the model alone, in units of the largest logit."""
    size, differences = 0.0, []
    for sequence, answers in zip(sequences, found, strict=True):
        assert set(answers) == {(), (5,), (9,), (5, 7), (5, 8)}
        for tail, logits in answers.items():
            with torch.no_grad():
                alone = model(torch.tensor([[*sequence, *tail]])).logits[0, -1].float()
            size = max(size, alone.abs().max().item())
            differences.append((logits.float() - alone).abs().max().item())
    return max(differences) / size


@pytest.mark.parametrize("name", SHARING)
@pytest.mark.parametrize("budget", [1, 40, 4096])
def test_shared_packed_and_continued_is_as_alone(name, budget):
    model = random_model(SHARING[name])
    assert shares_prefixes(model)
    sequences = texts(97)
    with limited_to(budget):
        found = read(model, sequences, [1] * len(sequences), continued)
    assert worst(model, sequences, found) < 2e-5


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "gemma3"])
def test_the_last_block_goes_on_from_what_is_read_alone(name):
    model = random_model(SHARING[name])
    seen = []
    for block in model.model.layers[-2:]:
        block.mlp.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape[1]))
    sequences = {0: list(range(3, 43)), 1: list(range(3, 33)), 2: [5, 6, 7]}
    level = read_trees(model, rows_of(sequences, [1, 1, 1], 100, 0.0), 100)
    assert seen == [43, 3] and len(level.logits) == 3
    # Where every place is read there is nothing to leave out.
    read_trees(model, rows_of(sequences, [40, 30, 3], 100, 0.0), 100)
    assert seen[2:] == [43, 43]


@pytest.mark.parametrize("name", SHARING)
def test_texts_that_are_read_everywhere_need_no_mask_and_score_as_alone(name, monkeypatch):
    model = random_model(SHARING[name])
    sequences = {0: list(range(3, 43)), 1: list(range(43, 73)), 2: [75, 76]}
    masks = []
    monkeypatch.setattr(forward, "attention_mask", lambda *given: masks.append(made := attention_mask(*given)) or made)
    level = read_trees(model, rows_of(sequences, [40, 30, 2], 50, 1.0), 100)
    assert len(level.depths) == 3 and not masks  # three rows, of which two are padded
    for number, sequence in sequences.items():
        with torch.no_grad():
            alone = model(torch.tensor([sequence])).logits[0]
        torch.testing.assert_close(level.logits[level.nodes[number]], alone, atol=2e-5 * alone.abs().max(), rtol=0)
    assert worst(model, sequences.values(), [continued_at_end(level)[number] for number in sequences]) < 2e-5
    assert masks  # continuations have theirs


@pytest.mark.parametrize("name", NOT_SHARING)
def test_models_that_cannot_share_read_every_prompt_whole_and_say_so(name, caplog):
    model = random_model(NOT_SHARING[name])
    assert not shares_prefixes(model)
    sequences = texts(97, 9)
    with limited_to(40):
        found = read(model, sequences, [1] * len(sequences), continued)
    assert worst(model, sequences, found) < 2e-5
    assert "cannot share prefixes" in caplog.text


def test_sharing_that_goes_wrong_would_show():
    """The check of the check: with the wrong window the figures are far off."""
    model = random_model(SHARING["mistral"])
    sequences = texts(97)
    model.config.sliding_window = 200
    found = read(model, sequences, [1] * len(sequences), continued)
    model.config.sliding_window = 6
    assert worst(model, sequences, found) > 1e-2


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [("micro", torch.float32, 2e-5), ("micro", torch.bfloat16, 4e-2), ("stories3M", torch.float32, 2e-5),
     ("stories3M", torch.bfloat16, 4e-2), ("stories260K", torch.float32, 2e-5)],
)  # fmt: skip
def test_real_models(name, dtype, tolerance, request):
    if name == "micro":
        model = copy.deepcopy(request.getfixturevalue("micro")[0])
    else:
        model = load_plain(request.getfixturevalue("shared") / "models" / name)[0]
    model = model.to(dtype)
    sequences = texts(model.config.vocab_size, 15)
    found = read(model, sequences, [1] * len(sequences), continued)
    assert worst(model, sequences, found) < tolerance


@pytest.mark.parametrize(("condition", "tolerance"), [("nf4", 4e-2), ("int8", 5e-2)])
def test_quantised_models(condition, tolerance, micro):
    """NF4 computes in bfloat16 on some processors; what LLM.int8() quantises depends on what else is in the batch."""
    model = MODIFICATIONS.get(condition)().apply(copy.deepcopy(micro[0]), micro[1], ModificationContext()).model
    assert shares_prefixes(model)
    sequences = texts(model.config.vocab_size, 12)
    found = read(model, sequences, [1] * len(sequences), continued)
    assert worst(model, sequences, found) < tolerance


def test_both_ways_of_reading_give_the_same_nodes():
    model = random_model(SHARING["llama"])
    sequences = {0: [3, 4, 5], 1: [3, 4], 2: [3, 4, 6, 7]}
    wanted = [2, 1, 3]
    together = read_trees(model, rows_of(sequences, wanted, 100, 0.0), 100)
    single = read_apart(model, apart(sequences, wanted), 100)
    for number in range(3):
        torch.testing.assert_close(
            together.logits[together.nodes[number]], single.logits[single.nodes[number]], atol=1e-5, rtol=0
        )
    # [3, 4] and the inner token of the first sequence are one place.
    assert together.nodes[1][0] == together.nodes[0][0]
