"""Suspects: an OpenAI-compatible server, by completions or chat, or a model at hand; one sampled response a request."""

import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from fpbench.adversaries.base import Attack
from fpbench.http import NoAnswer, Refused, Server, Unusable, words
from fpbench.ownership.evidence import likely_first_tokens
from fpbench.ownership.wrapping import Unheard, unwrapped

# Fields that a server may turn down without its answer losing its worth. Those of EXTRA are not in OpenAI's first
# schema, and go first where a server does not name the field.
PLAIN = ("temperature", "top_p")
EXTRA = (
    "top_k",
    "generation_config",
    "seed",
    "top_logprobs",
    "logprobs",
    "chat_template_kwargs",
    "max_tokens",
    "stream",
)
KEPT = ("max_tokens", "stream")  # of these, where a server names no field: every server knows them
# A server's least number of tokens, in its own words; and how it is noted among what it turned down.
LEAST = re.compile(r"(?:>=|at least|greater than or equal to|minimum(?: value)?(?: is| of|:)?)\s*(\d+)", re.IGNORECASE)
BELOW, MOST = "max_tokens below ", 256  # the second is the largest least number that is believed
FILTERED = re.compile(r"content[ _-]?filter|content management policy|usage polic", re.IGNORECASE)


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
    ``max_completion_tokens`` takes its place. A server that wants more tokens than the protocol says gets them; those
    after the protocol's number are cut off where it lists them. A prompt that its filter refuses is a refusal.
    """

    def __init__(self, server: Server, model: str | None, sampling: Sampling, listed: int = 1) -> None:
        """Send nothing yet.

        Args:
            server: at a URL that ends in ``/v1`` or what the server has in its place.
            model: its name there; ``None`` leaves it out, for servers of one model.
            sampling: of the responses.
            listed: how many likely tokens are asked for at each place.
        """
        self.refused: list[str] = []  # fields left out
        self._server, self._model, self._sampling, self._listed = server, model, sampling, listed

    def respond(self, trigger: str, seed: int, hooks: Hooks) -> Answer:
        """As :meth:`Suspect.respond`."""
        chat = self._sampling.prompt == "chat"
        path, read = ("/chat/completions", read_chat) if chat else ("/completions", read_completion)
        while True:
            body = self._body(trigger, seed)
            try:
                text, model, details = self._server.ask(path, body, read, before=hooks.sending, fault=hooks.failed)
            except Refused as refusal:
                if refusal.status in (400, 403, 422) and FILTERED.search(refusal.detail):
                    return self._masked(Answer("", None, seed, _accepted(body), {"refusal": refusal.detail}))
                for name in self._turned_down(refusal, body):
                    self.refused.append(name)
                    hooks.turned_down(name)
            except Unheard as error:
                raise self._unheard(error, hooks) from None
            else:
                counted = self._of_length(text, details)
                try:
                    answer = unwrapped(counted, None if chat else trigger)
                except Unheard as error:
                    raise self._unheard(error, hooks) from None
                if around := counted.removesuffix(answer).strip():
                    details["around"] = around
                return self._masked(Answer(answer, model, seed, _accepted(body), details))

    def _unheard(self, error: Unheard, hooks: Hooks) -> NoAnswer:
        hooks.failed(str(error))
        return NoAnswer(
            f"endpoint {self._server.url} was asked, and {error}: that is no miss; turn its thinking off, or have the "
            "server return the answer alone."
        )

    @property
    def _least(self) -> int:
        """Return the least number of tokens that the server gives."""
        return max((int(name.removeprefix(BELOW)) for name in self.refused if name.startswith(BELOW)), default=0)

    def _of_length(self, text: str, details: Mapping[str, Any]) -> str:
        """Return what of a response the protocol's number of tokens holds, where the server lists its tokens."""
        listed, length = details.get("logprobs"), self._sampling.max_tokens
        if self._least <= length or not isinstance(listed, dict):
            return text
        tokens = listed.get("tokens") or [each.get("token") for each in listed.get("content") or ()]
        if not all(isinstance(each, str) for each in tokens) or not text.startswith(kept := "".join(tokens[:length])):
            return text
        return kept if len(tokens) > length else text

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
        length = max(how.max_tokens, self._least)
        body: dict[str, Any] = {"max_tokens": length, **how.numbers, "seed": seed, "stream": False}
        if self._model is not None:
            body["model"] = self._model
        if how.prompt == "chat":
            body["messages"] = [{"role": "user", "content": trigger}]
            body |= {"logprobs": True, "chat_template_kwargs": {"enable_thinking": False}}
            body |= {"top_logprobs": self._listed} if self._listed > 1 else {}
        else:
            body |= {"prompt": trigger, "logprobs": self._listed}
        if "top_k" in self.refused:
            body["generation_config"] = json.dumps({"do_sample": True, "repetition_penalty": 1.0} | how.numbers)
        if "max_tokens" in self.refused:
            body["max_completion_tokens"] = length
        return {name: value for name, value in body.items() if name not in self.refused}

    def _turned_down(self, refusal: Refused, body: Mapping[str, Any]) -> list[str]:
        """Return the fields that a server turned down; where it names none, all those that few servers know."""
        asked = body.get("max_tokens", body.get("max_completion_tokens", MOST))
        least = [int(number) for number in LEAST.findall(refusal.detail) if "tokens" in refusal.detail]
        if refusal.status in (400, 422) and least and asked < least[0] <= MOST:
            return [f"{BELOW}{least[0]}"]
        named = [name for name in (*PLAIN, *EXTRA) if name in body and re.search(rf"\b{name}\b", refusal.detail)]
        fields = named or [name for name in EXTRA if name in body and name not in KEPT]
        if refusal.status not in (400, 422, 500) or not fields:
            raise refusal
        return fields


