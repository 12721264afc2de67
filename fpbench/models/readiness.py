"""Whether a checkpoint can be run here and be asked as wanted, found out before its weights are read."""

import os
from pathlib import Path
from typing import Any

from fpbench.errors import InputError
from fpbench.models.loading import Loading, load_tokenizer, quantisation, quiet
from fpbench.models.prompts import render


def check_ready(folder: Path, prompt: str, loading: Loading, tokenizer_of: Path | None = None) -> Any:
    """Refuse a checkpoint that could not be measured once it was loaded; returns its tokenizer.

    Args:
        folder: what :func:`~fpbench.models.loading.resolve` returned.
        prompt: ``"raw"`` or ``"chat"``, which needs a chat template.
        loading: how the model is going to be loaded.
        tokenizer_of: the checkpoint whose tokenizer serves where this one brings none.

    Raises:
        InputError: for weights quantised in a way that needs a package or a device that is not here, no tokenizer, or
            no chat template where one is needed.
    """
    check_quantisation(folder, loading)
    tokenizer = load_tokenizer(folder, trust_remote_code=loading.trust_remote_code, instead=tokenizer_of)
    try:
        render(tokenizer, "x", prompt)
    except InputError as error:
        raise InputError(f"model {os.fspath(folder)!r}: {error}") from None
    return tokenizer


def check_quantisation(folder: Path, loading: Loading) -> None:
    """Ask transformers whether it can run weights that are quantised already: it knows what each way needs.

    Raises:
        InputError: naming the way and the package to install, or what else is missing.
    """
    config = quantisation(folder)
    if config is None:
        return
    import torch
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        with quiet():
            AutoHfQuantizer.from_config(dict(config), pre_quantized=True).validate_environment(
                dtype=getattr(torch, loading.precision), device_map={"": loading.device}, weights_only=True
            )
    except (ImportError, ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        way = config.get("quant_method", "an unnamed method")
        raise InputError(f"model {os.fspath(folder)!r} is quantised by {way}, which is refused: {reason}") from None
