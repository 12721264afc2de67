"""What a process forbids itself before a stranger's code is imported, and the trial of every promise by breaking it.

The standard library alone: Landlock, the second wall behind what :mod:`fpbench.submissions.sandbox` shows, binds no
thread that runs already. A filter of system calls (libseccomp) closes what namespaces leave open.
"""

import contextlib
import ctypes
import errno
import os
import resource
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEATH_SIGNAL, KILL, SUBREAPER, NO_NEW_PRIVILEGES = 1, 9, 36, 38  # prctl


def limit(memory: int, file: int, handles: int) -> None:
    """Set hard limits on this process, which its children inherit.

    Args:
        memory: bytes of data.
        file: bytes of any file that is written.
        handles: open files; each may be a pipe or socket that holds memory of the system's.
    """
    for kind, value in (
        ("RLIMIT_DATA", memory),
        ("RLIMIT_FSIZE", file),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NOFILE", handles),
    ):
        # A lower limit than ours is in force, or limits are not supported.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(getattr(resource, kind), (value, value))


def stay_in_family() -> None:
    """Have Linux kill this process when its parent ends, and give it what its own descendants leave behind."""
    if sys.platform.startswith("linux"):
        system = ctypes.CDLL(None)
        system.prctl(DEATH_SIGNAL, KILL, 0, 0, 0)
        system.prctl(SUBREAPER, 1, 0, 0, 0)


# Landlock.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # Linux's system calls, the same on every architecture
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


def landlock(writable: Sequence[str]) -> int:
    """Have Linux forbid this process to write but in the folders ``writable`` and to devices, and to use TCP.

    Return the version of Landlock that does so: 1 to 3 know no network, 4 and 5 no scope of signals; 0 if none does.
    """
    if not sys.platform.startswith("linux"):
        return 0
    system = ctypes.CDLL(None, use_errno=True)
    version: int = system.syscall(CREATE_RULESET, None, 0, VERSION)
    if version < 1:
        return 0
    files = CHANGING | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    rules = _Ruleset(files, TCP if version >= 4 else 0, SIGNALS_AND_SOCKETS if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = system.syscall(CREATE_RULESET, ctypes.byref(rules), size, 0)
    if ruleset < 0:
        return 0
    for path, allowed in (("/dev", files & (WRITE | TRUNCATE)), *((path, files) for path in writable)):
        if os.path.isdir(path):
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            system.syscall(ADD_RULE, ruleset, PATH_BENEATH, ctypes.byref(_Beneath(allowed, handle)), 0)
            os.close(handle)
    system.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    bound = system.syscall(RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return version if bound else 0


# The filter of system calls.
ALLOW, REFUSE = 0x7FFF0000, 0x00050000  # libseccomp's actions; the number of an error is added to the second
NOT_EQUAL, EQUAL, MASKED_EQUAL, UNKNOWN = 1, 4, 7, -1
# Memory that no limit of a file system covers, and calls for which programs have another way.
ABSENT = ("memfd_create", "memfd_secret", "io_uring_setup", "io_uring_enter", "io_uring_register", "clone3")
FORBIDDEN = (
    *("shmget", "msgget", "semget"),  # further memory of the system's
    *("keyctl", "add_key", "request_key"),  # keyrings have no namespace of their own
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen", "fsmount"),
    *("fspick", "fsconfig", "mount_setattr", "open_by_handle_at", "name_to_handle_at"),
    *("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp", "process_madvise"),
    *("bpf", "perf_event_open", "userfaultfd", "fanotify_init", "quotactl", "syslog", "acct", "personality"),
    *("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff"),
)
NEW_NAMESPACES = 0x7E020080  # every CLONE_NEW… flag of clone
# Netlink is how a program lists its interfaces. AF_VSOCK reaches the host of a virtual machine past any namespace.
FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, getattr(socket, "AF_NETLINK", 16))
LAST_FAMILY = 64  # above all that Linux knows


class _Argument(ctypes.Structure):
    _fields_ = [("number", ctypes.c_uint), ("compare", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def filter_calls() -> bool:
    """Refuse system calls that the work does not need, for good; return False if there is no libseccomp to do it."""
    try:
        library: Any = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError:
        return False
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(ALLOW)))

    def refuse(name: str, error: int, *arguments: _Argument) -> bool:
        call = library.seccomp_syscall_resolve_name(name.encode())
        if call == UNKNOWN:  # to this version of the library; the others stand
            return True
        tests = (_Argument * len(arguments))(*arguments)
        action = ctypes.c_uint32(REFUSE | error)
        # Negative numbers are calls that this architecture does not have.
        return bool(call < 0 or library.seccomp_rule_add_array(context, action, call, len(arguments), tests) == 0)

    done = all([refuse(name, errno.ENOSYS) for name in ABSENT] + [refuse(name, errno.EPERM) for name in FORBIDDEN])
    for bit in (1 << place for place in range(32) if NEW_NAMESPACES & (1 << place)):
        done &= refuse("clone", errno.EPERM, _Argument(0, MASKED_EQUAL, bit, bit))
    for family in set(range(LAST_FAMILY)) - set(map(int, FAMILIES)):
        done &= refuse("socket", errno.EAFNOSUPPORT, _Argument(0, EQUAL, family, 0))
    done &= refuse("socketpair", errno.EAFNOSUPPORT, _Argument(0, NOT_EQUAL, socket.AF_UNIX, 0))
    return bool(done and library.seccomp_load(context) == 0)


# The promises, each tried by breaking it.


@dataclass(frozen=True)
class Targets:
    """What lies outside for a child to reach at, put there by its parent."""

    file: str  # that the parent can read
    listening: int  # port of 127.0.0.1
    socket: str  # path of a UNIX socket that listens
    processes: str  # namespace of the parent's processes, as /proc names it
    read_only: list[str]  # files that the child is shown
    private: list[str]  # folders that the child may write to
    bytes: int  # that fit into each of them


def tried(targets: Targets) -> list[str]:
    """Return the names of the promises that hold: whatever is attempted fails."""
    return [name for name, holds in TRIALS.items() if _holds(holds, targets)]


def _holds(trial: Callable[["Targets"], bool], targets: Targets) -> bool:
    try:
        return trial(targets)
    except (OSError, AttributeError):  # what it takes to try is not there: nothing is known to keep it
        return False


def _fails(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return True
    return False


def _unread(targets: Targets) -> bool:
    return _fails(lambda: Path(targets.file).read_bytes()) and _fails(lambda: os.stat(targets.file))


def _unwritten(targets: Targets) -> bool:
    def attempts(path: str) -> list[Callable[[], object]]:
        state = os.stat(path)
        return [
            lambda: os.close(os.open(path, os.O_WRONLY)),
            lambda: os.chmod(path, state.st_mode),
            lambda: os.chown(path, state.st_uid, state.st_gid),
            lambda: os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns)),
            lambda: os.setxattr(path, "user.fpbench", b""),
        ]

    return all(_fails(each) for path in targets.read_only for each in attempts(path))


