"""An OpenAI-compatible server of this machine, with faults on order."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What a server answers with, given the body of a request: text, and log-probabilities if it has them.
Model = Callable[[dict[str, Any]], tuple[str, Any]]
FIELDS = {
    "/v1/completions": {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "logprobs", "stream"},
    "/v1/chat/completions": {"model", "messages", "max_tokens", "temperature", "top_p", "seed", "logprobs", "stream"},
}


class Server(ThreadingHTTPServer):
    """Answers every request by ``model``, unless a fault is planned for it.

    Attributes:
        faults: one a request, in order; ``None`` for none.
        asked: path, headers and body of every request.
        unknown: fields that are refused, and how.
        author: what an answer says about who gave it.
    """

    daemon_threads = True

    def __init__(self, model: Model) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model = model
        self.faults: list[str | None] = []
        self.headers: dict[str, str] = {}
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.refuse: Callable[[str, dict[str, Any]], tuple[int, Any] | None] = lambda path, body: None
        self.author = {"model": "suspect"}
        self.released = threading.Event()  # ends what hangs

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def triggers(self) -> list[str]:
        """What was asked, in order."""
        bodies = (body for _, _, body in self.asked)
        return [body["prompt"] if "prompt" in body else body["messages"][-1]["content"] for body in bodies]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        fault = self.server.faults.pop(0) if self.server.faults else None
        refusal = self.server.refuse(self.path, body)
        if fault is None and refusal is not None:
            self.say(json.dumps(refusal[1]), refusal[0])
        elif fault is None:
            self.say(json.dumps(self.answer(body)))
        else:
            getattr(self, f"do_{fault}")(body)

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        text, logprobs = self.server.model(body)
        said = {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
        choice = {"index": 0, "finish_reason": "length", **said}
        return {**self.server.author, "choices": [choice | ({"logprobs": logprobs} if logprobs else {})]}

    def say(self, text: str, status: int = 200) -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in {**self.server.headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def do_429(self, body: Any) -> None:
        self.say('{"error": {"message": "slow down"}}', 429)

    def do_500(self, body: Any) -> None:
        self.say("<html>oops</html>", 500)

    def do_malformed(self, body: Any) -> None:
        self.say('{"choices": [{"te')

    def do_nested(self, body: Any) -> None:
        self.say("[" * 200_000)

    def do_endless(self, body: Any) -> None:
        self.say(" " * 2_000_000)

    def do_empty(self, body: Any) -> None:
        self.say('{"choices": []}')

    def do_apology(self, body: Any) -> None:
        """An error that is sent as if it were an answer."""
        self.say('{"error": {"message": "overloaded"}}')

    def do_wordless(self, body: Any) -> None:
        """A choice without words."""
        self.say('{"choices": [{"index": 0, "text": null, "message": null}]}')

    def do_late(self, body: Any) -> None:
        """The answer, after a while."""
        self.server.released.wait(0.3)
        self.say(json.dumps(self.answer(body)))

    def do_refusal(self, body: Any) -> None:
        """The model declines."""
        message = {"role": "assistant", "content": None, "refusal": "I cannot help with that."}
        choice = {"message": message} if "messages" in body else {"text": ""}
        self.say(json.dumps({**self.server.author, "choices": [choice | {"finish_reason": "content_filter"}]}))

    def do_other(self, body: Any) -> None:
        """Another model steps in."""
        self.say(json.dumps(self.answer(body) | {"model": "understudy"}))

    def do_drop(self, body: Any) -> None:
        """The connection ends before the answer begins."""
        self.close_connection = True

    def do_half(self, body: Any) -> None:
        """The connection ends in the middle of the answer."""
        content = json.dumps(self.answer(body)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:10])
        self.close_connection = True

    def do_hang(self, body: Any) -> None:
        """No answer at all."""
        self.server.released.wait(30)

    def do_drip(self, body: Any) -> None:
        """A byte now and then, each in time."""
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        while not self.server.released.wait(0.02):
            self.wfile.write(b" ")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def running(model: Model) -> Iterator[Server]:
    with Server(model) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()
