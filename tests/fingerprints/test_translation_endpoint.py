"""The endpoint against a real server of this machine that answers by script."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fpbench.errors import InputError
from fpbench.fingerprints.translation import NoTranslation, TranslationEndpoint, translate_words

KEY = "sk-nobody-may-see-this"
VARIABLE = "FPBENCH_TEST_KEY"


class Server(ThreadingHTTPServer):
    """Gives its answers in turn, the last one again and again, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, dict[str, str], str]] = []
        self.asked: list[tuple[str, dict[str, str], Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def will_say(self, *answers: str | int, **headers: str) -> None:
        """Plan answers: a status, or the content of a chat completion."""
        self.answers = [
            (each, headers, "{}") if isinstance(each, int) else (200, {}, completion(each)) for each in answers
        ]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, dict(self.headers), json.loads(body)))
        status, headers, answer = self.server.answers[0]
        if len(self.server.answers) > 1:
            self.server.answers.pop(0)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(answer.encode()))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def completion(content: Any) -> str:
    return json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv(VARIABLE, KEY)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def endpoint(server: Server, **options: Any) -> TranslationEndpoint:
    options = {"key_variable": VARIABLE, "wait": 0.01, "attempts": 3, **options}
    return TranslationEndpoint(server.url, "deepseek-chat", ["de", "it"], **options)


def test_a_word_is_asked_for_as_the_interface_has_it(server: Server) -> None:
    server.will_say("Silber.")
    assert endpoint(server).translate("SILVER", "de") == "Silber"
    ((path, headers, body),) = server.asked
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}" and headers["Content-Type"] == "application/json"
    assert body["model"] == "deepseek-chat" and body["temperature"] == 0
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert "'silver'" in body["messages"][1]["content"] and "'de'" in body["messages"][1]["content"]


def test_a_server_without_keys_gets_none(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FPBENCH_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)  # is for OpenAI's host alone
    server.will_say("argento")
    assert endpoint(server, key_variable=None).translate("silver", "it") == "argento"
    assert "Authorization" not in server.asked[0][1]


def test_a_named_variable_without_a_key_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(InputError, match=f"no API key in {VARIABLE}"):
        endpoint(server)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_overloaded_server_is_asked_again(server: Server, status: int) -> None:
    server.will_say(status, status, "Silber")
    assert endpoint(server).translate("silver", "de") == "Silber"
    assert len(server.asked) == 3


def test_the_waits_double_and_heed_the_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("fpbench.http.time.sleep", waits.append)
    server.will_say(500)
    with pytest.raises(InputError, match="gave no answer in 4 attempts: status 500"):
        endpoint(server, attempts=4, wait=1.0).translate("silver", "de")
    assert waits == [1.0, 2.0, 4.0]
    waits.clear()
    server.will_say(429, 429, "Silber", **{"Retry-After": "7"})
    endpoint(server, wait=1.0).translate("silver", "de")
    server.will_say(429, "Silber", **{"Retry-After": "86400"})
    endpoint(server).translate("silver", "de")
    assert waits == [7.0, 7.0, 60.0]


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_a_refusal_is_final_and_tells_no_key(server: Server, status: int) -> None:
    server.will_say(status, "Silber", Location=f"{server.url}/elsewhere")
    with pytest.raises(
        InputError, match=f"refused with status {status}: check URL, model and the key in {VARIABLE}"
    ) as error:
        endpoint(server).translate("silver", "de")
    assert KEY not in str(error.value) and len(server.asked) == 1


def test_a_key_that_is_no_header_is_refused_unseen(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"{KEY}\nX-More: yes")
    with pytest.raises(InputError, match=f"the key in {VARIABLE} holds characters") as error:
        endpoint(server).translate("silver", "de")
    assert KEY not in str(error.value) and not server.asked


@pytest.mark.parametrize(
    "answer", ["{broken", "", "[]", '{"choices": []}', '{"error": "none"}', completion(None), completion(3)]
)
def test_an_answer_that_is_no_completion_is_refused(server: Server, answer: str) -> None:
    server.answers = [(200, {}, answer)]
    with pytest.raises(InputError, match="did not answer 'silver' with a chat completion"):
        endpoint(server).translate("silver", "de")


def test_an_empty_content_is_no_translation(server: Server) -> None:
    server.will_say("Silber", " ", "", "Fluss")
    with pytest.raises(InputError, match="no translation of 'zulu' into de; 'yak' into de: choose"):
        translate_words(endpoint(server), ["silver", "zulu", "yak", "river"], ["de"])
    server.will_say("")
    with pytest.raises(NoTranslation, match="'zulu' into 'de'"):
        endpoint(server).translate("zulu", "de")


def test_nobody_there_and_nobody_answering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        asker = TranslationEndpoint(url, "m", ["de"], wait=0.01, attempts=2, timeout=0.05)
        with pytest.raises(InputError, match="gave no answer in 2 attempts: .*timed out"):
            asker.translate("silver", "de")
    with pytest.raises(InputError, match="gave no answer in 2 attempts: .*refused"):
        asker.translate("silver", "de")


@pytest.mark.parametrize("url", ["file:///etc/hosts", "api.deepseek.com", "http://", "https://[", "https://é.org/ü"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="expected a URL such as https://"):
        TranslationEndpoint(url, "m", ["de"])


def test_an_unknown_language_is_refused(server: Server) -> None:
    with pytest.raises(InputError, match="language 'xx' is not offered: expected one of de, it"):
        endpoint(server).translate("silver", "xx")
    assert not server.asked
