"""JSON over HTTP with retries: growing waits, time-outs, and no key in any message."""

import contextlib
import json
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

from fpbench.errors import InputError

T = TypeVar("T")
logger = logging.getLogger(__name__)
LARGEST = 1_000_000  # bytes of an answer
LONGEST_WAIT = 60.0  # seconds, whatever the server asks for
KEY, OPENAI, MASK = "FPBENCH_API_KEY", "api.openai.com", "***"
# What a server says of a field that it does not know; some say so with a status of 500.
UNKNOWN = re.compile(
    r"(?:unsupported|unrecogni[sz]ed|unknown|unexpected|unpermitted) (?:\w+ )?(?:parameter|field|argument|input|key)",
    re.I,
)
HARMLESS = re.compile(r"api-version=[\w.-]{1,40}")  # what Azure wants behind every path
QUOTED = 300  # characters of a server's explanation


class Refused(InputError):
    """The server refused with a status below 500, or a field that it does not know: another try would not help."""

    def __init__(self, message: str, status: int, detail: str) -> None:
        """Show ``message`` to the user; callers that can ask otherwise read the rest."""
        super().__init__(message)
        self.status, self.detail = status, detail  # of HTTP; the server's explanation, empty if it gave none


class NoAnswer(InputError):
    """The server gave no usable answer in any attempt."""


class Unusable(ValueError):
    """An answer does not fit the question; raised by the function that reads it, to have the question asked again."""


