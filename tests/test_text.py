"""Text: whatever form the reviews come in, the same store; and nothing else under its name."""

import errno
import hashlib
import io
import json
import shutil
import struct
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from lra.tasks import aclimdb, download, text
from lra.tasks.aclimdb import validation_rows
from lra.tasks.published import Archive, Publication
from lra.tasks.sources import Source
from lra.tasks.text import Text, prepare

NAME = "aclImdb_v1.tar.gz"


def make_files(num_per_class=11):
    """Files as in the official archive, by name: reviews up to 6,000 bytes, and what to ignore."""
    rng = np.random.default_rng(0)
    files = {"aclImdb/README": b"readme", "aclImdb/train/urls_pos.txt": b"http://x"}
    for split in ("train", "test"):
        for folder in ("neg", "pos"):
            for i in range(num_per_class):
                content = rng.integers(1, 256, 1 + 600 * i, dtype=np.uint8).tobytes().strip()
                name = f"aclImdb/{split}/{folder}/{i}_{rng.integers(1, 11)}.txt"
                files[name] = [b"%s", b" %s\n", b"\t%s\r\n"][i % 3] % (b"#" + content + b"\x00!")
    files["aclImdb/train/unsup/0_0.txt"] = b"unlabeled"
    return files


def write_archive(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_files(directory, files):
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def write_tfds(directory, archive, **layout):
    """A directory of TensorFlow Datasets, as array_record."""
    from lra.tasks.tfds_without_tensorflow import tfds_directory

    source = Source(
        archive, "archive", hashlib.sha256(archive.read_bytes()).hexdigest(), "tiny", "tfds"
    )
    with tfds_directory(source, **layout) as built:
        shutil.copytree(built, directory)
    return directory


def as_tfrecord(source, directory, edit=lambda features: None):
    """The same records in TFRecord files of two shards, whose checksums are left zero."""
    from array_record.python.array_record_module import ArrayRecordReader
    from tensorflow_datasets.proto import tf_example_generated_pb2 as proto

    shutil.copytree(source, directory, ignore=lambda _, names: [n for n in names if "-of-" in n])
    info = json.loads((source / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        [path] = source.glob(f"*-{split['name']}.array_record-*")
        examples = [proto.Example.FromString(r) for r in ArrayRecordReader(str(path)).read_all()]
        split["shardLengths"] = [str(len(examples) // 3), str(len(examples) - len(examples) // 3)]
        for shard, part in enumerate(np.split(np.array(examples), [len(examples) // 3])):
            name = f"{info['name']}-{split['name']}.tfrecord-0000{shard}-of-00002"
            with (directory / name).open("wb") as file:
                for example in part:
                    edit(example.features.feature)
                    record = example.SerializeToString()
                    file.write(struct.pack("<QI", len(record), 0) + record + struct.pack("<I", 0))
    (directory / "dataset_info.json").write_text(json.dumps(info))
    return directory


def tfds_layout():
    return {"field": "text", "num_classes": 2, "read": aclimdb._tfds_examples}


def prepare_text(directory, source=None, stand_in="tiny", via="direct", fraction=0.1, seed=0):
    return prepare(
        name="text",
        data_dir=str(directory),
        source=None if source is None else str(source),
        stand_in=stand_in,
        via=via,
        val_fraction=fraction,
        seed=seed,
        progress=lambda count: None,
    )


def open_text(directory, validation="train_split", max_tokens=4000, max_seq_len=4096):
    return Text(
        name="text",
        data_dir=str(directory),
        verify=True,
        max_tokens=max_tokens,
        max_seq_len=max_seq_len,
        validation=validation,
    )


def stored_reviews(store, split):
    part = store.split(split)
    bounds = zip(part.offsets[:-1], part.offsets[1:], strict=True)
    return [
        (part.tokens[a:b].tobytes(), int(y)) for (a, b), y in zip(bounds, part.labels, strict=True)
    ]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_archive(tmp_path_factory.mktemp("archive") / NAME, make_files())


@pytest.fixture(scope="module")
def tfds_source(tmp_path_factory, archive):
    return write_tfds(tmp_path_factory.mktemp("tfds") / "1.0.0", archive, **tfds_layout())


@pytest.fixture
def official(monkeypatch, archive):
    """Make the tiny archive the published one, where the server does not answer."""
    content = archive.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    published = Archive(f"http://127.0.0.1:9/x/{NAME}", len(content), digest)
    publication = aclimdb.PUBLICATION
    monkeypatch.setattr(
        text, "PUBLICATION", Publication((published,), publication.folders, publication.members)
    )
    train = [c.strip() for n, c in make_files().items() if aclimdb.PUBLICATION.members.fullmatch(n)]
    monkeypatch.setattr(aclimdb, "NUM_PER_CLASS", 11)
    monkeypatch.setattr(aclimdb, "NUM_TRAIN_BYTES", sum(map(len, train[:22])))
    return published


def test_a_store_holds_the_stripped_bytes_in_the_order_of_tfds(tmp_path, archive):
    store = prepare_text(tmp_path, archive)
    files = make_files()
    for split, stored in (("train", ["train", "val"]), ("test", ["test"])):
        names = [n for n in files if n.startswith(f"aclImdb/{split}/") and "_" in n.split("/")[-1]]
        names = [n for n in names if "/neg/" in n or "/pos/" in n]
        names.sort(key=lambda n: hashlib.md5((split + n).encode()).hexdigest())
        expected = [(files[n].strip(), int("/pos/" in n)) for n in names]
        assert len(expected) == 22
        parts = [stored_reviews(store, part) for part in stored]
        for part in parts:
            assert part == [review for review in expected if review in part]
        assert sorted(review for part in parts for review in part) == sorted(expected)
    assert store.manifest["splits"]["val"]["class_counts"] == [1, 1]


def test_every_form_of_the_source_gives_the_same_store(tmp_path, archive, tfds_source):
    expected = prepare_text(tmp_path / "archive", archive)
    directory = write_files(tmp_path / "files", make_files())
    tfrecord = as_tfrecord(tfds_source, tmp_path / "tfrecord")
    stores = {
        "tfds": prepare_text(tmp_path / "tfds", archive, via="tfds"),
        "above": prepare_text(tmp_path / "above", directory),
        "inside": prepare_text(tmp_path / "inside", directory / "aclImdb"),
        "array_record": prepare_text(tmp_path / "array_record", tfds_source),
        "tfrecord": prepare_text(tmp_path / "tfrecords", tfrecord, via="tfds"),
    }
    assert {name: store.fingerprint for name, store in stores.items()} == dict.fromkeys(
        stores, expected.fingerprint
    )
    forms = {name: store.manifest["source"]["form"] for name, store in stores.items()}
    assert forms == {
        "tfds": "archive",
        "above": "directory",
        "inside": "directory",
        "array_record": "tfds",
        "tfrecord": "tfds",
    }


def test_the_direct_path_needs_no_tensorflow_datasets(tmp_path, archive, monkeypatch):
    monkeypatch.delitem(sys.modules, "lra.tasks.tfds_without_tensorflow", raising=False)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    prepare_text(tmp_path, archive)
    open_text(tmp_path).examples("train").batch(np.array([0]))
    with pytest.raises(ImportError, match="tensorflow_datasets"):
        prepare_text(tmp_path / "other", archive, via="tfds")


def test_a_batch_holds_bytes_plus_one_cut_and_padded(tmp_path, archive):
    store = prepare_text(tmp_path, archive)
    examples = open_text(tmp_path).examples("train")
    reviews = stored_reviews(store, "train")
    rows = np.array([7, 0, 3, 19])
    batch = examples.batch(rows)
    assert batch.tokens.shape == batch.token_mask.shape == (4, 1, 4096)
    for i, row in enumerate(rows):
        content, label = reviews[row]
        mask = batch.token_mask[i, 0]
        assert batch.tokens[i, 0, mask].tolist() == [byte + 1 for byte in content[:4000]]
        assert mask.sum() == min(len(content), 4000)
        assert mask[: mask.sum()].all()
        assert batch.labels[i] == label == examples.labels[row]
    assert max(len(content) for content, _ in reviews) > 4000
    assert 1 in batch.tokens[batch.token_mask]  # a NUL byte is data


def test_one_store_serves_both_ways_of_validation(tmp_path, archive):
    store = prepare_text(tmp_path, archive)
    clean, paper = open_text(tmp_path), open_text(tmp_path, validation="test")
    assert (clean.val_is_test, paper.val_is_test) == (False, True)
    assert [len(clean.examples(s)) for s in ("train", "val", "test")] == [20, 2, 22]
    assert [len(paper.examples(s)) for s in ("train", "val", "test")] == [22, 22, 22]
    val, test = (paper.examples(s).batch(np.arange(22)) for s in ("val", "test"))
    assert val.tokens.equal(test.tokens)
    assert val.labels.equal(test.labels)
    every = paper.examples("train").batch(np.arange(22))
    expected = stored_reviews(store, "train") + stored_reviews(store, "val")
    lengths = [min(len(content), 4000) for content, _ in expected]
    assert every.token_mask.sum((1, 2)).tolist() == lengths
    assert every.labels.tolist() == [label for _, label in expected]
    assert paper.examples("train").labels.tolist() == every.labels.tolist()


def test_the_validation_split_is_a_tenth_of_each_class_and_parts_no_copies():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 0], 200).tolist()
    reviews = [(b"%d of class %d" % (rng.integers(90), label), label) for label in labels]
    chosen = validation_rows(reviews, 0.1, seed=0)
    val = [review for review, is_val in zip(reviews, chosen, strict=True) if is_val]
    train = [review for review, is_val in zip(reviews, chosen, strict=True) if not is_val]
    assert np.bincount([label for _, label in val]).tolist() == [40, 20]
    assert len(set(val)) < len(val)
    assert len(set(val) & set(train)) <= 2  # the text at the border of each class
    shuffled = [reviews[i] for i in rng.permutation(600)]
    again = validation_rows(shuffled, 0.1, seed=0)
    assert sorted(r for r, is_val in zip(shuffled, again, strict=True) if is_val) == sorted(val)
    assert (validation_rows(reviews, 0.1, seed=1) != chosen).sum() > 40


def test_the_published_archive_is_official_and_found_where_downloads_go(
    tmp_path, archive, official
):
    shutil.copytree(archive.parent, tmp_path / "downloads")
    store = prepare_text(tmp_path, stand_in=None)
    source = store.manifest["source"]
    assert (source["kind"], source["sha256"]) == ("official", official.sha256)
    assert source["validation"]["seed"] == 0
    assert "name" not in source
    shutil.rmtree(tmp_path / "downloads")
    assert prepare_text(tmp_path, stand_in=None).fingerprint == store.fingerprint
    directory = write_files(tmp_path / "files", make_files())
    assert prepare_text(tmp_path / "other", directory, None).fingerprint == store.fingerprint
    with pytest.raises(ValueError, match=r"is the official aclImdb_v1.tar.gz .* not stand_in=tiny"):
        prepare_text(tmp_path / "third", archive, stand_in="tiny")
    with pytest.raises(ValueError, match=r"prepared with validation=.*'seed': 0.*'seed': 1"):
        prepare_text(tmp_path, stand_in=None, seed=1)


def test_a_stand_in_keeps_its_name_and_never_replaces_other_data(tmp_path, archive):
    store = prepare_text(tmp_path, archive)
    assert store.manifest["source"]["kind"] == open_text(tmp_path).source_kind == "stand-in"
    assert store.manifest["source"]["name"] == "tiny"
    with pytest.raises(ValueError, match="prepared with kind=stand-in, not official"):
        prepare_text(tmp_path, stand_in=None)
    with pytest.raises(ValueError, match="prepared with name=tiny, not other"):
        prepare_text(tmp_path, archive, stand_in="other")
    other = write_archive(tmp_path / NAME, make_files(num_per_class=4))
    with pytest.raises(ValueError, match="prepared with sha256="):
        prepare_text(tmp_path, other)
    with pytest.raises(ValueError, match=r"stand_in=tiny needs prepare.source"):
        prepare_text(tmp_path)


def test_other_data_are_refused_without_a_name(tmp_path, archive, tfds_source, official):
    files = make_files(num_per_class=10)
    few = write_files(tmp_path / "few", files)
    wrong = write_archive(tmp_path / NAME, files)
    files = make_files()
    name = next(name for name in files if name.startswith("aclImdb/train/neg/3_"))
    longer = write_files(tmp_path / "longer", files | {name: files[name].strip() + b"x"})
    for source, message in (
        (wrong, f"has .* bytes with sha256 .* not the official .*{official.sha256}.*stand_in"),
        (few, r"has \[10, 10\] reviews in train, the official data 11 a class"),
        (longer, "bytes of text in train, the official data"),
        (tmp_path / "nowhere", "nowhere does not exist"),
        (tmp_path, "holds no folder aclImdb"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            prepare_text(tmp_path / "data", source, stand_in=None)
        assert not (tmp_path / "data" / "text").exists()
    kind = prepare_text(tmp_path / "tfds", tfds_source, stand_in=None).manifest["source"]["kind"]
    assert kind == "official"


def drop(files, part):
    return {name: content for name, content in files.items() if part not in name}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (drop(make_files(3), "test/pos"), r"test in .* has labels \[0\], not 0 and 1"),
        (drop(make_files(3), "aclImdb"), r"train in .* has labels \[\], not"),
        (make_files(3) | {"aclImdb/test/neg/9_1.txt": b" \n"}, "review .* of test in .* is empty"),
    ],
)
@pytest.mark.parametrize("via", ["direct", "tfds"])
def test_incomplete_archives_are_refused(tmp_path, files, message, via):
    source = write_archive(tmp_path / NAME, files)
    with pytest.raises(ValueError, match=message):
        prepare_text(tmp_path / "data", source, via=via)
    assert not (tmp_path / "data" / "text").exists()


@pytest.mark.parametrize("lost", [1.0, 0.9, 0.5, 0.1, 4])
def test_archives_that_are_cut_off_are_refused(tmp_path, archive, lost):
    """4 bytes: all members are there, but not the checksum."""
    content = archive.read_bytes()
    source = tmp_path / NAME
    source.write_bytes(content[: -int(lost * len(content)) if isinstance(lost, float) else -lost])
    with pytest.raises(ValueError, match="cut off"):
        prepare_text(tmp_path / "data", source)
    assert not (tmp_path / "data" / "text").exists()


def test_directories_of_tfds_with_wrong_labels_or_lost_records_are_refused(tmp_path, tfds_source):
    def unlabel(features):
        features["label"].int64_list.value[0] = -1

    wrong = as_tfrecord(tfds_source, tmp_path / "wrong", unlabel)
    with pytest.raises(ValueError, match=r"train in .* has labels \[-1\], not 0 and 1"):
        prepare_text(tmp_path / "data", wrong)
    cut = as_tfrecord(tfds_source, tmp_path / "cut")
    last = cut / "archive_builder-test.tfrecord-00001-of-00002"
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut off"):
        prepare_text(tmp_path / "data", cut)
    last.write_bytes(b"")
    with pytest.raises(ValueError, match=r"test of .* has 7 records, expected 22"):
        prepare_text(tmp_path / "data", cut)
    with pytest.raises(ValueError, match=r"via=tfds reads archives, and .* is unpacked"):
        prepare_text(tmp_path / "data", write_files(tmp_path / "f", make_files(1)), via="tfds")


def test_a_full_disk_leaves_nothing_that_looks_finished(tmp_path, archive, monkeypatch):
    save, calls = np.save, []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*arguments)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        prepare_text(tmp_path, archive)
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".lock")]
    with pytest.raises(FileNotFoundError, match="there is no data set at"):
        open_text(tmp_path)
    assert prepare_text(tmp_path, archive).fingerprint


def test_without_a_network_it_says_soon_what_to_place_where(tmp_path, official, monkeypatch):
    monkeypatch.setattr(download, "RESPONSE_SECONDS", 0.2)
    monkeypatch.setattr("socket.getaddrinfo", lambda *arguments, **options: time.sleep(30))
    start = time.monotonic()
    with pytest.raises(ConnectionError) as raised:
        prepare_text(tmp_path, stand_in=None)
    assert time.monotonic() - start < 4
    for part in (tmp_path / "downloads" / NAME, f"{official.num_bytes:,} bytes", official.sha256):
        assert str(part) in str(raised.value)


@pytest.fixture
def server(archive):
    """Serves `content`, at first the archive, and counts the requests for it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.num_requests += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.content)))
            self.end_headers()
            self.wfile.write(self.server.content)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.num_requests = archive.read_bytes(), 0
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def publish_at(server, official, monkeypatch):
    publication = text.PUBLICATION
    url = f"http://127.0.0.1:{server.server_port}/x/{NAME}"
    moved = Archive(url, official.num_bytes, official.sha256)
    monkeypatch.setattr(
        text, "PUBLICATION", Publication((moved,), publication.folders, publication.members)
    )


def test_several_preparations_at_once_download_and_build_once(
    tmp_path, official, server, monkeypatch
):
    publish_at(server, official, monkeypatch)
    fingerprints = []
    threads = [
        threading.Thread(
            target=lambda: fingerprints.append(prepare_text(tmp_path, stand_in=None).fingerprint)
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fingerprints) == 3
    assert len(set(fingerprints)) == server.num_requests == 1
    assert hashlib.sha256((tmp_path / "downloads" / NAME).read_bytes()).hexdigest() == (
        official.sha256
    )


def test_a_wrong_download_is_not_kept(tmp_path, official, server, monkeypatch):
    publish_at(server, official, monkeypatch)
    server.content = b"<html>moved</html>"
    with pytest.raises(ValueError, match=f"gave 18 bytes with sha256 .*, not {NAME}"):
        prepare_text(tmp_path, stand_in=None)
    assert [p.name for p in (tmp_path / "downloads").iterdir()] == [f".{NAME}.lock"]


def test_impossible_settings_are_refused(tmp_path, archive):
    with pytest.raises(ValueError, match=r"max_tokens=4097 is not in 1..max_seq_len=4096"):
        open_text(tmp_path, max_tokens=4097)
    for fraction in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"val_fraction={fraction} is not between 0 and 1"):
            prepare_text(tmp_path, archive, fraction=fraction)


def test_the_papers_budget(compose_run):
    config = compose_run("task=text", "protocol=paper")
    trainer = config.trainer
    assert (trainer.batch_size, trainer.max_steps, trainer.warmup_steps) == (128, 50_000, 80)
    assert (trainer.check_steps, trainer.min_steps, config.optimizer.lr) == (500, 3000, 1e-4)
    assert (config.task.max_tokens, config.task.max_seq_len) == (4000, 4096)
    assert config.task.validation == "test"
