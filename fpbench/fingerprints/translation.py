"""Translation of single English words (protocol §9): by a lexicon, by default, by an endpoint or by models."""

import json
import string
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fpbench.errors import InputError
from fpbench.http import Server
from fpbench.models.checkpoints import resolve
from fpbench.models.quiet import quiet

SHIPPED = Path(__file__).parent / "lexicon.tsv"


class NoTranslation(InputError):
    """A translator has no translation of a word into a language."""

    def __init__(self, word: str, language: str, reason: str) -> None:
        """Name word, language and reason in the message."""
        super().__init__(f"no translation of {word!r} into {language!r}: {reason}")


class Translator(Protocol):
    """Translates English words into its languages, whose codes are such as ``de`` or ``ja``."""

    @property
    def languages(self) -> tuple[str, ...]:
        """Return the codes of the languages."""

    def translate(self, word: str, language: str) -> str:
        """Translate an English word, in any case, to one non-empty line in normal form C, cased as in a dictionary.

        Raises:
            InputError: naming word and language if there is no translation, or the language if it is not offered.
        """


def require_language(languages: Iterable[str], language: str) -> None:
    """Refuse a language that a translator does not offer.

    Raises:
        InputError: naming it and those offered.
    """
    if language not in languages:
        raise InputError(f"language {language!r} is not offered: expected one of {', '.join(languages)}.")


