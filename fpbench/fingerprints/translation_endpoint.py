"""Translation by a language model behind an OpenAI-compatible endpoint (chat completions)."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.parse import urlsplit

from fpbench.errors import InputError
from fpbench.fingerprints.translation import require_language
from fpbench.fingerprints.translation_answers import as_word

TASK = "You are a bilingual dictionary. Answer with the translation alone: one word, no article, no explanation."
LARGEST = 1_000_000  # bytes of an answer
LONGEST_WAIT = 60.0  # seconds, whatever the server asks for


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
        try:
            parts = urlsplit(url)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname or not url.isascii():
            raise InputError(f"endpoint {url!r}: expected a URL such as https://api.deepseek.com/v1.")
        self.languages = tuple(languages)
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._model = model
        self._key_variable = key_variable
        self._timeout = timeout
        self._attempts = attempts
        self._wait = wait

    def translate(self, word: str, language: str) -> str:
        """See :meth:`Translator.translate <fpbench.fingerprints.translation.Translator.translate>`.

        Raises:
            InputError: also if the endpoint refuses, does not answer, or answers something else than a completion.
        """
        require_language(self.languages, language)
        question = (
            f"Translate the English word '{word.lower()}' into the language with the ISO 639-1 code '{language}'."
        )
        answer = self._ask([{"role": "system", "content": TASK}, {"role": "user", "content": question}])
        try:
            content = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            content = None
        if not isinstance(content, str):
            raise InputError(f"endpoint {self._url} did not answer {word!r} with a chat completion; check the URL.")
        return as_word(content, word, language)

    def _ask(self, messages: list[dict[str, str]]) -> bytes:
        body = json.dumps({"model": self._model, "messages": messages, "temperature": 0}).encode()
        request = urllib.request.Request(self._url, body, self._headers())
        wait = self._wait
        for attempt in range(1, self._attempts + 1):
            try:
                with _OPENER.open(request, timeout=self._timeout) as response:
                    answer: bytes = response.read(LARGEST)
                    return answer
            except urllib.error.HTTPError as error:
                with error:
                    reason, asked = f"status {error.code}", error.headers.get("Retry-After", "")
                if error.code != 429 and error.code < 500:
                    advice = f"check URL, model and the key in {self._key_variable}"
                    raise InputError(f"endpoint {self._url} refused with {reason}: {advice}.") from None
            except (OSError, HTTPException) as error:
                reason, asked = str(getattr(error, "reason", error)) or type(error).__name__, ""
            if attempt < self._attempts:
                time.sleep(min(LONGEST_WAIT, max(wait, float(asked) if asked.isdecimal() else 0.0)))
                wait *= 2
        raise InputError(f"endpoint {self._url} gave no answer in {self._attempts} attempts: {reason}.")

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        key = os.environ.get(self._key_variable, "").strip()
        # The library would quote a key that is no header value in its error.
        if not (key.isascii() and key.isprintable()):
            raise InputError(f"the key in {self._key_variable} holds characters that no API key has; set it anew.")
        if key:
            headers["Authorization"] = f"Bearer {key}"
        return headers


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key goes to the host that the user named, and to no other."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Any:
        """Follow nothing; the status then counts as a refusal."""
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)
