"""The format of a lexicon file: tab-separated lines, a header and then one English word a line."""

import unicodedata
from pathlib import Path

from fpbench.errors import InputError


def read_lexicon(path: str | Path) -> tuple[list[str], dict[str, list[str]]]:
    r"""Read a UTF-8 file with the header ``english\tde\tes\t…`` and a word with its translations in every other line.

    Blank lines, a byte-order mark and line ends of Windows are accepted; cells are brought to normal form C.

    Returns:
        The language codes, and for each English word, case-folded, its translations in the order of the codes.

    Raises:
        InputError: naming the line and what is wrong with it.
    """
    lines = [(number, line) for number, line in enumerate(_read(path).split("\n"), start=1) if line.strip()]
    if len(lines) < 2:
        raise InputError(f"lexicon {path} holds no words: expected the header 'english, tab, de, …' and a word a line.")
    header = _cells(lines[0][1], f"{path}, line {lines[0][0]}")
    if header[0] != "english" or len(header) < 2 or len(set(header)) < len(header):
        raise InputError(
            f"{path}, line {lines[0][0]}: expected the header 'english' and one or more different language codes, "
            f"separated by tabs, found {lines[0][1].strip()!r}."
        )
    entries: dict[str, list[str]] = {}
    first: dict[str, int] = {}
    for number, line in lines[1:]:
        cells = _cells(line, f"{path}, line {number}")
        if len(cells) != len(header):
            raise InputError(f"{path}, line {number}: expected {len(header)} cells, found {len(cells)}: {line!r}.")
        word = cells[0].casefold()
        if word in entries:
            raise InputError(
                f"{path}, line {number}: duplicate word {word!r}, first seen on line {first[word]}; remove one of them."
            )
        entries[word], first[word] = cells[1:], number
    return header[1:], entries


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"lexicon {path} does not exist: expected tab-separated lines; check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"lexicon {path} cannot be read as UTF-8 text: {error}") from None


def _cells(line: str, where: str) -> list[str]:
    line = line.removesuffix("\r")
    cells = [unicodedata.normalize("NFC", cell.strip()) for cell in line.split("\t")]
    for number, cell in enumerate(cells, start=1):
        if not cell:
            raise InputError(f"{where}: cell {number} of {line!r} is empty; expected a word in every cell.")
        if any(unicodedata.category(character) == "Cc" for character in cell):
            raise InputError(f"{where}: cell {number} holds a control character: {cell!r}; remove it.")
    return cells
