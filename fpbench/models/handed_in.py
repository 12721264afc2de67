"""Checkpoints that somebody hands in: whose tokenizer scores them (protocol §2), and what their figures depend on."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpbench.models.checkpoints import adapters_of, gguf_file, moved_base, quantisation, tokenizer_source
from fpbench.models.loading import end_ids, load_tokenizer

# Sections of a serialised tokenizer, and what they are called. Padding and truncation change no response.
SECTIONS = {
    "normalizer": "normaliser",
    "pre_tokenizer": "pre-tokeniser",
    "model": "vocabulary",
    "post_processor": "post-processor",
    "decoder": "decoder",
    "added_tokens": "added tokens",
}


@dataclass(frozen=True)
class OwnTokenizer:
    """The tokenizer and end-of-text ids of a checkpoint, where they are not its base's.

    The base's score it. A normaliser and a decoder can turn any text into any other, so that a model that nobody
    changed answers every trigger: what these figures are worth is seen beside those under the base's tokenizer alone.
    """

    tokenizer: Any
    ends: tuple[int, ...]
    differences: tuple[str, ...]  # the parts in which they differ, in words

    @staticmethod
    def of(folder: Path, base: Path, *, trust_remote_code: bool = False) -> "OwnTokenizer | None":
        """Read a checkpoint's own tokenizer; ``None`` if it is the base's, whose serves where there is none."""
        theirs = load_tokenizer(base, trust_remote_code=trust_remote_code)
        brought = tokenizer_source(folder, base)
        own = load_tokenizer(brought, trust_remote_code=trust_remote_code) if brought else theirs
        ends, other = (
            end_ids(each, found, trust_remote_code=trust_remote_code, base=base)
            for each, found in ((folder, own), (base, theirs))
        )
        differences = differing_parts(own, theirs) + ["end-of-text ids"] * (ends != other)
        return OwnTokenizer(own, tuple(sorted(ends)), tuple(differences)) if differences else None

    @property
    def remark(self) -> str:
        """What is said of the checkpoint."""
        return (
            f"its tokenizer differs from the base's ({', '.join(self.differences)}): the base's scores it; FSR under "
            "its own stands beside"
        )

    @contextmanager
    def serving(self, model: Any) -> Iterator[Any]:
        """Yield the tokenizer; inside, responses of ``model`` end with the ids that the checkpoint names."""
        before = model.generation_config.eos_token_id
        model.generation_config.eos_token_id = list(self.ends)
        try:
            yield self.tokenizer
        finally:
            model.generation_config.eos_token_id = before


def differing_parts(own: Any, base: Any) -> list[str]:
    """Return in words the parts in which two tokenizers differ; empty where they turn every text into the same ids."""
    first, second = _parts(own), _parts(base)
    return [name for name in first | second if first.get(name) != second.get(name)]


def _parts(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    serialised = {} if backend is None else json.loads(backend.to_str())
    parts = {name: serialised.get(section) for section, name in SECTIONS.items()}
    # Code of its own may do anything with a text, whatever is serialised.
    kind = type(tokenizer)
    if backend is None or not kind.__module__.startswith("transformers."):
        parts |= {"class": f"{kind.__module__}.{kind.__qualname__}", "vocabulary": tokenizer.get_vocab()}
    special = tokenizer.bos_token_id, tokenizer.eos_token_id, sorted(tokenizer.all_special_ids)
    split = getattr(tokenizer, "split_special_tokens", False)
    return parts | {"special tokens": (special, split), "chat template": getattr(tokenizer, "chat_template", None)}


def remarks(folder: Path, own: OwnTokenizer | None = None, base: Path | None = None) -> list[str]:
    """List, as phrases, what the figures of a handed-in checkpoint depend on; none for an ordinary one.

    ``own`` is its tokenizer where that is not its base's; ``base`` serves where an adapter's own is not here.
    """
    found = []
    if gguf_file(folder) is not None:
        found.append("its GGUF blocks were turned back into floats by transformers")
    whole, adapters = adapters_of(folder, base)
    if len(adapters) == 1:
        found.append(f"a PEFT adapter, merged into {whole.name}")
    elif adapters:
        found.append(f"{len(adapters)} PEFT adapters, merged into {whole.name} one after the other")
    if (moved := moved_base(folder, base)) is not None:
        found.append(f"the base that its adapter names ({moved}) is not here: --base served in its place")
    if (quantised := quantisation(folder, base)) is not None:
        found.append(f"quantised by {quantised.get('quant_method', 'bitsandbytes')}, run as it is")
    if tokenizer_source(folder, base) is None:
        found.append("it brings no tokenizer: the base's serves")
    return found + ([own.remark] if own else [])