def translate_words(
    translator: Translator, words: Iterable[str], languages: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Translate every word into every language: word → language → translation.

    Raises:
        InputError: one line with all the words that lack a translation, and into which languages.
    """
    table: dict[str, dict[str, str]] = {word: {} for word in words}
    missing: dict[str, list[str]] = {}
    for word, translations in table.items():
        for language in languages:
            try:
                translations[language] = translator.translate(word, language)
            except NoTranslation:
                missing.setdefault(word, []).append(language)
    if missing:
        each = "; ".join(f"{word!r} into {', '.join(lacking)}" for word, lacking in missing.items())
        raise InputError(f"no translation of {each}: choose other words or languages, or another translator.")
    return table


class Lexicon:
    """A table of English words and their translations.

    Attributes:
        languages: the codes of the header, in its order.
        words: the English words in lower case, in the file's order.
    """

    def __init__(self, name: str, languages: Sequence[str], entries: Mapping[str, Sequence[str]]) -> None:
        """Hold the translations of each English word, one a language; messages about missing words give ``name``."""
        self.name = name
        self.languages = tuple(languages)
        self.words = tuple(entries)
        self._entries = entries

    @classmethod
    def load(cls, path: str | Path, name: str = "") -> "Lexicon":
        r"""Read a UTF-8 file with the header ``english\tde\tes\t…`` and a word with its translations on each line.

        Blank lines, a byte-order mark and line ends of Windows are accepted; cells are brought to normal form C, and
        English words are case-folded.

        Raises:
            InputError: naming the line and what is wrong with it.
        """
        lines = [(number, line) for number, line in enumerate(_read(path).split("\n"), start=1) if line.strip()]
        if len(lines) < 2:
            raise InputError(
                f"lexicon {path} holds no words: expected the header 'english, tab, de, …' and a word a line."
            )
        header = _cells(lines[0][1], f"{path}, line {lines[0][0]}")
        if header[0] != "english" or len(header) < 2 or len(set(header)) < len(header):
            raise InputError(
                f"{path}, line {lines[0][0]}: expected the header 'english' and one or more different language codes, "
                f"separated by tabs, found {lines[0][1].strip()!r}."
            )
        entries: dict[str, list[str]] = {}
        first: dict[str, int] = {}
        for number, line in lines[1:]:
            where = f"{path}, line {number}"
            cells = _cells(line, where)
            if len(cells) != len(header):
                raise InputError(f"{where}: expected {len(header)} cells, found {len(cells)}: {line!r}.")
            word = cells[0].casefold()
            if word in entries:
                raise InputError(
                    f"{where}: duplicate word {word!r}, first seen on line {first[word]}; remove one of them."
                )
            entries[word], first[word] = cells[1:], number
        return cls(name or str(path), header[1:], entries)

    @classmethod
    def shipped(cls) -> "Lexicon":
        """Return our own lexicon: German, Spanish, French, Japanese and (simplified) Chinese."""
        return cls.load(SHIPPED, "that is shipped")

    def translate(self, word: str, language: str) -> str:
        """See :meth:`Translator.translate`."""
        require_language(self.languages, language)
        translations = self._entries.get(unicodedata.normalize("NFC", word).strip().casefold())
        if translations is None:
            raise NoTranslation(word, language, f"the lexicon {self.name} lacks the word; give one that has it.")
        return translations[self.languages.index(language)]


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"lexicon {path} does not exist: expected tab-separated lines; check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"lexicon {path} cannot be read as UTF-8 text: {error}") from None


def _cells(line: str, where: str) -> list[str]:
    line = line.removesuffix("\r")
    cells = [unicodedata.normalize("NFC", cell.strip()) for cell in line.split("\t")]
    for number, cell in enumerate(cells, start=1):
        if not cell:
            raise InputError(f"{where}: cell {number} of {line!r} is empty; expected a word in every cell.")
        if any(unicodedata.category(character) == "Cc" for character in cell):
            raise InputError(f"{where}: cell {number} holds a control character: {cell!r}; remove it.")
    return cells


LONGEST_WORD = 40  # characters; a longer answer is an explanation
_AROUND = string.whitespace + string.punctuation + "。、，！？「」『』“”„‘’«»…¿¡"


def as_word(answer: str, word: str, language: str) -> str:
    """Bring a model's answer to normal form C and strip the punctuation around it.

    Raises:
        NoTranslation: if no letter is left, or more than one short line.
    """
    text = unicodedata.normalize("NFC", answer).strip(_AROUND)
    if not any(character.isalpha() for character in text):
        raise NoTranslation(word, language, f"the model answered {answer[:LONGEST_WORD]!r}.")
    if len(text) > LONGEST_WORD or len(text.splitlines()) > 1:
        raise NoTranslation(
            word, language, f"expected one word, but the model's answer begins {text[:LONGEST_WORD]!r}."
        )
    return text


TASK = "You are a bilingual dictionary. Answer with the translation alone: one word, no article, no explanation."


class TranslationEndpoint:
    """Asks ``POST {url}/chat/completions`` at temperature 0, one word a request.

    Overload (429), server errors (5xx) and broken connections are tried again, each time after twice the wait.
    """

    def __init__(
        self, url: str, model: str, languages: Sequence[str], key_variable: str | None = None, **patience: Any
    ) -> None:
        """Describe the endpoint; nothing is sent yet.

        Args:
            url: such as ``https://api.deepseek.com/v1``, without ``/chat/completions``.
            model: the model's name there.
            languages: ISO 639-1 codes.
            key_variable: environment variable with the API key (:class:`~fpbench.http.Server`).
            patience: ``timeout``, ``attempts`` and ``wait`` of a :class:`~fpbench.http.Server`.

        Raises:
            InputError: if the URL is not one of HTTP.
        """
        self._server = Server(url, key_variable, **patience)
        self.languages = tuple(languages)
        self._model = model

    def translate(self, word: str, language: str) -> str:
        """See :meth:`Translator.translate`.

        Raises:
            InputError: also if the endpoint refuses, does not answer, or answers something else than a completion.
        """
        require_language(self.languages, language)
        asked = f"Translate the English word '{word.lower()}' into the language with the ISO 639-1 code '{language}'."
        messages = [{"role": "system", "content": TASK}, {"role": "user", "content": asked}]
        body = {"model": self._model, "messages": messages, "temperature": 0}
        answer = self._server.ask("/chat/completions", body, bytes)
        try:
            content = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            content = None
        if not isinstance(content, str):
            raise InputError(
                f"endpoint {self._server.url} did not answer {word!r} with a chat completion; check the URL."
            )
        return as_word(content, word, language)


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
LONGEST_ANSWER = 16  # tokens of an answer


class TranslationModel:
    """Translates with MarianMT (one a language), NLLB or M2M100 models, on the CPU, by beam search without sampling.

    A language outside the shipped lexicon goes by the model's own code, such as ``ita_Latn``.
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
        """See :meth:`Translator.translate`.

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
            options |= tokenizer(text, return_tensors="pt", return_token_type_ids=False)
            output = model.generate(**options, num_beams=BEAMS, do_sample=False, max_new_tokens=LONGEST_ANSWER)
        return as_word(tokenizer.decode(output[0], skip_special_tokens=True), word, language)


def _code(known: set[str], name: str, language: str) -> str:
    """Return the token that names the target language; empty for a MarianMT model of one language pair."""
    codes: list[str] = [*CODES.get(language, ()), language, f"__{language}__", f">>{language}<<"]
    for code in codes:
        if code in known:
            return code
    if not known:
        return ""
    raise InputError(f"translation model {name!r} has no code for language {language!r}: give the code that it uses.")


def _load(name: str) -> tuple[Any, Any, set[str]]:
    """Load model, tokenizer and the tokens that may name a language: none for a MarianMT model of one pair."""
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


def translator_of(words: Sequence[str], languages: Sequence[str] = ()) -> Translator:
    """Return the translator that a command line describes.

    Args:
        words: URL and model of an endpoint, one model for all languages, or ``LANGUAGE=MODEL`` for each.
        languages: codes, by default the shipped lexicon's.

    Raises:
        InputError: if the words are none of these.
    """
    languages = tuple(languages or CODES)
    if words[0].startswith(("http://", "https://")):
        if len(words) != 2:
            raise InputError(f"an endpoint is named by URL and model, found {len(words)} words after --translator.")
        return TranslationEndpoint(words[0], words[1], languages)
    if len(words) == 1 and "=" not in words[0]:
        return TranslationModel(dict.fromkeys(languages, words[0]))
    pairs = [word.partition("=") for word in words]
    if not all(language and name for language, _, name in pairs):
        raise InputError("--translator: expected one model for all languages, or LANGUAGE=MODEL for each.")
    return TranslationModel({language: name for language, _, name in pairs})
