"""Translation by a language model behind an OpenAI-compatible endpoint (chat completions)."""

import json
from collections.abc import Sequence

from fpbench.errors import InputError
from fpbench.fingerprints.translation import require_language
from fpbench.fingerprints.translation_answers import as_word
from fpbench.models.remote import Server

TASK = "You are a bilingual dictionary. Answer with the translation alone: one word, no article, no explanation."


class TranslationEndpoint:
    """Asks ``POST {url}/chat/completions`` at temperature 0, one word a request.

    Overload (429), server errors (5xx) and broken connections are tried again, each time after twice the wait.

    Attributes:
        languages: ISO 639-1 codes.
    """

    def __init__(
        self,
        url: str,
        model: str,
        languages: Sequence[str],
        *,
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 60.0,
        attempts: int = 5,
        wait: float = 1.0,
    ) -> None:
        """Describe the endpoint; nothing is sent yet.

        Args:
            url: such as ``https://api.deepseek.com/v1``, without ``/chat/completions``.
            model: the model's name there.
            languages: ISO 639-1 codes.
            key_variable: environment variable with the API key, read at each request; unset for servers without one.
            timeout: seconds that one request may take without an answer.
            attempts: requests a word, at least 1.
            wait: seconds before the second attempt, unless the server's ``Retry-After`` asks for more.

        Raises:
            InputError: if the URL is not one of HTTP.
        """
        self._server = Server(url, [key_variable], timeout=timeout, attempts=attempts, wait=wait)
        self.languages = tuple(languages)
        self._model = model

    def translate(self, word: str, language: str) -> str:
        """See :meth:`Translator.translate <fpbench.fingerprints.translation.Translator.translate>`.

        Raises:
            InputError: also if the endpoint refuses, does not answer, or answers something else than a completion.
        """
        require_language(self.languages, language)
        question = (
            f"Translate the English word '{word.lower()}' into the language with the ISO 639-1 code '{language}'."
        )
        messages = [{"role": "system", "content": TASK}, {"role": "user", "content": question}]
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
