"""Translation by Hugging Face models: one MarianMT model a language, or one NLLB or M2M100 model for all."""

from collections.abc import Mapping
from typing import Any

from fpbench.errors import InputError
from fpbench.fingerprints.translation import require_language
from fpbench.fingerprints.translation_answers import as_word
from fpbench.models.loading import quiet, resolve

# How NLLB and the multilingual MarianMT models write the languages of the shipped lexicon.
CODES = {
    "de": ("deu_Latn", ">>deu<<"),
    "es": ("spa_Latn", ">>spa<<"),
    "fr": ("fra_Latn", ">>fra<<"),
    "ja": ("jpn_Jpan", ">>jpn<<"),
    "zh": ("zho_Hans", ">>cmn_Hans<<"),
}
ENGLISH = {"eng_Latn": "eng_Latn", "__en__": "en"}  # token of the source language: its name in the tokenizer
BEAMS = 4
LONGEST = 16  # tokens of an answer


class TranslationModel:
    """Translates with sequence-to-sequence models, from safetensors only, on the CPU, by beam search without sampling.

    Attributes:
        languages: codes such as ``de``; a language outside the shipped lexicon goes by the model's own code, such as
            ``ita_Latn``.
    """

    def __init__(self, models: Mapping[str, str]) -> None:
        """Name a model for each language; it is loaded when its first word is asked for.

        Args:
            models: for each language a folder or hub id. The same one may serve several languages, as with
                ``dict.fromkeys(["de", "ja"], "facebook/nllb-200-distilled-600M")``.
        """
        self.languages = tuple(models)
        self._models = models
        self._loaded: dict[str, tuple[Any, Any, set[str]]] = {}

    def translate(self, word: str, language: str) -> str:
        """See :meth:`Translator.translate <fpbench.fingerprints.translation.Translator.translate>`.

        Raises:
            InputError: also if the model cannot be loaded or does not know the language.
        """
        require_language(self.languages, language)
        name = self._models[language]
        if name not in self._loaded:
            self._loaded[name] = _load(name)
        model, tokenizer, known = self._loaded[name]
        code = _code(known, name, language)
        text, options = word.lower(), {}
        if code.startswith(">>"):
            text = f"{code} {text}"
        elif code:
            options["forced_bos_token_id"] = tokenizer.convert_tokens_to_ids(code)
        with quiet():
            inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
            output = model.generate(**inputs, **options, num_beams=BEAMS, do_sample=False, max_new_tokens=LONGEST)
        return as_word(tokenizer.decode(output[0], skip_special_tokens=True), word, language)


def _code(known: set[str], name: str, language: str) -> str:
    """The token that tells the model the target language; empty for a MarianMT model of one language pair."""
    codes: list[str] = [*CODES.get(language, ()), language, f"__{language}__", f">>{language}<<"]
    for code in codes:
        if code in known:
            return code
    if not known:
        return ""
    raise InputError(f"translation model {name!r} has no code for language {language!r}: give the code that it uses.")


def _load(name: str) -> tuple[Any, Any, set[str]]:
    """Model, tokenizer and the tokens that may name a language, none for a MarianMT model of one pair."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    folder = resolve(name)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForSeq2SeqLM.from_pretrained(folder, use_safetensors=True, dtype="float32")
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        # MarianMT's and M2M100's own tokenizers need the package sentencepiece; the reason then says so.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"translation model {name!r} cannot be loaded: {reason}") from None
    for token, source in ENGLISH.items():
        if token in tokenizer.get_added_vocab():
            tokenizer.src_lang = source
    if model.config.model_type == "marian":
        known = {token for token in tokenizer.get_vocab() if token.startswith(">>") and token.endswith("<<")}
    else:
        # Only special tokens count: "de" alone may well be a piece of a word.
        known = set(tokenizer.get_added_vocab())
    return model.eval().requires_grad_(False), tokenizer, known