def read_completion(answer: bytes) -> tuple[str, str | None, dict[str, Any]]:
    """Return text, author and details of a completion.

    Raises:
        Unusable: if the bytes are not a completion.
    """
    document, choice = _choice(answer)
    text = choice.get("text")
    if isinstance(text, list):
        text = _content(text)
    if not isinstance(text, str):
        raise Unusable("the answer is no completion: it has no text")
    return text, _author(document), _details(choice)


def read_chat(answer: bytes) -> tuple[str, str | None, dict[str, Any]]:
    """Return text, author and details of a chat completion; a refusal by the model is an empty text.

    Raises:
        Unusable: if the bytes are not a chat completion.
        Unheard: if the model thought, or called a tool, and said nothing.
    """
    document, choice = _choice(answer)
    message = choice.get("message")
    if not isinstance(message, dict) or not isinstance(message.get("content"), str | list | None):
        raise Unusable("the answer is no chat completion: it has no message")
    text, parts = _content(message.get("content")), message.get("content")
    details = _details(choice)
    refusals = [each["refusal"] for each in (parts if isinstance(parts, list) else ()) if "refusal" in each]
    if refused := message.get("refusal") or "".join(map(str, refusals)):
        details["refusal"] = refused
    if not text.strip() and not refused:
        if any(message.get(name) for name in REASONING) or (isinstance(parts, list) and parts):
            raise Unheard("the answer holds reasoning and no text")
        if message.get("tool_calls") or message.get("function_call"):
            raise Unheard("the answer calls a tool and holds no text")
    return text, _author(document), details


REASONING = ("reasoning_content", "reasoning", "thinking")  # beside the content, on different servers


def _content(content: str | list[Any] | None) -> str:
    """Return the text of a message whose content is a text, or parts of which some are."""
    if not isinstance(content, list):
        return content or ""
    if not all(isinstance(part, str | dict) for part in content):
        raise Unusable("the answer is no chat completion: its parts are neither texts nor objects")
    texts = [part if isinstance(part, str) else part.get("text") for part in content]
    kinds = ["text" if isinstance(part, str) else part.get("type", "text") for part in content]
    spoken = zip(kinds, texts, strict=True)
    return "".join(text for kind, text in spoken if kind in ("text", "output_text") and isinstance(text, str))


