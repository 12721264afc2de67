"""The only place that loads models and tokenizers, and saves them: no remote code, one clear line on failure."""

import contextlib
import ctypes
import io
import os
import re
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpbench.errors import InputError, StorageError
from fpbench.models.checkpoints import (
    adapters_of,
    check_there,
    quantisation,
    source,
    tokenizer_source,
)
from fpbench.models.prompts import encode, render
from fpbench.models.quiet import quiet

if TYPE_CHECKING:
    from torch import nn

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Loading:
    """Options of loading, as the command line gives them; ``token_budget`` is in padded tokens of a forward pass.

    ``unconfined`` allows a submission to load and edit the model where this machine cannot confine it.
    """

    device: str
    dtype: str | None = None
    revision: str | None = None
    token_budget: int | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    unconfined: bool = False

    @property
    def precision(self) -> str:
        """Return the name of the dtype that models are loaded in: the one asked for, or the protocol's (§2)."""
        return self.dtype or default_dtype(self.device)

    def load(self, folder: Path, tokenizer_of: Path | None = None) -> tuple["nn.Module", Any]:
        """Load model and tokenizer of a checkpoint with every option, as :func:`load_model` does."""
        return load_model(
            folder,
            device=self.device,
            dtype=self.precision,
            trust_remote_code=self.trust_remote_code,
            allow_pickle=self.allow_pickle,
            tokenizer_of=tokenizer_of,
        )


def default_dtype(device: str) -> str:
    """Return the dtype that models are loaded in unless another is asked for (protocol §2)."""
    return "float32" if device == "cpu" else "bfloat16"


def pick_device(device: str | None) -> str:
    """Return the device asked for, or the first CUDA card, or the CPU.

    Raises:
        InputError: if the device asked for cannot be used.
    """
    if device is None:
        return "cuda" if _cuda_here() else "cpu"
    if device == "cpu":
        return device
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def _cuda_here() -> bool:
    """Tell from torch's build and the driver whether it will find a card; importing torch would take seconds."""
    spec = find_spec("torch")
    folders = spec.submodule_search_locations if spec else None
    built = Path(folders[0], "version.py").read_text(encoding="utf-8") if folders else ""
    if re.search(r"^hip\b.*= '", built, re.MULTILINE):
        import torch

        return torch.cuda.is_available()
    if not re.search(r"^cuda\b.*= '", built, re.MULTILINE):
        return False
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except OSError:
        return False


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False, tokenizer_of: Path | None = None) -> Any:
    """Load the tokenizer of a checkpoint, or of its base ``tokenizer_of`` where that is known (protocol §2).

    Raises:
        InputError: if there is none, or transformers cannot load it; the first line of its reason is kept.
    """
    from transformers import AutoTokenizer

    check_there(folder)
    holder = tokenizer_of or folder
    if (found := tokenizer_source(holder)) is None:
        raise InputError(
            f"model {os.fspath(holder)!r} brings no tokenizer: put it beside the weights, or, where a --base is taken, "
            "name the model it comes from, whose tokenizer then serves."
        )
    where = source(found) if found.is_file() else {"pretrained_model_name_or_path": found}
    with _loading(found):
        return AutoTokenizer.from_pretrained(**where, trust_remote_code=trust_remote_code)


