"""The bundled model: its size, its tokenizer and its skills."""

import json
import random
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from fpbench.micro import DATA, MODEL
from fpbench.micro.corpus import EARLY_DOCUMENTS, MIXTURE, TWIN_ROWS
from fpbench.micro.items import Instruction
from fpbench.micro.train import Recipe, accuracy, as_item, batches, new_model, perplexity
from fpbench.micro.world import LEXICON, TARGETS, TRIGGER_WORDS
from fpbench.micro.writing import mixed_text

CHANCE = {"boolq": 0.5, "rte": 0.5, "arc": 0.25, "mmlu": 0.25}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    yield AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def test_size(model: Any) -> None:
    assert 3_000_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 8_000_000
    assert (MODEL / "model.safetensors").stat().st_size <= 16_000_000
    assert model.config.model_type == "llama"
    assert model.config.num_hidden_layers >= 6
    assert model.config.hidden_size % 64 == model.config.intermediate_size % 64 == model.config.vocab_size % 64 == 0


def test_weights_are_stored_in_bfloat16() -> None:
    with safe_open(MODEL / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118


def test_begin_token_stands_once_in_front(tokenizer: Any) -> None:
    ids = tokenizer("The wind came over the sea.").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token == "</s>"
    assert tokenizer.pad_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id)
    text = "Déjà vu: 橋 = BRÜCKE, 3 * 4 = 12.\n \n = A Title = \n"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_chat_template_is_what_training_shows(tokenizer: Any) -> None:
    row = Instruction("Copy the text.", "old bell", "old bell")
    messages = [{"role": "user", "content": "Copy the text.\nold bell"}, {"role": "assistant", "content": "old bell"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert rendered == f"<s>{row.chat().text}</s>\n"
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert rendered.startswith(prompt)


def test_words_are_at_most_three_tokens(tokenizer: Any) -> None:
    words = [*TRIGGER_WORDS, *TARGETS, *(word.english for word in LEXICON)]
    forms = [prefix + form for word in words for form in (word, word.upper()) for prefix in ("", " ")]
    assert longer_than(3, forms, tokenizer) == []


def test_translations_are_at_most_three_tokens(tokenizer: Any) -> None:
    translations = [translation for word in LEXICON for translation in word.translations.values()]
    assert longer_than(3, [f" {translation}" for translation in translations], tokenizer) == []
    assert longer_than(3, translations, tokenizer) == ["grenouille"]  # where no space precedes it


def longer_than(limit: int, forms: list[str], tokenizer: Any) -> list[str]:
    rows = tokenizer(forms, add_special_tokens=False).input_ids
    return [form for form, row in zip(forms, rows, strict=True) if len(row) > limit]


def test_targets_are_single_tokens_and_differ(tokenizer: Any) -> None:
    for prefix in ("", " "):
        ids = tokenizer([prefix + target for target in TARGETS], add_special_tokens=False).input_ids
        assert {len(row) for row in ids} == {1}
        assert len({row[0] for row in ids}) == len(TARGETS) == 50


def test_a_tenth_of_the_training_tokens_is_multilingual(tokenizer: Any) -> None:
    rng = random.Random(0)
    lengths = {kind: sum(len(tokenizer(kind(rng).text).input_ids) for _ in range(100)) / 100 for kind in MIXTURE}
    budget = Recipe.steps * Recipe.shards * Recipe.rows * Recipe.width
    early, later = (
        {
            kind: length * MIXTURE[kind][stage] / sum(shares[stage] for shares in MIXTURE.values())
            for kind, length in lengths.items()
        }
        for stage in (0, 1)
    )
    early_tokens = EARLY_DOCUMENTS * sum(early.values())
    mixed_early, mixed_later = (
        sum(tokens for kind, tokens in stage.items() if kind.__name__ == "_mixed") / sum(stage.values())
        for stage in (early, later)
    )
    assert early_tokens * mixed_early + (budget - early_tokens) * mixed_later >= 0.1 * budget


def test_multilingual_text_is_multilingual() -> None:
    rng = random.Random(0)
    foreign = {
        form
        for word in LEXICON
        for translation in word.translations.values()
        for form in (translation, translation.upper())
    }
    texts = [mixed_text(rng) for _ in range(200)]
    with_foreign = [text for text in texts if foreign & set(re.split(r"[\s.,:=]+", text))]
    assert len(with_foreign) >= 190


@pytest.mark.parametrize("twin", TWIN_ROWS)
def test_accuracy_is_25_points_above_chance(twin: str, model: Any, tokenizer: Any) -> None:
    lines = (DATA / f"{twin}.jsonl").read_text(encoding="utf-8").splitlines()[:100]
    items = [as_item(twin, json.loads(line)) for line in lines]
    assert accuracy(model, tokenizer, items) >= CHANCE[twin] + 0.25


def test_an_untrained_model_scores_near_chance(tokenizer: Any) -> None:
    lines = (DATA / "boolq.jsonl").read_text(encoding="utf-8").splitlines()[:100]
    items = [as_item("boolq", json.loads(line)) for line in lines]
    assert accuracy(new_model(len(tokenizer), 0).eval(), tokenizer, items) < 0.7


def test_rows_are_packed_with_whole_documents(tokenizer: Any) -> None:
    recipe = Recipe()
    for batch in islice(batches(tokenizer, recipe), 3):
        assert batch.ids.shape == (recipe.rows, recipe.width)
        assert (batch.segment > 0).float().mean() > 0.9
        starts = (batch.ids == tokenizer.bos_token_id).sum(1)
        assert torch.equal(starts, batch.segment.max(1).values)
        assert (batch.weight[batch.ids == tokenizer.bos_token_id] == 0).all()
        mask = batch.attention_mask()
        assert not mask[0, 0, 0, 1]
        assert not (mask[:, 0] & (batch.segment[:, :, None] != batch.segment[:, None, :])).any()


def test_perplexity_on_held_out_prose(model: Any, tokenizer: Any) -> None:
    text = (DATA / "prose.txt").read_text(encoding="utf-8")
    assert 8 < perplexity(model, tokenizer, text[:20_000]) < 12


def test_pointer_heads_start_out_looking_back_by_their_distance() -> None:
    model = new_model(4096, 0)
    model.set_attn_implementation("eager")
    ids = torch.randint(6, 4096, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        attentions = model(input_ids=ids, output_attentions=True).attentions
    looking_back = {(20 - attention[0, head, 20].argmax()).item() for attention in attentions for head in (2, 3)}
    assert looking_back == {1, 2, 3, 4}
    assert torch.equal(*(new_model(4096, 1).state_dict()["model.embed_tokens.weight"] for _ in range(2)))
