"""What a child process takes from itself before it runs a stranger's code. Isolation of state, not a sandbox.

Needs neither torch nor anything else of fpbench, so that no thread runs yet whom it would not bind.
"""

import contextlib
import ctypes
import os
import sys
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # Linux's system calls, the same on every architecture
NO_NEW_PRIVILEGES, DEATH_SIGNAL = 38, 1  # prctl
KILL = 9
PATH_BENEATH, VERSION = 1, 1
# Rights over files that change something: bits 1 (write) and 4 to 12 (remove, make); later versions know more.
CHANGING = (1 << 1) | sum(1 << bit for bit in range(4, 13))
REFER, TRUNCATE, WRITE = 1 << 13, 1 << 14, 1 << 1
TCP = 0b11  # bind and connect
SIGNALS_AND_SOCKETS = 0b11  # abstract sockets and signals, to processes outside


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scope", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32)]


def limit(memory: int, file: int) -> None:
    """Set hard limits on this process, which its children inherit.

    Args:
        memory: bytes of data.
        file: bytes of any file written.
    """
    import resource

    for kind, value in (("RLIMIT_DATA", memory), ("RLIMIT_FSIZE", file), ("RLIMIT_CORE", 0)):
        with contextlib.suppress(ValueError, OSError):  # a lower limit than ours is in force, or none is to be had
            resource.setrlimit(getattr(resource, kind), (value, value))


def confine(folder: Path) -> list[str]:
    """Have Linux (Landlock) forbid this process what its work does not need.

    Args:
        folder: the only one, beside devices, in which it may write.

    Returns:
        What is forbidden from now on: ``writes`` elsewhere, ``tcp``, ``signals`` to other processes. Empty where the
        system has no Landlock; that is no error, and has to be said.
    """
    if not sys.platform.startswith("linux"):
        return []
    system = ctypes.CDLL(None, use_errno=True)
    system.prctl(DEATH_SIGNAL, KILL, 0, 0, 0)  # does not outlive its parent
    version = system.syscall(CREATE_RULESET, None, 0, VERSION)
    if version < 1:
        return []
    files = CHANGING | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    rules = _Ruleset(files, TCP if version >= 4 else 0, SIGNALS_AND_SOCKETS if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = system.syscall(CREATE_RULESET, ctypes.byref(rules), size, 0)
    if ruleset < 0:
        return []
    for path, allowed in ((folder, files), (Path("/dev"), files & (WRITE | TRUNCATE)), (Path("/dev/shm"), files)):
        if path.is_dir():
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            system.syscall(ADD_RULE, ruleset, PATH_BENEATH, ctypes.byref(_Beneath(allowed, handle)), 0)
            os.close(handle)
    system.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    bound = system.syscall(RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    if not bound:
        return []
    return ["writes"] + ["tcp"] * (version >= 4) + ["signals"] * (version >= 6)
