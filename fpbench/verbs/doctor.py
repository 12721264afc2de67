"""``fpbench doctor``: what this machine can do."""

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fpbench.errors import FpbenchError, InputError

HELP = "what this machine can do, and which of a profile's models and data it can have"


def arguments(verb: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    verb.add_argument(
        "profile",
        nargs="?",
        metavar="PROFILE",
        help="look for its models and data too: here, fetched, on the hub, gated or out of reach",
    )
    verb.add_argument("--json", action="store_true", help="as one JSON object: what was examined, whether it is fine")


def do(options: argparse.Namespace) -> int:
    """Print every finding; 1 if one is bad."""
    from fpbench.runs.profile import load_profile

    profile = load_profile(options.profile) if options.profile else None
    findings = [*examine(), *(examine_profile(profile) if profile else [])]
    if options.json:
        found = {each.what: {"fine": each.fine, "detail": each.detail} for each in findings}
        print(json.dumps(found, indent=2, ensure_ascii=False))
    for each in findings if not options.json else ():
        print(f"{'ok  ' if each.fine else 'FAIL'}  {each.what}: {each.detail}")
    return 0 if all(each.fine for each in findings) else 1


@dataclass(frozen=True)
class Diagnosis:
    """One examination: its subject, the verdict, and what was found or is to be done."""

    what: str
    fine: bool
    detail: str


def examine() -> list[Diagnosis]:
    """Try everything that a run needs: packages, device, bundled model, quantisation, task files, disk."""
    token = os.environ.get("HF_TOKEN")
    return [
        Diagnosis("python", sys.version_info >= (3, 11), sys.version.split()[0]),
        _packages(),
        _tried("machine", _machine),
        _tried("bundled model", _micro),
        _tried("int8", _quantised, "int8"),
        _tried("nf4", _quantised, "nf4"),
        _tried("task files", _tasks),
        _tried("disk", _disk),
        Diagnosis("hub token", True, "set" if token else "HF_TOKEN is not set; gated models need it"),
    ]


def examine_profile(profile: Any) -> list[Diagnosis]:
    """Look for every model and data set that a profile names; asks the hub for those that were not fetched."""
    models = [_tried(f"model {each.label}", _model, each) for each in profile.models]
    return models + [_tried(f"data {name}", _data, source) for name, source in profile.data.items()]


def _model(model: Any) -> str:
    from fpbench.hub import download, lock, pypi
    from fpbench.models.checkpoints import HUB_FILES, local_folder, resolve
    from fpbench.models.packaged import folder_of
    from fpbench.models.quiet import quiet

    if local_folder(model.path):
        return f"here, {resolve(model.path)}"
    if wanted := pypi.parse(model.path):
        where = f"in the package {wanted.requirement}: the first use downloads and converts it"
        return f"fetched, {resolve(model.path)}" if folder_of(wanted).is_dir() else where
    if pin := lock.pins().get(lock.model_name(model.path, model.revision)):
        download.pinned(model.path, pin)
        return f"fetched, commit {pin.commit}"
    with quiet():
        try:
            folder = download.snapshot(model.path, model.revision, HUB_FILES, cached=True)
            return f"in the hub's cache, commit {folder.name}, not pinned: `fpbench fetch` does that"
        except InputError:
            download.check_access(download.wanted_model(model.path))
    return "on the hub: `fpbench fetch` downloads and pins it"


def _data(source: str) -> str:
    from fpbench import data
    from fpbench.hub import lock
    from fpbench.hub.download import HubSource, check_access, wanted_rows

    target = data.parse(source)
    pin = lock.pins().get(source) if isinstance(target, HubSource) else None
    if isinstance(target, HubSource) and pin is None:
        check_access(wanted_rows(target))
        return "on the hub: `fpbench fetch` downloads and pins it"
    rows = len(data.read_rows(source))
    return f"fetched, commit {pin.commit}, {rows} rows" if pin else f"here, {target}, {rows} rows"


def _packages() -> Diagnosis:
    from fpbench.records.provenance import packages

    found = packages()
    missing = [name for name, version in found.items() if version is None]
    detail = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    return Diagnosis("packages", not missing, f"install {', '.join(missing)}" if missing else detail)


def _tried(what: str, attempt: Callable[..., str], *given: Any) -> Diagnosis:
    try:
        return Diagnosis(what, True, attempt(*given))
    except (FpbenchError, OSError, RuntimeError, ImportError, ValueError) as error:
        return Diagnosis(what, False, " ".join(str(error).split()))


def _machine() -> str:
    from fpbench.records.provenance import machine

    found = machine()
    gpu = found["gpu"] or "no GPU (the micro and small profiles need none)"
    return f"{found['processor']}, {found['cores']} cores, {found['memory_gb']} GB, {gpu}"


def _micro() -> str:
    from fpbench.models.checkpoints import resolve
    from fpbench.models.loading import load_model

    model, tokenizer = load_model(resolve("micro"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"{parameters / 1e6:.1f} M parameters, {len(tokenizer)} tokens"


def _quantised(name: str) -> str:
    import torch

    from fpbench.models.checkpoints import resolve
    from fpbench.models.loading import load_model, pick_device
    from fpbench.modifications.base import ModificationContext
    from fpbench.registry import MODIFICATIONS

    device = pick_device(None)
    model, tokenizer = load_model(resolve("micro"), device=device)
    with contextlib.redirect_stdout(sys.stderr):
        modified = MODIFICATIONS.get(name)().apply(model, tokenizer, ModificationContext())
    with torch.no_grad():
        logits = modified.model(torch.tensor([[tokenizer.bos_token_id]], device=device)).logits
    if not torch.isfinite(logits).all():
        raise RuntimeError("the quantised model gives logits that are not finite")
    return f"bitsandbytes works on {device}, {modified.proof['bits_per_weight']:.2f} bits a weight"


def _tasks() -> str:
    from fpbench.metrics.utility import task_folder

    return f"{len(list(task_folder().glob('*.yaml')))} files"


def _disk() -> str:
    free = shutil.disk_usage(".").free / 2**30
    if free < 1:
        raise RuntimeError(f"{free:.1f} GiB free here: the micro profile takes about 0.1, an 8B model 1 a method")
    return f"{free:.0f} GiB free here"
