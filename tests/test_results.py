"""What is committed below results/ is what the records there give."""

from conftest import ROOT

from lra.report.accuracy_tables import accuracy_tables
from lra.report.accuracy_text import to_markdown
from lra.report.published import published
from lra.report.records import read_records
from lra.report.rows import ROWS, TASKS

RESULTS = ROOT / "results"


def test_table_1_of_small_is_what_its_records_give():
    records = read_records(RESULTS / "small")
    assert len(records) == len(TASKS) * len(ROWS)
    assert all(record["status"] == "completed" for record in records.values())
    assert not any(record["git"]["dirty"] for record in records.values())
    [table] = accuracy_tables(records)
    shown = to_markdown(table, published("skeinformer"))
    assert (RESULTS / "small/small_table_1.md").read_text() == shown
    assert shown in (RESULTS / "README.md").read_text()