def _offline(targets: Targets) -> bool:
    def connect() -> None:
        with socket.socket() as attempt:
            attempt.settimeout(1.0)
            attempt.connect(("127.0.0.1", targets.listening))

    def fast_open() -> None:  # which Landlock does not see
        with socket.socket() as attempt:
            attempt.settimeout(1.0)
            attempt.sendto(b"", getattr(socket, "MSG_FASTOPEN", 0x20000000), ("127.0.0.1", targets.listening))

    def datagram() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as attempt:
            attempt.connect(("192.0.2.1", 9))  # of no machine, by RFC 5737; a route is all that it takes

    def several_paths() -> None:  # nor this
        with socket.socket(proto=262) as attempt:
            attempt.settimeout(1.0)
            attempt.connect(("127.0.0.1", targets.listening))

    return all(map(_fails, (connect, fast_open, datagram, several_paths)))


def _unheard(targets: Targets) -> bool:
    def connect(address: str) -> Callable[[], None]:
        def attempt() -> None:
            with socket.socket(socket.AF_UNIX) as end:
                end.connect(address)

        return attempt

    return _fails(connect(targets.socket)) and _fails(connect(f"\0{targets.socket}"))


def _alone(targets: Targets) -> bool:
    if os.readlink("/proc/self/ns/pid") == targets.processes:
        return False
    # The number may be another process's here, which is this process's own or a launcher's.
    return len([name for name in os.listdir("/proc") if name.isdigit()]) <= 3


def _measured(targets: Targets) -> bool:
    sizes = [os.statvfs(path) for path in targets.private]
    memfd = getattr(os, "memfd_create", None)
    return all(0 < each.f_blocks * each.f_frsize <= targets.bytes + 2**16 for each in sizes) and (
        memfd is not None and _fails(lambda: os.close(memfd("x")))
    )


def _filtered(targets: Targets) -> bool:
    vsock = getattr(socket, "AF_VSOCK", 40)
    if (attempt := os.fork()) == 0:  # what succeeds there changes nothing here
        os._exit(0 if ctypes.CDLL(None).unshare(0x10000000) < 0 else 1)
    refused = os.waitpid(attempt, 0)[1] == 0
    return refused and _fails(lambda: socket.socket(vsock, socket.SOCK_STREAM).close())


TRIALS: dict[str, Callable[[Targets], bool]] = {
    "reads": _unread,
    "writes": _unwritten,
    "network": _offline,
    "sockets": _unheard,
    "processes": _alone,
    "memory": _measured,
    "calls": _filtered,
}
