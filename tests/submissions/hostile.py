"""Submissions that must be refused: how each is made from a good one, and what has to be said about it."""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fpbench.submissions.folder import template

NAME = "stranger"
README = "This submission exists to be refused, by a test that says what has to be found.\n"
MANIFEST = """\
method = "stranger"
authors = ["A. Stranger"]
paper = "https://arxiv.org/abs/0000.00000"
licence = "MIT"
code_version = "1"
hardware = "none"

[hyperparameters.small]
strength = 1.0
"""
# Marks the process that runs it; the parent's must never be marked.
ADAPTER = """\
import builtins
builtins.fpbench_stranger_was_here = True
import os, sys
import fpbench
{top}
@fpbench.register("stranger")
class Stranger(fpbench.FingerprintMethod):
    version = "1"

    class Config(fpbench.MethodConfig):
        strength: float = 1.0

    def inject(self, model, tokenizer, fingerprints, context):
        import torch
        weight = model.get_parameter("model.layers.5.mlp.down_proj.weight")
        {body}
"""
WEAK = "with torch.no_grad(): weight.mul_(1.001)"


def write(folder: Path, top: str = "", body: str = WEAK) -> Path:
    """A submission that is complete, and does next to nothing unless told."""
    folder.mkdir(parents=True)
    (folder / "submission.toml").write_text(MANIFEST)
    (folder / "README.md").write_text(README)
    lines = body.replace("\n", "\n        ")
    (folder / "adapter.py").write_text(ADAPTER.format(top=top, body=lines))
    return folder


@dataclass(frozen=True)
class Case:
    """One submission to be refused.

    Attributes:
        name: of the case.
        make: makes it in a new folder.
        says: a regular expression for what has to be said.
        child: whether a child process is needed to find it.
        quick: whether it is tried in the ordinary tests.
    """

    name: str
    make: Callable[[Path], object]
    says: str
    child: bool = False
    quick: bool = False


