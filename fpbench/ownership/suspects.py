"""Suspects: an OpenAI-compatible server, by completions or chat, or a model at hand; one sampled response a request."""

import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from fpbench.adversaries.base import Attack
from fpbench.http import Refused, Server, Unusable

# Fields that a server may turn down without its answer losing its worth. Those of EXTRA are not in OpenAI's first
# schema, and go first where a server does not name the field.
PLAIN = ("temperature", "top_p")
EXTRA = ("top_k", "generation_config", "seed", "logprobs", "chat_template_kwargs", "max_tokens")


@dataclass(frozen=True)
class Sampling:
    """Numbers by which a response is sampled (protocol §2)."""

    temperature: float  # above 0; it, top_p and top_k as in Decoding
    top_p: float  # nucleus mass
    top_k: int  # number of tokens kept; 0 keeps everything
    max_tokens: int  # length of a response, in tokens
    prompt: str  # raw or chat

    @property
    def numbers(self) -> dict[str, Any]:
        """Temperature, top-p and top-k by name."""
        return {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}


@dataclass(frozen=True)
class Answer:
    """One sampled response."""

    text: str  # empty for a refusal
    model: str | None  # the model that answered, as the answer itself says; None if it does not
    seed: int  # of the request
    decoding: Mapping[str, Any]  # the numbers that were sent and not refused
    details: Mapping[str, Any] = field(default_factory=dict)  # also said: why it ended, a refusal, log-probabilities


class Hooks(NamedTuple):
    """Functions that a suspect calls while it is asked."""

    sending: Callable[[], None]  # before every request
    failed: Callable[[str], None]  # with the reason, after a request that came to nothing
    turned_down: Callable[[str], None]  # with the name of a field that the server does not take


class Suspect(Protocol):
    """Answers triggers."""

    def respond(self, trigger: str, seed: int, hooks: Hooks) -> Answer:
        """Sample one response to a trigger.

        Raises:
            InputError: if the server refuses the request itself, or the trigger leaves a model at hand no room.
            NoAnswer: if a server gives no usable answer, however often it is asked.
            CellError: if the logits of a model at hand are not finite.
        """


class Endpoint:
    """Asks one model of a server.

    A field that the server turns down (400 or 422, naming it) is left out from then on. Where ``top_k`` is, all three
    numbers are put into the ``generation_config`` of ``transformers serve`` instead. Where ``max_tokens`` is,
    ``max_completion_tokens`` takes its place.
    """

    def __init__(self, server: Server, model: str | None, sampling: Sampling) -> None:
        """Send nothing yet.

        Args:
            server: at a URL that ends in ``/v1`` or what the server has in its place.
            model: its name there; ``None`` leaves it out, for servers of one model.
            sampling: of the responses.
        """
        self.refused: list[str] = []  # fields left out
        self._server, self._model, self._sampling = server, model, sampling

    def respond(self, trigger: str, seed: int, hooks: Hooks) -> Answer:
        """As :meth:`Suspect.respond`."""
        chat = self._sampling.prompt == "chat"
        path, read = ("/chat/completions", read_chat) if chat else ("/completions", read_completion)
        while True:
            body = self._body(trigger, seed)
            try:
                text, model, details = self._server.ask(path, body, read, before=hooks.sending, fault=hooks.failed)
            except Refused as refusal:
                for name in self._turned_down(refusal, body):
                    self.refused.append(name)
                    hooks.turned_down(name)
            else:
                accepted = {name: body[name] for name in (*PLAIN, "top_k", "seed") if name in body}
                if "generation_config" in body:
                    accepted["generation_config"] = json.loads(body["generation_config"])
                return self._masked(Answer(text, model, seed, accepted, details))

    def _masked(self, answer: Answer) -> Answer:
        """Return an answer without our key: a server that is a suspect may quote it to see where it turns up."""
        masked = self._server.masked
        details = json.loads(masked(json.dumps(answer.details, ensure_ascii=False)))
        found = replace(answer, text=masked(answer.text), model=answer.model and masked(answer.model), details=details)
        if found.text != answer.text:
            details.pop("logprobs", None)  # token by token, the key could be put together again
        return found

    def _body(self, trigger: str, seed: int) -> dict[str, Any]:
        """Return a request with every field that was not turned down."""
        how = self._sampling
        body: dict[str, Any] = {"max_tokens": how.max_tokens, **how.numbers, "seed": seed}
        if self._model is not None:
            body["model"] = self._model
        if how.prompt == "chat":
            body["messages"] = [{"role": "user", "content": trigger}]
            body |= {"logprobs": True, "chat_template_kwargs": {"enable_thinking": False}}
        else:
            body |= {"prompt": trigger, "logprobs": 1}
        if "top_k" in self.refused:
            body["generation_config"] = json.dumps({"do_sample": True, "repetition_penalty": 1.0} | how.numbers)
        if "max_tokens" in self.refused:
            body["max_completion_tokens"] = how.max_tokens
        return {name: value for name, value in body.items() if name not in self.refused}

    def _turned_down(self, refusal: Refused, body: Mapping[str, Any]) -> list[str]:
        """Return the fields that a server turned down; where it names none, all those that few servers know."""
        named = [name for name in (*PLAIN, *EXTRA) if name in body and re.search(rf"\b{name}\b", refusal.detail)]
        fields = named or [name for name in EXTRA if name in body and name != "max_tokens"]
        if refusal.status not in (400, 422) or not fields:
            raise refusal
        return fields


