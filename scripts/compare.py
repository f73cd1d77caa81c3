"""Compare the variants of a study: `python scripts/compare.py --study demo`."""

import argparse
import sys
from pathlib import Path

from lra.report.comparison import group, to_markdown, write_csv
from lra.report.figures import draw_comparison
from lra.report.records import read_records


def main() -> int:
    """Print a table a setting; write Markdown, CSV and a picture; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", required=True, help="a folder below --records")
    parser.add_argument("--records", type=Path, default=Path("outputs"), help="where studies lie")
    parser.add_argument("--out", type=Path, default=Path("outputs/report"), help="where to write")
    arguments = parser.parse_args()
    try:
        records = read_records(arguments.records / arguments.study)
    except (ValueError, FileNotFoundError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    settings = group(records)
    tables = [to_markdown(setting, variants, records) for setting, variants in settings.items()]
    print("\n".join(tables))
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / arguments.study
    stem.with_suffix(".md").write_text("\n".join(tables))
    write_csv(stem.with_suffix(".csv"), records)
    draw_comparison(stem.with_suffix(".png"), settings, records)
    print(f"written: {stem}.md, {stem}.csv, {stem}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
