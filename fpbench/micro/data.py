"""Write the bundled data files: ``python -m fpbench.micro.data``. The same files come out every time."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fpbench.micro import DATA
from fpbench.micro.heldout import alpaca_rows, math_rows, prose_text, texts, zsre_rows
from fpbench.micro.twins import TWIN_ROWS


def files() -> dict[str, str]:
    """Every data file's name and content."""
    contents = {f"{twin}.jsonl": _json_lines(rows()) for twin, rows in TWIN_ROWS.items()}
    for name, rows in {"alpaca": alpaca_rows, "math": math_rows, "text": texts, "zsre": zsre_rows}.items():
        contents[f"{name}.jsonl"] = _json_lines(rows())
    return {**contents, "prose.txt": prose_text()}


def _json_lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(folder: Path) -> None:
    """Write the files into a folder, making it if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files().items():
        (folder / name).write_text(content, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write(DATA)
