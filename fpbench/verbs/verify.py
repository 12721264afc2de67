"""``fpbench verify``: the ownership test, black box."""

import argparse
import sys
from pathlib import Path

from fpbench.errors import InputError
from fpbench.verbs.common import add_loading, chosen_profile, prepare, progress_bar

HELP = "test whether a model, or whatever answers at a URL, carries a set of fingerprints"


def arguments(verb: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    suspect = verb.add_mutually_exclusive_group(required=True)
    suspect.add_argument("model", nargs="?", metavar="MODEL", help="folder, .gguf file, hub id or 'micro'")
    suspect.add_argument("--endpoint", metavar="URL", help="an OpenAI-compatible server, such as http://HOST:8000/v1")
    verb.add_argument(
        "--fingerprints", required=True, metavar="S", help="built-in set, .jsonl file, or SET.openings.json"
    )
    verb.add_argument("--base", metavar="B", help="the unfingerprinted model, on which chance is measured")
    verb.add_argument("--unrelated", nargs="+", default=[], metavar="M", help="further models without the fingerprints")
    verb.add_argument(
        "--level", type=float, default=1e-3, metavar="P", help="probability of a false claim at most (default: 1e-3)"
    )
    verb.add_argument("--budget", type=int, metavar="N", help="requests at most, failed ones included")
    verb.add_argument("--transcript", metavar="FILE", help="write down every request, and go on from there if killed")
    verb.add_argument("--out", metavar="FILE", help="the whole report as JSON, in a file that does not exist yet")
    verb.add_argument("--served-model", metavar="NAME", help="the model's name on its server (default: not sent)")
    verb.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="seconds that a request may take (default: 60)"
    )
    verb.add_argument("--profile", default="micro", help="decoding (default: micro)")
    verb.add_argument("--offline", action="store_true", help="never ask a model hub")
    add_loading(verb)


def do(options: argparse.Namespace) -> int:
    """Print the verdict and its evidence; 1 where the suspect did not let the test be finished."""
    out = None if options.out is None else Path(options.out)
    if out is not None and out.exists():
        raise InputError(f"--out {out} exists: choose another name, nothing was overwritten.")
    if options.endpoint is not None and "://" not in options.endpoint:
        raise InputError(f"--endpoint {options.endpoint}: expected a URL such as http://127.0.0.1:8000/v1.")
    loading = prepare(options)
    from fpbench.runs.store import Store, write_text
    from fpbench.runs.verify import Question, verify_suspect

    if out is not None:
        Store(out.parent).check_writable()
    question = Question(
        suspect=options.endpoint or options.model,
        base=options.base,
        unrelated=tuple(options.unrelated),
        level=options.level,
        budget=options.budget,
        transcript=None if options.transcript is None else Path(options.transcript),
        served_model=options.served_model,
        timeout=options.timeout,
    )
    profile = chosen_profile(options, models=question.decoded_like, methods=[], fingerprints=[options.fingerprints])
    found = verify_suspect(profile, question, loading, progress_bar)
    print(found.summary())
    if out is not None:
        write_text(out, found.as_json(), mode=0o600)
        print(f"\nreport: {out}", file=sys.stderr)
    return 1 if found.verdict == "undecided" else 0
