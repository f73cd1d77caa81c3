"""One self-contained HTML page about a study: `python scripts/make_report.py --study table1`."""

import argparse
import sys
from pathlib import Path

from lra.files import write_text
from lra.report.attachments import written_folders
from lra.report.page import build_page
from lra.report.published import PUBLISHED, published
from lra.report.records import read_records


def main() -> int:
    """Build the page, say where it is, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", required=True, help="a folder below --records")
    parser.add_argument("--records", type=Path, default=Path("outputs"), help="where studies lie")
    parser.add_argument("--out", type=Path, default=Path("outputs/report"), help="where to write")
    parser.add_argument(
        "--beside", default="skeinformer", help=f"none, or some of {','.join(PUBLISHED)}"
    )
    parser.add_argument(
        "--attach",
        type=Path,
        nargs="*",
        help="folders or files (.png, .md, .csv) to show; without: what approximate.py, "
        "bench_attention.py, bench_step.py and table3.py have written below --records",
    )
    options = parser.parse_args()
    try:
        records = read_records(options.records / options.study)
        attached = written_folders(options.records) if options.attach is None else options.attach
        page = build_page(options.study, records, published(options.beside), attached)
        options.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    path = options.out / f"{options.study}.html"
    write_text(path, page)
    print(f"written: {path} ({path.stat().st_size / 2**20:.1f} MiB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