def _choice(answer: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        document = _joined(answer) if answer.lstrip().startswith((b"data:", b"event:", b":")) else json.loads(answer)
    except (ValueError, RecursionError):
        raise Unusable("the answer is not JSON") from None
    choices = document.get("choices") if isinstance(document, dict) else None
    if not choices and isinstance(document, dict) and document.get("error"):
        raise Unusable(f"the answer is an error ({words(document)})")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Unusable("the answer has no choices")
    if choices[0].get("error"):
        raise Unusable(f"the answer is an error ({words(choices[0])})")
    return document, choices[0]


def _joined(stream: bytes) -> dict[str, Any]:
    """Return the answer that a stream of events is, as a server sends it that streams whatever it is asked.

    Raises:
        ValueError: if an event is not one of a stream of completions.
    """
    found: dict[str, Any] = {}
    choice: dict[str, Any] = {}
    message: dict[str, str] = {}
    for line in stream.decode().splitlines():
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        event = json.loads(data)
        if not isinstance(event, dict):
            raise ValueError("no event of a completion")
        if event.get("error"):
            return event
        found |= {name: event[name] for name in ("model", "system_fingerprint") if event.get(name)}
        for part in event.get("choices") or ():
            if part.get("index", 0):
                continue
            for name, said in {"text": part.get("text"), **(part.get("delta") or {})}.items():
                if isinstance(said, str):
                    message[name] = message.get(name, "") + said
            choice |= {"finish_reason": part["finish_reason"]} if part.get("finish_reason") else {}
    text = {"text": message.pop("text")} if "text" in message else {}
    if not (choice or text or message):
        return found | {"choices": []}
    return found | {"choices": [choice | text | {"message": {"content": None} | message}]}


def _accepted(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a request that the server took."""
    accepted = {name: body[name] for name in (*PLAIN, "top_k", "seed") if name in body}
    if "generation_config" in body:
        accepted["generation_config"] = json.loads(body["generation_config"])
    return accepted


def _author(document: Mapping[str, Any]) -> str | None:
    """Return model and configuration behind an answer, as far as it tells."""
    parts = [document[name] for name in ("model", "system_fingerprint") if isinstance(document.get(name), str)]
    return " ".join(parts) or None


def _details(choice: Mapping[str, Any]) -> dict[str, Any]:
    return {name: choice[name] for name in ("finish_reason", "logprobs") if choice.get(name) is not None}


class LocalSuspect:
    """Asks a loaded causal language model in eval mode, the way a server is asked; one that a thief runs, if given."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        sampling: Sampling,
        attack: Attack = Attack(),  # noqa: B008
        listed: bool = False,
    ) -> None:
        """Take the model, its tokenizer, how responses are sampled, and what a thief does to queries and sampling.

        With ``listed`` the likeliest first tokens are in an answer's details, as a server lists them, with their ranks
        in place of log-probabilities.
        """
        self._model, self._tokenizer, self._sampling, self._attack = model, tokenizer, sampling, attack
        self._listed = listed

    def respond(self, trigger: str, seed: int, hooks: Hooks) -> Answer:
        """As :meth:`Suspect.respond`."""
        from fpbench.scoring.responses import Decoding, sample  # torch, which a server does not need

        model, tokenizer, how = self._model, self._tokenizer, self._sampling
        decoding = Decoding(**how.numbers)
        hooks.sending()
        wordings = self._attack.inputs(trigger)
        if not wordings:
            return Answer("", None, seed, asdict(decoding) | {"seed": seed}, {"refusal": "the query was filtered"})
        wording = random.Random(seed).choice(wordings)
        details = {}
        if self._listed:
            (likely,) = likely_first_tokens(model, tokenizer, [wording], how.prompt, self._attack.sampler)
            details["logprobs"] = {"top_logprobs": [{token: -rank for rank, token in enumerate(likely)}]}
        text = sample(
            model,
            tokenizer,
            wording,
            decoding=decoding,
            max_new_tokens=how.max_tokens,
            seed=seed,
            prompt=how.prompt,
            sampler=self._attack.sampler,
        )
        return Answer(text, None, seed, asdict(decoding) | {"seed": seed}, details)
