"""A submission as a folder: every file looked at, none of them run."""

import hashlib
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fpbench.adversaries import conditions
from fpbench.board.groups import MOST_FILES, taken
from fpbench.checks import Checklist, Finding
from fpbench.errors import InputError, StorageError
from fpbench.records.store import LARGEST_RECORD
from fpbench.submissions.manifest import FILE, NAME, AdversaryManifest, MethodManifest, read_manifest
from fpbench.text import printable

SUBMISSIONS = Path("submissions")  # in the working folder, unless another is named
ADAPTER, THIEF = "adapter.py", "adversary.py"
RECORDS = "records"
SETS = "sets"  # of fingerprints that the method made
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".h5", ".msgpack")
TEXTS = (".py", ".toml", ".md", ".txt", ".json", ".jsonl", ".csv", ".bib")
BARE = ("LICENSE", "LICENCE", "NOTICE")
GENERATED = ("__pycache__", ".pytest_cache")  # by tests of the author; neither looked at nor copied
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@-]{0,99}")
MIB = 2**20
LARGEST_FILE, LARGEST_FOLDER = 1 * MIB, 256 * MIB
DEEPEST, MOST_ENTRIES = 12, 4 * MOST_FILES  # levels of folders; files and folders in all


@dataclass(frozen=True)
class Submission:
    """A folder that was handed in."""

    folder: Path

    @property
    def name(self) -> str:
        """The folder's name, which must be that of the method or the adversary, too."""
        return self.folder.name

    @property
    def attacks(self) -> bool:
        """Return whether it is an adversary, and no method."""
        return (self.folder / THIEF).is_file() and not (self.folder / ADAPTER).is_file()

    @cached_property
    def method(self) -> MethodManifest:
        """Return the content of a method's ``submission.toml``; InputError if that is malformed."""
        return read_manifest(self.folder, MethodManifest)

    @cached_property
    def adversary(self) -> AdversaryManifest:
        """Return the content of an adversary's ``submission.toml``; InputError if that is malformed."""
        return read_manifest(self.folder, AdversaryManifest)

    @cached_property
    def entries(self) -> list[Path]:
        """Every path below the folder, links not followed, in order."""
        return sorted(_below(self.folder))

    @property
    def code(self) -> list[Path]:
        """The files that may decide what it does, and all that its process gets to see.

        No records, sets, texts for readers or tests, and not the manifest: what a process needs of it is handed over.
        """
        files = (path for path in self.entries if path.is_file() and self.top(path) not in (RECORDS, SETS))
        readable = (path for path in files if path.suffix != ".md" and path.name not in BARE)
        return [path for path in readable if not path.name.startswith("test_") and path.name != FILE]

    def is_record(self, path: Path) -> bool:
        """Return True for a path below its records."""
        return self.top(path) == RECORDS

    def top(self, path: Path) -> str:
        """Return the first part of a path below the folder."""
        return path.relative_to(self.folder).parts[0]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names and contents of its code."""
        total = hashlib.sha256()
        for name, path in sorted((str(path.relative_to(self.folder)), path) for path in self.code):
            total.update(f"{name}:{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
        return total.hexdigest()

    def copy_code(self, target: Path) -> None:
        """Copy the code into a new folder; InputError if it changed since it was looked at."""
        for path in self.code:
            copy = target / path.relative_to(self.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy, follow_symlinks=False)
        if Submission(target).digest != self.digest:
            raise InputError(f"submission {self.name!r} changed while it was read: leave it alone and try again.")


def find(name: str, submissions: Path = SUBMISSIONS) -> Submission:
    """Return the submission of a name, in the folder ``submissions``, or of a folder; InputError if there is none."""
    folder = submissions / name if NAME.fullmatch(name) else Path(name)
    if not folder.is_dir():
        raise InputError(
            f"submission {printable(name)!r} not found: expected a folder {submissions}/NAME; "
            "`fpbench submit new NAME` writes one."
        )
    return Submission(folder.absolute())


def version_of(submission: Submission) -> str:
    """Return the version in identities: the one that its author gives, and the digest of its code.

    Defaults of the adapter's Config are in its code, which the digest covers.
    """
    manifest = submission.adversary if submission.attacks else submission.method
    return f"{manifest.code_version}+{submission.digest[:16]}"


def inspect(submission: Submission) -> list[Finding]:
    """Look at every file of a submission; nothing of it is run, imported or parsed as Python."""
    return (OF_ADVERSARIES if submission.attacks else OF_METHODS).examine(submission)


def accepted(submission: Submission) -> Submission:
    """Return the submission, if there is nothing to find; InputError with the first finding."""
    for finding in inspect(submission):
        if not finding.passed:
            raise InputError(f"submission {submission.name!r} is refused: {finding}.")
    return submission


def _below(folder: Path) -> Iterator[Path]:
    """Yield every path below a folder, down to one level more than there may be; no more than one entry too many."""
    pending, found = [(folder, 1)], 0
    while pending:
        parent, level = pending.pop()
        for path in parent.iterdir():
            if path.name in GENERATED and path.is_dir() and not path.is_symlink():
                continue
            yield path
            found += 1
            if found > MOST_ENTRIES:
                return
            if level <= DEEPEST and path.is_dir() and not path.is_symlink():
                pending.append((path, level + 1))


def _shown(submission: Submission, path: Path) -> str:
    return printable(str(path.relative_to(submission.folder)))


# The checks, in order: a file is opened once it is known to lie inside, and parsed once it is known to be text.
OF_METHODS: Checklist[Submission] = Checklist()
OF_ADVERSARIES: Checklist[Submission] = Checklist()
Examine = Callable[[Submission], str | None]


def _of_both(name: str, expected: str, remedy: str, needs: Sequence[str] = ()) -> Callable[[Examine], Examine]:
    """Return a decorator that adds a check of what a method and an adversary have in common."""

    def decorate(examine: Examine) -> Examine:
        for checks in (OF_METHODS, OF_ADVERSARIES):
            checks.add(name, expected, remedy, needs)(examine)
        return examine

    return decorate


@_of_both("inside", "files and folders of its own", "put the content itself there")
def _inside(submission: Submission) -> str | None:
    if submission.folder.is_symlink():
        return "a link instead of a folder"
    if len(submission.entries) > MOST_ENTRIES:
        return f"more than {MOST_ENTRIES} of them"
    for path in submission.entries:
        if len(path.relative_to(submission.folder).parts) > DEEPEST:
            return f"folders more than {DEEPEST} levels deep"
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            return f"the link {_shown(submission, path)}"
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            return f"{_shown(submission, path)}, which is neither a file nor a folder"
    return None


@_of_both("file names", "names of letters, digits and _ . + @ -, none hidden", "rename or remove it", needs=["inside"])
def _names(submission: Submission) -> str | None:
    folded: dict[str, Path] = {}
    for path in submission.entries:
        if not FILE_NAME.fullmatch(path.name):
            return repr(_shown(submission, path))
        other = folded.setdefault(str(path).lower(), path)
        if other != path:
            return f"{_shown(submission, other)} and {_shown(submission, path)}, which differ in case alone"
    return None


@_of_both("pickle", "no pickle and no weights", "let the adapter compute what it needs", needs=["inside"])
def _pickles(submission: Submission) -> str | None:
    found = [path for path in submission.entries if path.suffix.lower() in PICKLES]
    return _shown(submission, found[0]) if found else None


@_of_both("kinds", f"files ending in {' '.join(TEXTS)}", "remove it", needs=["inside", "pickle"])
def _kinds(submission: Submission) -> str | None:
    for path in submission.entries:
        if path.is_file() and path.suffix not in TEXTS and path.name not in BARE:
            return _shown(submission, path)
    return None


@_of_both(
    "sizes",
    f"files of at most {LARGEST_FILE // MIB} MiB, {LARGEST_FOLDER // MIB} MiB and {MOST_FILES} files in all",
    "remove what the adapter can do without",
    needs=["inside"],
)
def _sizes(submission: Submission) -> str | None:
    files = [path for path in submission.entries if path.is_file()]
    if len(files) > MOST_FILES:
        return f"{len(files)} files"
    for path in files:
        limit = LARGEST_RECORD if submission.is_record(path) else LARGEST_FILE
        if path.stat().st_size > limit:
            return f"{_shown(submission, path)} of {path.stat().st_size / MIB:.1f} MiB (limit {limit // MIB})"
    total = sum(path.stat().st_size for path in files)
    return f"{total / MIB:.0f} MiB in all" if total > LARGEST_FOLDER else None


REQUIRED, REQUIRED_OF_ADVERSARIES = (FILE, ADAPTER, "README.md"), (FILE, THIEF, "README.md")


@OF_METHODS.add(
    "required", f"the files {', '.join(REQUIRED)}", "`fpbench submit new NAME` writes them", needs=["inside"]
)
def _required(submission: Submission) -> str | None:
    return _missing(submission, REQUIRED)


@OF_ADVERSARIES.add(
    "required",
    f"the files {', '.join(REQUIRED_OF_ADVERSARIES)}",
    "`fpbench submit new NAME --adversary` writes them",
    needs=["inside"],
)
def _required_of_an_adversary(submission: Submission) -> str | None:
    return _missing(submission, REQUIRED_OF_ADVERSARIES)


def _missing(submission: Submission, files: Sequence[str]) -> str | None:
    missing = [name for name in files if not (submission.folder / name).is_file()]
    return f"no {missing[0]}" if missing else None


@_of_both("texts", "UTF-8 text", "save it as UTF-8; binary files are not accepted", needs=["kinds", "sizes"])
def _texts(submission: Submission) -> str | None:
    for path in submission.entries:
        if path.is_file():
            content = path.read_bytes()
            try:
                content.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"byte {content[error.start]:#04x} in {_shown(submission, path)}"
            if b"\0" in content:
                return f"a zero byte in {_shown(submission, path)}"
    return None


MANIFEST = ("manifest", f"a {FILE} as in the template", "mend that key", ["required", "texts"])


@OF_METHODS.add(*MANIFEST)
def _manifest(submission: Submission) -> str | None:
    read_manifest(submission.folder, MethodManifest)
    return None


@OF_ADVERSARIES.add(*MANIFEST)
def _manifest_of_an_adversary(submission: Submission) -> str | None:
    read_manifest(submission.folder, AdversaryManifest)
    return None


@OF_METHODS.add(
    "name", "a method called like its folder and like no other", "rename the folder or the method", needs=["manifest"]
)
def _name(submission: Submission) -> str | None:
    method = submission.method.method
    if method != submission.name:
        return f"method {method!r} in folder {submission.name!r}"
    return f"{method!r}, which is taken" if taken(method) else None


@OF_ADVERSARIES.add(
    "name",
    "an adversary called like its folder and like no condition",
    "rename the folder or the adversary",
    needs=["manifest"],
)
def _name_of_an_adversary(submission: Submission) -> str | None:
    adversary = submission.adversary.adversary
    if adversary != submission.name:
        return f"adversary {adversary!r} in folder {submission.name!r}"
    return f"{adversary!r}, which is taken" if conditions.taken(adversary) else None


@_of_both("readme", "a README.md that says what it does", "write a paragraph", needs=["required", "texts"])
def _readme(submission: Submission) -> str | None:
    words = (submission.folder / "README.md").read_text(encoding="utf-8").split()
    return None if len(words) >= 10 else f"{len(words)} words"


# ``fpbench submit new``: a passing example under the submitter's name for it.


@dataclass(frozen=True)
class Example:
    """A passing example: its name, its main file, and where it lies in a checkout and in an installed package."""

    name: str
    file: str
    checkout: str
    package: str


METHOD = Example("last_block_tuning", ADAPTER, "_template", "submission_template")
ADVERSARY = Example("level_first", THIEF, "_template_adversary", "adversary_template")


def template(example: Example = METHOD) -> Path:
    """Return an example's folder, in an installed package or a source checkout; InputError if neither has it."""
    package = Path(__file__).parents[1]
    for folder in (package / example.package, package.parent / "submissions" / example.checkout):
        if (folder / example.file).is_file():
            return folder
    raise InputError(f"template: expected a folder {example.package} in {package}, found none; reinstall fpbench.")


def write_new(name: str, submissions: Path = SUBMISSIONS, example: Example = METHOD) -> Path:
    """Write a passing example as the folder of a name in ``submissions`` and return it.

    Raises:
        InputError: if the name is malformed or taken, or there is such a folder.
        StorageError: if it cannot be written; nothing half-written remains.
    """
    if not NAME.fullmatch(name):
        raise InputError(
            f"name {printable(name)!r}: expected 2 to 40 lower-case letters, digits and underscores, a letter first; "
            "choose such a name."
        )
    if taken(name) or conditions.taken(name):
        raise InputError(f"name {name!r} is that of a method or a condition already: choose another.")
    folder = submissions / name
    if folder.exists():
        raise InputError(f"{folder} exists: choose another name, nothing was overwritten.")
    unfinished = folder.with_name(f".{name}")
    try:
        unfinished.mkdir(parents=True)
        for source in sorted(template(example).iterdir()):
            if source.name not in GENERATED:
                text = source.read_text(encoding="utf-8").replace(example.name, name)
                text = text.replace(_class(example.name), _class(name))
                (unfinished / source.name).write_text(text, encoding="utf-8")
        unfinished.replace(folder)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror or error}): nothing was kept.") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _class(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))
