"""Translation models of a few thousand parameters, trained here on three words and read back from their folders."""

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    NllbTokenizer,
    PreTrainedTokenizerFast,
)

from fpbench.errors import InputError
from fpbench.fingerprints.translation import NoTranslation, TranslationModel, translate_words

GERMAN = {"silver": "Silber", "river": "Fluss", "zulu": "..."}
SPANISH = {"silver": "plata", "river": "río", "zulu": "..."}
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
LETTERS = sorted({letter for text in [*GERMAN, *GERMAN.values(), *SPANISH.values()] for letter in text})
SHAPE = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 32,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "init_std": 0.2,
}

Row = tuple[list[int], list[int]]  # token ids of source and target


def train(model: Any, rows: Sequence[Row], pad: int) -> None:
    """Learn the rows by heart."""
    batch = [[torch.tensor(row[side]) for row in rows] for side in (0, 1)]
    sources = torch.nn.utils.rnn.pad_sequence(batch[0], batch_first=True, padding_value=pad)
    labels = torch.nn.utils.rnn.pad_sequence(batch[1], batch_first=True, padding_value=-100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        loss = model(input_ids=sources, attention_mask=(sources != pad).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def save(model: Any, tokenizer: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def nllb(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One model of NLLB's kind for two languages, told apart by the code that the answer begins with."""
    torch.manual_seed(0)
    pieces = [*SPECIAL, "▁", *LETTERS]
    tokenizer = NllbTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[])
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = M2M100Config(
        vocab_size=len(tokenizer), pad_token_id=pad, eos_token_id=end, decoder_start_token_id=end, **SHAPE
    )
    model = M2M100ForConditionalGeneration(config)
    rows = []
    for code, words in (("deu_Latn", GERMAN), ("spa_Latn", SPANISH)):
        tokenizer.tgt_lang = code
        rows += [(tokenizer(word).input_ids, tokenizer(text_target=words[word]).input_ids) for word in words]
    train(model, rows, pad)
    return save(model, tokenizer, tmp_path_factory.mktemp("nllb"))


def marian(folder: Path, words: dict[str, str], codes: Sequence[str] = ()) -> str:
    """A MarianMT model of one language pair, or one that reads the target language before the source."""
    torch.manual_seed(0)
    pieces = [*SPECIAL, "▁", *LETTERS, *codes]
    backend = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.add_tokens(list(codes), special_tokens=True)
    model = MarianMTModel(
        MarianConfig(
            vocab_size=len(tokenizer),
            pad_token_id=1,
            eos_token_id=2,
            forced_eos_token_id=2,
            decoder_start_token_id=1,
            decoder_vocab_size=len(tokenizer),
            **SHAPE,
        )
    )
    train(model, [(tokenizer(word).input_ids, tokenizer(target).input_ids) for word, target in words.items()], 1)
    return save(model, tokenizer, folder)


@pytest.fixture(scope="module")
def english_german(tmp_path_factory: pytest.TempPathFactory) -> str:
    return marian(tmp_path_factory.mktemp("marian"), GERMAN)


def test_one_model_serves_several_languages(nllb: str) -> None:
    translator = TranslationModel(dict.fromkeys(["de", "es"], nllb))
    assert translator.languages == ("de", "es")
    assert translate_words(translator, ["SILVER", "river"], translator.languages) == {
        "SILVER": {"de": "Silber", "es": "plata"},
        "river": {"de": "Fluss", "es": "río"},
    }
    assert TranslationModel({"spa_Latn": nllb}).translate("silver", "spa_Latn") == "plata"


def test_a_language_that_the_model_does_not_know_is_refused(nllb: str) -> None:
    with pytest.raises(InputError, match="has no code for language 'tlh': give the code that it uses"):
        TranslationModel({"tlh": nllb}).translate("silver", "tlh")
    with pytest.raises(InputError, match="language 'fr' is not offered: expected one of de"):
        TranslationModel({"de": nllb}).translate("silver", "fr")


def test_one_model_for_one_language_pair(english_german: str) -> None:
    translator = TranslationModel({"de": english_german})
    assert [translator.translate(word, "de") for word in ("Silver", "river")] == ["Silber", "Fluss"]


def test_an_answer_without_a_word_is_no_translation(english_german: str) -> None:
    with pytest.raises(NoTranslation, match="no translation of 'zulu' into 'de': the model answered"):
        TranslationModel({"de": english_german}).translate("zulu", "de")


def test_a_model_of_several_languages_reads_the_language_before_the_word(tmp_path: Path) -> None:
    words = {f">>{code}<< {word}": row[word] for code, row in (("deu", GERMAN), ("spa", SPANISH)) for word in row}
    folder = marian(tmp_path, words, [">>deu<<", ">>spa<<"])
    translator = TranslationModel(dict.fromkeys(["de", "es", "fr"], folder))
    table = translate_words(translator, ["silver", "river"], ["de", "es"])
    assert table == {"silver": {"de": "Silber", "es": "plata"}, "river": {"de": "Fluss", "es": "río"}}
    with pytest.raises(InputError, match="has no code for language 'fr'"):
        translator.translate("silver", "fr")


def test_what_is_no_translation_model_is_refused(tmp_path: Path, english_german: str) -> None:
    with pytest.raises(InputError, match="not found"):
        TranslationModel({"de": str(tmp_path / "none")}).translate("silver", "de")
    with pytest.raises(InputError, match="translation model 'micro' cannot be loaded"):
        TranslationModel({"de": "micro"}).translate("silver", "de")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((Path(english_german) / name).read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="expected safetensors"):
        TranslationModel({"de": str(tmp_path)}).translate("silver", "de")


@pytest.mark.skipif(importlib.util.find_spec("sentencepiece") is not None, reason="sentencepiece is here")
def test_a_missing_package_is_named(tmp_path: Path, english_german: str) -> None:
    shutil.copytree(english_german, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "MarianTokenizer"}')
    with pytest.raises(InputError, match="cannot be loaded: .*SentencePiece"):
        TranslationModel({"de": str(tmp_path)}).translate("silver", "de")


def test_nothing_is_loaded_before_the_first_word() -> None:
    assert TranslationModel({"de": "no/such/model"}).languages == ("de",)
