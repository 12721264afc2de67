"""The command line: one verb a job, one file a verb, which imports lazily: ``--help`` does not wait for torch."""

import argparse
import gc
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from fpbench import __version__
from fpbench.errors import FpbenchError, InputError
from fpbench.verbs.parser import Completion, Parser

DESCRIPTION = "Score LLM fingerprints: what survives fine-tuning, quantisation and pruning, and at what price."
EPILOG = "Begin with `fpbench run`: the bundled micro model, offline. `fpbench VERB --help` says what a verb takes."
VERBS = (
    "run", "evaluate", "verify", "compare", "audit", "inject", "fingerprints", "study", "leaderboard", "submit", "list",
    "fetch", "doctor",
)  # fmt: skip


class Interrupted(BaseException):
    """A scheduler asked the process to stop. No ``except Exception`` on the way may take it for a failed cell."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        0 done; 1 a cell failed or storage gave out; 2 wrong input; 130 or 143 interrupted, resumable.
    """
    root = parser()
    given = sys.argv[1:] if arguments is None else arguments
    if not given:
        root.print_help()
        return 0
    options = root.parse_args(given)
    from fpbench.submissions.discovery import register_submissions  # after --help, which has left by now

    register_submissions()
    signal.signal(signal.SIGTERM, _stop)
    # Records are millions of small objects that live to the end; to look for cycles among them again and again takes
    # a fifth of the time of a leaderboard.
    gc.set_threshold(100_000)
    try:
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


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted


def _say(message: object, code: int) -> int:
    print(f"fpbench: {' '.join(str(message).split())}", file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = Parser(prog="fpbench", description=DESCRIPTION, epilog=EPILOG)
    root.add_argument("--version", action="version", version=f"fpbench {__version__}")
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
