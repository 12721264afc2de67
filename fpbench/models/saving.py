"""Writing checkpoints that plain transformers loads."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpbench.errors import StorageError
from fpbench.models.loading import quiet

if TYPE_CHECKING:
    from torch import nn


def save_checkpoint(model: "nn.Module", tokenizer: Any, folder: Path) -> None:
    """Write a checkpoint that plain ``AutoModelForCausalLM.from_pretrained`` loads: whole, or not at all.

    Args:
        model: the model, saved in its own dtype as safetensors.
        tokenizer: its tokenizer.
        folder: does not exist or is empty.

    Raises:
        StorageError: if the disk gives out; nothing half-written remains.
    """
    from safetensors import SafetensorError

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
