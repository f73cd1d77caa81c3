"""Retrieval: whatever the files come in, the same pairs; and nothing else under its name."""

import io
import random
import re
import tarfile
import threading
import time
import zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from lra.run import build_model
from lra.tasks import download, retrieval
from lra.tasks.retrieval import Retrieval, prepare

NAMES = {"train": "new_aan_pairs.train.tsv", "val": "new_aan_pairs.eval.tsv"} | {
    "test": "new_aan_pairs.test.tsv"
}
TEXTS = [
    b'"A quote that is never closed',
    b"bytes that are not UTF-8: \xff\xfe\x00\x80",
    b"",
    b"x" * 50,
    b"the same id",
    b"with two texts",
    b'in "quotes"',
]


def make_rows(num_rows, seed):
    """Label, ids and texts; the ids tell nothing about the texts."""
    rng = random.Random(seed)
    return [
        (i % 2, rng.choice(TEXTS), b"%d of split %d" % (i, seed) if i % 3 else rng.choice(TEXTS))
        for i in range(num_rows)
    ]


ROWS = {split: make_rows(num_rows, i) for i, (split, num_rows) in enumerate(
    {"train": 40, "val": 7, "test": 9}.items()
)}  # fmt: skip


def to_tsv(rows, newline=b"\n"):
    lines = [
        b"%.1f\tP00-1001\tP00-100%d\t%s\t%s" % (label, len(a) % 3, a, b) for label, a, b in rows
    ]
    return newline.join(lines)


FILES = {NAMES[split]: to_tsv(rows) for split, rows in ROWS.items()}


def write_directory(path, files=FILES, folder="tsv_data"):
    (path / folder).mkdir(parents=True)
    for name, content in files.items():
        (path / folder / name).write_bytes(content)
    return path


def write_tar(path, files=FILES, folder="lra_release/lra_release/tsv_data", mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def prepare_pairs(data_dir, source, stand_in="noise", url="http://127.0.0.1:9/lra_release.gz"):
    return prepare(
        name="retrieval",
        data_dir=str(data_dir),
        source=source if source is None else str(source),
        stand_in=stand_in,
        url=url,
        progress=lambda num_bytes: None,
    )


def open_pairs(data_dir, max_tokens=30, max_seq_len=32):
    return Retrieval(
        name="retrieval",
        data_dir=str(data_dir),
        verify=True,
        max_tokens=max_tokens,
        max_seq_len=max_seq_len,
    )


@pytest.fixture
def official_counts(monkeypatch):
    """Makes the rows above as many as the official ones."""
    for split, rows in ROWS.items():
        monkeypatch.setitem(retrieval.OFFICIAL_COUNTS, split, len(rows))


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_batches_hold_both_texts_byte_for_byte(tmp_path, newline):
    files = {NAMES[split]: to_tsv(rows, newline) for split, rows in ROWS.items()}
    prepare_pairs(tmp_path, write_directory(tmp_path / "raw", files))
    task = open_pairs(tmp_path)
    for split, rows in ROWS.items():
        examples = task.examples(split)
        order = np.random.default_rng(0).permutation(len(rows))
        batch = examples.batch(order)
        assert batch.tokens.shape == batch.token_mask.shape == (len(rows), 2, 32)
        assert batch.tokens.max() < task.vocab_size
        for i, row in enumerate(order):
            label, *texts = rows[row]
            assert batch.labels[i] == examples.labels[row] == label
            for text, tokens, mask in zip(texts, batch.tokens[i], batch.token_mask[i], strict=True):
                assert tokens[mask].tolist() == [byte + 1 for byte in text[:30]]
                assert mask.sum() == min(len(text), 30)
                assert not tokens[~mask].any()


def test_a_text_is_stored_once_whatever_its_id_and_split(tmp_path):
    store = prepare_pairs(tmp_path, write_directory(tmp_path / "raw"))
    texts = {text for rows in ROWS.values() for _, *pair in rows for text in pair}
    train, test = store.pairs("train"), store.pairs("test")
    assert len(train.offsets) - 1 == len(texts)
    assert len(train.tokens) == sum(map(len, texts))
    assert np.array_equal(train.tokens, test.tokens)
    # numbered as they occur, so that the content of a store depends on nothing else
    assert list(dict.fromkeys(train.pairs.ravel())) == list(range(train.pairs.max() + 1))


def test_a_document_is_cut_at_its_limit_and_not_before(tmp_path):
    prepare_pairs(tmp_path, write_directory(tmp_path / "raw"))
    for max_tokens in (1, 49, 50, 51):
        examples = open_pairs(tmp_path, max_tokens, 64).examples("train")
        lengths = examples.batch(np.arange(40)).token_mask.sum(-1)
        expected = [[min(len(text), max_tokens) for text in pair] for _, *pair in ROWS["train"]]
        assert lengths.tolist() == expected
    with pytest.raises(ValueError, match=r"max_tokens=65 is not in 1..max_seq_len=64"):
        open_pairs(tmp_path, 65, 64)


def write_zip(path, files=FILES):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"a/b/{name}", content)
    return path


