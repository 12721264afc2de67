"""One step at work: what it reports, and the time that it has left."""

import argparse
import json
import os
import time
import tomllib
import traceback
from pathlib import Path
from typing import Any

SETTINGS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("settings.toml").read_text(encoding="utf-8"))
NAMES = {"prepare": "prepare", "a": "agreement", "b": "grid", "c": "shapes", "d": "triggers"}


class Step:
    """Holds a step's report, which is on the disk after every change, and decides what may still begin.

    Attributes:
        device: where models are measured.
        card: whether that is a CUDA device.
        cut: what sizes are divided by: 1 on a card, else 100, unless the command line says otherwise.
        work: folder of checkpoint and profile, which outlive the step.
        profile: the file that `prepare` writes and every other step reads.
        report: what becomes the JSON file.
    """

    def __init__(self, name: str, options: argparse.Namespace, until: float) -> None:
        """Open the report.

        Args:
            name: of the step, a key of `NAMES`.
            options: of the command line.
            until: when its time is over, as `time.time` counts.
        """
        import torch

        self.options, self.until, self.began = options, until, time.time()
        self.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.card = self.device.startswith("cuda")
        self.cut: int = options.cut or (1 if self.card else 100)
        self.work: Path = options.work or options.out / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        self.profile = self.work / "profile.toml"
        self.path: Path = options.out / f"{NAMES[name]}.json"
        self.report: dict[str, Any] = {
            "step": name, "status": "running", "device": self.device, "sizes_divided_by": self.cut, "left_out": []
        }  # fmt: skip
        self.save()

    def save(self) -> None:
        """Write the report; readers never see a partial file."""
        self.report["seconds"] = round(time.time() - self.began, 1)
        write(self.path, json.dumps(self.report, indent=1) + "\n")

    def fits(self, what: str, seconds: float) -> bool:
        """Whether something that takes so long may begin; if not, the report says that it was left out."""
        left = self.until - time.time()
        if seconds > left:
            self.leave_out(what, f"it takes about {seconds:.0f} s, and {left:.0f} s were left")
        return seconds <= left

    def guess(self, what: str) -> float:
        """Seconds that something takes before it was seen once."""
        # A hundredth of the sizes takes a tenth of the time or less, on a CPU too.
        return float(SETTINGS["guesses"][what]) / (10 if self.cut > 1 else 1)

    def leave_out(self, what: str, why: str) -> None:
        """Report that something was not begun."""
        self.report["left_out"].append({"what": what, "why": why})
        self.save()

    def failed(self, error: BaseException) -> str:
        """Add a traceback to the step's file of them; the error in one line."""
        with self.path.with_suffix(".traceback.txt").open("a", encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(error)) + "\n")
        return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])

    def checkpoint(self) -> str:
        """The model to measure: what `prepare` made of the weights; without any, the micro model.

        Raises:
            RuntimeError: if there are weights and no checkpoint was made of them.
        """
        if not self.options.weights:
            return "micro"
        if not (self.work / "smollm2" / "config.json").is_file():
            raise RuntimeError("no checkpoint was made of the weights given: see prepare.json")
        return str(self.work / "smollm2")

    def load(self, checkpoint: str, dtype: str) -> tuple[Any, Any]:
        """Load a checkpoint and its tokenizer to the device."""
        from fpbench.models.checkpoints import resolve
        from fpbench.models.loading import load_model

        return load_model(resolve(checkpoint), device=self.device, dtype=dtype)

    def config(self, method: str) -> dict[str, Any]:
        """What a method's hyper-parameters are cut to where the sizes are."""
        return dict(SETTINGS["short"].get(method, {})) if self.cut > 1 else {}


def write(path: Path, text: str) -> None:
    """Write a whole file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def nlf() -> Any:
    """The set that every step uses: ten natural-language fingerprints, five candidates each."""
    from fpbench.fingerprints import find_set

    return find_set("nlf")
