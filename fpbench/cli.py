"""The command line: one verb a job. Imports lazily, so that ``fpbench --help`` does not wait for torch."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any, NoReturn

from fpbench import __version__
from fpbench.errors import FpbenchError, InputError

DESCRIPTION = "Score LLM fingerprints: what survives fine-tuning, quantisation and pruning, and at what price."


class Interrupted(BaseException):
    """A scheduler asked the process to stop. No ``except Exception`` on the way may take it for a failed cell."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        0 done; 1 a cell failed or storage gave out; 2 wrong input; 130 or 143 interrupted, resumable.
    """
    options = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop)
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


def progress_bar(iterable: Iterable[Any], label: str) -> Iterable[Any]:
    """A progress bar on standard error that appears only if the work takes longer than two seconds."""
    from tqdm import tqdm

    bar: Iterable[Any] = tqdm(iterable, desc=label, delay=2, leave=False, file=sys.stderr, dynamic_ncols=True)
    return bar


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = argparse.ArgumentParser(prog="fpbench", description=DESCRIPTION, allow_abbrev=False)
    root.add_argument("--version", action="version", version=f"fpbench {__version__}")
    verbs = root.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(name: str, do: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(do=do)
        return added

    run = verb("run", _run, "inject, modify, measure and print the leaderboard; resumes by itself")
    run.add_argument("--profile", default="micro", help="bundled profile or .toml file (default: micro, offline)")
    run.add_argument("--model", nargs="+", metavar="M", help="folders, hub ids or 'micro' (default: the profile's)")
    run.add_argument(
        "--method", nargs="+", metavar="X", help="methods (default: the profile's); the base is always there"
    )
    run.add_argument("--fingerprints", nargs="+", metavar="S", help="built-in sets or .jsonl files")
    run.add_argument("--condition", nargs="+", metavar="C", help="origin and modifications")
    run.add_argument("--out", default="fpbench-run", metavar="DIR", help="records and tables (default: %(default)s)")
    run.add_argument("--seeds", nargs="+", type=int, metavar="N", help="seeds to pool (default: the profile's)")
    run.add_argument("--engine", choices=["serial"], default="serial", help="how cells are executed")
    run.add_argument("--dry-run", action="store_true", help="print the cells and stop")
    run.add_argument("--offline", action="store_true", help="never ask a model hub")
    _loading(run)

    evaluate = verb("evaluate", _evaluate, "score any Hugging Face checkpoint that somebody hands in")
    evaluate.add_argument("model", metavar="MODEL", help="folder, hub id or 'micro'")
    evaluate.add_argument("--fingerprints", required=True, metavar="S", help="built-in set or .jsonl file")
    evaluate.add_argument("--base", metavar="B", help="the unfingerprinted model, for deltas and bands")
    evaluate.add_argument("--condition", nargs="+", metavar="C", help="origin and modifications (default: origin)")
    evaluate.add_argument("--profile", default="micro", help="decoding, data and sizes (default: micro)")
    evaluate.add_argument("--out", default="fpbench-evaluation", metavar="DIR", help="records (default: %(default)s)")
    evaluate.add_argument("--offline", action="store_true", help="never ask a model hub")
    _loading(evaluate)

    inject = verb("inject", _inject, "write a fingerprinted checkpoint that plain transformers loads")
    inject.add_argument("model", metavar="MODEL", help="folder, hub id or 'micro'")
    inject.add_argument("--method", required=True, metavar="X", help="see `fpbench list`")
    inject.add_argument("--fingerprints", required=True, metavar="S", help="built-in set or .jsonl file")
    inject.add_argument("--out", required=True, metavar="DIR", help="a folder that does not exist yet or is empty")
    inject.add_argument("--profile", default="micro", help="data and hyper-parameters (default: micro)")
    inject.add_argument("--offline", action="store_true", help="never ask a model hub")
    _loading(inject)

    study = verb("study", _study, "one of the paper's analyses on a profile, as a table")
    study.add_argument("name", choices=["ablation", "targets"], help="what is varied")
    study.add_argument("--profile", default="micro", help="model, data, sizes and conditions (default: micro)")
    study.add_argument("--model", nargs="+", metavar="M", help="folders, hub ids or 'micro' (default: the profile's)")
    study.add_argument("--fingerprints", nargs="+", metavar="S", help="built-in sets or .jsonl files")
    study.add_argument("--condition", nargs="+", metavar="C", help="origin and modifications")
    study.add_argument("--out", metavar="DIR", help="records and tables (default: fpbench-study-NAME)")
    study.add_argument("--offline", action="store_true", help="never ask a model hub")
    _loading(study)

    board = verb("leaderboard", _leaderboard, "regenerate the tables from records alone")
    board.add_argument("--records", default="fpbench-run/records", metavar="DIR", help="(default: %(default)s)")
    board.add_argument("--out", metavar="DIR", help="also write leaderboard.md, .csv and .json there")
    board.add_argument("--plots", metavar="DIR", help="also draw figures there (needs the extra 'plots')")
    board.add_argument("--format", choices=["md", "csv", "json"], default="md", help="what is printed (default: md)")
    board.add_argument("--rescore", action="store_true", help="recompute every figure from the per-query results")

    verb("list", _list, "what is registered: methods, conditions, sets, profiles")
    verb("doctor", _doctor, "what this machine can do")
    return root


def _loading(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("model and measurement")
    group.add_argument("--device", help="such as cpu or cuda:0 (default: the first GPU, or the CPU)")
    group.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="(default: float32 on the CPU)")
    group.add_argument("--revision", help="branch, tag or commit of a hub id")
    group.add_argument("--token-budget", type=int, metavar="N", help="padded tokens in one forward pass")
    group.add_argument("--prompt", choices=["raw", "chat"], help="raw trigger text, or the model's chat template")
    group.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a checkpoint")
    group.add_argument("--allow-pickle", action="store_true", help="read pickle weights where there are no others")
    if not any(action.dest == "seeds" for action in verb._actions):
        group.add_argument("--seed", type=int, help="seed of injection and modifications (default: the profile's)")


def _prepare(options: argparse.Namespace) -> Any:
    """Offline switch, token budget and loading options, before torch or transformers are imported."""
    if options.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["HF_DATASETS_OFFLINE"] = "1"
    from fpbench.models.loading import pick_device
    from fpbench.runs.bench import Loading

    return Loading(
        device=pick_device(options.device),
        dtype=options.dtype,
        revision=options.revision,
        token_budget=options.token_budget,
        trust_remote_code=options.trust_remote_code,
        allow_pickle=options.allow_pickle,
    )


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _run(options: argparse.Namespace) -> int:
    from fpbench.runs.plan import plan
    from fpbench.runs.profile import load_profile

    profile = load_profile(
        options.profile,
        models=options.model,
        methods=options.method,
        fingerprints=options.fingerprints,
        conditions=options.condition,
        seeds=options.seeds,
        prompt=options.prompt,
    )
    if options.dry_run:
        cells = plan(profile)
        for cell in cells:
            print(cell)
        print(f"{len(cells)} cells", file=sys.stderr)
        return 0
    loading = _prepare(options)
    from fpbench.board.tables import summary
    from fpbench.runs.api import run_profile

    rows = run_profile(profile, options.out, loading, progress_bar, _tell)
    print(summary(rows))
    print(f"\nrecords and tables: {options.out}", file=sys.stderr)
    return 1 if any(row["failed"] for row in rows) else 0


def _study(options: argparse.Namespace) -> int:
    loading = _prepare(options)
    from fpbench.runs.profile import load_profile
    from fpbench.runs.study import study

    profile = load_profile(
        options.profile,
        models=options.model,
        fingerprints=options.fingerprints,
        conditions=options.condition,
        prompt=options.prompt,
        seeds=None if options.seed is None else [options.seed],
    )
    out = options.out or f"fpbench-study-{options.name}"
    table, failed = study(options.name, profile, out, loading, progress_bar, _tell)
    print(table)
    print(f"records and tables: {out}", file=sys.stderr)
    return 1 if failed else 0


def _evaluate(options: argparse.Namespace) -> int:
    loading = _prepare(options)
    from fpbench.board.tables import summary
    from fpbench.runs.api import evaluate_checkpoint
    from fpbench.runs.profile import load_profile

    profile = load_profile(
        options.profile,
        methods=[],
        fingerprints=[options.fingerprints],
        conditions=options.condition or ["origin"],
        prompt=options.prompt,
        seeds=None if options.seed is None else [options.seed],
    )
    rows = evaluate_checkpoint(
        profile,
        options.model,
        options.base,
        options.out,
        loading,
        progress_bar,
        _tell,
    )
    print(summary(rows))
    print(f"\nrecords: {options.out}", file=sys.stderr)
    return 1 if any(row["failed"] for row in rows) else 0


def _inject(options: argparse.Namespace) -> int:
    loading = _prepare(options)
    from fpbench.runs.api import inject_checkpoint
    from fpbench.runs.profile import load_profile

    profile = load_profile(
        options.profile,
        models=[options.model],
        methods=[options.method],
        fingerprints=[options.fingerprints],
        prompt=options.prompt,
        seeds=None if options.seed is None else [options.seed],
    )
    report = inject_checkpoint(profile, options.out, loading, progress_bar)
    changed = report.changed
    print(
        f"{options.out}: {options.method} injected {options.fingerprints} in {report.seconds['total']:.1f} s; "
        f"{changed['fraction']:.1%} of the weights moved, by {changed['relative_norm']:.2%} of their norm; "
        f"peak memory {report.peak_memory / 2**20:.0f} MiB"
    )
    return 0


def _leaderboard(options: argparse.Namespace) -> int:
    from fpbench.board.tables import render
    from fpbench.runs.tables import leaderboard

    rows = leaderboard(options.records, out=options.out, plots=options.plots, rescore=options.rescore)
    print(render(rows, options.format), end="")
    return 0


def _list(options: argparse.Namespace) -> int:
    from fpbench.fingerprints.natural import BUILT_IN
    from fpbench.registry import METHODS, MODIFICATIONS
    from fpbench.runs.profile import profile_names

    for title, names in (
        ("methods", METHODS.names()),
        ("conditions", ["origin", *MODIFICATIONS.names()]),
        ("fingerprint sets", [*BUILT_IN, "any .jsonl file"]),
        ("models", ["micro (bundled)", "any folder", "any hub id"]),
        ("profiles", profile_names()),
    ):
        print(f"{title + ':':<18}{', '.join(names)}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from fpbench.runs.doctor import examine

    findings = examine()
    for finding in findings:
        print(f"{'ok  ' if finding.fine else 'FAIL'}  {finding.what}: {finding.detail}")
    return 0 if all(finding.fine for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
