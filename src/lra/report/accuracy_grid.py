"""The cells of Table 1 as text, and what its caption says."""

from collections.abc import Sequence
from dataclasses import replace

from lra.record import Record
from lra.report.accuracy import AVERAGE, AccuracyTable, Cell, Column, Score
from lra.report.comparison import MISSING
from lra.report.published import Published
from lra.report.rows import TASKS, paper_rows

OUTSIDE = "†"
CONSTANT = "always one class"
INDENT = "\N{NO-BREAK SPACE}" * 2
Section = list[list[str]]


def caption(table: AccuracyTable, beside: Sequence[Published]) -> list[str]:
    """What a reader has to know, a line each."""
    weights = {"best": "with the lowest validation loss", "last": "of the last step"}
    lines = [
        f"Test accuracy in percent of the weights {weights[table.conditions.headline]}, mean ± "
        f"standard deviation over seeds; {table.conditions}.",
        "Bold: the best, and what a test paired over seeds and test examples (over examples alone "
        "where a variant has one seed) cannot tell from it at 5 % after Holm's correction; where "
        "all tie, nothing.",
    ]
    if table.averages:
        lines.append("Average: the plain mean of the five tasks, where all five are there.")
    sources = comparable(table, beside)
    if sources:
        lines.append(
            f"Published, in brackets ours less theirs; {OUTSIDE} where theirs lies outside the "
            "95 % interval of ours: t over seeds, or for one seed Wilson's over test examples. "
            "Their protocols differ from ours and from each other."
        )
    lines += [f"{source.heading}: {source.source}." for source in sources]
    lines += _recipes(table)
    if any(column.heading.endswith("*") for column in table.columns):
        lines.append("* departs from the task's configuration as stated.")
    for name, variants in table.untested.items():
        if variants:
            lines.append(f"{name}: not tested, {', '.join(sorted(variants))} kept no answers.")
    lines += [f"{remark}." for remark in table.remarks]
    lines.append(f"{_origin(table)}.")
    return lines


def grid(table: AccuracyTable, beside: Sequence[Published]) -> tuple[list[str], list[Section]]:
    """Headings, and sections of rows: the paper's, ours besides, then theirs that we lack.

    Bold cells stand between double asterisks.
    """
    columns = [*table.columns, *([None] if table.averages else [])]
    headings = ["", "seeds"]
    for column in columns:
        headings.append(_average_heading(table) if column is None else column.heading)
        headings += [source.heading for source in _sources(column, table, beside)]
    names = paper_rows(table.conditions.protocol)
    papers: Section = []
    others: Section = []
    for variant in table.rows:
        row = _row(table, variant, columns, beside)
        (papers if variant in names else others).append(row)
    others.append(_constant_row(table, columns, beside))
    theirs = [
        row
        for source in comparable(table, beside)
        for row in _rows_of_theirs(table, columns, source, beside)
    ]
    return headings, [section for section in (papers, others, theirs) if section]


def comparable(table: AccuracyTable, beside: Sequence[Published]) -> Sequence[Published]:
    """The published results, if there is a column that they may stand beside."""
    return beside if any(column.published_task for column in table.columns) else ()


def _row(
    table: AccuracyTable,
    variant: str,
    columns: Sequence[Column | None],
    beside: Sequence[Published],
) -> list[str]:
    row = [_indented(table.rows[variant]), _seeds(table, variant)]
    for column in columns:
        score, text = _cell_text(table, variant, column)
        row.append(text)
        for source in _sources(column, table, beside):
            task = AVERAGE if column is None else column.published_task
            row.append(_beside(source.accuracy(source.row_of.get(variant), task), score))
    return row


def _constant_row(
    table: AccuracyTable, columns: Sequence[Column | None], beside: Sequence[Published]
) -> list[str]:
    row = [CONSTANT, MISSING]
    for column in columns:
        row.append(_percent(column.constant_accuracy if column else table.constant_average))
        row += [MISSING for _ in _sources(column, table, beside)]
    return row


def _rows_of_theirs(
    table: AccuracyTable,
    columns: Sequence[Column | None],
    source: Published,
    beside: Sequence[Published],
) -> list[list[str]]:
    rows = []
    for name in source.other_rows():
        row = [f"{name} ({source.heading})", MISSING]
        for column in columns:
            row.append(MISSING)
            for other in _sources(column, table, beside):
                task = AVERAGE if column is None else column.published_task
                value = source.accuracy(name, task) if other is source else None
                row.append(_beside(value, None))
        rows.append(row)
    return rows


