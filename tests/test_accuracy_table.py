"""Table 1 says what the runs have reached, and never a number that they have not."""

import copy
import csv
import json

import numpy as np
import pytest
from test_report import make_record

from lra.correctness import write_correct
from lra.record import RunDirectory
from lra.report.accuracy_tables import accuracy_tables
from lra.report.accuracy_text import to_latex, to_markdown, write_csv
from lra.report.published import PUBLISHED, blocks, published, validated
from lra.report.records import read_records
from lra.report.rows import ROWS, TASKS

COUNT = 1000


@pytest.fixture
def study(tmp_path):
    """An empty study: `add(run)` and `tables()`."""
    return Study(tmp_path / "study")


class Study:
    """A folder of runs in the real format; who is right more often is right wherever others are."""

    def __init__(self, folder):
        self.folder = folder

    def add(self, attention="skeinformer", seed=0, task="text", accuracy=0.6, **changes):
        directory = RunDirectory(self.folder / task / attention / f"seed_{seed}")
        directory.path.mkdir(parents=True)
        right = np.arange(COUNT) < round(accuracy * COUNT)
        record = make_record(attention, seed, task)
        record["result"] |= {f"test_accuracy_{w}": right.mean() for w in ("best", "last")}
        record["result"] |= {"test_count": COUNT, "test_constant_accuracy": 0.5}
        record["result"]["test_correct"] = write_correct(directory, {"best": right, "last": right})
        for section, change in changes.items():
            is_update = isinstance(change, dict) and record[section] is not None
            record[section] = record[section] | change if is_update else change
        directory.record.write_text(json.dumps(record))
        return directory

    def three_seeds(self, attention, accuracies, task="text"):
        for seed, accuracy in enumerate(accuracies):
            self.add(attention, seed, task, accuracy)

    def tables(self):
        return accuracy_tables(read_records(self.folder))

    def markdown(self, beside="skeinformer"):
        [table] = self.tables()
        return to_markdown(table, published(beside))


def cells(table, label):
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    [found] = [[c.strip() for c in row] for row in rows if row[0].strip() == label]
    return dict(zip([c.strip() for c in rows[0]][1:4], found[1:4], strict=True))


def test_a_cell_is_mean_and_deviation_beside_what_was_published(study):
    study.three_seeds("skeinformer", [0.60, 0.62, 0.64])
    study.three_seeds("softmax", [0.600, 0.601, 0.602])
    study.add("v_mean", accuracy=0.66)
    table = study.markdown()
    inside = {"seeds": "3", "Text": "62.00 ± 2.00", "NAACL 2022": "62.47 (−0.47)"}
    assert cells(table, "Skeinformer") == inside
    outside = {"seeds": "3", "Text": "60.10 ± 0.10", "NAACL 2022": "57.69 (+2.41)†"}
    assert cells(table, "Standard") == outside
    assert cells(table, "V-Mean") == {
        "seeds": "1", "Text": "**66.00**", "NAACL 2022": "65.29 (+0.71)",
    }  # fmt: skip
    assert cells(table, "BigBird") == {"seeds": "—", "Text": "—", "NAACL 2022": "61.91"}
    assert cells(table, "always one class")["Text"] == "50.00"
    for said in (
        "protocol clean",
        "regenerated data (sha256 dddd",
        "CPU",
        "1,000 test",
        "cccccccc",
    ):
        assert said in table


def test_rows_stand_in_the_papers_order_and_the_users_own_below(study):
    study.add("mine")
    study.add("softmax_fused")
    [table] = study.tables()
    assert list(table.rows.values()) == [*ROWS.values(), "Standard, fused, w/o dropout", "mine"]


def test_under_the_papers_protocol_its_ablations_are_the_released_ones(study):
    paper = {"name": "paper", "overrides": {}}
    study.add("skeinformer_uniform_released", protocol=paper, result={"headline": "last"})
    study.add("skeinformer_uniform", protocol=paper, result={"headline": "last"})
    [table] = study.tables()
    assert table.rows["skeinformer_uniform_released"] == "· w/o column sampling"
    assert list(table.rows.values())[-1] == "skeinformer_uniform"
    assert "weights of the last step" in to_markdown(table, []).replace("the weights", "weights")


def test_the_best_and_its_ties_are_bold(study):
    """60.0 against 59.7 on three seeds that vary by half a point, and against 50."""
    study.three_seeds("softmax", [0.595, 0.600, 0.605])
    study.three_seeds("reformer", [0.592, 0.597, 0.602])
    study.three_seeds("v_mean", [0.495, 0.500, 0.505])
    table = study.markdown("none")
    assert cells(table, "Standard")["Text"] == "**60.00 ± 0.50**"
    assert cells(table, "Reformer")["Text"] == "**59.70 ± 0.50**"
    assert cells(table, "V-Mean")["Text"] == "50.00 ± 0.50"


