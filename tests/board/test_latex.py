"""The LaTeX tables: one a model and set, best in bold, second best underlined, ties respected."""

import re
import shutil
import subprocess

import pytest

from fpbench.board.escaping import latex
from fpbench.board.latex import latex_tables
from fpbench.board.rows import rows_from_records
from fpbench.records.store import read_records
from tests.board.written import MODIFIED, fsr, grid, harmless


@pytest.fixture
def lines(tmp_path):
    """Lines of the one measured table, by method, as cells."""
    store = grid(tmp_path)
    for method, p in (("twin", 1.0), ("close", 0.9999), ("far", 0.9)):
        for condition in ("origin", *MODIFIED):
            fsr(store, method, condition, [p] * 10)
        harmless(store, method)
    rows = rows_from_records(read_records(store.records), store.records, rescore=False)
    table = latex_tables(rows).split(r"\end{table}")[0]
    cells = [line.strip().removesuffix(r" \\").split(" & ") for line in table.splitlines() if line.endswith(r" \\")]
    return {first.partition(r"\textsuperscript")[0]: rest for first, *rest in cells}


def test_equal_figures_share_a_place(lines):
    assert lines["strong"][0] == lines["twin"][0] == r"\textbf{100.0}"
    assert lines["close"][0] == r"\textbf{100.0}", "equal as shown"
    assert lines["far"][0] == r"\underline{90.0}"
    assert lines["weak"][0] == "40.0"


def test_the_base_takes_no_part(lines):
    assert lines["base"][0] == "0.0" and lines["base"][8] == "(80.0)"


def test_failed_and_missing_figures_are_not_ranked(lines):
    assert lines["weak"][4] == "failed" and lines["weak"][7] == "--"
    assert lines["strong"][8] == r"\textbf{$-$20.0}" and lines["strong"][9] == r"\textbf{+20.0}"


def test_a_row_without_a_rank_is_marked_and_is_never_the_best(tmp_path):
    store = grid(tmp_path)
    for condition in ("origin", *MODIFIED):
        fsr(store, "strong", condition, [0.9] * 10)
        fsr(store, "unknown", condition, [1.0] * 10)
    table = latex_tables(rows_from_records(read_records(store.records), store.records, rescore=False))
    assert r"unknown\textsuperscript{\S} & 100.0 &" in table and r"strong & \textbf{90.0} &" in table
    assert r"\textsuperscript{\S}Not ranked: unknown (accuracy not measured" in table


def test_less_is_better_where_it_harms(tmp_path):
    rows = rows_from_records([], None, rescore=False)
    table = latex_tables(rows).split(r"\end{table}")[0]
    lines = {line.split(" & ")[0].strip(): line.removesuffix(r" \\").split(" & ") for line in table.splitlines()}
    assert lines["fpedit"][10] == lines["alphaedit"][10] == r"\textbf{+0.0}"
    assert lines[r"mcedit\_r"][10] == r"\underline{+0.5}" and lines["rledit"][10] == "+5.8"


def test_the_structure_is_booktabs_and_every_line_has_every_column(tmp_path):
    text = latex_tables(rows_from_records([], None, rescore=False))
    assert (
        text.count(r"\begin{table}") == text.count(r"\end{table}") == text.count(r"\begin{tabular}{lrrrrrrrrrrr}") == 3
    )
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 3 and r"\hline" not in text
    assert text.count("{") == text.count("}")
    for line in text.splitlines():
        if line.endswith(r" \\") and "multicolumn" not in line:
            assert len(re.findall(r"(?<!\\)&", line)) == 11, line


def test_every_special_character_is_escaped():
    assert latex("a_b%&#${}") == r"a\_b\%\&\#\$\{\}"
    assert latex("\\~^") == r"\textbackslash{}\textasciitilde{}\textasciicircum{}"
    assert latex("<|>\u202e") == r"\textless{}\textbar{}\textgreater{}\textbackslash{}u202e"


def test_it_compiles_whatever_a_submitter_wrote(tmp_path):
    """By pdfLaTeX itself, where there is one."""
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex (texlive-latex-recommended), which is not here")
    store = grid(tmp_path)
    hostile = r"\input{/etc/passwd} \end{document} $ & % # _ ^ ~ { } ` ' \" < | >"
    for condition in ("origin", *MODIFIED):
        fsr(store, hostile.replace("/", "."), condition, [0.5] * 10)
    rows = rows_from_records(read_records(store.records), store.records, rescore=False)
    (tmp_path / "leaderboard.tex").write_text(latex_tables(rows), encoding="utf-8")
    packages = r"\usepackage[T1]{fontenc}\usepackage[utf8]{inputenc}\usepackage{booktabs}"
    paper = rf"\documentclass{{article}}{packages}\begin{{document}}\input{{leaderboard}}\end{{document}}"
    (tmp_path / "paper.tex").write_text(paper, encoding="utf-8")
    compile_it = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"]
    done = subprocess.run(compile_it, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0 and (tmp_path / "paper.pdf").stat().st_size > 10_000, done.stdout[-2000:]
    assert "passwd" not in done.stdout, "a file was read that nobody named"