def _sources(
    column: Column | None, table: AccuracyTable, beside: Sequence[Published]
) -> Sequence[Published]:
    """What is published beside a column (None: the average); nothing beside a stand-in."""
    if column is None:
        comparable = [c.published_task for c in table.columns if c.recipe and c.name in TASKS]
        return beside if len(comparable) == len(TASKS) and all(comparable) else ()
    return beside if column.published_task else ()


def _average_heading(table: AccuracyTable) -> str:
    stand_ins = sum(1 for c in table.columns if c.recipe and c.recipe.is_stand_in)
    return f"Average ({stand_ins} stand-ins)" if stand_ins else "Average"


def _cell_text(
    table: AccuracyTable, variant: str, column: Column | None
) -> tuple[Score | None, str]:
    if column is None:
        score = table.averages.get(variant)
        return score, _bold(_score(score), table, variant, AVERAGE)
    cell = table.cells.get((variant, column.name))
    if cell is None:
        return None, MISSING
    pending = states(cell)
    if cell.score is None:
        return None, pending
    text = _bold(_score(cell.score), table, variant, column.name)
    if _seeds(table, variant) == "":
        text += f" (n={len(cell.score.by_seed)})"
    return cell.score, f"{text}; {pending}" if pending else text


def _score(score: Score | None) -> str:
    if score is None:
        return MISSING
    return _percent(score.mean) + ("" if score.sd is None else f" ± {100 * score.sd:.2f}")


def _bold(text: str, table: AccuracyTable, variant: str, column: str) -> str:
    return f"**{text}**" if variant in table.best.get(column, ()) else text


def states(cell: Cell) -> str:
    """`running`, or 2 × OutOfMemoryError: what became of runs that are not completed."""
    return ", ".join(
        state if number == 1 else f"{number} × {state}" for state, number in cell.states.items()
    )


def _seeds(table: AccuracyTable, variant: str) -> str:
    """The number of seeds, if it is the same on all tasks; then cells need not say it."""
    cells = [cell for (name, _), cell in table.cells.items() if name == variant]
    numbers = {len(cell.score.by_seed) for cell in cells if cell.score is not None}
    if not numbers:
        return MISSING
    return str(*numbers) if len(numbers) == 1 else ""


def _beside(value: float | None, score: Score | None) -> str:
    if value is None:
        return MISSING
    if score is None:
        return f"{value:.2f}"
    difference = 100 * score.mean - value
    text = f"{value:.2f} ({difference:+.2f})".replace("-", "−")
    is_outside = score.interval is not None and value / 100 not in score.interval
    return text + OUTSIDE * is_outside


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.2f}"


def _indented(label: str) -> str:
    return INDENT + label if label.startswith("·") else label


def _recipes(table: AccuracyTable) -> list[str]:
    """Data and overrides of each column; what several columns share is said once."""
    recipes = {column: column.recipe for column in table.columns if column.recipe is not None}
    own = {column: set(recipe.overrides) for column, recipe in recipes.items()}
    shared = set.intersection(*own.values()) if len(own) > 1 else set()
    lines = [f"All tasks: {', '.join(sorted(shared))}."] if shared else []
    for column, recipe in recipes.items():
        left = replace(recipe, overrides=tuple(sorted(own[column] - shared)))
        lines.append(f"{column.heading}: {left}{_examples(column)}.")
    return lines


def _examples(column: Column) -> str:
    return "" if column.num_examples is None else f", {column.num_examples:,} test examples"


def _origin(table: AccuracyTable) -> str:
    runs = table.runs.values()
    studies = sorted({run["study"] for run in runs})
    commits = sorted({_commit(run) for run in runs})
    versions = sorted({str(run["environment"]["torch"]) for run in runs})
    return f"study {', '.join(studies)}; commit {', '.join(commits)}; torch {', '.join(versions)}"


def _commit(record: Record) -> str:
    git = record["git"]
    if git["commit"] is None:
        return "unknown"
    return git["commit"][:8] + (" with changes" if git["dirty"] else "")
