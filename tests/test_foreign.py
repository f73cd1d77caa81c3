"""Files that other projects have written: read as data, and taken for what they are or refused."""

import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from test_image import BINARY, binary_files, make_batches, prepare_image
from test_pathfinder import HARD, make_images, prepare_small, release_files
from test_retrieval import ROWS, prepare_pairs, write_directory, write_tar
from test_text import make_files, prepare_text, stored_reviews, write_files

from lra.tasks import (
    image,
    listops_preparation,
    listops_release,
    mega,
    pathfinder,
    pickles,
    text,
)
from lra.tasks.aclimdb import validation_rows
from lra.tasks.listops_generator import VOCAB, ListOpsRule, generate
from lra.tasks.listops_release import encode, values_of

TEXTS = [b"a review", b"", bytes(range(256)), b'"quoted" \xff', b"seen " * 20]
RULE = ListOpsRule(min_length=4, max_length=60, max_depth=5, max_args=4)
NUM_EXAMPLES = {"train": 30, "val": 5, "test": 6}


def texts_of(sequences):
    """Of a split in a store."""
    bounds = zip(sequences.offsets, sequences.offsets[1:], strict=False)
    return [sequences.tokens[a:b].tobytes() for a, b in bounds]


# Pickles


def padded_ids(text, length=300):
    ids = np.zeros(length, dtype=np.int32)
    ids[: len(text)] = np.frombuffer(text, np.uint8).astype(np.int32) + 1
    return ids


def write_pickle(path, rows, protocol=4):
    path.write_bytes(pickle.dumps(rows, protocol))
    return path


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("label", [int, np.int32, np.int64])
def test_offset_and_padding_of_a_pickles_texts_are_undone(tmp_path, protocol, label):
    rows = [{"input_ids_0": padded_ids(t), "label": label(i % 2)} for i, t in enumerate(TEXTS)]
    path = write_pickle(tmp_path / "lra-text.train.pickle", rows, protocol)
    expected = list(zip(TEXTS, [0, 1, 0, 1, 0], strict=True))
    assert list(pickles.read_pickle_split(path, "text")) == expected


def test_a_pickles_pixels_are_taken_as_they_are(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 16)).astype(np.int32)
    images[0] = 0  # black is no padding
    rows = [{"input_ids_0": image, "label": 9} for image in images]
    split = pickles.read_pickle_split(write_pickle(tmp_path / "x", rows), "pixels")
    assert list(split) == [(bytes(image), 9) for image in images.tolist()]


def test_a_pickle_of_an_older_numpy_is_read(tmp_path):
    path = write_pickle(tmp_path / "x", [{"input_ids_0": padded_ids(b"old"), "label": 1}], 3)
    content = path.read_bytes()
    assert b"numpy._core" in content
    path.write_bytes(content.replace(b"numpy._core", b"numpy.core"))
    assert list(pickles.read_pickle_split(path, "text")) == [(b"old", 1)]


class Attack:
    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    ("function", "name"),
    [(os.mkdir, "posix.mkdir"), (eval, "builtins.eval"), (np.fromfile, "numpy"), (type, "type")],
)
def test_no_code_of_a_pickle_runs(tmp_path, function, name):
    victim = str(tmp_path / "victim")
    argument = f"__import__('os').mkdir({victim!r})" if function is eval else victim
    rows = [{"input_ids_0": padded_ids(b"x"), "label": Attack(function, argument)}]
    path = write_pickle(tmp_path / "x", rows)
    with pytest.raises(ValueError, match=f"x is a damaged pickle, or .*{name}.* is not allowed"):
        pickles.read_pickle_split(path, "text")
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "holds dict, not a list of examples"),
        ([[1, 2]], "input_ids_0=None"),
        ([{"input_ids_0": padded_ids(b"x")}], "label=None"),
        ([{"input_ids_0": padded_ids(b"x"), "label": 256}], "label=256"),
        ([{"input_ids_0": padded_ids(b"x"), "label": -1}], "label=-1"),
        ([{"input_ids_0": np.array([0.5]), "label": 1}], "input_ids_0=array"),
        ([{"input_ids_0": np.array([[1]]), "label": 1}], "input_ids_0=array"),
        ([{"input_ids_0": np.array([5, 257, 0]), "label": 1}], r"ids 4\.\.256 are beyond"),
        ([{"input_ids_0": np.array([5, 0, 3, 0]), "label": 1}], r"ids -1\.\.4 are beyond"),
    ],
)
def test_a_pickle_of_something_else_is_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        list(pickles.read_pickle_split(write_pickle(tmp_path / "x", rows), "text"))


