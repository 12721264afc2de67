"""Start a command that sees what it is shown alone: ``python namespaces.py VIEW PARENT COMMAND…``.

For systems without bubblewrap, which does the same; it imports the standard library alone. VIEW is JSON of
:class:`fpbench.submissions.sandbox.View`, PARENT the process that starts it.

The command runs in new namespaces of users, processes, mounts, network, IPC and host name. Its root is an empty tmpfs
with the paths of the view, read-only, and private /tmp and /dev/shm of fixed size. It has no capability and cannot get
one. Process 1 of the new namespace is this file's: when it ends, for any reason, the system kills every other process
there, and it ends with the command and with its own parent.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

NEW = 0x10000000 | 0x20000 | 0x20000000 | 0x40000000 | 0x8000000 | 0x4000000  # users, mounts, PIDs, network, IPC, UTS
NOSUID, NODEV, READ_ONLY, REMOUNT, BIND, RECURSIVE, PRIVATE = 2, 4, 1, 32, 4096, 16384, 1 << 18
DETACH = 2
MOUNT_SETATTR, PIVOT_ROOT = 442, {"x86_64": 155}.get(os.uname().machine, 41)
AT_RECURSIVE, HERE = 0x8000, -100
DEATH_SIGNAL, DUMPABLE, BOUNDING_DROP, NO_NEW_PRIVILEGES, AMBIENT, CLEAR_ALL = 1, 4, 24, 38, 47, 4
CAPABILITIES = 0x20080522  # version of the structure
# Of /proc, what root could change for the whole machine.
OF_THE_MACHINE = ("sys", "sysrq-trigger", "irq", "bus", "fs")
LIBRARY: Any = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> int:
    """Call a function of the C library; OSError, which names it, if it fails."""
    found: int = getattr(LIBRARY, name)(*arguments)
    if found < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return found


def main(view: dict[str, Any], parent: int, command: list[str]) -> int:
    """Run the command and return its exit code, 128 and more for a signal."""
    call("prctl", DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before that
        return 1
    user, group = os.getuid(), os.getgid()
    call("unshare", NEW)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    alive, told = os.pipe()
    if (first := os.fork()) == 0:
        os.close(told)
        call("prctl", DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if not os.read(alive, 1):  # its parent ended before that
            os._exit(1)
        os.close(alive)
        os._exit(_first(view, command))
    os.write(told, b"1")
    return _code(os.waitpid(first, 0)[1])


def _first(view: dict[str, Any], command: list[str]) -> int:
    """Make the root, start the command and reap whatever is left behind, until the command ends."""
    try:
        _show(view)
        _drop_capabilities()
        if (child := os.fork()) == 0:
            os.execvp(command[0], command)
    except OSError as error:
        print(f"namespaces: {error}", file=sys.stderr, flush=True)
        return 1
    call("prctl", DUMPABLE, 0, 0, 0, 0)  # the command must not write into this process, which nothing filters
    os.closerange(0, 1024)  # the command's own pipes end with the command
    while True:
        ended, status = os.wait()
        if ended == child:
            return _code(status)


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _show(view: dict[str, Any]) -> None:
    """Make an empty root with the paths of the view, and enter it."""
    root, flags = view["root"], NOSUID | NODEV
    _mount("none", "/", "", RECURSIVE | PRIVATE)
    _mount("tmpfs", root, "tmpfs", flags, "size=1m,mode=755")
    for path in view["private"]:
        os.makedirs(root + path, exist_ok=True)
        _mount("tmpfs", root + path, "tmpfs", flags, f"size={view['bytes']},nr_inodes={view['files']},mode=700")
    for path in view["readable"]:
        _bind(path, root + path)
        # struct mount_attr: set read-only, nosuid and nodev on it and every mount below; clear nothing.
        attributes = (ctypes.c_uint64 * 4)(1 | 2 | 4, 0, 0, 0)
        call("syscall", MOUNT_SETATTR, HERE, os.fsencode(root + path), AT_RECURSIVE, attributes, 32)
    for path in view["devices"]:
        _bind(path, root + path)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(f"/proc/self/{target}", f"{root}/dev/{name}")
    os.mkdir(f"{root}/proc")
    _mount("proc", f"{root}/proc", "proc", flags | 8)
    for path in (f"{root}/proc/{name}" for name in OF_THE_MACHINE):
        if os.path.exists(path):
            _bind(path, path)
            _mount("none", path, "", REMOUNT | BIND | READ_ONLY | flags | 8)
    os.chdir(root)
    call("syscall", PIVOT_ROOT, b".", b".")
    call("umount2", b".", DETACH)  # the old root, which lies on top
    os.chdir("/")
    _mount("none", "/", "", REMOUNT | BIND | READ_ONLY | flags)
    os.chdir(view["private"][0])


def _bind(path: str, target: str) -> None:
    source = os.path.realpath(path)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        Path(target).touch()
    _mount(source, target, "", BIND | RECURSIVE)


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    try:
        call("mount", os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode())
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} ({target})") from None


def _drop_capabilities() -> None:
    """Give up every capability for good, also what a program would get for being root's."""
    call("prctl", AMBIENT, CLEAR_ALL, 0, 0, 0)
    with contextlib.suppress(OSError):  # past the last one that this kernel knows
        for number in range(64):
            call("prctl", BOUNDING_DROP, number, 0, 0, 0)
    header, none = (ctypes.c_uint32 * 2)(CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
    call("capset", header, none)
    call("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)


if __name__ == "__main__":
    try:
        code = main(json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
    except OSError as error:
        sys.exit(f"namespaces: {error}")
    sys.exit(code)
