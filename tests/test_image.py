"""Image: whatever form CIFAR-10 comes in, the same store, in gray to the bit."""

import errno
import hashlib
import itertools
import pickle
import shutil
import struct

import numpy as np
import pytest
from test_text import as_tfrecord, write_archive, write_files, write_tfds

from lra.tasks import cifar10, image
from lra.tasks.cifar10 import gray
from lra.tasks.image import Image, prepare
from lra.tasks.pixels import PixelExamples
from lra.tasks.published import Archive, Publication
from lra.tasks.store import Sequences

BINARY, PYTHON = "cifar-10-batches-bin", "cifar-10-batches-py"
BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
NUM_PER_BATCH = 8


def make_batches():
    """Labels [n] and red, green and blue planes [n, 3, 1024], by name; some pixels are black."""
    rng = np.random.default_rng(0)
    batches = {}
    for i, name in enumerate(BATCHES):
        planes = rng.integers(0, 256, (NUM_PER_BATCH, 3, 1024), dtype=np.uint8)
        planes[:, :, rng.integers(1024, size=200)] = 0
        batches[name] = (np.arange(i, i + NUM_PER_BATCH) % 10, planes)
    return batches


def binary_files(batches):
    files = {f"{BINARY}/batches.meta.txt": b"airplane\n"}
    for name, (labels, planes) in batches.items():
        records = [bytes([y]) + p.tobytes() for y, p in zip(labels, planes, strict=True)]
        files[f"{BINARY}/{name}.bin"] = b"".join(records)
    return files


def python_files(batches):
    """As Python 2 and numpy 1 wrote them: protocol 2, with byte strings."""
    files = {f"{PYTHON}/batches.meta": b"(dp0\n."}
    for name, (labels, planes) in batches.items():
        shape = b"K" + bytes([len(labels)]) + b"M" + struct.pack("<H", 3072) + b"\x86"
        array = (
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
            + shape
            + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
            + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
            + struct.pack("<i", planes.size)
            + planes.tobytes()
            + b"tb"
        )
        numbers = b"](" + b"".join(b"K" + bytes([y]) for y in labels) + b"e"
        files[f"{PYTHON}/{name}"] = (
            b"\x80\x02}(U\x06labels" + numbers + b"U\x04data" + array + b"u."
        )
    return files


def prepare_image(directory, source=None, stand_in="tiny", via="direct"):
    return prepare(
        name="image",
        data_dir=str(directory),
        source=None if source is None else str(source),
        stand_in=stand_in,
        via=via,
        progress=lambda count: None,
    )


def open_image(directory, zero_pixel="token"):
    return Image(name="image", data_dir=str(directory), verify=True, zero_pixel=zero_pixel)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "cifar-10-binary.tar.gz"
    return write_archive(path, binary_files(make_batches()))


@pytest.fixture(scope="module")
def tfds_source(tmp_path_factory, archive):
    layout = {"field": "image", "num_classes": 10, "read": cifar10._tfds_examples}
    return write_tfds(tmp_path_factory.mktemp("tfds") / "3.0.2", archive, **layout)


@pytest.fixture
def official(monkeypatch, archive):
    """Make the tiny data the published ones, where the server does not answer."""
    content = archive.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    published = Archive("http://127.0.0.1:9/cifar-10-binary.tar.gz", len(content), digest)
    publication = Publication(
        (published,), cifar10.PUBLICATION.folders, cifar10.PUBLICATION.members
    )
    monkeypatch.setattr(image, "PUBLICATION", publication)
    monkeypatch.setattr(cifar10, "BATCH_RECORDS", NUM_PER_BATCH)
    files = binary_files(make_batches())
    sha1 = [hashlib.sha1(files[f"{BINARY}/{name}.bin"]).hexdigest() for name in BATCHES]
    monkeypatch.setattr(cifar10, "BATCH_SHA1", {"train": sha1[:5], "test": sha1[5:]})
    return published


def float32(number):
    """The nearest number that fits into 32 bits."""
    return struct.unpack("<f", struct.pack("<f", number))[0]


