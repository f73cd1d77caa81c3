"""Tables of a study, from the records of its runs and nothing else.

    python scripts/make_table.py 1 --study table1                        # accuracy, as Table 1
    python scripts/make_table.py 1 --study table1 --beside skeinformer,google_lra_2020
    python scripts/make_table.py runs --study demo                       # accuracy, time, memory

Markdown (printed), CSV and, of Table 1, LaTeX are written to outputs/report. Runs that cannot be
compared stand in tables apart, or are refused where they claim the same cell.
"""

import argparse
import sys
from pathlib import Path

from lra.files import write_text
from lra.report import accuracy_text, comparison
from lra.report.accuracy import Runs
from lra.report.accuracy_tables import accuracy_tables
from lra.report.published import PUBLISHED, published
from lra.report.records import read_records


def main() -> int:
    """Parse, build, print and write; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=WRITERS, help="1: accuracy; runs: all figures of the runs")
    parser.add_argument("--study", required=True, help="a folder below --records")
    parser.add_argument("--records", type=Path, default=Path("outputs"), help="where studies lie")
    parser.add_argument("--out", type=Path, default=Path("outputs/report"), help="where to write")
    parser.add_argument(
        "--beside", default="skeinformer", help=f"none, or some of {','.join(PUBLISHED)}"
    )
    options = parser.parse_args()
    try:
        records = read_records(options.records / options.study)
        options.out.mkdir(parents=True, exist_ok=True)
        stem = options.out / f"{options.study}_table_{options.table}"
        text, files = WRITERS[options.table](records, stem, options.beside)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    write_text(stem.with_suffix(".md"), text)
    print(text)
    print(f"written: {', '.join(map(str, [stem.with_suffix('.md'), *files]))}")
    return 0


def write_table_1(records: Runs, stem: Path, beside: str) -> tuple[str, list[Path]]:
    """Write LaTeX and CSV; return the Markdown and the files."""
    sources = published(beside)
    tables = accuracy_tables(records)
    latex, table_csv = stem.with_suffix(".tex"), stem.with_suffix(".csv")
    write_text(latex, "\n".join(accuracy_text.to_latex(table, sources) for table in tables))
    accuracy_text.write_csv(table_csv, tables, sources)
    return "\n".join(accuracy_text.to_markdown(t, sources) for t in tables), [latex, table_csv]


def write_runs(records: Runs, stem: Path, beside: str) -> tuple[str, list[Path]]:
    """Write a CSV; return the Markdown and the file."""
    tables = [
        comparison.to_markdown(setting, variants, records)
        for setting, variants in comparison.group(records).items()
    ]
    comparison.write_csv(stem.with_suffix(".csv"), records)
    return "\n".join(tables), [stem.with_suffix(".csv")]


WRITERS = {"1": write_table_1, "runs": write_runs}


if __name__ == "__main__":
    sys.exit(main())
