"""A suspect behind an OpenAI-compatible server: one sampled response a request, by completions or chat."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fpbench.http import Refused, Server, Unusable
from fpbench.ownership.interview import Answer, Sampling, Told
from fpbench.scoring.responses import Decoding, sample

KEYS = ("FPBENCH_API_KEY", "OPENAI_API_KEY")
# What a server may turn down without the answer being worth nothing; the second half is no part of OpenAI's first
# schema, and goes first where a server does not say what it minds.
PLAIN = ("temperature", "top_p")
EXTRA = ("top_k", "generation_config", "seed", "logprobs", "chat_template_kwargs", "max_tokens")


class Endpoint:
    """Asks one model of a server.

    A field that the server turns down (400 or 422, naming it) is left out from then on. Where ``top_k`` is, all three
    numbers are put into the ``generation_config`` of ``transformers serve`` instead. Where ``max_tokens`` is,
    ``max_completion_tokens`` takes its place.

    Attributes:
        refused: fields left out.
    """

    def __init__(self, server: Server, model: str | None, sampling: Sampling) -> None:
        """Describe whom to ask and how; nothing is sent yet.

        Args:
            server: at a URL that ends in ``/v1`` or what the server has in its place.
            model: its name there; ``None`` leaves it out, for servers of one model.
            sampling: how responses are sampled.
        """
        self.refused: list[str] = []
        self._server = server
        self._model = model
        self._sampling = sampling

    def respond(self, trigger: str, seed: int, told: Told) -> Answer:
        """Sample one response to a trigger.

        Raises:
            InputError: if the server refuses the request itself.
            NoAnswer: if it gives no usable answer, however often it is asked.
        """
        chat = self._sampling.prompt == "chat"
        path, read = ("/chat/completions", read_chat) if chat else ("/completions", read_completion)
        while True:
            body = self._body(trigger, seed)
            try:
                text, model, details = self._server.ask(path, body, read, before=told.asking, fault=told.failed)
            except Refused as refusal:
                for name in self._minded(refusal, body):
                    self.refused.append(name)
                    told.turned_down(name)
            else:
                accepted = {name: body[name] for name in (*PLAIN, "top_k", "seed") if name in body}
                if "generation_config" in body:
                    accepted["generation_config"] = json.loads(body["generation_config"])
                return Answer(text, model, seed, accepted, details)

    def _body(self, trigger: str, seed: int) -> dict[str, Any]:
        """A request with every field that was not turned down."""
        how = self._sampling
        body: dict[str, Any] = {
            "max_tokens": how.max_tokens,
            "temperature": how.temperature,
            "top_p": how.top_p,
            "top_k": how.top_k,
            "seed": seed,
        }
        if self._model is not None:
            body["model"] = self._model
        if how.prompt == "chat":
            body["messages"] = [{"role": "user", "content": trigger}]
            body |= {"logprobs": True, "chat_template_kwargs": {"enable_thinking": False}}
        else:
            body |= {"prompt": trigger, "logprobs": 1}
        if "top_k" in self.refused:
            numbers = {"temperature": how.temperature, "top_p": how.top_p, "top_k": how.top_k}
            body["generation_config"] = json.dumps({"do_sample": True, "repetition_penalty": 1.0} | numbers)
        if "max_tokens" in self.refused:
            body["max_completion_tokens"] = how.max_tokens
        return {name: value for name, value in body.items() if name not in self.refused}

    def _minded(self, refusal: Refused, body: Mapping[str, Any]) -> list[str]:
        """The fields that a server turned down; where it names none, what few servers know, all at once.

        Raises:
            Refused: the refusal itself, if it is none of a field.
        """
        if refusal.status not in (400, 422):
            raise refusal
        named = [name for name in (*PLAIN, *EXTRA) if name in body and re.search(rf"\b{name}\b", refusal.detail)]
        minded = named or [name for name in EXTRA if name in body and name != "max_tokens"]
        if not minded:
            raise refusal
        return minded


def read_completion(answer: bytes) -> tuple[str, str | None, dict[str, Any]]:
    """Text, author and details of a completion.

    Raises:
        Unusable: if the bytes are none.
    """
    document, choice = _choice(answer)
    text = choice.get("text")
    if not isinstance(text, str):
        raise Unusable("the answer is no completion: it has no text")
    return text, _author(document), _details(choice)


def read_chat(answer: bytes) -> tuple[str, str | None, dict[str, Any]]:
    """Text, author and details of a chat completion; a refusal by the model is an empty text.

    Raises:
        Unusable: if the bytes are none.
    """
    document, choice = _choice(answer)
    message = choice.get("message")
    if not isinstance(message, dict) or not isinstance(message.get("content"), str | None):
        raise Unusable("the answer is no chat completion: it has no message")
    details = _details(choice)
    if message.get("refusal"):
        details["refusal"] = message["refusal"]
    return message.get("content") or "", _author(document), details


def _choice(answer: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """An answer and its first choice."""
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError):
        raise Unusable("the answer is not JSON") from None
    choices = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Unusable("the answer has no choices")
    return document, choices[0]


def _author(document: Mapping[str, Any]) -> str | None:
    """Model and configuration behind an answer, as far as it tells."""
    parts = [document[name] for name in ("model", "system_fingerprint") if isinstance(document.get(name), str)]
    return " ".join(parts) or None


def _details(choice: Mapping[str, Any]) -> dict[str, Any]:
    return {name: choice[name] for name in ("finish_reason", "logprobs") if choice.get(name) is not None}


# A suspect whose weights are here, asked the way a server is.


class LocalSuspect:
    """A loaded model."""

    def __init__(self, model: Any, tokenizer: Any, sampling: Sampling) -> None:
        """Take a causal language model in eval mode, its tokenizer, and how responses are sampled."""
        self._model = model
        self._tokenizer = tokenizer
        self._sampling = sampling

    def respond(self, trigger: str, seed: int, told: Told) -> Answer:
        """Sample one response to a trigger.

        Raises:
            InputError: if the trigger leaves the model no room.
            CellError: if logits are not finite.
        """
        how = self._sampling
        decoding = Decoding(how.temperature, how.top_p, how.top_k)
        told.asking()
        text = sample(
            self._model,
            self._tokenizer,
            trigger,
            decoding=decoding,
            max_new_tokens=how.max_tokens,
            seed=seed,
            prompt=how.prompt,
        )
        return Answer(text, None, seed, asdict(decoding) | {"seed": seed})