def test_gray_is_tensorflows_for_every_color():
    """Against one rounding to 32 bits after each operation, which are exact in 64 bits."""
    weights = [float32(w) for w in (0.2989, 0.5870, 0.1140)]
    tables = [
        np.array([float32(float32(v * float32(1 / 255)) * w) for v in range(256)]) for w in weights
    ]
    green, blue = (plane.astype(np.uint8) for plane in np.mgrid[:256, :256])
    mismatches = double_mismatches = 0
    for value in range(256):
        red = np.full_like(green, value)
        partial = (tables[0][value] + tables[1]).astype(np.float32).astype(np.float64)
        luma = (partial[:, None] + tables[2]).astype(np.float32).astype(np.float64)
        expected = (luma * 255.5).astype(np.float32).astype(np.uint8)
        found = gray(red, green, blue)
        mismatches += np.count_nonzero(found != expected)
        exact = (red * 0.2989 + green * 0.5870 + blue * 0.1140) / 255 * 255.5
        double_mismatches += np.count_nonzero(found != exact.astype(np.uint8))
    assert mismatches == 0
    assert double_mismatches == 237  # as counted against TensorFlow itself


def test_a_store_holds_gray_values_in_the_order_of_tfds(tmp_path, archive):
    prepare_image(tmp_path, archive)
    task = open_image(tmp_path)
    batches = make_batches()
    labels = np.concatenate([batches[name][0] for name in BATCHES[:5]])
    planes = np.concatenate([batches[name][1] for name in BATCHES[:5]])
    order = sorted(range(40), key=lambda i: hashlib.md5(f"train{i}".encode()).hexdigest())
    test_order = sorted(range(8), key=lambda i: hashlib.md5(f"test{i}".encode()).hexdigest())
    for split, rows, y, rgb in (
        ("train", order[:36], labels, planes),
        ("val", order[36:], labels, planes),
        ("test", test_order, *batches["test_batch"]),
    ):
        examples = task.examples(split)
        assert len(examples) == len(rows)
        assert examples.labels.tolist() == y[rows].tolist()
        batch = examples.batch(np.arange(len(rows))[::-1])
        assert batch.tokens.shape == (len(rows), 1, 1024)
        assert batch.labels.tolist() == y[rows[::-1]].tolist()
        expected = gray(*rgb[rows[::-1]].transpose(1, 0, 2))
        assert batch.tokens[:, 0].tolist() == expected.tolist()
        assert batch.token_mask.all()
    assert task.vocab_size == 256


def test_every_form_of_the_source_gives_the_same_store(tmp_path, archive, tfds_source):
    expected = prepare_image(tmp_path / "archive", archive)
    binary, python = binary_files(make_batches()), python_files(make_batches())
    both = write_files(tmp_path / "binary", binary)
    stores = {
        "tfds": prepare_image(tmp_path / "tfds", archive, via="tfds"),
        "binary": prepare_image(tmp_path / "1", both),
        "inside": prepare_image(tmp_path / "2", both / BINARY),
        "python": prepare_image(tmp_path / "3", write_files(tmp_path / "python", python) / PYTHON),
        "packed": prepare_image(tmp_path / "4", write_archive(tmp_path / "p.tar.gz", python)),
        "array_record": prepare_image(tmp_path / "5", tfds_source),
        "tfrecord": prepare_image(tmp_path / "6", as_tfrecord(tfds_source, tmp_path / "tfrecord")),
    }
    assert {name: store.fingerprint for name, store in stores.items()} == dict.fromkeys(
        stores, expected.fingerprint
    )


def test_black_pixels_are_padding_only_where_the_protocol_says_so(tmp_path, archive):
    prepare_image(tmp_path, archive)
    rows = np.arange(8)
    token = open_image(tmp_path).examples("test").batch(rows)
    padding = open_image(tmp_path, "padding").examples("test").batch(rows)
    assert padding.tokens.equal(token.tokens)
    assert padding.token_mask.equal(token.tokens != 0)
    assert token.token_mask.all()
    assert 0.01 < (~padding.token_mask).float().mean() < 0.5
    assert padding.token_mask[..., -1].any()  # holes, not tails


def test_images_of_different_sizes_are_no_images():
    uneven = Sequences(np.zeros(5, np.uint8), np.array([0, 2, 5]), np.zeros(2, np.uint8))
    with pytest.raises(ValueError, match="images have different sizes; the first has 2 pixels"):
        PixelExamples(uneven, "token")


def test_what_matches_the_published_checksums_is_official(tmp_path, archive, tfds_source, official):
    shutil.copytree(archive.parent, tmp_path / "data" / "downloads")
    store = prepare_image(tmp_path / "data", stand_in=None)
    source = store.manifest["source"]
    assert (source["kind"], source["form"]) == ("official", "archive")
    assert source["sha256"] == official.sha256
    assert "last 10 %" in source["validation"]["rule"]
    python = write_files(tmp_path / "python", python_files(make_batches()))
    for number, unpacked in enumerate([python, tfds_source]):
        other = prepare_image(tmp_path / str(number), unpacked, stand_in=None)
        assert other.fingerprint == store.fingerprint
        assert other.manifest["source"]["kind"] == "official"
    with pytest.raises(ValueError, match=r"is the official cifar-10-binary.tar.gz"):
        prepare_image(tmp_path / "named", archive)


