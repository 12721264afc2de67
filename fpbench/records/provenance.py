"""Provenance of a record: code, packages, machine. Never part of a cell's identity."""

import contextlib
import functools
import hashlib
import inspect
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fpbench import __version__

PACKAGES = "torch transformers datasets lm-eval peft bitsandbytes safetensors numpy scipy".split()


@functools.cache
def code_and_machine() -> dict[str, Any]:
    """Return git commit with a dirty flag, digest of fpbench's source, package versions, Python and hardware."""
    return {
        "git": _git(),
        "source": source(),
        "packages": packages(),
        "python": platform.python_version(),
        "machine": machine(),
    }


@functools.cache
def source() -> str:
    """Return a short SHA-256 of fpbench's own code and tables of hyper-parameters, wherever they were installed."""
    folder = Path(__file__).parent.parent
    total = hashlib.sha256()
    for path in sorted(path for suffix in ("py", "toml") for path in folder.rglob(f"*.{suffix}")):
        total.update(f"{path.relative_to(folder)}:{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def source_of(method: type) -> str | None:
    """Return a short SHA-256 of the code that defines a method; ``None`` if it was defined by hand."""
    if declared := getattr(method, "source", None):  # of a submission, which is a folder
        return str(declared)
    try:
        return hashlib.sha256(Path(inspect.getfile(method)).read_bytes()).hexdigest()[:16]
    except (TypeError, OSError):
        return None


def packages() -> dict[str, str | None]:
    """Return the version of every package that can move a figure; ``None`` where one is not installed."""
    found: dict[str, str | None] = {"fpbench": __version__, **dict.fromkeys(PACKAGES)}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine() -> dict[str, Any]:
    """Return operating system, processor, cores, memory and GPU."""
    import psutil
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git() -> dict[str, Any]:
    """Return commit and dirty flag of the checkout that fpbench runs from; ``None`` for an installed package."""
    here = Path(__file__).resolve().parent.parent

    def ask(*words: str) -> str | None:
        try:
            answer = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    # An installed package inside somebody else's repository is not that repository's code.
    if ask("ls-files", "--error-unmatch", str(here / "__init__.py")) is None:
        return {"commit": None, "dirty": None}
    return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "--", str(here)))}