DECOYS = FILES | {f"._{name}": b"what a Mac leaves" for name in FILES}
SOURCES = {
    "directory": lambda path: write_directory(path / "raw", DECOYS),
    "deep directory": lambda path: write_directory(path / "raw", folder="a/b/c"),
    "tar.gz": lambda path: write_tar(path / "lra_release.gz", dict(reversed(DECOYS.items()))),
    "tar": lambda path: write_tar(path / "x.tar", mode="w", folder="."),
    "tar, another order": lambda path: write_tar(
        path / "x.tar.xz", dict(reversed(FILES.items())), mode="w:xz"
    ),
    "zip": lambda path: write_zip(path / "x.zip"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_store(tmp_path, kind):
    expected = prepare_pairs(tmp_path, write_directory(tmp_path / "reference"))
    store = prepare_pairs(tmp_path / "data", SOURCES[kind](tmp_path))
    assert store.fingerprint == expected.fingerprint
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        ".retrieval.lock",
        "retrieval",
    ]


def test_data_with_other_counts_need_a_name_and_keep_it(tmp_path):
    raw = write_directory(tmp_path / "raw")
    with pytest.raises(ValueError, match=r"'train': 40, .*'train': 147086.*prepare.stand_in=NAME"):
        prepare_pairs(tmp_path, raw, stand_in=None)
    assert not (tmp_path / "retrieval").exists()
    source = prepare_pairs(tmp_path, raw, stand_in="noise").manifest["source"]
    assert (source["kind"], source["name"]) == ("stand-in", "noise")
    assert open_pairs(tmp_path).source_kind == "stand-in"
    with pytest.raises(ValueError, match=r"stand_in=noise needs prepare.source"):
        prepare_pairs(tmp_path, None)


def test_other_data_are_never_replaced_unasked(tmp_path, official_counts):
    raw = write_directory(tmp_path / "raw")
    prepare_pairs(tmp_path, raw)
    for stand_in, message in (("other", "name=noise, not other"), (None, "kind=stand-in, not off")):
        with pytest.raises(ValueError, match=message):
            prepare_pairs(tmp_path, raw, stand_in)
    (raw / "tsv_data" / NAMES["test"]).write_bytes(to_tsv(make_rows(9, 5)))
    with pytest.raises(ValueError, match="was prepared with files="):
        prepare_pairs(tmp_path, raw)


def test_the_official_counts_make_data_official(tmp_path, official_counts):
    raw = write_directory(tmp_path / "raw")
    store = prepare_pairs(tmp_path, raw, stand_in=None)
    assert store.manifest["source"]["kind"] == "official"
    for path in raw.rglob("*.tsv"):
        path.unlink()
    assert prepare_pairs(tmp_path, None, stand_in=None).fingerprint == store.fingerprint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"1.0\tA\tB\tone text", "4 columns, expected 5"),
        (b"1.0 A B one two", "1 columns, expected 5"),
        (b"1.0\tA\tB\tone\ttwo\tthree", "6 columns, expected 5"),
        (b"", "1 columns, expected 5"),
        (b"2.0\tA\tB\tone\ttwo", "label b'2.0' is not 0 or 1"),
        (b"0.5\tA\tB\tone\ttwo", "label b'0.5' is not 0 or 1"),
        (b"nan\tA\tB\tone\ttwo", "label b'nan' is not 0 or 1"),
        (b"\tA\tB\tone\ttwo", "label b'' is not 0 or 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    content = to_tsv(ROWS["val"]) + b"\n" + line + b"\n" + to_tsv(ROWS["val"])
    raw = write_directory(tmp_path / "raw", FILES | {NAMES["val"]: content})
    with pytest.raises(ValueError, match=re.escape(f"{NAMES['val']}, line 8: {message}")):
        prepare_pairs(tmp_path / "data", raw)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".retrieval.lock"]


