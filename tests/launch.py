"""Python in a process of its own that does not pay for its libraries: forked from one that has imported them.

For what needs a process of its own because it is limited or has another path. Where only the exit code and the output
matter, call :func:`fpbench.cli.main`; where a process is killed, or what it imports is the question, start one.
"""

import multiprocessing
import os
import resource
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

# Nothing of fpbench: what it does when it is imported is part of what is tested.
HEAVY = ["torch", "transformers", "peft", "datasets", "bitsandbytes", "lm_eval", "lm_eval.models.huggingface"]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(HEAVY)


def launch(
    module: str,
    *arguments: str,
    cwd: Path,
    path: tuple[str, ...] = (),
    limits: dict[int, int] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module arguments`` offline to its end.

    Args:
        module: what to run.
        arguments: of its command line.
        cwd: the working folder; what is printed is written beside it.
        path: folders that Python looks into first.
        limits: bytes by what of ``resource`` they limit.
    """
    out, err = (cwd.with_name(f"{cwd.name}.{stream}") for stream in ("stdout", "stderr"))
    process = CONTEXT.Process(target=_run, args=(module, arguments, cwd, path, limits or {}, out, err))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")  # read when libraries are imported: by the process that forks, once for all
        process.start()
    process.join()
    assert process.exitcode is not None
    return subprocess.CompletedProcess([module, *arguments], process.exitcode, out.read_text(), err.read_text())


def _run(
    module: str,
    arguments: tuple[str, ...],
    cwd: Path,
    path: tuple[str, ...],
    limits: dict[int, int],
    out: Path,
    err: Path,
) -> None:
    for stream, file in ((sys.stdout, out), (sys.stderr, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), stream.fileno())
    os.chdir(cwd)
    sys.path[:0] = path
    sys.argv[1:] = arguments
    for what, most in limits.items():
        resource.setrlimit(what, (most, most))
    runpy.run_module(module, run_name="__main__", alter_sys=True)
