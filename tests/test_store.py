"""The token store: what is written comes back, and damage is found and named."""

import hashlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lra.tasks.durable import build_lock
from lra.tasks.manifest import DataCorruptError
from lra.tasks.store import Pairs, Sequences, Store, write_store

COMMAND = "make the-data"
SOURCE = {"kind": "stand-in", "name": "noise", "seed": 0}


def draw_sequences(num_examples: int, seed: int) -> Sequences:
    rng = np.random.default_rng(seed)
    offsets = np.append(0, rng.integers(1, 50, num_examples).cumsum())
    tokens = rng.integers(0, 256, offsets[-1], dtype=np.uint8)
    return Sequences(tokens, offsets, rng.integers(0, 3, num_examples, dtype=np.uint8))


def write(directory: Path, seed: int = 0) -> dict[str, Sequences]:
    splits = {"train": draw_sequences(40, seed), "test": draw_sequences(10, seed + 1)}
    write_store(directory, task="noise", source=SOURCE, splits=splits)
    return splits


def open_store(directory: Path, *, verify: bool = True) -> Store:
    return Store.open(directory, verify=verify, rebuild_command=COMMAND)


def assert_holds(directory: Path, splits: dict[str, Sequences]) -> None:
    store = open_store(directory)
    for name, split in splits.items():
        for part in ("tokens", "offsets", "labels"):
            assert_array_equal(getattr(store.split(name), part), getattr(split, part))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write(tmp_path / "noise")
    return tmp_path / "noise"


def flip_bit(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def edit_manifest(directory: Path, old: str, new: str) -> None:
    path = directory / "manifest.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def test_a_store_gives_back_what_was_written_and_describes_it(tmp_path: Path) -> None:
    splits = write(tmp_path / "noise")
    assert_holds(tmp_path / "noise", splits)
    manifest = json.loads((tmp_path / "noise" / "manifest.json").read_text())
    assert manifest["source"] == SOURCE
    lengths = np.diff(splits["train"].offsets)
    train = manifest["splits"]["train"]
    assert (train["num_examples"], train["num_tokens"]) == (40, lengths.sum())
    assert (train["min_length"], train["max_length"]) == (lengths.min(), lengths.max())
    assert train["mean_length"] == pytest.approx(lengths.mean())
    assert train["class_counts"] == [int((splits["train"].labels == c).sum()) for c in range(3)]


def test_reading_maps_the_files_and_writes_nothing(directory: Path) -> None:
    paths = [directory, *directory.iterdir()]
    for path in paths:
        path.chmod(path.stat().st_mode & 0o555)
    before = [path.stat().st_mtime_ns for path in paths]
    train = open_store(directory).split("train")
    assert isinstance(train.tokens.base, np.memmap)
    assert not train.tokens.flags.writeable
    assert [path.stat().st_mtime_ns for path in paths] == before
    directory.chmod(0o755)


def test_the_fingerprint_is_of_the_content_alone(tmp_path: Path) -> None:
    for name, source, seed in (
        ("a", SOURCE, 0),
        ("b", SOURCE | {"name": "x"}, 0),
        ("c", SOURCE, 1),
    ):
        splits = {"train": draw_sequences(5, seed)}
        write_store(tmp_path / name, task=name, source=source, splits=splits)
    a, b, c = (open_store(tmp_path / name).fingerprint for name in "abc")
    assert re.fullmatch("[0-9a-f]{64}", a)
    assert a == b
    assert a != c


def test_a_file_that_is_cut_short_is_named_without_reading_it(directory: Path) -> None:
    path = directory / "test_tokens.npy"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        DataCorruptError, match=f"{path} has {size - 1} bytes, expected {size}.*{COMMAND}"
    ):
        open_store(directory, verify=False)


@pytest.mark.parametrize("part", ["tokens", "offsets", "labels"])
def test_a_flipped_bit_is_found_by_the_checksum(directory: Path, part: str) -> None:
    path = directory / f"train_{part}.npy"
    flip_bit(path, -1)
    open_store(directory, verify=False)
    with pytest.raises(DataCorruptError, match=rf"{path} has SHA-256 \w+, expected \w+.*{COMMAND}"):
        open_store(directory)