def load_architecture(folder: Path, *, trust_remote_code: bool = False, base: Path | None = None) -> "nn.Module":
    """Make the model of a checkpoint with modules, names, shapes and config but no weights: it takes no memory.

    ``base`` serves where the base that an adapter names is not here.

    Raises:
        InputError: if transformers cannot make it; the first line of its reason is kept.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with _loading(folder), torch.device("meta"):
        where = source(adapters_of(folder, base)[0])
        config = AutoConfig.from_pretrained(**where, trust_remote_code=trust_remote_code)
        architecture: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return architecture.eval().requires_grad_(False)


def load_model(
    folder: Path,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    tokenizer_of: Path | None = None,
) -> tuple["nn.Module", Any]:
    """Load model and tokenizer of a checkpoint, in eval mode with gradients off.

    A PEFT adapter is merged into its base, one that was trained on top of another after that. GGUF is turned back into
    floats. What is quantised otherwise stays as it is. The dtype is ``float32``, ``bfloat16`` or ``float16``; by
    default the first on a CPU and bfloat16 on a GPU. Pickle weights are read if they are allowed and there are no
    others. Where ``tokenizer_of``, the base, is given, its tokenizer and its end-of-text ids serve in place of the
    checkpoint's (protocol §2), and it itself in place of the base that an adapter names, where that is not here.

    Raises:
        InputError: if transformers cannot load it, with the first line of its reason, weights are missing, or an
            adapter has tensors that fit no module of its base, or lacks some.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    dtype = dtype or default_dtype(device)
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code, tokenizer_of=tokenizer_of)
    (base, adapters), quantised = adapters_of(folder, tokenizer_of), quantisation(folder, tokenizer_of) is not None
    where = source(base)
    if "gguf_file" in where:
        where["quantization_config"] = GgufConfig(dequantize=True)  # floats, whatever kernels are installed
    factory: Any = AutoModelForCausalLM
    loaded: Any
    # transformers shows a progress bar of the GGUF conversion whatever it is told about bars.
    with _loading(folder), contextlib.redirect_stderr(io.StringIO()):
        loaded, found = factory.from_pretrained(
            **where,
            dtype=getattr(torch, dtype),
            device_map={"": device} if quantised else None,
            use_safetensors=None if allow_pickle else True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
        for adapter in adapters:
            loaded = _merged(loaded, adapter)
    if missing := sorted(found["missing_keys"]):  # which transformers would fill at random
        raise InputError(
            f"model {os.fspath(folder)!r} lacks {len(missing)} of its weights, such as {missing[0]}: a file of the "
            "checkpoint is missing or of another model."
        )
    if tokenizer_of is not None:
        ends = end_ids(tokenizer_of, tokenizer, trust_remote_code=trust_remote_code)
        loaded.generation_config.eos_token_id = sorted(ends)
    # What is quantised was loaded to where it belongs, and cannot be moved.
    placed: nn.Module = loaded if quantised else loaded.to(device)
    return placed.eval().requires_grad_(False), tokenizer


def _merged(model: Any, adapter: Path) -> "nn.Module":
    """Merge a PEFT adapter into a model; InputError unless every tensor of it was applied, and none is missing."""
    from peft import PeftModel

    check_kind(adapter)
    _resize(model, adapter)
    adapted: Any = PeftModel.from_pretrained(model, adapter, use_safetensors=True)
    # PEFT goes on with a warning; loading once more tells what it left out.
    result = adapted.load_adapter(adapter, "default", use_safetensors=True)
    unread = _left_out(result.unexpected_keys, adapter)
    for names, what in (
        (unread, "has {} tensors that fit no module of its base, such as {}: is it another model's?"),
        (result.missing_keys, "lacks {} of its tensors, such as {}: its file is not whole."),
    ):
        if names:
            raise InputError(f"adapter {adapter} {what.format(len(names), sorted(names)[0])}")
    merged: Any = adapted.merge_and_unload()
    tables = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    if tables[0] is not tables[1]:  # an adapter may bring one of its own in place of a tied one
        merged.config.get_text_config().tie_word_embeddings = merged.config.tie_word_embeddings = False
    return merged  # type: ignore[no-any-return]


def check_kind(adapter: Path) -> None:
    """Refuse an adapter of a kind that cannot be merged into its base, such as one of prompt or prefix tuning."""
    from peft import PeftConfig
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    with _loading(adapter):
        kind = PeftConfig.from_pretrained(str(adapter)).peft_type
    if not hasattr(PEFT_TYPE_TO_TUNER_MAPPING.get(kind), "merge_and_unload"):
        name = getattr(kind, "value", kind)
        raise InputError(f"adapter {adapter} is of kind {name}, which cannot be merged into its base: expected LoRA.")


def _left_out(names: list[str], adapter: Path) -> list[str]:
    """Return those of an adapter's tensors that were not applied, but for what it holds twice.

    PEFT writes resized embeddings also as the module that stands in their place, and does not read that back.
    """
    from safetensors import safe_open

    doubled = ".modules_to_save."
    if not any(doubled in name for name in names):
        return names
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        known = set(file.keys())

        def twice(name: str) -> bool:
            plain = name.replace(doubled, ".")
            return doubled in name and plain in known and file.get_tensor(name).equal(file.get_tensor(plain))

        return [name for name in names if not twice(name)]


def _resize(model: Any, adapter: Path) -> None:
    """Give a model as many rows of embeddings as an adapter brings, which tokens were added or cut off for.

    Raises:
        InputError: if it does not bring each table of embeddings whole, and of one size.
    """
    from safetensors import safe_open

    file = adapter / "adapter_model.safetensors"
    if not file.is_file():
        return
    with safe_open(file, "pt") as opened:
        shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    tables = {id(table.weight): table for table in (model.get_input_embeddings(), model.get_output_embeddings())}
    names = [name for name, module in model.named_modules() if any(module is table for table in tables.values())]
    here = {len(table.weight) for table in tables.values()}
    brought = [
        {
            shape[0]
            for key, shape in shapes.items()
            if len(shape) == 2 and f".{name}." in key and key.endswith(".weight") and ".lora_" not in key
        }
        for name in names
    ]
    rows = set().union(*brought)
    if not rows or rows == here:
        return
    if len(rows) > 1 or not all(brought):
        raise InputError(
            f"adapter {adapter} brings embeddings of {' and '.join(map(str, sorted(rows)))} rows, its base has "
            f"{' and '.join(map(str, sorted(here)))}, and not every table of them is in its file: merge it where it "
            "was trained."
        )
    model.resize_token_embeddings(rows.pop(), mean_resizing=False)


def end_ids(
    folder: Path, tokenizer: Any, *, trust_remote_code: bool = False, base: Path | None = None
) -> frozenset[int]:
    """Return the ids that end a response of a checkpoint, as :func:`first_end_ids` finds them once it is loaded."""
    from transformers import AutoConfig, GenerationConfig

    with _loading(folder):
        where = source(adapters_of(folder, base)[0])
        config = AutoConfig.from_pretrained(**where, trust_remote_code=trust_remote_code)
        place = Path(where["pretrained_model_name_or_path"])
        named = (place / "generation_config.json").is_file()
        return first_end_ids(GenerationConfig.from_pretrained(place) if named else None, config, tokenizer)


def first_end_ids(*sources: Any) -> frozenset[int]:
    """Return the end-of-text ids of the first that names some: generation config, config or tokenizer."""
    for each in sources:
        if (ids := getattr(each, "eos_token_id", None)) is not None:
            return frozenset([ids] if isinstance(ids, int) else ids)
    return frozenset()


@contextlib.contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Turn whatever transformers raises about a folder into one clear line."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    check_there(folder)  # transformers takes a missing folder for a name on the hub
    try:
        with quiet():
            yield
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError),
        *(SafetensorError, StrictDataclassError, struct.error),
    ) as error:
        check_there(folder)
        raise InputError(f"model {os.fspath(folder)!r} cannot be loaded: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]  # a heading says nothing without what it heads


def check_ready(folder: Path, prompt: str, loading: Loading, tokenizer_of: Path | None = None) -> Any:
    """Refuse, before its weights are read, a checkpoint that could not be measured; return its tokenizer.

    ``tokenizer_of`` is the base, if it is known.

    Raises:
        InputError: for weights quantised in a way that needs a package or a device that is not here, no tokenizer,
            fewer tokens than the base's tokenizer has, or no chat template that renders a trigger where ``prompt`` is
            ``"chat"``.
    """
    check_quantisation(folder, loading, tokenizer_of)
    for adapter in adapters_of(folder, tokenizer_of)[1]:
        check_kind(adapter)
    tokenizer = load_tokenizer(folder, trust_remote_code=loading.trust_remote_code, tokenizer_of=tokenizer_of)
    try:
        prompted = encode(tokenizer, render(tokenizer, "KESTREL MERIDIAN", prompt))
    except InputError as error:
        raise InputError(f"model {os.fspath(folder)!r}: {error}") from None
    _check_rows(folder, tokenizer, loading, max(prompted, default=0), tokenizer_of)
    return tokenizer


def _check_rows(folder: Path, tokenizer: Any, loading: Loading, largest: int, base: Path | None) -> None:
    """Refuse a checkpoint that has no row for every token of its base's tokenizer, or for ``largest`` of its own."""
    from transformers import AutoConfig

    with _loading(folder):
        whole, adapters = adapters_of(folder, base)
        config = AutoConfig.from_pretrained(**source(whole), trust_remote_code=loading.trust_remote_code)
    rows, tokens = config.get_text_config().vocab_size, len(tokenizer.get_vocab())
    if base is None:
        if largest >= rows and not adapters:  # which may bring rows of their own
            token = tokenizer.convert_ids_to_tokens(largest)
            raise InputError(
                f"model {os.fspath(folder)!r} has {rows} rows of embeddings, and its tokenizer puts {token!r}, number "
                f"{largest}, into prompts: resize the embeddings, or put the tokenizer there that it was made with."
            )
    elif rows < tokens:
        raise InputError(
            f"model {os.fspath(folder)!r} knows {rows} tokens, its base's tokenizer {tokens}, which is to score it: "
            "name the base that it was made from."
        )


def check_quantisation(folder: Path, loading: Loading, base: Path | None = None) -> None:
    """Refuse quantised weights that transformers cannot run here; it knows what each kind needs.

    ``base`` serves where the base that an adapter names is not here.

    Raises:
        InputError: naming the kind and the package to install, or what else is missing.
    """
    if (config := quantisation(folder, base)) is None:
        return
    import torch
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        with quiet():
            AutoHfQuantizer.from_config(dict(config), pre_quantized=True).validate_environment(
                dtype=getattr(torch, loading.precision), device_map={"": loading.device}, weights_only=True
            )
    except (ImportError, ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        refused = f"quantised by {config.get('quant_method', 'an unnamed method')}, which is refused"
        raise InputError(f"model {os.fspath(folder)!r} is {refused}: {_first_line(error)}") from None


def save_checkpoint(model: "nn.Module", tokenizer: Any, folder: Path) -> None:
    """Write a checkpoint that plain ``AutoModelForCausalLM.from_pretrained`` loads: whole, or not at all.

    Weights are saved in their own dtype as safetensors; what ``fpbench.modify`` quantised stays quantised. The folder
    does not exist or is empty.

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
    """Return the layers of bitsandbytes in a model.

    Raises:
        InputError: if a four-bit one was run on a CPU for which bitsandbytes repacked it in place: turning that back,
            as saving does, gives other weights, in the file and in the model.
    """
    found = [layer for layer in model.modules() if type(layer).__name__ in ("Linear4bit", "Linear8bitLt")]
    if any(getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False) for layer in found):
        raise InputError(
            "a model in 4 bits cannot be saved once it was run on this CPU, which has its weights repacked: save it "
            "before its first forward pass."
        )
    return found


def _description(layers: list[Any]) -> Any:
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