def test_a_missing_file_and_a_file_found_twice_are_named(tmp_path):
    few = {name: FILES[name] for name in list(FILES)[:2]}
    for source in (write_directory(tmp_path / "few", few), write_tar(tmp_path / "few.gz", few)):
        with pytest.raises(FileNotFoundError, match=r"holds neither new_aan_pairs.test.tsv nor"):
            prepare_pairs(tmp_path / "data", source)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        prepare_pairs(tmp_path / "data", tmp_path / "nowhere")
    twice = write_directory(write_directory(tmp_path / "twice"), folder="copy")
    with pytest.raises(ValueError, match=r"has new_aan_pairs.eval.tsv more than once: .*copy"):
        prepare_pairs(tmp_path / "data", twice)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_an_archive_that_is_cut_short_is_damaged(tmp_path, write, share):
    noise = random.Random(0).randbytes(20_000).replace(b"\n", b"").replace(b"\t", b"")
    files = {name: b"1.0\tA\tB\t" + noise + b"\tb" for name in FILES}
    path = write(tmp_path / "x.gz", files)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match=r"x.gz is damaged, cut short, or no archive"):
        prepare_pairs(tmp_path / "data", path)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".retrieval.lock"]


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_a_flipped_bit_in_an_archive_is_damage(tmp_path, write):
    path = write(tmp_path / "x.gz", FILES)
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x.gz is damaged, cut short, or no archive"):
        prepare_pairs(tmp_path / "data", path)


@pytest.fixture
def server(tmp_path):
    """Serves an archive, from an offset if asked, up to `limit` bytes a request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content, requested = self.server.content, self.headers["Range"]
            self.server.ranges.append(requested)
            first = int(requested.removeprefix("bytes=").removesuffix("-")) if requested else 0
            if self.server.status or first >= len(content):
                self.send_response(self.server.status or 416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206 if requested else 200)
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            self.wfile.write(content[first:][: self.server.limit])

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content = write_tar(tmp_path / "published.gz").read_bytes()
        server.ranges, server.limit, server.status = [], None, None
        server.url = f"http://127.0.0.1:{server.server_port}/x/lra_release.gz"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def test_a_download_goes_on_where_it_was_cut_off(tmp_path, official_counts, server):
    download_pairs = partial(prepare_pairs, tmp_path, None, None, server.url)
    server.limit = len(server.content) // 2
    with pytest.raises(ConnectionError, match=r"bytes are missing; the same command goes on"):
        download_pairs()
    server.limit = None
    assert download_pairs().manifest["source"]["kind"] == "official"
    assert server.ranges == [None, f"bytes={len(server.content) // 2}-"]
    assert (tmp_path / "downloads/lra_release.gz").read_bytes() == server.content
    download_pairs()
    assert len(server.ranges) == 2


def test_a_download_that_was_killed_at_its_end_is_complete(tmp_path, official_counts, server):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/lra_release.gz.part").write_bytes(server.content)
    prepare_pairs(tmp_path, None, None, server.url)
    assert server.ranges == [f"bytes={len(server.content)}-"]


def hang(*arguments, **options):
    time.sleep(3)
    raise OSError


@pytest.mark.parametrize("failure", ["forbidden", "refused", "hangs"])
def test_without_a_server_it_says_soon_what_to_place_where(tmp_path, server, monkeypatch, failure):
    url, server.status = server.url, 403
    if failure == "refused":
        url = "http://127.0.0.1:9/lra_release.gz"
    if failure == "hangs":
        monkeypatch.setattr(download, "RESPONSE_SECONDS", 0.2)
        monkeypatch.setattr("socket.getaddrinfo", hang)
    start = time.monotonic()
    with pytest.raises(ConnectionError) as raised:
        prepare_pairs(tmp_path, None, None, url)
    assert time.monotonic() - start < 1
    assert download.RESPONSE_SECONDS < 5
    for part in (tmp_path / "downloads/lra_release.gz", url, "prepare.source=PATH"):
        assert str(part) in str(raised.value)


def test_the_papers_model_and_budget_take_it(tmp_path, compose_run):
    prepare_pairs(tmp_path, write_directory(tmp_path / "raw"))
    config = compose_run("task=retrieval", "attention=v_mean", f"data_dir={tmp_path}")
    task = instantiate(config.task)
    batch = task.examples("train").batch(np.arange(2))
    assert batch.tokens.shape == (2, 2, 4096)
    model = build_model(config, task)
    loss = torch.nn.functional.cross_entropy(model(batch.tokens, batch.token_mask), batch.labels)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    trainer = config.trainer
    assert (trainer.batch_size, trainer.warmup_steps, trainer.max_steps) == (64, 800, 60_000)
    assert (trainer.check_steps, trainer.min_steps, config.optimizer.lr) == (300, 3000, 1e-4)