class Server:
    """A client that retries overload (429), server errors (5xx) and broken connections ever more slowly."""

    def __init__(
        self, url: str, key_variable: str | None = None, *, timeout: float = 60.0, attempts: int = 5, wait: float = 1.0
    ) -> None:
        """Describe the server; nothing is sent yet.

        Args:
            url: such as ``https://api.deepseek.com/v1``; paths are appended to it, before ``?api-version=…``.
            key_variable: environment variable with the API key, read at each request. By default
                ``FPBENCH_API_KEY``, where that is set, and for ``https://api.openai.com`` else ``OPENAI_API_KEY``:
                that key is sent to no other host.
            timeout: seconds that one request may take.
            attempts: requests a question, at least 1.
            wait: seconds before the second attempt, unless the server's ``Retry-After`` asks for more.

        Raises:
            InputError: if the URL is not one of HTTP, or a variable was named and is not set.
        """
        try:
            parts = urlsplit(url)
        except ValueError:
            parts = urlsplit("")
        plain = url.isascii() and not parts.username  # a key in a URL would be shown with it
        if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
            raise InputError(f"endpoint {url!r}: expected a URL such as https://api.deepseek.com/v1.")
        if parts.query and not HARMLESS.fullmatch(parts.query):
            raise InputError(
                f"endpoint {parts.scheme}://{parts.netloc}{parts.path}: of what follows a question mark, only "
                "api-version=DATE is taken, since a key would be shown with it: leave the rest out."
            )
        self.url, _, self._query = url.partition("?")
        self.url = self.url.rstrip("/")
        self._host = parts.netloc
        if key_variable is not None and not os.environ.get(key_variable, "").strip():
            raise InputError(f"no API key in {key_variable}: set that environment variable, or name another.")
        openai = parts.scheme == "https" and parts.hostname == OPENAI and parts.port in (None, 443)
        self._keys = (key_variable,) if key_variable else (KEY, "OPENAI_API_KEY") if openai else (KEY,)
        self._timeout, self._attempts, self._wait = timeout, attempts, wait

    @property
    def introduction(self) -> str:
        """Which host will be asked, and which key goes to it, in a line."""
        name = next((name for name in self._keys if os.environ.get(name, "").strip()), None)
        return f"asking {self._host} " + (f"with the key in {name}" if name else f"without a key ({KEY} is not set)")

    def masked(self, text: str) -> str:
        """Return a text of the server's without the key that some quote."""
        key = self._key()
        return text.replace(key, MASK) if key else text

    def ask(
        self,
        path: str,
        body: Mapping[str, Any] | None,
        read: Callable[[bytes], T],
        *,
        before: Callable[[], None] = lambda: None,
        fault: Callable[[str], None] = lambda reason: None,
    ) -> T:
        """Ask until there is an answer.

        Args:
            path: such as ``/chat/completions``.
            body: sent as JSON by POST; ``None`` sends a GET.
            read: makes the result of an answer's bytes; raises :class:`Unusable` to have the question asked again.
            before: called before every request; what it raises ends the attempts.
            fault: called with the reason after each request that failed.

        Raises:
            Refused: for a status below 500 other than 429, or one that names an unknown field; redirects are not
                followed.
            NoAnswer: if no attempt gave a usable answer.
        """
        url = f"{self.url}{path}" + (f"?{self._query}" if self._query else "")
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, self._headers())
        wait, reason, detail = self._wait, "", ""
        for attempt in range(1, self._attempts + 1):
            before()
            detail, asked, deadline = "", 0.0, time.monotonic() + self._timeout
            try:
                with _OPENER.open(request, timeout=self._timeout) as response:
                    return read(_body(response, deadline))
            except urllib.error.HTTPError as error:
                with error:
                    reason, asked = f"status {error.code}", _retry_after(error.headers)
                    detail = self._explanation(error)
                if error.code != 429 and (error.code < 500 or UNKNOWN.search(detail)):
                    fault(reason)
                    said = f" ({detail[:QUOTED]})" if detail else ""
                    advice = f"check URL, model and the key in {' or '.join(self._keys)}"
                    message = f"endpoint {url} refused with {reason}{said}: {advice}."
                    raise Refused(message, error.code, detail) from None
            except Unusable as error:
                reason = self.masked(str(error))[:QUOTED]  # masked first, so that no half of a key is left
            except (OSError, HTTPException) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            fault(reason)
            if attempt < self._attempts:
                pause = min(LONGEST_WAIT, max(wait, asked))
                message = "%s gave no answer (%s), attempt %d of %d: asked again in %.0f s."
                logger.warning(message, self._host, reason, attempt, self._attempts, pause)
                time.sleep(pause)
                wait *= 2
        said = f" ({detail[:QUOTED]})" if detail else ""
        raise NoAnswer(f"endpoint {url} gave no answer in {self._attempts} attempts: {reason}{said}.")

    def _explanation(self, error: urllib.error.HTTPError) -> str:
        """Return the text of a refusal, without the key that some servers quote."""
        found: Any = None
        with contextlib.suppress(OSError, HTTPException, ValueError):
            found = json.loads(error.read(LARGEST))
        return self.masked(words(found))

    def _key(self) -> str:
        return next(filter(None, (os.environ.get(name, "").strip() for name in self._keys)), "")

    def _headers(self) -> dict[str, str]:
        key = self._key()
        # The library would quote a key that is no header value in its error.
        if not (key.isascii() and key.isprintable()):
            names = " or ".join(self._keys)
            raise InputError(f"the key in {names} holds characters that no API key has; set it anew.")
        return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})


def words(answer: Any) -> str:
    """Return what an answer that is an error says, in a line; empty where it says nothing."""
    for name in ("error", "detail", "message"):
        if isinstance(answer, dict) and answer.get(name):
            answer = answer[name]
    if not answer:
        return ""
    return " ".join((answer if isinstance(answer, str) else json.dumps(answer)).split())


def _body(response: HTTPResponse, deadline: float) -> bytes:
    """Read a whole answer; a server that sends it drop by drop gets no more time than one that is silent."""
    parts: list[bytes] = []
    while sum(map(len, parts)) < LARGEST:
        part = response.read1(LARGEST)
        # Where a length was announced, silence before it is reached is a broken connection.
        if not part and response.length:
            raise HTTPException(f"the connection broke off {response.length} bytes before the answer's end")
        if not part:
            return b"".join(parts)
        parts.append(part)
        if time.monotonic() > deadline:
            raise TimeoutError("timed out in the middle of the answer")
    raise Unusable(f"the answer has more than {LARGEST} bytes")


def _retry_after(headers: Message) -> float:
    """Return the seconds that a server asks to wait, given as a number or as a date; 0 if it asks for nothing."""
    asked = headers.get("Retry-After", "").strip()
    if asked.isdecimal():
        return float(asked)
    try:
        return max(0.0, (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the key goes to the host that the user named, and to no other."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Any:
        """Return nothing; the status then counts as a refusal."""
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)