def test_a_pickle_that_is_cut_short_is_damaged(tmp_path):
    path = write_pickle(tmp_path / "x", [{"input_ids_0": padded_ids(b"x"), "label": 1}])
    for size in (0, 10, path.stat().st_size - 1):
        cut = tmp_path / "cut"
        cut.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ValueError, match="cut is a damaged pickle"):
            pickles.read_pickle_split(cut, "text")


def test_pickles_of_retrieval_give_the_stores_of_the_release(tmp_path):
    expected = prepare_pairs(tmp_path, write_directory(tmp_path / "raw"))
    (tmp_path / "pickled").mkdir()
    for split, name in {"train": "train", "val": "dev", "test": "test"}.items():
        rows = [
            {"input_ids_0": padded_ids(a), "input_ids_1": padded_ids(b), "label": label}
            for label, a, b in ROWS[split]
        ]
        write_pickle(tmp_path / f"pickled/lra-retrieval.{name}.pickle", rows)
    store = prepare_pairs(tmp_path / "data", tmp_path / "pickled")
    assert store.fingerprint == expected.fingerprint


# Mega


def write_indexed(directory, split, samples, words=(), dtype="<u2", code=8):
    """Samples of words in fairseq's format; `words` come first in its dictionary."""
    directory.mkdir(parents=True, exist_ok=True)
    every = list(dict.fromkeys([*words, *(word for sample in samples for word in sample)]))
    lines = [f"{word} {len(every) - i}\n" for i, word in enumerate([*every, "madeupword0000"])]
    (directory / "dict.txt").write_text("".join(lines))
    ids = [np.array([*(4 + every.index(w) for w in sample), 2], dtype) for sample in samples]
    sizes = np.array([len(sample) for sample in ids], "<i4")
    pointers = (sizes.cumsum(dtype="<i8") - sizes) * np.dtype(dtype).itemsize
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQ", 1, code, len(ids))
    (directory / f"{split}.idx").write_bytes(head + sizes.tobytes() + pointers.tobytes())
    (directory / f"{split}.bin").write_bytes(b"".join(map(np.ndarray.tobytes, ids)))


def numbers(text, offset):
    return [str(byte + offset) for byte in text]


def write_mega_texts(directory, split, texts, labels, offset=0, part="src-bin", **options):
    samples = [numbers(text, offset) for text in texts]
    write_indexed(directory / part, split, samples, numbers(b" " + bytes(range(256)), offset))
    write_indexed(directory / "label-bin", split, [[str(label)] for label in labels], ["1", "0"])


@pytest.mark.parametrize("offset", [0, 1])
def test_texts_in_megas_layout_come_out_as_bytes(tmp_path, offset):
    write_mega_texts(tmp_path, "valid", TEXTS, [0, 1, 1, 0, 1], offset)
    expected = list(zip(TEXTS, [0, 1, 1, 0, 1], strict=True))
    assert list(mega.read_texts(tmp_path, "valid")) == expected  # not lines of dict.txt, 1 before 0


def test_padding_in_megas_layout_is_removed(tmp_path):
    padded = [[*numbers(b"a b", 1), "0", "0"]]
    write_indexed(tmp_path / "src-bin", "test", padded, ["33"])
    write_indexed(tmp_path / "label-bin", "test", [["1"]])
    assert list(mega.read_texts(tmp_path, "test")) == [(b"a b", 1)]


@pytest.mark.parametrize(("dtype", "code"), [("<i2", 3), ("<i4", 4), ("<i8", 5), ("<u2", 8)])
def test_every_width_of_ids_is_read(tmp_path, dtype, code):
    write_indexed(tmp_path, "train", [["32", "65"], ["66"]], dtype=dtype, code=code)
    assert [ids.tolist() for ids in mega._read_samples(tmp_path, "train")] == [[4, 5], [6]]