def test_other_data_are_refused_without_a_name(tmp_path, official):
    batches = make_batches()
    batches["data_batch_2"][1][3, 0, 0] ^= 1
    changed = binary_files(batches)
    few = binary_files(make_batches())
    few[f"{BINARY}/test_batch.bin"] = few[f"{BINARY}/test_batch.bin"][:3073]
    for files, message in (
        (changed, r"has batches of train with sha1 .* the official data .*stand_in"),
        (few, "has 1 images in test, the official data 8"),
    ):
        source = write_files(tmp_path / message[:9], files)
        with pytest.raises(ValueError, match=message):
            prepare_image(tmp_path / "data", source, stand_in=None)
    packed = write_archive(tmp_path / "cifar-10-binary.tar.gz", changed)
    with pytest.raises(ValueError, match=rf"sha256 .* not the official .*{official.sha256}"):
        prepare_image(tmp_path / "data", packed, stand_in=None)
    with pytest.raises(ConnectionError, match=rf"place the file .*{official.sha256}"):
        prepare_image(tmp_path / "data", stand_in=None)
    assert not (tmp_path / "data" / "image").exists()


class Malice:
    def __reduce__(self):
        return (print, ("this code ran",))


def broken(name, content):
    return {**binary_files(make_batches()), f"{BINARY}/{name}.bin": content}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (broken("data_batch_3", b"\x00" * 3072), "data_batch_3.bin in .* has 3,072 bytes"),
        (broken("test_batch", b""), "test_batch.bin in .* has 0 bytes, not records of 3,073"),
        (broken("data_batch_1", b"\x0a" + b"\x00" * 3072), r"has labels \[10\], .* not in 0..9"),
        ({f"{BINARY}/data_batch_1.bin": b"\x00" * 3073}, "lacks data_batch_2, .*, test_batch"),
        ({f"{PYTHON}/data_batch_1": pickle.dumps(Malice())}, "builtins.print is not allowed"),
        ({f"{PYTHON}/data_batch_1": b"\x80\x02}."}, "is not a batch of CIFAR-10: b'labels'"),
        ({f"{PYTHON}/data_batch_1": b"\x80\x02]."}, "is not a batch of CIFAR-10"),
        (
            {f"{PYTHON}/data_batch_1": b"\x80\x02}(U\x06labels](K\x01eU\x04dataU\x01xu."},
            "data_batch_1 in .* has 1 labels, pixels ",
        ),
        (
            {n: c.replace(b"](", b"](K\x00") for n, c in python_files(make_batches()).items()},
            "data_batch_1 in .* has 9 labels, pixels uint8",
        ),
        (
            {n: c.replace(b"u1", b"i1") for n, c in python_files(make_batches()).items()},
            "data_batch_1 in .* has 8 labels, pixels int8",
        ),
    ],
)
def test_malformed_batches_are_refused(tmp_path, capsys, files, message):
    for source in (write_files(tmp_path / "x", files), write_archive(tmp_path / "x.tgz", files)):
        with pytest.raises(ValueError, match=message):
            prepare_image(tmp_path / "data", source)
    assert not (tmp_path / "data" / "image").exists()
    assert "this code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
def test_archives_that_are_cut_off_are_refused(tmp_path, archive, kept):
    content = archive.read_bytes()
    source = tmp_path / "cifar-10-binary.tar.gz"
    source.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match="damaged or cut off"):
        prepare_image(tmp_path / "data", source)


def test_a_full_disk_leaves_nothing_that_looks_finished(tmp_path, archive, monkeypatch):
    save, calls = np.save, itertools.count(1)

    def full(*arguments):
        if next(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*arguments)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        prepare_image(tmp_path, archive)
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".lock")]
    assert len(prepare_image(tmp_path, archive).split("val")) == 4


def test_the_papers_budget(compose_run):
    config = compose_run("task=image", "protocol=paper")
    trainer = config.trainer
    assert (trainer.batch_size, trainer.max_steps, trainer.warmup_steps) == (256, 50_000, 175)
    assert (trainer.check_steps, trainer.min_steps, config.optimizer.lr) == (50, 0, 1e-4)
    assert config.task.zero_pixel == "padding"
