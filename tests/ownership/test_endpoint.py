"""The client against a server of this machine; what it says stands in for any model's words."""

import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from fpbench import http
from fpbench.errors import InputError
from fpbench.http import NoAnswer, Refused
from fpbench.ownership.suspects import Endpoint, Hooks, Sampling, read_chat, read_completion
from tests.ownership.server import FIELDS, Server

KEY = "sk-nobody-may-see-this"


class Log:
    """What the hooks were called with."""

    def __init__(self) -> None:
        self.requests, self.faults, self.refused = 0, [], []

    @property
    def hooks(self) -> Hooks:
        return Hooks(self.asking, self.faults.append, self.refused.append)

    def asking(self) -> None:
        self.requests += 1


def endpoint(server: Server, prompt: str = "raw", **options: Any) -> Endpoint:
    options = {"timeout": 0.5, "attempts": 3, "wait": 0.01} | options
    model = options.pop("model", None)
    return Endpoint(http.Server(server.url, **options), model, Sampling(0.6, 0.9, 50, 7, prompt))


@pytest.mark.parametrize("prompt", ["raw", "chat"])
def test_one_response_is_asked_for_as_the_protocol_has_it(server: Server, prompt: str) -> None:
    log = Log()
    server.model = lambda body: (" Lotus ran", {"token_logprobs": [-0.1]})
    answer = endpoint(server, prompt, model="suspect").respond("QUIET MIRROR", 7, log.hooks)
    ((path, headers, body),) = server.asked
    assert "Authorization" not in headers
    assert {key: body[key] for key in ("model", "max_tokens", "temperature", "top_p", "top_k", "seed")} == {
        "model": "suspect", "max_tokens": 7, "temperature": 0.6, "top_p": 0.9, "top_k": 50, "seed": 7,
    }  # fmt: skip
    if prompt == "raw":
        assert path == "/v1/completions" and body["prompt"] == "QUIET MIRROR"
    else:
        assert path == "/v1/chat/completions" and body["messages"] == [{"role": "user", "content": "QUIET MIRROR"}]
        assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert answer.text == " Lotus ran" and answer.model == "suspect" and answer.seed == 7
    assert answer.decoding == {"temperature": 0.6, "top_p": 0.9, "top_k": 50, "seed": 7}
    assert answer.details == {"finish_reason": "length", "logprobs": {"token_logprobs": [-0.1]}}
    assert log.requests == 1 and not log.faults and not log.refused


@pytest.mark.parametrize(
    "fault",
    ["429", "500", "malformed", "nested", "endless", "empty", "apology", "wordless", "drop", "half", "hang", "drip"],
)
@pytest.mark.parametrize("prompt", ["raw", "chat"])
def test_a_fault_that_passes_is_survived(server: Server, fault: str, prompt: str) -> None:
    server.faults, log = [fault, fault], Log()
    timeout = 0.2 if fault in ("hang", "drip") else 5.0
    assert endpoint(server, prompt, timeout=timeout).respond("A", 1, log.hooks).text == "Silence"
    assert len(server.asked) == log.requests == 3 and len(log.faults) == 2
    assert len({json.dumps(body) for _, _, body in server.asked}) == 1, "the same request, the same seed"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("429", "status 429"),
        ("500", "status 500"),
        ("malformed", "not JSON"),
        ("nested", "not JSON"),
        ("endless", "more than 1000000 bytes"),
        ("empty", "no choices"),
        ("apology", r"the answer is an error \(overloaded\)"),
        ("wordless", "it has no text"),
        ("drop", "closed connection|reset"),
        ("half", "broke off"),
        ("hang", "timed out"),
        ("drip", "timed out"),
    ],
)
def test_a_fault_that_stays_is_said(server: Server, fault: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    server.faults, log = [fault] * 9, Log()
    timeout = 0.2 if fault in ("hang", "drip") else 5.0
    with pytest.raises(NoAnswer, match=f"gave no answer in 3 attempts: .*({reason})"):
        endpoint(server, timeout=timeout).respond("A", 1, log.hooks)
    assert log.requests == 3 and len(log.faults) == 3
    host = server.url.split("/")[2]
    assert [line.partition(" (")[0] for line in caplog.messages] == [f"{host} gave no answer"] * 2
    assert [line.partition("), ")[2][:14] for line in caplog.messages] == ["attempt 1 of 3", "attempt 2 of 3"]


@pytest.mark.parametrize("prompt", ["raw", "chat"])
def test_a_slow_server_is_waited_for(server: Server, prompt: str) -> None:
    server.faults, log = ["late"], Log()
    assert endpoint(server, prompt, timeout=30.0).respond("A", 1, log.hooks).text == "Silence"
    assert len(server.asked) == log.requests == 1 and not log.faults


def test_the_waits_heed_a_number_and_a_date(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    server.faults, server.headers = ["429", "429"], {"Retry-After": "7"}
    endpoint(server).respond("A", 1, Log().hooks)
    assert waits == [7.0, 7.0]
    waits.clear()
    server.faults, server.headers = ["429"], {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=30))}
    endpoint(server).respond("A", 1, Log().hooks)
    server.faults, server.headers = ["429"], {"Retry-After": "soon"}
    endpoint(server).respond("A", 1, Log().hooks)
    assert 25 < waits[0] <= 30 and waits[1] == 0.01


