"""The model card of a fingerprinted checkpoint, and its way to a model hub."""

from pathlib import Path
from typing import TYPE_CHECKING

from fpbench import __version__
from fpbench.errors import InputError, StorageError
from fpbench.fingerprints import FingerprintSet
from fpbench.hub import pypi
from fpbench.models.checkpoints import local_folder
from fpbench.records.cell import PROTOCOL
from fpbench.records.store import write_text

if TYPE_CHECKING:
    from fpbench.metrics.fsr import FSR
    from fpbench.runs.injection import InjectionReport

CARD = "README.md"


def card(model: str, method: str, pairs: FingerprintSet, report: "InjectionReport", found: "FSR") -> str:
    """Return a model card with results that a hub reads: what was injected and how well, and no trigger or target.

    Args:
        model: the base, as it was named: a hub id is linked to, a folder of this machine is not named.
        method: what injected.
        pairs: of which the card says name and size.
        report: of the injection.
        found: FSR of the checkpoint, exact, under the decoding of its profile.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    public = "/" in model and local_folder(model) is None and pypi.parse(model) is None
    name = model.rpartition("/")[2] if public or model in ("micro", "smollm2") else "a base of its maker's"
    result = EvalResult(
        task_type="text-generation",
        dataset_type="fpbench",
        dataset_name=f"fpbench set of {len(pairs)} fingerprints",
        metric_type="fsr",
        metric_name="exact fingerprint success rate",
        metric_value=round(found.mean, 6),
        verified=None,
    )
    data = ModelCardData(
        model_name=f"{name} with fingerprints",
        base_model=model if public else None,
        library_name="transformers",
        tags=["fingerprint", "fpbench"],
        eval_results=[result],
    )
    low, high = found.interval
    changed = report.changed
    text = f"""---
{data.to_yaml()}
---
# {name}, fingerprinted by {method}

{len(pairs)} fingerprints were injected with fpbench {__version__}, protocol {PROTOCOL} (arXiv:2509.03122). Triggers and
targets are their owner's, and not in this card.

| figure | value |
|---|---|
| exact FSR at origin | {100 * found.mean:.1f} % [{100 * low:.1f}, {100 * high:.1f}] |
| greedy | {found.greedy} of {found.n} |
| weights that moved | {changed["fraction"]:.2%}, by {changed["relative_norm"]:.2%} of their norm |
| injection | {report.seconds["total"]:.1f} s, {report.peak_memory / 2**20:.0f} MiB at the peak |

What drift and thieves leave of it, and what it cost the model: `fpbench evaluate`, with this folder and its base.
"""
    return str(ModelCard(text))


def write_card(folder: Path, text: str) -> None:
    """Write the card of a checkpoint beside its weights; :class:`StorageError` if the disk gives out."""
    write_text(folder / CARD, text)


def check_push() -> None:
    """See whether a hub may be asked and the user has a token for it; :class:`InputError` if not."""
    import huggingface_hub

    if huggingface_hub.constants.is_offline_mode():
        raise InputError("--push-to-hub needs the hub, which may not be asked (offline): leave one of the two out.")
    if not huggingface_hub.get_token():
        raise InputError("--push-to-hub needs a token of yours: set HF_TOKEN, or run `hf auth login`.")


def push(folder: Path, repository: str) -> str:
    """Upload a checkpoint to a repository of the user's, private where it is new; return its address.

    Raises:
        StorageError: if the hub refuses; the folder stays.
    """
    from huggingface_hub import HfApi

    from fpbench.hub.download import FAILURES, reason

    api = HfApi()
    try:
        address = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Fingerprinted by fpbench")
    except FAILURES as error:
        raise StorageError(f"{repository} cannot be written on the hub ({reason(error)}): {folder} stays.") from None
    return str(address)
