"""What has to be said of a checkpoint that somebody hands in, where it is not plain safetensors with a tokenizer."""

from pathlib import Path
from typing import Any

from fpbench.models.gguf import gguf_file
from fpbench.models.loading import base_of_adapter, load_tokenizer, quantisation, tokenizer_source

OTHER_TOKENIZER = "its tokenizer is not the base's: perplexity per token is in another unit, and has no difference"


def remarks(folder: Path, base: Path | None, *, trust_remote_code: bool = False) -> list[str]:
    """A phrase for each thing that a figure of this checkpoint depends on; none for an ordinary one.

    Args:
        folder: of the checkpoint.
        base: the unfingerprinted model, if it was named.
        trust_remote_code: run code that comes with tokenizers.
    """
    found = []
    if gguf_file(folder) is not None:
        found.append("its GGUF blocks were turned back into floats by transformers")
    if (adapted := base_of_adapter(folder)) is not None:
        found.append(f"a PEFT adapter, merged into {adapted.name}")
    if (quantised := quantisation(folder)) is not None:
        found.append(f"quantised by {quantised.get('quant_method', 'bitsandbytes')}, run as it is")
    if tokenizer_source(folder) is None:
        found.append("it brings no tokenizer: the base's serves")
    elif base is not None:
        own, other = (load_tokenizer(each, trust_remote_code=trust_remote_code) for each in (folder, base))
        if not agree(own, other):
            found.append(OTHER_TOKENIZER)
    return found


def agree(tokenizer: Any, base: Any) -> bool:
    """Whether every token of the base's vocabulary has the same number here; further tokens may have been added."""
    own = tokenizer.get_vocab()
    return all(own.get(token) == number for token, number in base.get_vocab().items())