@pytest.mark.parametrize("at", [0, 20, -1])
def test_arrays_that_contradict_each_other_are_never_returned(directory: Path, at: int) -> None:
    flip_bit(directory / "train_offsets.npy", at)
    store = open_store(directory, verify=False)
    with pytest.raises(DataCorruptError, match=f"split train of {directory}.*{COMMAND}"):
        store.split("train")
    store.split("test")


def test_arrays_that_contradict_the_manifest_are_never_returned(directory: Path) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["splits"]["train"]["num_tokens"] = 7
    canonical = json.dumps(manifest["splits"], sort_keys=True, separators=(",", ":"))
    manifest["fingerprint"] = hashlib.sha256(canonical.encode()).hexdigest()
    (directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        DataCorruptError, match=rf"split train of {directory}.*\(40, 7\).*{COMMAND}"
    ):
        open_store(directory).split("train")


def test_a_missing_file_is_damage(directory: Path) -> None:
    (directory / "test_labels.npy").unlink()
    with pytest.raises(DataCorruptError, match=f"test_labels.npy is missing.*{COMMAND}"):
        open_store(directory, verify=False)


def test_a_missing_store_says_where_it_was_looked_for_and_how_to_build_it(directory: Path) -> None:
    (directory / "manifest.json").unlink()
    for path in (directory, directory.parent / "nowhere"):
        with pytest.raises(
            FileNotFoundError, match=f"{path}/manifest.json; build it with: {COMMAND}"
        ):
            open_store(path, verify=False)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"num_examples": 40', '"num_examples": 41', r"SHA-256 \w+, expected \w+"),
        ('"splits"', '"spl', "not JSON"),
    ],
)
def test_a_damaged_manifest_is_damage(directory: Path, old: str, new: str, message: str) -> None:
    edit_manifest(directory, old, new)
    with pytest.raises(DataCorruptError, match=f"manifest.json.*{message}.*{COMMAND}"):
        open_store(directory, verify=False)


def test_another_schema_is_refused(directory: Path) -> None:
    edit_manifest(directory, '"schema_version": 1', '"schema_version": 2')
    with pytest.raises(ValueError, match=f"schema_version=2, not 1.*{COMMAND}"):
        open_store(directory)


def test_an_unknown_split_is_refused(directory: Path) -> None:
    with pytest.raises(ValueError, match=r"split='dev' is not one of \['test', 'train'\]"):
        open_store(directory).split("dev")