def test_where_all_tie_nothing_is_bold(study):
    study.add("softmax", accuracy=0.601)
    study.add("v_mean", accuracy=0.600)
    assert "**" not in study.markdown("none").partition("\n")[2]


def test_the_average_is_over_five_tasks_or_missing(study):
    for task in TASKS:
        study.three_seeds("softmax", [0.5, 0.52, 0.54], task)
        if task != "image":
            study.add("v_mean", task=task)
    [table] = study.tables()
    average = table.averages["softmax"]
    assert (average.mean, average.sd) == pytest.approx((0.52, 0.02))
    assert set(table.averages) == {"softmax"}
    assert table.constant_average == 0.5
    row = to_markdown(table, published("skeinformer")).split("| Standard")[1].splitlines()[0]
    assert "52.00 ± 2.00" in row
    assert row.rstrip(" |").endswith("57.50 (−5.50)†")


def test_missing_failed_and_unfinished_runs_are_shown_as_what_they_are(study):
    study.add("softmax", seed=0)
    failure = {"type": "OutOfMemoryError", "message": "…"}
    for seed in (1, 2):
        study.add("softmax", seed, status="failed", failure=failure)
    study.add("v_mean", status="running")
    study.add("bigbird", status="paused")
    deleted = study.add("linformer")
    deleted.record.unlink()
    table = study.markdown("none")
    assert cells(table, "Standard")["Text"] == "60.00; 2 × OutOfMemoryError"
    assert cells(table, "V-Mean") == {"seeds": "—", "Text": "running", "ListOps": "—"}
    assert cells(table, "BigBird")["Text"] == "paused"
    assert cells(table, "Linformer")["Text"] == "—"


def test_cells_say_their_number_of_seeds_where_it_differs(study):
    study.three_seeds("softmax", [0.5, 0.52, 0.54])
    study.add("softmax", task="listops")
    table = study.markdown("none")
    expected = {"seeds": "", "Text": "52.00 ± 2.00 (n=3)", "ListOps": "60.00 (n=1)"}
    assert cells(table, "Standard") == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"sha256": "e" * 64}}, "differ in sha256: dddd"),
        ({"data": {"source_kind": "official"}}, "differ in source_kind: regenerated"),
        ({"overrides": {"trainer.max_steps": 9}}, "trainer.max_steps: as configured in .*, 9 in"),
        ({"result": {"test_constant_accuracy": 0.6}}, "tested on different examples"),
    ],
)
def test_runs_that_cannot_share_a_column_are_refused(study, change, message):
    study.add()
    study.add("softmax", **change)
    with pytest.raises(ValueError, match=message):
        study.tables()


@pytest.mark.parametrize(
    "change",
    [
        {"environment": {"device": "GPU"}},
        {"environment": {"precision": "bf16"}},
        {"environment": {"tf32": True}},
        {"protocol": {"name": "paper"}},
        {"protocol": {"overrides": {"protocol.pooling": "padded_mean"}}},
        {"config": {"num_features": 128}},
        {"overrides": {"model.num_layers": 4}},
    ],
)
def test_another_machine_protocol_or_backbone_is_another_table(study, change):
    study.add()
    study.add("softmax", **change)
    first, second = study.tables()
    headings = {to_markdown(table, []).splitlines()[0] for table in (first, second)}
    assert len(headings) == 2


def test_a_seed_that_is_there_twice_is_refused(study):
    study.add()
    study.add(task="copy", **{"overrides": {"trainer.micro_batch_size": 2}})
    path = study.folder / "copy/skeinformer/seed_0/record.json"
    record = json.loads(path.read_text())
    record["task"] = record["config"]["choices"]["task"] = "text"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="hold the same run"):
        study.tables()
    record["config"]["trainer"]["micro_batch_size"] = 2
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"has seed 0 twice: .*copy"):
        study.tables()


def test_right_answers_that_do_not_fit_their_record_are_refused(study):
    directory = study.add()
    record = directory.read()
    edited = copy.deepcopy(record)
    edited["result"]["test_accuracy_best"] = 0.7
    directory.write(edited)
    with pytest.raises(ValueError, match=r"600 right answers of 1000 .* says an accuracy of 0.7"):
        study.tables()
    directory.write(record)
    path = directory.path / "test_correct.npz"
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="has sha256"):
        study.tables()
    path.unlink()
    with pytest.raises(ValueError, match=r"test_correct.npz is missing"):
        study.tables()


def test_without_right_answers_nothing_is_called_best(study):
    for attention in ("softmax", "v_mean"):
        directory = study.add(attention, accuracy=0.9 if attention == "softmax" else 0.1)
    record = directory.read()
    del record["result"]["test_correct"]
    directory.write(record)
    table = study.markdown("none")
    assert cells(table, "Standard")["Text"] == "90.00"
    assert "text: not tested, v_mean kept no answers" in table


