"""The report page: every link leads somewhere, and a browser shows, sorts and finds it."""

import re
import runpy
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from conftest import ROOT
from test_accuracy_table import Study

from lra.report.page import build_page
from lra.report.published import published
from lra.report.records import read_records

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

CLEAN = {"protocol": {"name": "clean", "headline": "best"}}
SELF_TEST = """
<script>
window.addEventListener("load", () => {
  const head = [...document.querySelectorAll("#results ~ .scroll th")][2];
  const rows = head.closest("table").tBodies[0].rows;
  const column = () => [...rows].map(row => row.cells[2].innerText);
  head.click(); const first = column(); head.click(); const second = column();
  const broken = [...document.querySelectorAll("a[href^='#']")]
    .filter(link => !document.getElementById(link.hash.slice(1)));
  document.body.dataset.report = JSON.stringify({
    errors: window.errors, first: first, second: second, broken: broken.length,
    drawings: document.querySelectorAll(".main-svg").length > 0,
  });
});
</script></body>"""


class Reader(HTMLParser):
    """The ids and links of a page."""

    def __init__(self, page):
        super().__init__()
        self.ids, self.links, self.sources = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes["href"]] if "href" in attributes else []
        self.sources += [attributes["src"]] if "src" in attributes else []


@pytest.fixture
def runs(tmp_path):
    study = Study(tmp_path / "study")
    for attention, accuracy in (("softmax", 0.61), ("skeinformer", 0.66), ("v_mean", 0.52)):
        directory = study.add(attention, accuracy=accuracy, config=CLEAN)
        directory.metrics.write_text(
            '{"step": 10, "time/train_seconds": 3.5, "val/loss": 0.6, "val/accuracy": 0.6}\n'
        )
    failure = {"type": "NonFiniteLossError", "message": "<b>diverged</b>"}
    study.add("performer", status="failed", failure=failure, config=CLEAN)
    return read_records(study.folder)


def test_every_figure_of_the_table_leads_to_its_run_and_all_that_it_depends_on(runs):
    page = build_page("mine", runs, published("skeinformer"), [])
    reader = Reader(page)
    assert len(set(reader.ids)) == len(reader.ids)
    assert {link[1:] for link in reader.links if link.startswith("#")} <= set(reader.ids)
    [link] = re.findall(r'<a href="#([^"]+)">66\.00', page)
    article = page.split(f'<article id="{link}">')[1].split("</article>")[0]
    [(path, run)] = [(p, r) for p, r in runs.items() if r["attention"] == "skeinformer"]
    for fact in (str(path), run["command"], run["git"]["commit"], run["data"]["sha256"]):
        assert fact in article
    assert "num_features: " in article
    assert "&#34;schema_version&#34;" in article


def test_the_page_needs_no_network_and_lets_no_record_write_html(runs):
    page = build_page("mine", runs, published("none"), [])
    reader = Reader(page)
    assert [s for s in [*reader.links, *reader.sources] if not s.startswith(("#", "data:"))] == []
    assert "<b>diverged</b>" not in page
    assert "NonFiniteLossError" in page


def attached_study(folder):
    """A picture, a table and its CSV, as the scripts that measure leave them."""
    folder.mkdir(parents=True)
    (folder / f"{folder.name}.png").write_bytes(b"\x89PNG")
    (folder / f"{folder.name}.md").write_text(
        "**Costs & <i>more</i>**\n\n| variant | seconds |\n|---|---|\n| skeinformer | 0.25 |\n"
    )
    (folder / f"{folder.name}.csv").write_text(
        "variant,seconds,device,git_commit,file\n"
        "skeinformer,0.2512,Abacus,c0ffee,cells/a.json\nv_mean,,Abacus,decade,cells/b.json\n"
    )
    return folder


def test_an_attached_folder_shows_its_tables_and_pictures_and_where_they_come_from(runs, tmp_path):
    folder = attached_study(tmp_path / "costs")
    (folder / "costs.pdf").write_bytes(b"%PDF")
    page = build_page("mine", runs, [], [folder])
    assert re.search(r"<td[^>]*>0\.25</td>", page)
    assert "<td>0.2512</td>" in page
    assert "<td>cells/b.json</td>" in page
    assert "data:image/png;base64,iVBORw==" in page
    assert f"{folder}: commit c0ffee, decade, device Abacus" in page
    assert "&lt;i&gt;more" in page


def test_single_files_can_be_attached_and_nothing_that_cannot_be_shown(runs, tmp_path):
    folder = attached_study(tmp_path / "costs")
    page = build_page("mine", runs, [], [folder / "costs.md"])
    assert f"{folder / 'costs.md'}: commit —, device —" in page
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "notes.txt", tmp_path / "empty"):
        with pytest.raises(ValueError, match=rf"{path.name} is no \.png, \.md, \.csv"):
            build_page("mine", runs, [], [path])


def test_the_script_shows_what_the_measuring_scripts_have_written(runs, tmp_path, monkeypatch):
    for folder in ("approximation/figure1", "bench_step", "table3"):
        attached_study(tmp_path / folder)
    (tmp_path / "approximation/unfinished/cells").mkdir(parents=True)
    report = runpy.run_path(str(ROOT / "scripts/make_report.py"))["main"]
    command = ["make_report.py", "--study", "study", "--records", str(tmp_path)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", command)
    assert report() == 0
    page = (tmp_path / "outputs/report/study.html").read_text()
    shown = re.findall(r"<h3>(\w+)</h3>\n<p class=\"faint\"><code>", page)
    assert shown == ["figure1", "bench_step", "table3"]
    monkeypatch.setattr(sys, "argv", [*command, "--attach"])
    assert report() == 0
    assert "figure1" not in (tmp_path / "outputs/report/study.html").read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; Debian: apt-get install chromium")
def test_a_browser_loads_the_page_without_errors_and_sorts_its_table(runs, tmp_path):
    folder = attached_study(tmp_path / "costs")
    page = build_page("mine", runs, published("skeinformer"), [folder])
    watch = "<head><script>window.errors = []; onerror = what => { errors.push(what); };</script>"
    page = page.replace("<head>", watch, 1)
    head, tail = page.rsplit("</body>", 1)
    path = tmp_path / "page.html"
    path.write_text(head + SELF_TEST + tail)
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [CHROMIUM, *flags, profile, "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=90, check=True,
    )  # fmt: skip
    [report] = re.findall(r"data-report=\"([^\"]+)\"", done.stdout)
    report = report.replace("&quot;", '"')
    assert '"errors":[]' in report
    assert '"broken":0' in report
    assert '"drawings":true' in report
    missing = '"NonFiniteLossError","—"'  # come last, whichever way
    assert f'"first":["66.00","61.00","52.00","50.00",{missing}' in report
    assert f'"second":["50.00","52.00","61.00","66.00",{missing}' in report


def test_stand_ins_of_one_name_keep_their_runs_apart(tmp_path):
    study = Study(tmp_path / "study")
    data = {"source_kind": "stand-in", "source_name": "noise"}
    for task, accuracy in (("a", 0.61), ("b", 0.66)):
        study.add("softmax", task=task, accuracy=accuracy, config=CLEAN, data=data)
    page = build_page("mine", read_records(study.folder), [], [])
    assert re.findall(r'<a href="#([^"]+)">6[16]\.00', page) == [
        "runs-0-a-softmax",
        "runs-0-b-softmax",
    ]
