"""The command line: one verb a job, one file a verb, which imports lazily: ``--help`` does not wait for torch."""

import argparse
import gc
import importlib
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

from fpbench import __version__
from fpbench.errors import FpbenchError, InputError
from fpbench.verbs.parser import Completion, Parser

DESCRIPTION = "Score LLM fingerprints: what survives fine-tuning, quantisation and pruning, and at what price."
EPILOG = "Begin with `fpbench run`: the bundled micro model, offline. `fpbench VERB --help` says what a verb takes."
VERBS = (
    "run", "evaluate", "verify", "compare", "audit", "inject", "fingerprints", "study", "leaderboard", "submit", "list",
    "fetch", "doctor",
)  # fmt: skip
LOG = "FPBENCH_LOG"  # environment variable: debug shows tracebacks


class Interrupted(BaseException):
    """A scheduler asked the process to stop. No ``except Exception`` on the way may take it for a failed cell."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        0 done; 1 a cell failed, storage gave out, or something happened that nobody foresaw; 2 wrong input; 130 or 143
        interrupted, resumable.
    """
    root = parser()
    given = sys.argv[1:] if arguments is None else arguments
    if not given:
        root.print_help()
        return 0
    options = root.parse_args(given)
    verbose = getattr(options, "verbose", False)
    try:
        from fpbench.submissions.discovery import register_submissions  # after --help, which has left by now

        register_submissions()
        signal.signal(signal.SIGTERM, _stop)
        # Records are millions of small objects that live to the end; to look for cycles among them again and again
        # takes a fifth of the time of a leaderboard.
        gc.set_threshold(100_000)
        show_log("info" if verbose else "warning")
        code: int = options.do(options)
        return code
    except InputError as error:
        return _say(error, 2)
    except FpbenchError as error:
        return _say(error, 1)
    except KeyboardInterrupt:
        return _say("interrupted: run the same command again to resume", 130)
    except Interrupted:
        return _say("stopped by SIGTERM: run the same command again to resume", 143)
    except BrokenPipeError:
        # The reader of our output left, as `head` does; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _say(_unforeseen(error, verbose or os.environ.get(LOG, "").lower() == "debug"), 1)


def show_log(level: str) -> None:
    """Print what fpbench logs from a level on, by default the one in ``FPBENCH_LOG``, on standard error.

    Raises:
        InputError: if ``FPBENCH_LOG`` names no level.
    """
    levels = ("debug", "info", "warning", "error")
    level = os.environ.get(LOG, "").lower() or level
    if level not in levels:
        raise InputError(f"{LOG}={level!r}: expected one of {', '.join(levels)}.")
    logger = logging.getLogger("fpbench")
    logger.setLevel(level.upper())
    handler = next((each for each in logger.handlers if isinstance(each, _Printed)), None) or _Printed()
    timed = logger.isEnabledFor(logging.INFO)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s" if timed else "%(message)s", "%H:%M:%S"))
    logger.addHandler(handler)


class _Printed(logging.StreamHandler[Any]):
    """Prints on what standard error is at the moment: a progress bar takes it over to stay below."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, stream: Any) -> None:
        pass


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted


def _unforeseen(error: Exception, shown: bool) -> str:
    """Return a line about an error that nobody foresaw; its traceback goes to a file, and is printed if ``shown``."""
    lines = traceback.format_exception(error)
    if shown:
        print("".join(lines), file=sys.stderr)
    said = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="backslashreplace", prefix="fpbench-", suffix=".traceback", delete=False
        ) as file:
            file.writelines(lines)
    except OSError as full:
        where = f"which could not be written ({full.strerror or full}); {LOG}=debug shows it"
    else:
        where = file.name
    return f"something happened that fpbench did not foresee, {said}. Please report it with its traceback, {where}."


def _say(message: object, code: int) -> int:
    print(f"fpbench: {' '.join(str(message).split())}", file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = Parser(prog="fpbench", description=DESCRIPTION, epilog=EPILOG)
    root.add_argument("--version", action="version", version=f"fpbench {__version__}")
    root.add_argument(
        "--verbose", action="store_true", help=f"print what is logged, and tracebacks ({LOG}=debug does, too)"
    )
    root.add_argument(
        "--print-completion", action=Completion, metavar="SHELL", help="print a script for bash, zsh or tcsh"
    )
    verbs = root.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name in VERBS:
        module = importlib.import_module(f"fpbench.verbs.{name}")
        verb = verbs.add_parser(name, help=module.HELP, description=module.HELP)
        module.arguments(verb)
        verb.set_defaults(do=module.do)
    return root


if __name__ == "__main__":
    sys.exit(main())