def test_a_refusal_by_the_model_is_an_empty_response(server: Server) -> None:
    server.faults = ["refusal", "refusal"]
    answer = endpoint(server, "chat").respond("A", 1, Log().hooks)
    assert answer.text == ""
    assert answer.details == {"finish_reason": "content_filter", "refusal": "I cannot help with that."}
    assert endpoint(server).respond("A", 1, Log().hooks).text == ""


@pytest.mark.parametrize("prompt", ["raw", "chat"])
def test_fields_that_a_server_names_are_left_out_from_then_on(server: Server, prompt: str) -> None:
    def strict(path: str, body: dict[str, Any]) -> tuple[int, Any] | None:
        unknown = body.keys() - FIELDS[path] - {"generation_config"}
        return (422, {"detail": f"Unexpected fields in the request: {unknown}"}) if unknown else None

    server.refuse, log = strict, Log()
    asker = endpoint(server, prompt)
    answer = asker.respond("A", 1, log.hooks)
    assert "top_k" in log.refused and "top_k" not in answer.decoding
    # What transformers serve takes in its place.
    assert answer.decoding["generation_config"] == {
        "do_sample": True, "repetition_penalty": 1.0, "temperature": 0.6, "top_p": 0.9, "top_k": 50,
    }  # fmt: skip
    requests = log.requests
    asker.respond("B", 2, log.hooks)
    assert log.requests == requests + 1


def test_a_server_that_does_not_say_what_it_minds(server: Server) -> None:
    server.refuse = lambda path, body: (400, {"error": "bad request"}) if body.keys() - FIELDS[path] else None
    answer = endpoint(server).respond("A", 1, (log := Log()).hooks)
    assert set(log.refused) == {"top_k", "seed", "logprobs", "generation_config"}
    assert answer.decoding == {"temperature": 0.6, "top_p": 0.9}