@pytest.mark.parametrize("filed_under", ["halves", "text"])
def test_a_stand_in_has_its_own_name_and_nothing_published_beside_it(study, filed_under):
    stand_in = {"source_kind": "stand-in", "source_name": "IMDB halves"}
    directory = study.add(task=filed_under, data=stand_in)
    record = directory.read()
    record["config"]["choices"]["task"] = "text"
    directory.write(record)
    table = study.markdown("skeinformer")
    heading = table.splitlines()[2]
    assert "IMDB halves (stand-in) |   ListOps |   NAACL 2022" in heading
    assert "Text" not in heading
    assert cells(table, "Skeinformer")["IMDB halves (stand-in)"] == "60.00"


def test_what_all_tasks_depart_by_is_said_once(study):
    study.add(task="text", overrides={"trainer.max_steps": 9, "trainer.batch_size": 8})
    study.add(task="listops", overrides={"trainer.max_steps": 9})
    notes = study.markdown().partition("\n- ")[2]
    assert notes.count("trainer.max_steps=9") == 1
    assert "\n- All tasks: trainer.max_steps=9.\n" in notes
    [text] = [line for line in notes.splitlines() if line.startswith("- Text *: ")]
    assert "), trainer.batch_size=8, 1,000 test examples." in text


def test_rows_that_only_others_have_stand_at_the_end(study):
    study.add()
    table = study.markdown("mega")
    row = [line for line in table.splitlines() if line.startswith("| MEGA (Mega)")]
    assert "90.43" in row[0]
    assert table.index("always one class") < table.index("MEGA (Mega)")
    assert "arXiv 2209.10655" in table


def test_latex_is_complete(study):
    study.three_seeds("skeinformer", [0.60, 0.62, 0.64])
    study.add("my_variant", accuracy=0.1)
    [table] = study.tables()
    text = to_latex(table, published("skeinformer,mega"))
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len({line.count(" & ") for line in rows}) == 1
    assert r"my\_variant" in text
    assert r"\textbf{62.00 $\pm$ 2.00}" in text
    assert r"tell from it at 5 \% after" in text
    assert set(text) - {chr(i) for i in range(128)} <= set("öé")
    assert text.count("{") == text.count("}")


def test_the_csv_leads_from_a_cell_to_its_runs(study, tmp_path):
    study.three_seeds("skeinformer", [0.60, 0.62, 0.64])
    write_csv(tmp_path / "out.csv", study.tables(), published("skeinformer,mega"))
    with (tmp_path / "out.csv").open(newline="") as file:
        plain, beside = csv.DictReader(file)
    assert float(plain["mean"]) == pytest.approx(0.62)
    assert plain["run_directories"].split(";") == [
        str(study.folder / f"text/skeinformer/seed_{seed}") for seed in range(3)
    ]
    assert plain["git_commits"] == "c" * 40
    assert (beside["published_source"], beside["inside_interval"]) == ("skeinformer_table1", "True")


def test_published_blocks_have_sources_and_the_averages_they_print():
    """Two printed averages are off at their source; all others follow from the tasks."""
    wrong = {("google_lra_2020_11", "Sinkhorn Trans."), ("skeinformer_table1", "pilot")}
    for name, block in PUBLISHED.items():
        rows = blocks()[block.block]["rows"]
        assert set(block.row_of.values()) <= set(rows), name
        if not block.block.startswith(("skein", "sky", "nystrom", "google")):
            continue
        for row, figures in rows.items():
            off = abs(block.accuracy(row, "average") - figures["avg"])
            assert off < 0.011 or (block.block, row) in wrong, row
    assert PUBLISHED["skeinformer"].accuracy("Standard", "text") == 57.69
    assert PUBLISHED["not_from_scratch"].accuracy("Transformer + causal SPT", "text") is None


def test_an_unknown_source_lists_what_there_is():
    with pytest.raises(ValueError, match=r"named mgea; there are skeinformer, .*mega"):
        published("skeinformer,mgea")
    with pytest.raises(ValueError, match="has no source"):
        validated({"x": {"rows": {"a": {"text": 50}}}})
    with pytest.raises(ValueError, match=r"block x, a: text=624\.3 is no percent"):
        validated({"x": {"source": "s", "rows": {"a": {"text": 624.3}}}})


def test_presets_stand_in_the_order_of_their_tasks_beside_nothing_published(study):
    for preset in ("pathfinder", "listops_512", "image", "text_512", "retrieval_512"):
        study.add("softmax", task=f"small_{preset}", config={"choices": {"task": preset}})
    [table] = study.tables()
    assert [column.name for column in table.columns] == [
        "small_text_512", "small_listops_512", "small_retrieval_512",
        "small_pathfinder", "small_image",
    ]  # fmt: skip
    assert table.averages["softmax"].mean == pytest.approx(0.6)
    assert table.constant_average == 0.5
    assert "57.69" not in study.markdown()
