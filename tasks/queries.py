"""The documents of the task files that generate: queries, the targets that count, and how long a response may be.

lm-eval calls these functions with a task's ``metadata``, to which its command line adds ``--model_args``: so they know
the checkpoint's name, and from its tokenizer how many tokens the longest target takes.
"""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer

from fpbench.data import read_rows, require_fields
from fpbench.errors import InputError
from fpbench.fingerprints import find_set
from fpbench.metrics.queries import build_queries, contexts_from_rows, words_from_rows
from fpbench.metrics.triggers import fit
from fpbench.scoring.responses import response_length

Split = dict[str, Dataset]


def fingerprints(fingerprints: str, seed: int = 42, **checkpoint: Any) -> Split:
    """The triggers of a set, each with its own targets (protocol §3).

    Args:
        fingerprints: built-in set or ``.jsonl`` file.
        seed: draws the keys of ``if``.
        checkpoint: ``pretrained`` and, where they differ from it, ``tokenizer`` and ``revision``.

    Raises:
        fpbench.errors.InputError: The set is unknown or malformed, or no checkpoint is named.
    """
    pairs = find_set(fingerprints, seed=seed)
    length = response_length(_tokenizer(checkpoint), pairs.targets)
    return _split(
        [
            {"query": pair.trigger, "targets": pair.targets, "own": pair.targets, "max_new_tokens": length}
            for pair in pairs
        ]
    )


def accidental(
    condition: str,
    fingerprints: str,
    source: str,
    context_rows: int,
    substitute_words: int,
    substitutions: int,
    seed: int = 42,
    **checkpoint: Any,
) -> Split:
    """The queries of one accidental-trigger condition, for which any target of the set counts (protocol §6).

    Args:
        condition: one of the eight.
        fingerprints: built-in set or ``.jsonl`` file.
        source: instruction rows, of which contexts and words are taken.
        context_rows: rows from the end whose fields are the contexts.
        substitute_words: words drawn for substitution.
        substitutions: queries of the substitute conditions.
        seed: of words, boundaries and replaced halves.
        checkpoint: as for :func:`fingerprints`.

    Raises:
        fpbench.errors.InputError: Set, source or sizes are wrong, or no checkpoint is named.
    """
    pairs = find_set(fingerprints, seed=seed)
    rows = require_fields(read_rows(source), ["instruction", "output"], source)
    contexts, words = contexts_from_rows(rows, context_rows), words_from_rows(rows, seed, substitute_words)
    built = build_queries(contexts, [pair.trigger for pair in pairs], words, seed, substitutions)
    tokenizer, limit = _tokenizer(checkpoint), _context(checkpoint)
    length = response_length(tokenizer, pairs.targets)
    # lm-eval would cut a long prompt at its start, BOS and trigger first.
    queries = [query if limit is None else fit(query, limit - length, tokenizer, "raw") for query in built[condition]]
    own = [pair.targets for pair in pairs]
    return _split(
        [
            {
                "query": query.text,
                "targets": pairs.targets,
                "own": own[query.trigger_index],
                "max_new_tokens": length,
            }
            for query in queries
        ]
    )


def _split(documents: Sequence[dict[str, Any]]) -> Split:
    return {"test": Dataset.from_list([*documents])}


def _tokenizer(checkpoint: dict[str, Any]) -> Any:
    name = checkpoint.get("tokenizer") or _pretrained(checkpoint)
    return AutoTokenizer.from_pretrained(name, revision=checkpoint.get("revision", "main"))


def _context(checkpoint: dict[str, Any]) -> int | None:
    config = AutoConfig.from_pretrained(_pretrained(checkpoint), revision=checkpoint.get("revision", "main"))
    limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit


def _pretrained(checkpoint: dict[str, Any]) -> str:
    name = checkpoint.get("pretrained")
    if not isinstance(name, str):
        raise InputError(
            "fingerprint tasks: expected the checkpoint's name, from which the length of responses follows, found "
            'none; give --model_args pretrained=NAME, or TaskManager(metadata={"pretrained": NAME}) in Python.'
        )
    return name