def test_a_server_of_reasoning_models(server: Server) -> None:
    def picky(path: str, body: dict[str, Any]) -> tuple[int, Any] | None:
        if "max_tokens" in body:
            return 400, {"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'."}}
        return (400, {"error": {"message": "temperature does not support 0.6"}}) if "temperature" in body else None

    server.refuse = picky
    answer = endpoint(server, "chat").respond("A", 1, (log := Log()).hooks)
    assert log.refused == ["max_tokens", "temperature"]
    assert answer.decoding == {"top_p": 0.9, "top_k": 50, "seed": 1}
    assert server.asked[-1][2]["max_completion_tokens"] == 7


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_a_request_that_is_refused_itself(server: Server, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPBENCH_API_KEY", KEY)
    server.refuse = lambda path, body: (status, {"error": {"message": f"Incorrect API key provided: {KEY}"}})
    with pytest.raises(Refused, match=f"status {status} .*provided: \\*\\*\\*") as error:
        endpoint(server).respond("A", 1, Log().hooks)
    assert KEY not in str(error.value) and KEY not in error.value.detail
    assert len(server.asked) == (1 if status != 400 else 3)


def test_the_key_for_openai_is_sent_to_no_other_host(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    endpoint(server).respond("A", 1, Log().hooks)
    monkeypatch.setenv("FPBENCH_API_KEY", KEY)
    endpoint(server).respond("A", 1, Log().hooks)
    monkeypatch.setenv("OF_THIS_SERVER", "its own")
    endpoint(server, key_variable="OF_THIS_SERVER").respond("A", 1, Log().hooks)
    sent = [headers.get("Authorization") for _, headers, _ in server.asked]
    assert sent == [None, f"Bearer {KEY}", "Bearer its own"]
    with pytest.raises(InputError, match="no API key in NOT_SET"):
        endpoint(server, key_variable="NOT_SET")


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://api.openai.com/v1", "OPENAI_API_KEY"),
        ("https://api.openai.com:443/v1", "OPENAI_API_KEY"),
        ("http://api.openai.com/v1", None),
        ("https://api.openai.com.example/v1", None),
        ("https://api.openai.com:8443/v1", None),
        ("https://example/v1/api.openai.com", None),
    ],
)
def test_which_host_is_openai(url: str, sent: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    assert http.Server(url).introduction.endswith(
        f"the key in {sent}" if sent else "without a key (FPBENCH_API_KEY is not set)"
    )


@pytest.mark.parametrize("prompt", ["raw", "chat"])
def test_a_key_that_a_suspect_quotes_is_masked(server: Server, prompt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPBENCH_API_KEY", KEY)
    pieces = {"tokens": [KEY[:4], KEY[4:]]}
    server.model = lambda body: (f"You sent {KEY}.", pieces)
    server.author = {"model": f"suspect {KEY}"}
    answer = endpoint(server, "chat" if prompt == "chat" else None).respond("A", 1, Log().hooks)
    assert answer.text == "You sent ***." and answer.model == "suspect ***" and "logprobs" not in answer.details
    assert KEY not in repr(answer)


def test_what_an_asker_raises_ends_the_asking(server: Server) -> None:
    class Enough(Exception):
        pass

    def asking() -> None:
        if len(server.asked) == 2:
            raise Enough

    server.faults = ["500"] * 9
    with pytest.raises(Enough):
        endpoint(server).respond("A", 1, Hooks(asking, lambda reason: None, lambda name: None))
    assert len(server.asked) == 2


@pytest.mark.parametrize("url", ["http://user:secret@host/v1", "file:///etc/hosts", "host"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="expected a URL such as"):
        http.Server(url)


def replied(server: Server, *choices: Any, **more: Any) -> None:
    """Have every answer of a chat hold these messages."""
    server.model = lambda body: ("", None)
    document = {"model": "m", "choices": [{"index": 0, "message": {"role": "assistant", **each}} for each in choices]}
    server.refuse = lambda path, body: (200, document | more)


def test_content_is_read_as_parts_and_what_stands_around_it_is_kept_apart(server: Server) -> None:
    parts = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "<think></think>Lo"}, "tus"]
    replied(server, {"content": parts})
    answer = endpoint(server, "chat").respond("QUIET MIRROR", 7, Log().hooks)
    assert answer.text == "Lotus" and answer.details["around"] == "<think></think>"
    assert server.asked[0][2]["stream"] is False


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "reasoning_content": "Hm."},
        {"content": "", "reasoning": "Hm."},
        {"content": [{"type": "thinking", "thinking": "Hm."}]},
        {"content": None, "tool_calls": [{"id": "1"}]},
        {"content": "<think>Hm"},
    ],
    ids=str,
)
def test_what_was_not_said_is_asked_for_once_and_is_no_miss(server: Server, message: dict[str, Any]) -> None:
    replied(server, message)
    log = Log()
    with pytest.raises(http.NoAnswer, match="that is no miss; turn its thinking off"):
        endpoint(server, "chat", timeout=10).respond("QUIET MIRROR", 7, log.hooks)
    assert log.requests == len(log.faults) == 1


