"""Writing checkpoints that plain transformers loads."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpbench.errors import InputError, StorageError
from fpbench.models.loading import quiet

if TYPE_CHECKING:
    from torch import nn


def save_checkpoint(model: "nn.Module", tokenizer: Any, folder: Path) -> None:
    """Write a checkpoint that plain ``AutoModelForCausalLM.from_pretrained`` loads: whole, or not at all.

    Args:
        model: the model, saved in its own dtype as safetensors; what ``fpbench.modify`` quantised stays quantised.
        tokenizer: its tokenizer.
        folder: does not exist or is empty.

    Raises:
        InputError: if its four-bit weights cannot be saved any more.
        StorageError: if the disk gives out; nothing half-written remains.
    """
    from safetensors import SafetensorError

    config: Any = model.config
    before = getattr(config, "quantization_config", None)
    if (layers := quantised_layers(model)) and before is None:
        config.quantization_config = _description(layers)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        with quiet():
            model.save_pretrained(temporary)  # type: ignore[operator]
            tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)
        temporary.replace(folder)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"checkpoint {folder} cannot be written ({error}): nothing was kept.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if layers and before is None:
            del config.quantization_config


def quantised_layers(model: "nn.Module") -> list[Any]:
    """The layers of bitsandbytes in a model.

    Raises:
        InputError: if a four-bit one was run on a CPU that has bitsandbytes repack it in place: turning that back, as
            saving does, gives other weights, in the file and in the model.
    """
    found = [layer for layer in model.modules() if type(layer).__name__ in ("Linear4bit", "Linear8bitLt")]
    if any(getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False) for layer in found):
        raise InputError(
            "a model in 4 bits cannot be saved once it was run on this CPU, which has its weights repacked: save it "
            "before its first forward pass."
        )
    return found


def _description(layers: list[Any]) -> Any:
    """What a config says of layers that bitsandbytes quantised."""
    from transformers import BitsAndBytesConfig

    layer = layers[0]
    if type(layer).__name__ == "Linear8bitLt":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=layer.state.threshold)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=layer.weight.quant_type,
        bnb_4bit_compute_dtype=layer.compute_dtype,
        bnb_4bit_use_double_quant=layer.weight.compress_statistics,
    )
