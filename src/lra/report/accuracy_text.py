"""Table 1 as Markdown, LaTeX and CSV."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tabulate import tabulate

from lra.report.accuracy import AVERAGE, AccuracyTable, Score
from lra.report.accuracy_grid import caption, grid, states
from lra.report.published import Published


def to_markdown(table: AccuracyTable, beside: Sequence[Published]) -> str:
    """A heading of conditions, the table, and its notes."""
    headings, sections = grid(table, beside)
    body = [[cell.replace("|", r"\|") for cell in row] for rows in sections for row in rows]
    alignment = ["left", *["right"] * (len(headings) - 1)]
    text = tabulate(body, headings, "github", disable_numparse=True, colalign=alignment)
    notes = "\n".join(f"- {line}" for line in caption(table, beside))
    return f"**Table 1, {table.conditions}**\n\n{text}\n\n{notes}\n"


def to_latex(table: AccuracyTable, beside: Sequence[Published]) -> str:
    """A `table*` with booktabs' rules; it needs the packages booktabs and graphicx."""
    headings, sections = grid(table, beside)
    rules = [[r"\midrule", *map(_latex_row, rows)] for rows in sections]
    notes = " ".join(_latex(line) for line in caption(table, beside))
    lines = [
        r"\begin{table*}",
        r"\centering",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}",
        r"\toprule",
        _latex_row(headings),
        *(line for rows in rules for line in rows),
        r"\bottomrule",
        r"\end{tabular}}",
        rf"\caption{{{notes}}}",
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


CSV_FIELDS = (
    "conditions", "task", "data", "label", "variant", "num_seeds", "mean", "sd", "low", "high",
    "interval", "best_or_tie", "states", "published_source", "published", "difference",
    "inside_interval", "seeds", "run_directories", "git_commits",
)  # fmt: skip


def write_csv(path: Path, tables: Sequence[AccuracyTable], beside: Sequence[Published]) -> None:
    """A line a cell and published source; accuracies are fractions, directories split by `;`."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, CSV_FIELDS, restval="")
        writer.writeheader()
        for table in tables:
            writer.writerows(_csv_lines(table, beside))


def _csv_lines(table: AccuracyTable, beside: Sequence[Published]) -> Iterator[dict[str, object]]:
    for (variant, name), cell in table.cells.items():
        [column] = [column for column in table.columns if column.name == name]
        line: dict[str, object] = {
            "conditions": table.conditions,
            "task": column.heading.removesuffix(" *"),
            "data": column.recipe,
            "label": table.rows[variant],
            "variant": variant,
            "best_or_tie": variant in table.best[name] if name in table.best else "",
            "states": states(cell),
            "run_directories": ";".join(map(str, cell.runs)),
            "git_commits": ";".join(sorted({str(r["git"]["commit"]) for r in cell.runs.values()})),
        }
        line |= _csv_score(cell.score)
        yield line
        for source in beside:
            task = column.published_task
            value = source.accuracy(source.row_of.get(variant), task) if task else None
            if value is not None and cell.score is not None:
                interval = cell.score.interval
                yield line | {
                    "published_source": source.block,
                    "published": value / 100,
                    "difference": cell.score.mean - value / 100,
                    "inside_interval": "" if interval is None else value / 100 in interval,
                }
    for variant, score in table.averages.items():
        line = {"conditions": table.conditions, "task": AVERAGE, "label": table.rows[variant]}
        best = variant in table.best[AVERAGE] if AVERAGE in table.best else ""
        yield line | {"variant": variant, "best_or_tie": best} | _csv_score(score)


def _csv_score(score: Score | None) -> dict[str, object]:
    if score is None:
        return {"num_seeds": 0}
    interval = score.interval
    return {
        "num_seeds": len(score.by_seed),
        "seeds": ";".join(map(str, score.by_seed)),
        "mean": score.mean,
        "sd": "" if score.sd is None else score.sd,
        "low": "" if interval is None else interval.low,
        "high": "" if interval is None else interval.high,
        "interval": "" if interval is None else interval.kind,
    }


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "−": "$-$", "·": r"$\cdot$", "×": r"$\times$", "†": r"$^\dagger$",
    "—": "---", "–": "--", "\N{NO-BREAK SPACE}": "~", "²": "$^2$",
}  # fmt: skip


def _latex(text: str) -> str:
    escaped = "".join(LATEX.get(character, character) for character in text)
    return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", escaped)