@pytest.mark.parametrize(
    ("words", "sample", "message"),
    [
        (["e", "32"], ["e"], "first word of .*dict.txt is 'e', not 32 or 33"),
        (["32"], ["32", "256"], "sample 0 of .*'256' is not a byte"),
        (["32"], ["32", "<unknown>"], "sample 0 of .*'<unknown>' is not a byte"),
        (["33"], ["33", "0", "34"], "sample 0 of .*'0' is not a byte"),
    ],
)
def test_symbols_that_are_not_bytes_are_refused(tmp_path, words, sample, message):
    write_indexed(tmp_path / "src-bin", "train", [sample], words)
    write_indexed(tmp_path / "label-bin", "train", [["1"]])
    with pytest.raises(ValueError, match=message):
        list(mega.read_texts(tmp_path, "train"))


def test_damage_in_megas_layout_is_named(tmp_path):
    def read():
        return list(mega.read_texts(tmp_path, "train"))

    write_mega_texts(tmp_path, "train", TEXTS, [0, 1, 1, 0])
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is shorter"):
        read()
    write_mega_texts(tmp_path, "train", TEXTS, [0, 1, 1, 0, 1])
    for name, message in (("bin", "is cut short"), ("idx", "buffer is smaller")):
        path = tmp_path / f"src-bin/train.{name}"
        content = path.read_bytes()
        path.write_bytes(content[:-50])
        with pytest.raises(ValueError, match=message):
            read()
        path.write_bytes(content)
    path.write_bytes(b"TNTIDX\x00\x00" + content)
    with pytest.raises(ValueError, match="not an index of fairseq's mmap format"):
        read()


def test_pixels_in_megas_layout_are_read(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 9))
    (tmp_path / "input").mkdir()
    (tmp_path / "label").mkdir()
    lines = [" ".join(map(str, image)) for image in images]
    (tmp_path / "input/train.src").write_text("\n".join(lines) + "\n")
    (tmp_path / "label/train.label").write_text("3\n1\n4\n1\n5\n")
    expected = [
        (bytes(image), y) for image, y in zip(images.tolist(), [3, 1, 4, 1, 5], strict=True)
    ]
    assert list(mega.read_pixels(tmp_path, "train")) == expected
    for line in ("0 256", "0 -1", "0 0.5"):
        (tmp_path / "input/train.src").write_text("\n".join([*lines[:2], line]))
        with pytest.raises(ValueError, match=r"input/train.src, line 3: "):
            list(mega.read_pixels(tmp_path, "train"))
    (tmp_path / "label/train.label").write_text("3\n1 1\n")
    with pytest.raises(ValueError, match=r"image 1 of .*train has 2 labels"):
        list(mega.read_pixels(tmp_path, "train"))


def write_zip(path, directory):
    with zipfile.ZipFile(path, "w") as archive:
        for file in directory.rglob("*.*"):
            archive.write(file, f"lra/{file.relative_to(directory)}")
    return path


def test_megas_zip_gives_the_stores_of_the_release(tmp_path):
    expected = prepare_pairs(tmp_path, write_directory(tmp_path / "raw"))
    names = dict(zip(ROWS, mega.SPLITS, strict=True))
    for split, rows in ROWS.items():
        labels, first, second = zip(*rows, strict=True)
        for part, texts in (("src-bin", first), ("src1-bin", second)):
            write_mega_texts(tmp_path / "mega/aan", names[split], texts, labels, part=part)
    (tmp_path / "mega/listops/src-bin").mkdir(parents=True)
    (tmp_path / "mega/listops/src-bin/train.idx").touch()  # of another task
    source = write_zip(tmp_path / "lra.zip", tmp_path / "mega")
    store = prepare_pairs(tmp_path / "data", source)
    assert store.fingerprint == expected.fingerprint


# Reviews


REVIEWS = {
    split: [
        (b"%s review %d: %s" % (split.encode(), i, bytes([32 + i]) * 400 * i), i % 2)
        for i in range(22)
    ]
    for split in ("train", "test")
}


def write_review_pickles(directory, cut=4000):
    directory.mkdir(parents=True)
    for split, reviews in REVIEWS.items():
        rows = [{"input_ids_0": padded_ids(t[:cut], 4096), "label": y} for t, y in reviews]
        write_pickle(directory / f"lra-text.{split}.pickle", rows)
    write_pickle(directory / "lra-text.dev.pickle", "not read, since it is the test split again")
    return directory


def write_mega_reviews(directory, cut=4000):
    for split, reviews in REVIEWS.items():
        texts, labels = zip(*((text[:cut], label) for text, label in reviews), strict=True)
        write_mega_texts(directory / "imdb-4000", split, texts, labels)
    return directory


