"""Pathfinder: the release in every form it comes in, the generated store, and the reader."""

import hashlib
import io
import subprocess
import sys

import numpy as np
import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from numpy.testing import assert_array_equal
from PIL import Image
from test_text import write_archive, write_files

from lra.tasks import pathfinder
from lra.tasks.pathfinder import Pathfinder, prepare
from lra.tasks.pathfinder_generator import generate

HARD = "pathfinder32/curv_contour_length_14"
BATCHES, IMAGES_PER_BATCH = 2, 15
EMPTY = (1, 4)  # batch and image


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def make_images(seed=0):
    """(batch, number, pixels, label) of each image; a third of the pixels is black."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (BATCHES, IMAGES_PER_BATCH, 32, 32), dtype=np.uint8)
    pixels[rng.random(pixels.shape) < 1 / 3] = 0
    labels = rng.integers(0, 2, (BATCHES, IMAGES_PER_BATCH))
    return [(b, i, pixels[b, i], int(labels[b, i])) for b, i in np.ndindex(*labels.shape)]


def metadata_row(batch, number, label):
    parameters = ["1.0", "14", "4", "2", "0.5", "1", "1"]
    return [f"imgs/{batch}", f"sample_{number}.png", str(number), str(label), *parameters]


def release_files(images, root=HARD, form="text"):
    files = {}
    for batch in range(BATCHES):
        rows = [metadata_row(b, i, label) for b, i, _, label in images if b == batch]
        content = "".join(" ".join(row) + "\n" for row in rows).encode()
        if form == "npy":
            file = io.BytesIO()
            np.save(file, np.array(rows, dtype="<U32"))
            content = file.getvalue()
        files[f"{root}/metadata/{batch}.npy"] = content
    for batch, number, pixels, _ in images:
        empty = (batch, number) == EMPTY
        files[f"{root}/imgs/{batch}/sample_{number}.png"] = b"" if empty else png(pixels)
    return files


def prepare_small(directory, source=None, stand_in="tiny", **settings):
    gains = []
    defaults = {
        "name": "pathfinder",
        "resolution": 32,
        "difficulty": "hard",
        "num_examples": {"train": 40, "val": 5, "test": 6},
        "seed": 0,
        "num_workers": 1,
    }
    store = prepare(
        **{**defaults, **settings},
        data_dir=str(directory),
        source=None if source is None else str(source),
        stand_in=stand_in,
        progress=gains.append,
    )
    return store, sum(gains)


def open_task(directory, zero_pixel="token", **settings):
    defaults = {"name": "pathfinder", "resolution": 32, "difficulty": "hard", "verify": True}
    return Pathfinder(**{**defaults, **settings}, data_dir=str(directory), zero_pixel=zero_pixel)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("release"), release_files(make_images()))


def test_splits_are_slices_of_tfds_order_and_lose_the_empty_image_after_that(tmp_path, source):
    store, gained = prepare_small(tmp_path, source)
    images = {f"imgs/{b}_sample_{i}.png_{i + 1}": (b, i, p, y) for b, i, p, y in make_images()}
    order = sorted(images, key=lambda key: hashlib.md5(f"hard{key}".encode()).hexdigest())
    slices = {"train": order[:24], "val": order[24:27], "test": order[27:]}
    task = open_task(tmp_path)
    for split, keys in slices.items():
        kept = [images[key] for key in keys if images[key][:2] != EMPTY]
        examples = task.examples(split)
        assert examples.labels.tolist() == [label for *_, label in kept]
        batch = examples.batch(np.arange(len(kept))[::-1])
        expected = [pixels.ravel().tolist() for _, _, pixels, _ in kept[::-1]]
        assert batch.tokens[:, 0].tolist() == expected
        assert batch.token_mask.all()
    assert gained == 29
    origin = store.manifest["source"]
    assert (origin["kind"], origin["name"]) == ("stand-in", "tiny")
    assert (origin["images_listed"], origin["images_empty"]) == (30, 1)
    assert (task.vocab_size, task.max_seq_len, task.source_kind) == (256, 1024, "stand-in")


def test_every_form_of_the_release_gives_the_same_store(tmp_path, source):
    expected, _ = prepare_small(tmp_path / "0", source)
    nested = f"lra_release/lra_release/{HARD}"
    text, arrays = release_files(make_images()), release_files(make_images(), form="npy")
    forms = {
        "inside": source / HARD,
        "arrays": write_files(tmp_path / "arrays", arrays),
        "archive": write_archive(
            tmp_path / "lra_release.gz", {f"./lra_release/{k}": v for k, v in text.items()}
        ),
        "nested": write_archive(tmp_path / "n.tar", release_files(make_images(), nested, "npy")),
    }
    stores = {name: prepare_small(tmp_path / name, path)[0] for name, path in forms.items()}
    assert {name: store.fingerprint for name, store in stores.items()} == dict.fromkeys(
        forms, expected.fingerprint
    )


def test_of_two_copies_the_deeper_one_counts(tmp_path, source):
    top = release_files(make_images(seed=1))
    nested = release_files(make_images(), f"lra_release/{HARD}")
    both = write_archive(tmp_path / "lra_release.gz", top | nested)
    store, _ = prepare_small(tmp_path / "data", both)
    expected, _ = prepare_small(tmp_path / "expected", source)
    assert store.fingerprint == expected.fingerprint
    assert store.manifest["source"]["images_empty"] == 1  # of the two copies' two
    twice = nested | release_files(make_images(), f"other/{HARD}")
    with pytest.raises(ValueError, match=f"has {HARD} twice: .*lra_release.* and .*other"):
        prepare_small(tmp_path / "twice", write_files(tmp_path / "t", twice))


def test_black_pixels_are_padding_only_where_the_protocol_says_so(tmp_path, source):
    prepare_small(tmp_path, source)
    rows = np.arange(3)
    token = open_task(tmp_path).examples("val").batch(rows)
    padding = open_task(tmp_path, "padding").examples("val").batch(rows)
    assert padding.tokens.equal(token.tokens)
    assert padding.token_mask.equal(token.tokens != 0)
    assert 0.2 < (~padding.token_mask).float().mean() < 0.5
    assert token.token_mask.all()


def test_only_the_official_number_of_images_is_official(tmp_path, source, monkeypatch):
    with pytest.raises(ValueError, match=r"lists 30 images, the official data 200,000; .*stand_in"):
        prepare_small(tmp_path, source, stand_in=None)
    monkeypatch.setattr(pathfinder, "OFFICIAL_COUNT", 30)
    store, _ = prepare_small(tmp_path, source, stand_in=None)
    assert store.manifest["source"]["kind"] == "official"


def changed(name, content):
    return {**release_files(make_images()), f"{HARD}/{name}": content}


def without(name):
    return {k: v for k, v in release_files(make_images()).items() if k != f"{HARD}/{name}"}


ROW = " ".join(metadata_row(0, 0, 1))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (changed("metadata/0.npy", ROW.replace("0 1 1.0", "0 2 1.0").encode()),
         r"metadata/0.npy, row 1: label '2' is not 0 or 1"),
        (changed("metadata/1.npy", f"{ROW}\n{ROW} 5\n".encode()), "row 2: 12 columns, not 11"),
        (changed("metadata/1.npy", b"\xff\xfe"), "metadata/1.npy is neither text nor an array"),
        (changed("metadata/1.npy", b"\x93NUMPY\x01\x00"), "1.npy is neither text nor an array"),
        (changed("imgs/0/sample_3.png", b"\x89PNG\r\n"), "imgs/0/sample_3.png is no image"),
        (changed("imgs/0/sample_3.png", png(np.zeros((32, 32), np.uint8))[:-30]), "is no image"),
        (changed("imgs/0/sample_3.png", png(np.zeros((16, 32), np.uint8))), "32 x 16, mode L, not"),
        (changed("imgs/0/sample_3.png", png(np.zeros((32, 32, 3), np.uint8))), "mode RGB, not"),
        (without("imgs/0/sample_3.png"), "lacks 1 images .* such as .*imgs/0/sample_3.png"),
    ],
)  # fmt: skip
def test_bad_releases_are_refused_and_leave_nothing(tmp_path, files, message):
    source = write_files(tmp_path / "0", files)
    with pytest.raises(ValueError, match=message):
        prepare_small(tmp_path / "data", source)
    assert [p.name for p in (tmp_path / "data").glob("*") if p.name != ".pathfinder.lock"] == []


def test_a_missing_or_damaged_source_is_named(tmp_path, source):
    with pytest.raises(FileNotFoundError, match=r"source=.*nowhere does not exist"):
        prepare_small(tmp_path, tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no pathfinder32/curv_baseline/metadata"):
        prepare_small(tmp_path, source, difficulty="easy")
    whole = write_archive(tmp_path / "whole.gz", release_files(make_images())).read_bytes()
    (tmp_path / "cut.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut.gz is damaged, cut short, or no archive"):
        prepare_small(tmp_path, tmp_path / "cut.gz")
    with pytest.raises(ValueError, match=r"stand_in=tiny needs prepare.source=PATH"):
        prepare_small(tmp_path)


def test_generated_splits_are_consecutive_and_made_once(tmp_path):
    store, gained = prepare_small(tmp_path, stand_in=None)
    _, nothing = prepare_small(tmp_path, stand_in=None)
    assert (gained, nothing) == (51, 0)
    images, labels = generate(32, 14, seed=0, first=0, num_images=51, num_workers=1)
    sequences = [store.split(split) for split in ("train", "val", "test")]
    assert [len(split) for split in sequences] == [40, 5, 6]
    assert_array_equal(np.concatenate([split.tokens for split in sequences]), images.ravel())
    assert_array_equal(np.concatenate([split.labels for split in sequences]), labels)
    assert store.manifest["source"]["kind"] == "regenerated"
    with pytest.raises(ValueError, match="prepared with difficulty=hard, not easy"):
        prepare_small(tmp_path, stand_in=None, difficulty="easy")
    other, _ = prepare_small(tmp_path / "easy", stand_in=None, difficulty="easy")
    assert "is not known" in other.manifest["source"]["distractors"]


def test_the_configured_task_reads_what_its_configuration_prepares(tmp_path, compose_run):
    config = compose_run(
        "task=pathx",
        "protocol=paper",
        "difficulty=easy",
        f"data_dir={tmp_path}",
        "prepare.num_examples={train: 3, val: 1, test: 1}",
    )
    with pytest.raises(InstantiationException, match="resolution=128 difficulty=easy data_dir="):
        instantiate(config.task)
    store = instantiate(config.prepare, num_workers=1, progress=lambda count: None)
    assert store.directory == tmp_path / "pathfinder128_easy"
    batch = instantiate(config.task).examples("train").batch(np.arange(3))
    assert batch.tokens.shape == (3, 1, 128 * 128)
    assert batch.token_mask.equal(batch.tokens != 0)


def test_the_papers_budget(compose_run):
    config = compose_run("task=pathfinder", "protocol=paper")
    trainer = config.trainer
    assert (trainer.batch_size, trainer.max_steps, trainer.warmup_steps) == (512, 31_200, 312)
    assert (trainer.check_steps, trainer.min_steps, config.optimizer.lr) == (312, 3500, 2e-4)
    assert compose_run("task=pathfinder").optimizer.lr == 1e-4
    assert config.task.name == "pathfinder32_hard"
    assert sum(config.prepare.num_examples.values()) == 200_000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": 48}, "resolution=48 is not one of 32, 64, 128, 256"),
        ({"difficulty": "tough"}, "difficulty=tough is not one of easy, intermediate, hard"),
    ],
)
def test_images_that_do_not_exist_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        pathfinder.check(**{"resolution": 32, "difficulty": "hard", **settings})


def test_without_numba_the_generator_says_what_to_install():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import lra.tasks.pathfinder\n"
        "print('the reader works')\n"
        "import lra.tasks.pathfinder_generator"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "the reader works\n"
    assert "install it with: pip install 'lra-harness[pathfinder]'" in done.stderr