def _manifest(old: str, new: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        write(folder)
        assert old in MANIFEST
        (folder / "submission.toml").write_text(MANIFEST.replace(old, new))

    return make


def _reported(keys: str) -> Callable[[Path], object]:
    """A claim of the paper with further keys."""
    return _file("submission.toml", f'{MANIFEST}\n[[reported]]\nsays = "all of them"\nsource = "table 1"\n{keys}\n')


def _strength(value: str) -> Callable[[Path], object]:
    return _manifest("strength = 1.0", f"strength = {value}")


def _file(name: str, content: bytes | str = b"x") -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        write(folder)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def _without(name: str) -> Callable[[Path], object]:
    return lambda folder: (write(folder) / name).unlink()


def _then(change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: change(write(folder))


def _adapter(top: str = "", body: str = WEAK) -> Callable[[Path], object]:
    return lambda folder: write(folder, top, body)


def _source(text: str) -> Callable[[Path], object]:
    return _file("adapter.py", text)


def _replies(action: str) -> Callable[[Path], object]:
    """An adapter that answers in its child's place: ``action`` calls ``say``, and the process hangs."""
    say = "def say(text):\n    while text: text = text[os.write(int(sys.argv[2]), text):]"
    return _adapter(f"{say}\n{action}\nimport time; time.sleep(60)")


def _outside(action: str) -> Callable[[Path], object]:
    """An adapter that reaches for what its parent put outside: ``targets`` says where (confinement.Targets)."""
    read = "import json, socket\ntargets = json.load(open(sys.argv[1] + '/limits.json'))['targets']"
    return _adapter(f"{read}\n{action}")


def _large(folder: Path) -> None:
    for number in range(260):
        (folder / f"part{number}.txt").write_bytes(b"x" * 2**20)


def _many(folder: Path) -> None:
    for number in range(5_001):
        (folder / f"note{number}.txt").write_text("")


def _many_folders(folder: Path) -> None:
    for number in range(20_100):
        (folder / f"note{number}").mkdir()


def _nested(folder: Path) -> None:
    """Folders so deep that no path leads to the lowest."""
    handle = os.open(folder, os.O_RDONLY)
    for _ in range(3_000):
        os.mkdir("a", dir_fd=handle)
        below = os.open("a", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    os.close(handle)


def _copied_template(folder: Path) -> None:
    shutil.copytree(template(), folder, ignore=shutil.ignore_patterns("__pycache__"))


FOLDER = (
    Case("template_as_it_is", _copied_template, r"name: expected a method called like its folder"),
    Case("no_manifest", _without("submission.toml"), r"required: .* found no submission.toml", quick=True),
    Case("no_adapter", _without("adapter.py"), r"required: .* found no adapter.py"),
    Case("no_readme", _without("README.md"), r"required: .* found no README.md"),
    Case("empty_readme", _file("README.md", "todo"), r"readme: .* found 1 words"),
    Case("broken_toml", _file("submission.toml", "method = "), r"manifest: .* is not a readable TOML file"),
    Case("deep_toml", _file("submission.toml", "a = " + "[" * 5_000), r"manifest: .* is not a readable TOML file"),
    Case("latin_1", _file("submission.toml", "authors = 'Gr\xfc\xdfe'".encode("latin-1")), r"texts: .* byte 0xfc"),
    Case("missing_key", _manifest('licence = "MIT"\n', ""), r"key 'licence': Field required", quick=True),
    Case("unknown_key", _manifest('licence = "MIT"', 'licence = "MIT"\nscore = 1.0'), r"key 'score': Extra inputs"),
    Case("wrong_type", _manifest('["A. Stranger"]', '"A. Stranger"'), r"key 'authors': Input should be a valid list"),
    Case("nobody", _manifest('["A. Stranger"]', "[]"), r"key 'authors': List should have at least 1 item"),
    Case("other_name", _manifest('"stranger"', '"somebody"'), r"found method 'somebody' in folder 'stranger'"),
    Case("no_licence", _manifest('"MIT"', '"all mine"'), r"key 'licence': no SPDX expression"),
    Case("no_address", _manifest("https://arxiv.org", "javascript:alert(1)"), r"key 'paper': no address"),
    Case("no_family", _manifest("small", "huge"), r"a table for 'huge', which is none of all, small, llama-3.2-3b"),
    Case("escape_sequence", _manifest("A. Stranger", r"\u001b[2J"), r"a character that cannot be seen \(U\+001B\)"),
    Case("turned_text", _manifest("A. Stranger", r"\u202egnp"), r"a character that cannot be seen \(U\+202E\)"),
    Case("long_text", _manifest("A. Stranger", "A" * 500), r"key 'authors.0': String should have at most 200"),
    Case(
        "per_cent", _reported('metric = "fsr"\nvalue = 97'), r"key 'reported.0': expected fsr from 0 to 1", quick=True
    ),
    Case("figure_of_nothing", _reported("value = 0.9"), r"key 'reported.0': expected a 'metric' with its 'value'"),
    Case("half_a_range", _reported('metric = "retention"\nlow = 0.9'), r"expected 'value' alone, or 'low' and 'high'"),
    Case("greedy_of_how_many", _reported('metric = "fsr_greedy"\nvalue = 9'), r"key 'reported.0': expected 'n'"),
    Case("no_condition", _reported('conditions = ["merging"]'), r"key 'reported.0.conditions.0': unknown condition"),
    Case("long_manifest", _file("submission.toml", "#" * 70_000), r"expected at most 64 KiB"),
    Case("pickle", _file("weights.pkl"), r"pickle: expected no pickle and no weights; found weights.pkl", quick=True),
    Case("torch_file", _file("cache/model.pt"), r"pickle: .* found cache/model.pt"),
    Case("hidden_pickle", _file("notes.txt", b"\x80\x04\x95x."), r"texts: .* byte 0x80 in notes.txt"),
    Case("weights", _file("model.safetensors"), r"kinds: .* found model.safetensors"),
    Case("library", _file("fast.so"), r"kinds: .* found fast.so"),
    Case("zero_byte", _file("adapter.py", "x = 1\0"), r"texts: .* a zero byte in adapter.py"),
    Case("hidden_file", _file(".env", "TOKEN=1"), r"file names: .* found '.env'"),
    Case("odd_name", _file("$(reboot).py", ""), r"file names: .* found '\$\(reboot\).py'", quick=True),
    Case("two_cases", _then(lambda f: [(f / n).write_text("") for n in ("a.md", "A.md")]), r"differ in case alone"),
    Case("link", _then(lambda f: (f / "data.txt").symlink_to("/etc/passwd")), r"found the link data.txt", quick=True),
    Case("linked_folder", _then(lambda f: (f / "data").symlink_to("/etc")), r"inside: .* found the link data"),
    Case("pipe", _then(lambda f: os.mkfifo(f / "data.txt")), r"data.txt, which is neither a file nor a folder"),
    Case("large_file", _file("table.csv", b"1," * 2**20), r"sizes: .* found table.csv of 2.0 MiB"),
    Case("large_folder", _then(_large), r"sizes: .* found 260 MiB in all"),
    Case("many_files", _then(_many), r"sizes: .* found 5004 files"),
    Case("many_folders", _then(_many_folders), r"inside: .* found more than 20000 of them"),
    Case("nested_folders", _then(_nested), r"inside: .* found folders more than 12 levels deep"),
    Case("date", _strength("2020-01-01"), r"the date or time 2020-01-01, which is no hyper-parameter", quick=True),
    Case("dotted", _file("submission.toml", MANIFEST + ".".join("a" * 3_000) + " = 1"), r"more than 8 levels deep"),
    Case("dotted_table", _manifest(".small", ".small" + ".a" * 3_000), r"more than 8 levels deep"),
    Case("endless_number", _strength("nan"), r"the number nan, which is not finite"),
    Case("huge_number", _strength("1" * 4_000), r"an integer beyond 64 bits"),
)
# Half a GiB and more in files that have no name.
UNLINKED = """\
files = []
for i in range(9):
    files.append(open(f'{folder}/x{{i}}', 'wb')); os.unlink(files[-1].name); files[-1].write(bytes(2**27))"""
# Every stored injection and record that can be found.
SEARCH = """\
found = [os.path.join(parent, name) for top in ('/', '/proc/1/root', '/proc/1/cwd') for parent, _, names in os.walk(top)
         for name in names if name.endswith('fpbench-victim.safetensors')]"""
CALL = """\
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
if libc.{call} < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))"""
# Returns True in a process that left its parent and its session.
DAEMON = """\
def daemon():
    if os.fork(): return False
    os.setsid()
    if os.fork(): os._exit(0)
    return True"""
CHILD = (
    Case("syntax", _source("def inject(:"), r"adapter: .* SyntaxError", True, True),
    Case("deep_syntax", _source("(" * 100_000), r"adapter: .* (SyntaxError|MemoryError|process ended)", True),
    Case("raises", _adapter("raise KeyError('layer')"), r"adapter: .* KeyError: 'layer'", True),
    Case("leaves", _adapter("sys.exit(0)"), r"adapter: .* SystemExit", True),
    Case("ends", _adapter("os._exit(0)"), r"process ended \(exit code 0\) without an answer", True, True),
    Case("kills_itself", _adapter("os.kill(os.getpid(), 9)"), r"process ended \(Killed\)", True),
    Case("hangs", _adapter("import time; time.sleep(600)"), r"took longer than \d+ s", True, True),
    Case("memory", _adapter("hoard = bytearray(2**36)"), r"MemoryError", True),
    Case(
        "memory_of_many",
        _adapter("import time\nfor _ in range(8):\n    if os.fork() == 0:\n        x = b'1' * 2**29; time.sleep(600)"),
        r"took more than \d+ MiB of memory",
        True,
    ),
    Case("large_output", _adapter("open('x', 'wb').write(bytes(2**29))"), r"OSError: .*File too large", True),
    Case(
        "disk",
        _adapter("for i in range(9): open(f'x{i}', 'wb').write(bytes(2**27))"),
        r"OSError: .*No space left on device",
        True,
    ),
    Case("unlinked", _adapter(UNLINKED.format(folder=".")), r"OSError: .*No space left on device", True),
    Case("shared_memory", _adapter(UNLINKED.format(folder="/dev/shm")), r"OSError: .*No space left on device", True),
    Case("unnamed", _adapter("os.memfd_create('x')"), r"OSError: .*Function not implemented", True, True),
    Case(
        "inodes",
        _adapter("for i in range(60_000): open(f'x{i}', 'w').close()\nimport time; time.sleep(600)"),
        r"OSError: .*No space left on device|took more than \d+ files",
        True,
    ),
    Case(
        "nested", _adapter("for _ in range(3_000): os.mkdir('a'); os.chdir('a')\nraise KeyError(_)"), r"KeyError", True
    ),
    Case(
        "many_processes",
        _adapter("import time\nfor _ in range(1_100):\n    if os.fork() == 0: time.sleep(600)\ntime.sleep(600)"),
        r"took more than \d+ (processes|MiB of memory)",
        True,
    ),
    Case(
        "memory_of_a_daemon",
        _adapter(
            f"{DAEMON}\nimport time\nfor _ in range(3):\n    if daemon():\n        x = b'1' * 2**30 + b'1' * 2**28\n"
            "        time.sleep(600)\ntime.sleep(600)"
        ),
        r"took more than \d+ MiB of memory",
        True,
    ),
    Case("endless_log", _adapter("while True: os.write(1, bytes(2**20))"), r"OSError: .*File too large", True),
    Case("nothing_registered", _source("import fpbench"), r"registers no method", True),
    Case("other_registered", _adapter("@fpbench.register('else')\nclass E: pass\nsys.exit()"), r"SystemExit", True),
    Case(
        "other_version",
        lambda f: (write(f) / "adapter.py").write_text(ADAPTER.format(top="", body=WEAK).replace('"1"', '"2"')),
        r"version '2' in adapter.py, code_version '1'",
        True,
    ),
    Case(
        "other_hyperparameter",
        _manifest("strength", "strenght"),
        r"\[hyperparameters.small\]: method 'stranger', key 'strenght': Extra inputs",
        True,
    ),
    Case(
        "linked_request",
        _adapter("os.symlink('/etc/passwd', os.path.join(sys.argv[1], 'request-2.json'))"),
        r"adapter: .* (PermissionError|OSError: .*Read-only)",
        True,
    ),
    Case("no_reply", _replies("say(b'FSR 1.0\\n')"), r"sent an invalid reply", True, True),
    Case("huge_reply", _replies("say(b' ' * 2**22)"), r"a reply: expected at most 1048576 bytes", True),
    Case(
        "closed",
        _adapter("os.close(int(sys.argv[2]))\nos._exit(3)"),
        r"process ended \(exit code 3\) without an answer",
        True,
    ),
    Case(
        "other_reply",
        _replies('say(b\'{"status": "done", "answer": {"names": 5}, "adapter_seconds": 0.0}\\n\')'),
        r"sent an invalid description",
        True,
    ),
    Case(
        "endless_reply",
        _replies('say(b\'{"status": "done", "answer": {}, "adapter_seconds": NaN}\\n\')'),
        r"sent an invalid reply",
        True,
    ),
    Case("weak", _adapter(), r"fsr: expected an FSR that is 0.1 above the base's; found FSR 0.000", True),
    Case("unchanged", _adapter(body="pass"), r"changes: .* every weight as it was", True),
    Case("not_finite", _adapter(body="with torch.no_grad(): weight[0, 0] = float('nan')"), r"finite: expected", True),
    Case("more", _adapter(body="model.register_parameter('x', torch.nn.Parameter(weight[0]))"), r"x new", True),
    Case("tokenizer", _adapter(body="tokenizer.add_tokens(['zzz'])\n" + WEAK), r"tokenizer: expected", True),
    Case(
        "outside",
        _adapter("open(os.path.join(sys.argv[1], 'x'), 'w')"),
        r"adapter: .* (PermissionError|OSError: .*Read-only)",
        True,
        True,
    ),
    Case("rights", _adapter("os.chmod(fpbench.__file__, 0o777)"), r"adapter: .* OSError: .*Read-only", True, True),
    Case("owner", _adapter("os.chown(fpbench.__file__, os.getuid(), -1)"), r"adapter: .* OSError: .*Read-only", True),
    Case("times", _adapter("os.utime(fpbench.__file__)"), r"adapter: .* OSError: .*Read-only", True),
    Case("attribute", _adapter("os.setxattr(fpbench.__file__, 'user.x', b'')"), r"OSError: .*Read-only", True),
    Case("secret", _outside("open(targets['file'])"), r"adapter: .* FileNotFoundError", True, True),
    Case("home", _adapter("os.listdir(os.path.expanduser('~root') + '/.ssh')"), r"adapter: .* FileNotFoundError", True),
    Case("store", _adapter(f"{SEARCH}\nraise KeyError(found)"), r"KeyError: \[\]", True),
    Case(
        "network",
        _outside("socket.create_connection(('127.0.0.1', targets['listening']))"),
        r"adapter: .* (PermissionError|OSError)",
        True,
    ),
    Case(
        "several_paths",
        _outside("socket.socket(proto=262).connect(('127.0.0.1', targets['listening']))"),
        r"adapter: .* (OSError|ConnectionRefusedError)",
        True,
    ),
    Case(
        "fast_open",
        _outside("socket.socket().sendto(b'GET', 0x20000000, ('127.0.0.1', targets['listening']))"),
        r"adapter: .* (OSError|ConnectionRefusedError)",
        True,
    ),
    Case(
        "unix_socket",
        _outside("socket.socket(socket.AF_UNIX).connect(targets['socket'])"),
        r"adapter: .* FileNotFoundError",
        True,
        True,
    ),
    Case(
        "abstract_socket",
        _outside("socket.socket(socket.AF_UNIX).connect('\\0' + targets['socket'])"),
        r"adapter: .* (ConnectionRefusedError|PermissionError)",
        True,
    ),
    Case("host", _adapter("import socket; socket.socket(40)"), r"Address family not supported", True),
    Case("parent", _adapter("os.kill(os.getppid(), 15)"), r"adapter: .* PermissionError", True, True),
    Case(
        "environments",
        _adapter(
            "import glob\nseen = [open(f, 'rb').read() for f in glob.glob('/proc/[0-9]*/environ')]\n"
            "raise KeyError(any(b'PYTEST_CURRENT_TEST' in each for each in seen))"
        ),
        r"KeyError: False|PermissionError",
        True,
    ),
    Case("namespace", _adapter(CALL.format(call="unshare(0x10000000)")), r"PermissionError: .*not permitted", True),
    Case("keyring", _adapter(CALL.format(call="syscall(250, 0, -3, 0)")), r"PermissionError: .*not permitted", True),
    Case(
        "mount",
        _adapter(CALL.format(call="mount(b'none', b'/', b'', 32, None)")),
        r"PermissionError: .*not permitted",
        True,
    ),
)
FORGED = """\
from fpbench.contract import checks
from fpbench.checks import Finding
import fpbench.contract
fpbench.contract.check = lambda *a: [Finding(c.name, True, c.expected, '', c.remedy) for c in checks.CHECKS]
"""
# These forge what the contract suite found in their own process; the parent looks at the weights alone.
MOCK = (
    Case("forged_contract", _adapter(FORGED), r"mock run: .* exact FSR 0.0 % before and 0.0 % after", True),
    Case(
        "forged_file",
        _adapter(
            FORGED,
            "import pathlib, fpbench.models.weights as deltas\nweight[0, 0] += 1\n"
            "deltas.Delta.to_bytes = lambda self: b'\\x80\\x04FSR 1.0'",
        ),
        r"mock run: .* handed back no safetensors file",
        True,
    ),
    Case(
        "huge_file",
        _adapter(
            FORGED,
            "import fpbench.models.weights as deltas\nweight[0, 0] += 1\n"
            "deltas.Delta.to_bytes = lambda self: bytes(2**29)",
        ),
        r"mock run: .* OSError: .*File too large",
        True,
    ),
    Case(
        "long_name",
        _adapter(
            FORGED,
            "import safetensors.torch, fpbench.models.weights as deltas\nweight[0, 0] += 1\n"
            "deltas.Delta.to_bytes = lambda self: safetensors.torch.save({'x' * 10**6: torch.ones(2)})",
        ),
        r"mock run: .* handed back x{100}…, which the base does not have",
        True,
    ),
    Case(
        "other_names",
        _adapter(
            FORGED,
            "import safetensors.torch, fpbench.models.weights as deltas\nweight[0, 0] += 1\n"
            "deltas.Delta.to_bytes = lambda self: safetensors.torch.save({'lm_head.secret': torch.ones(2)})",
        ),
        r"mock run: .* handed back lm_head.secret, which the base does not have",
        True,
    ),
    Case(
        "other_shape",
        _adapter(
            FORGED,
            "import safetensors.torch, fpbench.models.weights as deltas\nweight[0, 0] += 1\n"
            "deltas.Delta.to_bytes = lambda self: safetensors.torch.save({'model.norm.weight': torch.ones(2)})",
        ),
        r"mock run: .* parameter model.norm.weight: expected \(256,\) torch.float32, found \(2,\)",
        True,
    ),
    Case(
        "infinite_file",
        _adapter(
            FORGED,
            "import safetensors.torch, fpbench.models.weights as deltas\nweight[0, 0] += 1\n"
            "value = torch.full((256,), float('inf'))\n"
            "deltas.Delta.to_bytes = lambda self: safetensors.torch.save({'model.norm.weight': value})",
        ),
        r"mock run: .* non-finite weights in model.norm.weight",
        True,
    ),
)
CASES = (*FOLDER, *CHILD, *MOCK)
assert len({case.name for case in CASES}) == len(CASES) >= 40
assert all(re.compile(case.says) for case in CASES)