@pytest.fixture
def few_are_official(monkeypatch):
    """Makes the data of this module as many as the official ones."""
    monkeypatch.setattr(text, "NUM_PER_CLASS", 11)
    for split, images in IMAGES.items():
        monkeypatch.setitem(image.OFFICIAL_COUNTS, split, len(images))
    monkeypatch.setattr(pathfinder, "OFFICIAL_COUNT", 10)


def test_copied_reviews_get_the_projects_own_validation_split(tmp_path):
    reviews = write_review_pickles(tmp_path / "pickles/deep")
    packed = {path.name: path.read_bytes() for path in reviews.iterdir()}
    sources = [
        reviews.parent,
        write_mega_reviews(tmp_path / "mega"),
        write_zip(tmp_path / "lra.zip", tmp_path / "mega"),
        write_tar(tmp_path / "x.gz", packed | {"README": b"at the end"}),
    ]
    stores = [prepare_text(tmp_path / f"data{i}", source) for i, source in enumerate(sources)]
    assert len({store.fingerprint for store in stores}) == 1
    expected = {split: [(t[:4000], y) for t, y in rows] for split, rows in REVIEWS.items()}
    is_val = validation_rows(expected["train"], 0.1, seed=0)
    assert is_val.sum() == 2
    for split, wanted in (("train", False), ("val", True)):
        rows = [row for row, val in zip(expected["train"], is_val, strict=True) if val == wanted]
        assert stored_reviews(stores[0], split) == rows
    assert stored_reviews(stores[0], "test") == expected["test"]
    source = stores[0].manifest["source"]
    assert (source["kind"], source["name"]) == ("stand-in", "tiny")
    assert source["validation"]["texts"] == "cut, as the source has them"


@pytest.mark.parametrize("write", [write_review_pickles, write_mega_reviews])
def test_copied_reviews_are_official_by_their_number_and_cut(tmp_path, few_are_official, write):
    source = write(tmp_path / "raw")
    store = prepare_text(tmp_path, source, stand_in=None)
    assert store.manifest["source"]["kind"] == "official"
    with pytest.raises(ValueError, match=r"prepared with validation=.*cut, as the source has them"):
        prepare_text(tmp_path, stand_in=None)  # whole texts are other data
    with pytest.raises(
        ValueError, match=r"train in .* is cut at 1,000 bytes, the official .*4,000"
    ):
        prepare_text(tmp_path / "data", write(tmp_path / "cut", 1000), stand_in=None)
    assert prepare_text(tmp_path / "data", tmp_path / "cut").split("test").lengths().max() == 1000


def test_other_copied_reviews_are_refused(tmp_path):
    source = write_review_pickles(tmp_path / "raw")
    message = r"'train': 20, .* the official data .*'train': 22500, 'val': 2500, 'test': 25000"
    with pytest.raises(ValueError, match=message):
        prepare_text(tmp_path, source, stand_in=None)
    with pytest.raises(ValueError, match=r"via=tfds reads aclImdb_v1.tar.gz, not .*raw"):
        prepare_text(tmp_path, source, via="tfds")
    for rows, message in (
        ([(b"a", 1), (b"b", 2)], r"test in .* has labels \[1, 2\], not 0 and 1"),
        ([(b"a", 1), (b"", 0)], "review 1 of test in .* is empty"),
    ):
        rows = [{"input_ids_0": padded_ids(t), "label": y} for t, y in rows]
        write_pickle(source / "lra-text.test.pickle", rows)
        with pytest.raises(ValueError, match=message):
            prepare_text(tmp_path, source)
    packed = write_tar(tmp_path / "x.gz", {p.name: p.read_bytes() for p in source.iterdir()})
    packed.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"x.gz is damaged, cut short, or no archive"):
        prepare_text(tmp_path, packed)
    (source / "lra-text.test.pickle").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds neither .* nor lra-text.test.pickle"):
        prepare_text(tmp_path, source)
    assert not (tmp_path / "text").exists()


# Images


