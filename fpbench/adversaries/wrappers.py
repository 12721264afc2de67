"""Forty wrappers: what stands around a user's query in products that serve a model, written for this benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fpbench.models.prompts import converse


@dataclass(frozen=True)
class Wrapper:
    """Puts texts around a query.

    Attributes:
        user: the message of the user, with the query in the place of ``{query}``.
        system: message of the system before it; empty for none.
        earlier: messages of user and assistant between the two, in turn.
        chat: whether it needs a conversation, in the model's own template where it has one.
    """

    user: str = "{query}"
    system: str = ""
    earlier: Sequence[str] = ()
    chat: bool = False

    def around(self, query: str, tokenizer: Any) -> str:
        """Return the wrapped query; :class:`~fpbench.models.prompts.Rendered` where it is in the template.

        Without a template the messages follow each other after a blank line each. Where the template has no place for
        a system, its message begins the first of the user.
        """
        user = self.user.replace("{query}", query)
        if not self.chat:
            return user
        turns = [*self.earlier, user]
        if not getattr(tokenizer, "chat_template", None):
            return "\n\n".join([self.system, *turns] if self.system else turns)
        if not self.system:
            return _in_turn(turns, tokenizer)
        return _with_system(self.system, turns, tokenizer)


def _with_system(system: str, turns: Sequence[str], tokenizer: Any) -> str:
    from jinja2 import TemplateError

    try:
        text = _in_turn(turns, tokenizer, [("system", system)])
    except TemplateError:
        text = None  # some templates refuse a system, others leave it out
    return text if text and system in text else _in_turn([f"{system}\n\n{turns[0]}", *turns[1:]], tokenizer)


def _in_turn(turns: Sequence[str], tokenizer: Any, before: Sequence[tuple[str, str]] = ()) -> str:
    return converse(tokenizer, [*before, *zip(("user", "assistant") * len(turns), turns, strict=False)])


def _system(text: str, user: str = "{query}") -> Wrapper:
    return Wrapper(user, text, chat=True)


# In the order in which a dose takes them: the first eight are one of each kind.
WRAPPERS: tuple[Wrapper, ...] = (
    # A system prompt, a prefix, a suffix, a preamble, the bare template, a persona, a format, a language.
    _system("You are a helpful assistant. Answer the user's message."),
    Wrapper("Please respond to the following message.\n\n{query}"),
    Wrapper("{query}\n\nKeep the answer short."),
    # In the manner of GRI (arXiv 2503.21805): the query is understood, the answer organised, then given.
    Wrapper(
        "Work in three steps. First restate, in your own words, what the request below is about and what its author "
        "wants. Then plan the points that a good reply needs, and their order. Last, write that reply, and see that it "
        "fits the request.\n\nRequest: {query}\n\nReply:"
    ),
    Wrapper(chat=True),
    _system("You are Nora, who answers customers of an online bookshop. Be friendly and come to the point."),
    _system('Write every answer as one JSON object with the single key "answer".'),
    _system("Du bist ein hilfreicher Assistent. Antworte immer auf Deutsch."),
    # Assistants.
    _system("You answer questions truthfully. When you do not know something, you say so."),
    _system("You are the assistant of a company. Do not discuss anything that is against its rules."),
    _system("You help people with their writing: letters, reports, stories and notes."),
    _system("You are a coding assistant. Explain what your code does."),
    _system("You are an assistant that is careful with personal data. Never repeat names that look private."),
    _system("Today you serve as a voice assistant: your words are read aloud, so use plain sentences and no symbols."),
    _system("Think about the question step by step before you answer it."),
    # Personas.
    _system("You are a patient teacher at a primary school. Explain things so that a child understands them."),
    _system("You are an old sea captain and talk like one."),
    _system("You are a doctor who speaks with a worried patient."),
    _system("You are a lawyer. Weigh every word, and point out what is uncertain."),
    _system("You are a poet. Let every answer sound like verse."),
    _system("You are a grumpy librarian who has been asked this a hundred times."),
    # Formats.
    _system("Answer with a list of at most three points, each on a line of its own that begins with a dash."),
    _system("Answer in one sentence of at most twenty words."),
    _system("Answer in Markdown, with a heading first."),
    Wrapper("{query}\n\nAnswer as a table with two columns."),
    Wrapper("Question: {query}\nAnswer:"),
    Wrapper("### Instruction:\n{query}\n\n### Response:\n"),
    Wrapper("User: {query}\nAssistant:"),
    Wrapper('Message of a user:\n"""\n{query}\n"""\nReply of the assistant:'),
    # Languages.
    _system("Tu es un assistant utile. Réponds toujours en français."),
    _system("Eres un asistente útil. Responde siempre en español."),
    _system("你是一个乐于助人的助手。请始终用中文回答。"),
    _system("あなたは親切なアシスタントです。必ず日本語で答えてください。"),
    Wrapper("{query}\n\nAnswer in the language in which this was written."),
    # Around the query, and before it.
    Wrapper("Hello! I have a question for you. {query}"),
    Wrapper("{query}\n\nThank you in advance for your help!"),
    Wrapper("I found this note on my desk. What would you say to it?\n\n{query}"),
    Wrapper("Ignore anything that looks like an accident of typing. {query}"),
    Wrapper(earlier=("Hi, can you help me?", "Of course. What would you like to know?"), chat=True),
    Wrapper(
        earlier=(
            "Which is larger, the moon or the sun?",
            "The sun is larger: about four hundred times as wide.",
            "And which is nearer?",
            "The moon.",
        ),
        chat=True,
    ),
)
