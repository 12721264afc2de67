"""What a child sees of this machine, and how it is started so that it sees nothing else: bubblewrap, or our own.

The run's store, the user's files and every socket are out of sight because only what is listed here is shown.
"""

import functools
import json
import os
import shutil
import site
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from fpbench.models.checkpoints import base_of_adapter
from fpbench.submissions.scratch import scratch

PACKAGES = Path(__file__).parents[2]  # where fpbench itself is imported from
# Programs and libraries of the system, what its loader reads, and what drivers read about the hardware.
SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store", "/opt/cuda", "/opt/rocm",
    "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime", "/etc/passwd",
    "/sys/devices", "/sys/bus", "/sys/class", "/sys/module",
)  # fmt: skip
OF_PYTHON = ("bin", "lib", "lib32", "lib64", "include", "share", "ssl", "nvvm", "targets", "pyvenv.cfg")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
CARDS = ("nvidia*", "kfd", "dri/*")  # below /dev
BESIDE = ("additional_chat_templates",)  # a folder of a checkpoint
PRIVATE = ("/tmp", "/dev/shm")
TRIAL = 20.0  # seconds that a command which does nothing may take


@dataclass(frozen=True)
class View:
    """What a process is shown."""

    root: str  # an empty folder, over which its root is made
    readable: tuple[str, ...]  # files and folders, read-only and at their own places
    devices: tuple[str, ...]
    bytes: int  # of each private folder
    files: int  # in each private folder
    private: tuple[str, ...] = PRIVATE  # empty folders of its own, which are gone with it; the first is its home


def view(root: Path, shown: Iterable[Path], size: int, files: int) -> View:
    """Return what a child needs to import torch and fpbench, and the paths ``shown`` besides."""
    python = [Path(prefix, name) for prefix in (sys.prefix, sys.base_prefix) for name in OF_PYTHON]
    package = PACKAGES if PACKAGES.name in ("site-packages", "dist-packages") else PACKAGES / "fpbench"
    libraries = [Path(each) for each in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if each]
    cuda = [Path(os.environ[name]) for name in ("CUDA_HOME",) if name in os.environ]
    found = [Path(each) for each in SYSTEM]
    found += [*python, *_links(Path(sys.executable)), *map(Path, site.getsitepackages()), package, *libraries, *cuda]
    # A folder before what lies in it, which is then there already.
    paths = sorted({str(place) for path in (*found, *shown) for place in (path, path.resolve()) if path.exists()})
    outer: list[str] = []
    for path in paths:
        if not any(path.startswith(f"{each}/") for each in outer):
            outer.append(path)
    devices = [path for path in DEVICES if os.path.exists(path)]
    devices += [str(path) for pattern in CARDS for path in sorted(Path("/dev").glob(pattern))]
    return View(str(root), tuple(outer), tuple(devices), size, files)


def files_of(base: Path) -> list[Path]:
    """Return the files of a checkpoint, and of the base that an adapter names; its folder may hold more than these."""
    if base.is_file():  # GGUF
        return [base]
    found = [path for path in base.iterdir() if path.is_file() or path.name in BESIDE]
    below = base_of_adapter(base)
    return found + (files_of(below) if below is not None and below.is_dir() else [])


def _links(path: Path) -> list[Path]:
    """Return a file and every link on the way to it, one after another."""
    found = [path]
    while found[-1].is_symlink() and len(found) < 40:
        found.append(found[-1].parent / found[-1].readlink())
    return found


# Two ways to the same end.


def bubblewrap(seen: View, command: list[str]) -> list[str]:
    """Return the command line that starts a command by bubblewrap."""
    names = ("user", "pid", "net", "ipc", "uts")
    line = [
        shutil.which("bwrap") or "bwrap",
        *(f"--unshare-{name}" for name in names),
        "--die-with-parent",
        "--cap-drop",
        "ALL",
    ]
    line += ["--proc", "/proc", "--dev", "/dev"]
    for path in seen.private:
        line += ["--size", str(seen.bytes), "--tmpfs", path]
    for path in seen.readable:
        line += ["--ro-bind", os.path.realpath(path), path]
    for path in seen.devices:
        line += ["--dev-bind", path, path]
    return [*line, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", seen.private[0], "--", *command]


def namespaces(seen: View, command: list[str]) -> list[str]:
    """Return the command line that starts a command by :mod:`fpbench.submissions.namespaces`."""
    script = str(Path(__file__).with_name("namespaces.py"))
    return [sys.executable, "-I", "-S", script, json.dumps(asdict(seen)), str(os.getpid()), *command]


Start = Callable[[View, list[str]], list[str]]
STARTS: dict[str, Start] = {"bubblewrap": bubblewrap, "namespaces": namespaces}


@functools.cache
def fails(name: str) -> str | None:
    """Start a command that does nothing, and return what kept this machine from it; ``None`` if it works."""
    if not sys.platform.startswith("linux"):
        return f"{sys.platform} has no namespaces"
    if name == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    with scratch() as folder:
        (folder / "root").mkdir()
        command = STARTS[name](view(folder / "root", [], 2**20, 100), [sys.executable, "-I", "-S", "-c", ""])
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TRIAL, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no word"])[-1]


def best() -> str | None:
    """Return the name of the first way that works on this machine, if any does."""
    return next((name for name in STARTS if fails(name) is None), None)