IMAGES = {
    split: [
        (np.random.default_rng(seed).integers(0, 256, 1024) // (i + 1), i % 2) for i in range(count)
    ]
    for seed, (split, count) in enumerate({"train": 8, "val": 1, "test": 1}.items())
}
HARD_STEM = "lra-pathfinder32-curv_contour_length_14"


def write_image_pickles(directory, stem, images=IMAGES):
    directory.mkdir(parents=True)
    for split, name in {"train": "train", "val": "dev", "test": "test"}.items():
        rows = [{"input_ids_0": pixels.astype(np.int32), "label": y} for pixels, y in images[split]]
        write_pickle(directory / f"{stem}.{name}.pickle", rows)
    return directory


def write_mega_images(directory, images=IMAGES):
    for rows, name in zip(images.values(), mega.SPLITS, strict=True):
        lines = {
            f"input/{name}.src": "".join(" ".join(map(str, pixels)) + "\n" for pixels, _ in rows),
            f"label/{name}.label": "".join(f"{label}\n" for _, label in rows),
        }
        write_files(directory, {path: content.encode() for path, content in lines.items()})
    return directory


def prepare_hard(directory, source, stand_in="tiny"):
    return prepare_small(directory, source, stand_in)[0]


@pytest.mark.parametrize(
    ("prepare", "stem", "folder"),
    [(prepare_image, "lra-image", "cifar10"), (prepare_hard, HARD_STEM, "pathfinder")],
)
def test_copied_images_keep_their_splits(tmp_path, few_are_official, prepare, stem, folder):
    pickled = write_image_pickles(tmp_path / "pickles/deep", stem)
    write_mega_images(tmp_path / "mega" / folder)
    write_mega_images(tmp_path / "mega/path-x", {split: [] for split in IMAGES})
    sources = [
        pickled.parent,
        tmp_path / "mega" / folder,
        write_zip(tmp_path / "lra.zip", tmp_path / "mega"),
        write_tar(tmp_path / "x.gz", {p.name: p.read_bytes() for p in pickled.iterdir()}),
    ]
    stores = [prepare(tmp_path / f"data{i}", source, None) for i, source in enumerate(sources)]
    assert len({store.fingerprint for store in stores}) == 1
    for split, images in IMAGES.items():
        found = stores[0].split(split)
        assert texts_of(found) == [bytes(pixels.tolist()) for pixels, _ in images]
        assert found.labels.tolist() == [label for _, label in images]
    source = stores[0].manifest["source"]
    assert source["kind"] == "official"
    assert "train, val and test as the source has them" in str(source)
    named = prepare(tmp_path / "named", pickled, "noise").manifest["source"]
    assert (named["kind"], named["name"]) == ("stand-in", "noise")


def test_images_of_another_number_are_refused_without_a_name(tmp_path):
    source = write_image_pickles(tmp_path / "image", "lra-image")
    with pytest.raises(ValueError, match=r"official .*'train': 45000, 'val': 5000, 'test': 10000"):
        prepare_image(tmp_path, source, None)
    with pytest.raises(ValueError, match=r"via=tfds reads cifar-10-binary.tar.gz, not .*image"):
        prepare_image(tmp_path, source, via="tfds")
    source = write_image_pickles(tmp_path / "hard", HARD_STEM)
    with pytest.raises(ValueError, match=r"'train': 160000, 'val': 20000, 'test': 20000"):
        prepare_hard(tmp_path, source, None)
    source = write_image_pickles(tmp_path / "easy", "lra-pathfinder32-curv_baseline")
    with pytest.raises(ValueError, match=r"'train': 159999, 'val': 20000, 'test': 20000"):
        prepare_small(tmp_path, source, None, difficulty="easy")


@pytest.mark.parametrize(
    ("prepare", "stem", "folder", "label", "message"),
    [
        (prepare_image, "lra-image", "cifar10", 10, r"has label 10, which is not in 0\.\.9"),
        (prepare_hard, HARD_STEM, "pathfinder", 2, r"has label 2, which is not in 0\.\.1"),
    ],
)
def test_images_of_another_task_are_refused(tmp_path, prepare, stem, folder, label, message):
    for wrong, expected in (
        ((np.zeros(1024, int), label), message),
        ((np.zeros(1023, int), 1), "has images of 1,023 pixels, not 1,024"),
    ):
        images = IMAGES | {"val": [*IMAGES["val"], wrong]}
        sources = (
            write_image_pickles(tmp_path / f"pickles{label}", stem, images),
            write_mega_images(tmp_path / f"mega{label}" / folder, images),
        )
        for source in sources:
            with pytest.raises(ValueError, match=rf"val(id)? in .* {expected}"):
                prepare(tmp_path / "data", source)
        label += 1
    for name, message in (("src", "2 is longer"), ("label", "2 is shorter")):
        path = next(source.rglob(f"train.{name}"))
        content = path.read_text()
        path.write_text(content[: content.index("\n") + 1])
        with pytest.raises(ValueError, match=rf"train in .*{folder}: .* argument {message}"):
            prepare(tmp_path / "data", source)
        path.write_text(content)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"nor {folder}/label/train.label"):
        prepare(tmp_path / "data", source)