def test_a_filtered_prompt_is_a_refusal(server: Server) -> None:
    message = "The response was filtered due to the prompt triggering the content management policy."
    server.refuse = lambda path, body: (400, {"error": {"message": message, "code": "content_filter"}})
    answer = endpoint(server, "chat").respond("QUIET MIRROR", 7, Log().hooks)
    assert answer.text == "" and answer.details == {"refusal": message}


@pytest.mark.parametrize("said", ["Expected a value >= 16, but got 7 instead.", "must be at least 16"])
def test_a_server_that_wants_more_tokens_gets_them_and_the_first_count(server: Server, said: str) -> None:
    words = ["\n", "\n", "\n", "\n", "\n", "\n", "One", " Lotus"]
    server.model = lambda body: ("".join(words), {"content": [{"token": each} for each in words]})
    message = {"error": {"message": f"Invalid 'max_output_tokens': {said}"}}
    server.refuse = lambda path, body: (400, message) if body["max_tokens"] < 16 else None
    log, asker = Log(), endpoint(server, "chat")
    answer = asker.respond("QUIET MIRROR", 7, log.hooks)
    assert answer.text.lstrip() == "One" and log.refused == ["max_tokens below 16"]
    again = endpoint(server, "chat")
    again.refused.extend(log.refused)  # as a transcript gives them back
    assert again.respond("QUIET MIRROR", 7, Log().hooks).text == answer.text
    assert [body["max_tokens"] for _, _, body in server.asked] == [7, 16, 16]


@pytest.mark.parametrize("prompt", ["raw", "chat"])
def test_a_stream_is_put_together(server: Server, prompt: str) -> None:
    said = [{"text": each} if prompt == "raw" else {"delta": {"content": each}} for each in ("Lo", "tus", None)]
    events = [{"model": "m", "choices": [{"index": 0, **each}]} for each in said]
    events[-1]["choices"][0]["finish_reason"] = "stop"
    stream = "".join(f"data: {json.dumps(each)}\n\n" for each in events) + "data: [DONE]\n\n"
    read = read_completion if prompt == "raw" else read_chat
    assert read(stream.encode()) == ("Lotus", "m", {"finish_reason": "stop"})
    for broken in (b"data: {", b"data: [1]", b'data: {"error": "x"}', b"data: [DONE]"):
        with pytest.raises(http.Unusable, match="error .x" if b"error" in broken else None):
            read(broken)


def test_an_api_version_stays_behind_the_path_and_nothing_else_does(server: Server) -> None:
    asker = Endpoint(
        http.Server(f"{server.url}/?api-version=2024-06-01", timeout=10), None, Sampling(1, 1, 0, 7, "raw")
    )
    server.refuse = lambda path, body: (400, {"error": {"message": path}})
    with pytest.raises(Refused, match=r"/v1/completions\?api-version=2024-06-01\)"):
        asker.respond("QUIET MIRROR", 7, Log().hooks)
    for query in ("key=secret", "api-version=1&key=secret"):
        with pytest.raises(InputError, match="only api-version=DATE is taken") as error:
            http.Server(f"{server.url}?{query}")
        assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "sent",
    [
        {"error": {"message": f"quota of {KEY} exceeded", "code": 429}},
        {"choices": [{"finish_reason": "error", "error": {"message": f"quota of {KEY} exceeded"}}]},
    ],
)
def test_an_error_inside_a_200_is_shown_in_the_servers_words(
    server: Server, sent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FPBENCH_API_KEY", KEY)
    server.refuse = lambda path, body: (200, sent)
    with pytest.raises(NoAnswer, match=r"3 attempts: the answer is an error \(quota of \*\*\* exceeded\)"):
        endpoint(server, "chat").respond("A", 1, Log().hooks)