def read_completion(answer: bytes) -> tuple[str, str | None, dict[str, Any]]:
    """Return text, author and details of a completion.

    Raises:
        Unusable: if the bytes are not a completion.
    """
    document, choice = _choice(answer)
    text = choice.get("text")
    if not isinstance(text, str):
        raise Unusable("the answer is no completion: it has no text")
    return text, _author(document), _details(choice)


def read_chat(answer: bytes) -> tuple[str, str | None, dict[str, Any]]:
    """Return text, author and details of a chat completion; a refusal by the model is an empty text.

    Raises:
        Unusable: if the bytes are not a chat completion.
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
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError):
        raise Unusable("the answer is not JSON") from None
    choices = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Unusable("the answer has no choices")
    return document, choices[0]


def _author(document: Mapping[str, Any]) -> str | None:
    """Return model and configuration behind an answer, as far as it tells."""
    parts = [document[name] for name in ("model", "system_fingerprint") if isinstance(document.get(name), str)]
    return " ".join(parts) or None


def _details(choice: Mapping[str, Any]) -> dict[str, Any]:
    return {name: choice[name] for name in ("finish_reason", "logprobs") if choice.get(name) is not None}


class LocalSuspect:
    """Asks a loaded causal language model in eval mode, the way a server is asked; one that a thief runs, if given."""

    def __init__(self, model: Any, tokenizer: Any, sampling: Sampling, attack: Attack = Attack()) -> None:  # noqa: B008
        """Take the model, its tokenizer, how responses are sampled, and what a thief does to queries and sampling."""
        self._model, self._tokenizer, self._sampling, self._attack = model, tokenizer, sampling, attack

    def respond(self, trigger: str, seed: int, hooks: Hooks) -> Answer:
        """As :meth:`Suspect.respond`."""
        from fpbench.scoring.responses import Decoding, sample  # torch, which a server does not need

        model, tokenizer, how = self._model, self._tokenizer, self._sampling
        decoding = Decoding(**how.numbers)
        hooks.sending()
        wordings = self._attack.inputs(trigger)
        if not wordings:
            return Answer("", None, seed, asdict(decoding) | {"seed": seed}, {"refusal": "the query was filtered"})
        text = sample(
            model,
            tokenizer,
            random.Random(seed).choice(wordings),
            decoding=decoding,
            max_new_tokens=how.max_tokens,
            seed=seed,
            prompt=how.prompt,
            sampler=self._attack.sampler,
        )
        return Answer(text, None, seed, asdict(decoding) | {"seed": seed})