def test_mega_has_no_other_level_of_pathfinder(tmp_path):
    write_mega_images(tmp_path / "mega/pathfinder")
    source = write_zip(tmp_path / "lra.zip", tmp_path / "mega")
    with pytest.raises(FileNotFoundError, match="holds neither lra-pathfinder32-curv_baseline"):
        prepare_small(tmp_path, source, difficulty="easy")
    with pytest.raises(FileNotFoundError, match=r"lra-pathfinder128.* nor path-x/input/train.src"):
        prepare_small(tmp_path, source, resolution=128)
    with pytest.raises(FileNotFoundError, match="holds no pathfinder64/curv_contour_length_14"):
        prepare_small(tmp_path, tmp_path / "mega", resolution=64)


def test_what_is_published_comes_before_its_copies(tmp_path):
    source = write_review_pickles(tmp_path / "all")
    write_files(source, make_files() | binary_files(make_batches()) | release_files(make_images()))
    write_image_pickles(source / "images", "lra-image")
    write_image_pickles(source / "pathfinder", HARD_STEM)
    assert (source / BINARY).is_dir()
    assert (source / HARD).is_dir()
    for prepare in (prepare_text, prepare_image):
        assert prepare(tmp_path, source).manifest["source"]["form"] == "directory"
    assert prepare_hard(tmp_path, source).manifest["source"]["images_listed"] == 30


# ListOps of the release


def generated(split):
    key = listops_preparation.SPLIT_KEYS[split]
    return generate(RULE, seed=0, split=key, num_examples=NUM_EXAMPLES[split], num_workers=1)


def parenthesized(words):
    """As the release writes a tree: ( ( ( [MAX 4 ) 3 ) ] )."""
    stack = [[]]
    for word in words:
        if word.startswith("["):
            stack.append([word])
        elif word == "]":
            operator, *arguments = stack.pop()
            inner = " ".join([operator, *(f"{argument} )" for argument in arguments), "] )"])
            stack[-1].append("( " * (len(arguments) + 1) + inner)
        else:
            stack[-1].append(word)
    [[expression]] = stack
    return expression


def words_of(sequences):
    return [[VOCAB[token] for token in text] for text in texts_of(sequences)]


def write_tsvs(directory, edit=lambda split, line: line):
    directory.mkdir()
    for split in NUM_EXAMPLES:
        sequences = generated(split)
        lines = [
            f"{parenthesized(words)}\t{label}\r\n"
            for words, label in zip(words_of(sequences), sequences.labels, strict=True)
        ]
        lines[2] = edit(split, lines[2])
        content = "Source\tTarget\r\n" + "".join(lines)
        (directory / f"basic_{split}.tsv").write_text(content, newline="")
    return directory


def prepare_listops(data_dir, source, stand_in="noise"):
    return listops_preparation.prepare(
        name="listops",
        data_dir=str(data_dir),
        source=source if source is None else str(source),
        stand_in=stand_in,
        rule=RULE,
        num_examples=NUM_EXAMPLES,
        seed=0,
        num_workers=1,
        progress=lambda count: None,
    )