def kill_during_write(directory: Path, num_syncs: int) -> None:
    """Start a process that writes a store and is killed as it syncs for the given time."""
    script = f"""
import itertools, os, pathlib, signal
import test_store
count = itertools.count(1)
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL) if next(count) == {num_syncs} else None
test_store.write(pathlib.Path({str(directory)!r}), seed=7)
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent, check=False)
    assert ended.returncode == -signal.SIGKILL


# of 6 arrays the third; the directory, with all arrays and the manifest in it
@pytest.mark.parametrize("num_syncs", [3, 8])
def test_a_killed_writer_leaves_nothing_under_the_name(tmp_path: Path, num_syncs: int) -> None:
    directory = tmp_path / "noise"
    kill_during_write(directory, num_syncs)
    assert not directory.exists()
    assert len(list(tmp_path.iterdir())) == 1
    splits = write(directory)
    assert list(tmp_path.iterdir()) == [directory]
    kill_during_write(directory, num_syncs)
    assert_holds(directory, splits)


def test_a_failed_writer_leaves_nothing_at_all(tmp_path: Path) -> None:
    bad = Sequences(np.zeros(3, np.uint8), np.array([0, 4, 3]), np.zeros(2, np.uint8))
    splits = {"train": draw_sequences(5, 0), "test": bad}
    with pytest.raises(ValueError, match="offsets that decrease"):
        write_store(tmp_path / "noise", task="noise", source=SOURCE, splits=splits)
    assert not list(tmp_path.iterdir())


def test_of_concurrent_builders_one_builds_and_the_others_find_it_done(tmp_path: Path) -> None:
    directory, built = tmp_path / "data" / "noise", []

    def build() -> None:
        with build_lock(directory):
            if not directory.exists():
                built.append(directory)
                time.sleep(0.05)
                write(directory)
            open_store(directory)

    builders = [threading.Thread(target=build) for _ in range(4)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert built == [directory]


def test_writing_replaces_a_damaged_store_but_nothing_else(directory: Path) -> None:
    old = open_store(directory).split("train")
    flip_bit(directory / "test_tokens.npy", -1)
    splits = write(directory, seed=5)
    assert_holds(directory, splits)
    assert_array_equal(old.tokens, draw_sequences(40, 0).tokens)
    (directory.parent / "thesis").mkdir()
    (directory.parent / "thesis" / "chapter1").touch()
    with pytest.raises(FileExistsError, match="thesis"):
        write(directory.parent / "thesis")
    assert sorted(p.name for p in directory.parent.iterdir()) == ["noise", "thesis"]
    assert (directory.parent / "thesis" / "chapter1").exists()


def test_impossible_data_are_refused(tmp_path: Path) -> None:
    for offsets in ([0, 1, 4], [1, 2, 3]):
        with pytest.raises(ValueError, match="offsets"):
            Sequences(np.zeros(3, np.uint8), np.array(offsets), np.zeros(2, np.uint8))
    with pytest.raises(ValueError, match="source kind='found' is not one of"):
        write_store(tmp_path / "noise", task="noise", source={"kind": "found"}, splits={})


def draw_pairs(num_documents: int = 9) -> dict[str, Pairs]:
    """Two splits that share their documents."""
    documents, rng = draw_sequences(num_documents, 0), np.random.default_rng(1)
    return {
        name: Pairs(
            documents.tokens,
            documents.offsets,
            rng.integers(0, num_documents, (size, 2), dtype=np.int32),
            rng.integers(0, 2, size, dtype=np.uint8),
        )
        for name, size in (("train", 20), ("test", 5))
    }


@pytest.fixture
def pairs_directory(tmp_path: Path) -> Path:
    write_store(tmp_path / "pairs", task="pairs", source=SOURCE, splits=draw_pairs())
    return tmp_path / "pairs"


def test_pairs_come_back_and_their_documents_are_stored_once(pairs_directory: Path) -> None:
    store, splits = open_store(pairs_directory), draw_pairs()
    for name, split in splits.items():
        for part in ("tokens", "offsets", "pairs", "labels"):
            assert_array_equal(getattr(store.pairs(name), part), getattr(split, part))
        lengths = np.diff(split.offsets)[split.pairs]
        entry = store.manifest["splits"][name]
        assert (entry["num_examples"], entry["num_tokens"]) == (len(split), lengths.sum())
        assert (entry["min_length"], entry["max_length"]) == (lengths.min(), lengths.max())
        assert entry["mean_length"] == pytest.approx(lengths.mean())
    assert sorted(path.name for path in pairs_directory.iterdir()) == [
        "documents_offsets.npy",
        "documents_tokens.npy",
        "manifest.json",
        "test_labels.npy",
        "test_pairs.npy",
        "train_labels.npy",
        "train_pairs.npy",
    ]


@pytest.mark.parametrize("name", ["documents_tokens", "documents_offsets", "test_pairs"])
def test_a_flipped_bit_in_pairs_is_found_by_the_checksum(pairs_directory: Path, name: str) -> None:
    flip_bit(pairs_directory / f"{name}.npy", -1)
    with pytest.raises(DataCorruptError, match=rf"{name}.npy has SHA-256 \w+, expected"):
        open_store(pairs_directory)


def test_a_pair_of_a_document_that_is_not_there_is_never_returned(pairs_directory: Path) -> None:
    flip_bit(pairs_directory / "train_pairs.npy", -3)  # adds 256
    store = open_store(pairs_directory, verify=False)
    with pytest.raises(DataCorruptError, match=r"split train .*not in 0..8.*" + COMMAND):
        store.pairs("train")
    store.pairs("test")
    flip_bit(pairs_directory / "train_pairs.npy", -4)  # another document
    flip_bit(pairs_directory / "train_pairs.npy", -3)
    with pytest.raises(DataCorruptError, match=r"split train .* examples and tokens, expected"):
        store.pairs("train")


def test_splits_that_do_not_share_their_documents_are_refused(tmp_path: Path) -> None:
    splits = draw_pairs() | {"val": draw_pairs()["test"]}
    with pytest.raises(ValueError, match=r"split val has documents_tokens.npy of its own"):
        write_store(tmp_path / "pairs", task="pairs", source=SOURCE, splits=splits)
    assert not list(tmp_path.iterdir())
