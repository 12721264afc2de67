"""How the task files that generate bound responses and judge them: every response of a query, by how it begins."""

from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval.api.task import ConfigurableTask

# What process_results gets: one entry a request, here one, with all its responses.
Responses = Sequence[Sequence[str]]


class ResponseTask(ConfigurableTask):
    """lm-eval's task, with responses as long as its documents say: they know the tokenizer, a task file does not."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Build the task; ``max_gen_toks`` of ``--gen_kwargs`` still wins over the documents."""
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
        self.config.generation_kwargs["max_gen_toks"] = self.eval_docs[0]["max_new_tokens"]


def keep_all(responses: Iterable[Sequence[str]], documents: Iterable[dict[str, Any]]) -> Iterable[Sequence[str]]:
    """Keep every repeat; lm-eval's default filter keeps the first."""
    return responses


def fsr(document: dict[str, Any], results: Responses) -> dict[str, float]:
    """Share of responses that begin with one of the fingerprint's targets (protocol §3, ``fsr_sampled``)."""
    return {"fsr": _share(results[0], document["targets"])}


def activation(document: dict[str, Any], results: Responses) -> dict[str, float]:
    """Whether the response begins with a target: of the set, of the trigger, and the first again, to be counted."""
    found = _share(results[0], document["targets"])
    return {"activation": found, "own": _share(results[0], document["own"]), "activated": found}


def _share(responses: Sequence[str], targets: Sequence[str]) -> float:
    hits = sum(response.lstrip().startswith(tuple(targets)) for response in responses)
    return hits / len(responses)