def stack_machine(tokens):
    stack = [[]]
    for word in (VOCAB[token] for token in tokens):
        if word == "]":
            operator, *arguments = stack.pop()
            middle = sorted(arguments)[(len(arguments) - 1) // 2 : len(arguments) // 2 + 1]
            value = {
                "[MIN": min(arguments),
                "[MAX": max(arguments),
                "[MED": sum(middle) // len(middle),
                "[SM": sum(arguments) % 10,
            }[operator]
            stack[-1].append(value)
        elif word.startswith("["):
            stack.append([word])
        else:
            stack[-1].append(int(word))
    [[value]] = stack
    return value


def test_the_releases_files_give_what_was_written_to_them(tmp_path, monkeypatch):
    expected = prepare_listops(tmp_path, None, stand_in=None)
    source = write_tsvs(tmp_path / "listops-1000")
    store = prepare_listops(tmp_path / "data", source)
    assert store.fingerprint == expected.fingerprint
    assert store.manifest["source"]["kind"] == "stand-in"
    with pytest.raises(ValueError, match=r"'train': 96000.*prepare.stand_in=NAME"):
        prepare_listops(tmp_path / "unnamed", source, stand_in=None)
    for split, count in NUM_EXAMPLES.items():
        monkeypatch.setitem(listops_release.OFFICIAL_COUNTS, split, count)
    store = prepare_listops(tmp_path / "official", source, stand_in=None)
    assert store.manifest["source"]["kind"] == "official"
    with pytest.raises(ValueError, match="prepared with kind=regenerated, not official"):
        prepare_listops(tmp_path, source, stand_in=None)


def test_values_are_those_of_a_stack_machine():
    sequences = generated("train")
    values = values_of(sequences.tokens, sequences.offsets)
    assert values.tolist() == [stack_machine(text) for text in texts_of(sequences)]
    assert len(set(values.tolist())) > 5


def test_an_expression_has_three_words_a_token_less_two(tmp_path):
    for words in words_of(generated("train")):
        expression = parenthesized(words)
        assert len(expression.split()) == 3 * len(words) - 2
        assert [VOCAB[i] for i in encode(expression.encode())] == words
        assert encode(" ".join(words).replace("]", "X").encode()) == encode(expression.encode())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\t", "\t1", "line 4, is not an expression and its value"),
        ("\t", " ", "line 4, is not an expression and its value"),
        ("[", "[AVG [", "line 4, .* 4 unknown"),
        ("[", "[ ", "line 4, .* unknown"),
        ("( ", "", r"line 4, .* words give \d+ tokens, 0 unknown"),
        (" ] )", " )", "line 4, "),
    ],
)
def test_a_line_that_is_no_expression_is_named(tmp_path, old, new, message):
    source = write_tsvs(
        tmp_path / "raw", lambda split, line: line.replace(old, new, 1) if split == "val" else line
    )
    with pytest.raises(ValueError, match=f"basic_val.tsv, {message}"):
        prepare_listops(tmp_path / "data", source)


def test_a_label_that_is_not_the_value_is_named(tmp_path):
    def edit(split, line):
        value = int(line[-3])
        return line if split != "test" else f"{line[:-3]}{(value + 1) % 10}\r\n"

    value = int(generated("test").labels[2])
    message = f"basic_test.tsv: expression 2 has value {value}, but its label is {(value + 1) % 10}"
    with pytest.raises(ValueError, match=message):
        prepare_listops(tmp_path / "data", write_tsvs(tmp_path / "raw", edit))


def test_an_unknown_word_is_no_token():
    with pytest.raises(ValueError, match="4 words give 4 tokens, 1 unknown"):
        encode(b"[MAX Y 2 ]")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("[MAX 1 [MIN 2 3 9 ]", "brackets are not closed"),
        ("[MAX 1 ] ]", "brackets are not closed"),
        ("[MAX 1 ] 2", "brackets are not closed"),
        ("5", "brackets are not closed"),
        ("[MAX 1 [MIN ] ]", "an operator has 0 arguments"),
    ],
)
def test_brackets_that_do_not_match_have_no_value(words, message):
    ids = np.frombuffer(encode(b"[SM 1 2 ]") + encode(words.encode()), np.uint8)
    with pytest.raises(ValueError, match=message):
        values_of(ids, np.array([0, 4, len(ids)]))


def test_expressions_in_megas_layout_are_read(tmp_path):
    expected = prepare_listops(tmp_path, None, stand_in=None)
    for split, name in zip(NUM_EXAMPLES, mega.SPLITS, strict=True):
        sequences = generated(split)
        labels = [[str(label)] for label in sequences.labels]
        write_indexed(tmp_path / "mega/listops/src-bin", name, words_of(sequences), VOCAB)
        digits = [str(value) for value in (3, 1, 4, 5, 9, 2, 6, 8, 7, 0)]
        write_indexed(tmp_path / "mega/listops/label-bin", name, labels, digits)
    store = prepare_listops(tmp_path / "data", tmp_path / "mega/listops")
    assert store.fingerprint == expected.fingerprint


def test_pickles_of_listops_are_refused_with_the_reason(tmp_path):
    (tmp_path / "raw").mkdir()
    for split in ("train", "dev", "test"):
        (tmp_path / f"raw/lra-listops.{split}.pickle").touch()
    with pytest.raises(ValueError, match="lack the closing brackets"):
        prepare_listops(tmp_path / "data", tmp_path / "raw")
