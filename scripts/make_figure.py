"""Pictures of a study, from the records and metrics of its runs and nothing else.

    python scripts/make_figure.py 2 --study table1           # validation loss against time
    python scripts/make_figure.py 3 --study figure3          # batch size and learning rate
    python scripts/make_figure.py tradeoff --study table1    # accuracy, time and memory
    python scripts/make_figure.py runs --study demo          # learning, time, memory by setting

PDF, PNG and the CSV that they draw are written to outputs/report. Runs under another protocol or
on another machine are drawn in a picture of their own.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from lra.report import comparison, figures
from lra.report.accuracy import AccuracyTable, Runs
from lra.report.accuracy_tables import accuracy_tables
from lra.report.learning import draw_learning
from lra.report.records import read_records
from lra.report.sensitivity import draw_sensitivity
from lra.report.tradeoff import draw_tradeoff

DrawTable = Callable[[AccuracyTable, Path, Sequence[str]], list[Path]]


def main() -> int:
    """Parse, draw, and say what was written; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", choices=("2", "3", "tradeoff", "runs"))
    parser.add_argument("--study", required=True, help="a folder below --records")
    parser.add_argument("--records", type=Path, default=Path("outputs"), help="where studies lie")
    parser.add_argument("--out", type=Path, default=Path("outputs/report"), help="where to write")
    parser.add_argument(
        "--attention",
        help="variants to draw: names or patterns, split by commas; default: all but ablations",
    )
    options = parser.parse_args()
    stem = options.out / f"{options.study}_figure_{options.figure}"
    try:
        records: Runs = read_records(options.records / options.study)
        if options.attention is not None:
            records = selected(records, options.attention)
        keep_ablations = options.attention is not None
        options.out.mkdir(parents=True, exist_ok=True)
        files = draw(options.figure, records, stem, keep_ablations)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print("written:", *files, sep="\n  ")
    return 0


def selected(records: Runs, patterns: str) -> Runs:
    """The runs of the variants that are named."""
    chosen = {
        path: record
        for path, record in records.items()
        if any(fnmatchcase(record["attention"], pattern) for pattern in patterns.split(","))
    }
    if not chosen:
        known = sorted({record["attention"] for record in records.values()})
        raise ValueError(f"no run has attention={patterns}; there are {', '.join(known)}")
    return chosen


def draw(figure: str, records: Runs, stem: Path, keep_ablations: bool) -> list[Path]:
    """Draw one of the figures; return the files."""
    if figure == "runs":
        return figures.draw_comparison(stem, comparison.group(records), records)
    if figure == "3":
        return draw_sensitivity(records, stem)
    draw_table: DrawTable = {"2": draw_learning, "tradeoff": draw_tradeoff}[figure]
    files = []
    for number, table in enumerate(accuracy_tables(records), start=1):
        there = {variant for variant, _ in table.cells}
        drawn = [name for name in table.rows if name in there]
        methods = [name for name in drawn if not table.rows[name].startswith("·")]
        part = stem if number == 1 else stem.with_name(f"{stem.name}_{number}")
        files += draw_table(table, part, drawn if keep_ablations else methods or drawn)
    return files


if __name__ == "__main__":
    sys.exit(main())
