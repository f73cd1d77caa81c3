"""The report page: every link leads somewhere, and a browser shows, sorts and finds it."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
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


def test_pictures_and_tables_can_be_attached_and_nothing_else(runs, tmp_path):
    table, picture = tmp_path / "costs.csv", tmp_path / "figure.png"
    table.write_text("variant,seconds\nskeinformer,0.25\n")
    picture.write_bytes(b"\x89PNG")
    page = build_page("mine", runs, [], [table, picture])
    assert "<td>0.25</td>" in page
    assert "data:image/png;base64,iVBORw==" in page
    with pytest.raises(ValueError, match=r"notes\.txt is neither \.png nor \.csv"):
        build_page("mine", runs, [], [tmp_path / "notes.txt"])


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; Debian: apt-get install chromium")
def test_a_browser_loads_the_page_without_errors_and_sorts_its_table(runs, tmp_path):
    page = build_page("mine", runs, published("skeinformer"), [])
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
