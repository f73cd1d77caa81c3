"""Reviews and images as other projects pass them on: in Mega's lra.zip, and in pickles.

`lra.tasks.mega` and `lra.tasks.pickles` tell the two layouts. Reviews are cut there, at 4,000 bytes
or, in the pickles of the Nyströmformer release, at 1,000, which are not official. Their validation
split is the test split again and is not read. Images are in train, validation and test splits of
the source's own, as large as the official ones, but not always of the same images.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from lra.tasks import mega, pickles
from lra.tasks.aclimdb import Review, check_reviews
from lra.tasks.published import Publication
from lra.tasks.release import Layouts, holds
from lra.tasks.sources import Via
from lra.tasks.store import Sequences

CUT = "cut, as the source has them"
CUT_BYTES = 4_000
REVIEW_SPLITS: tuple[mega.MegaSplit, ...] = ("train", "test")
REVIEW_LAYOUTS = {
    "mega": [
        *(f"imdb-4000/{part}-bin/dict.txt" for part in ("src", "label")),
        *(
            f"imdb-4000/{part}-bin/{split}.{kind}"
            for part in ("src", "label")
            for split in REVIEW_SPLITS
            for kind in ("idx", "bin")
        ),
    ],
    "pickles": [f"lra-text.{split}.pickle" for split in REVIEW_SPLITS],
}

IMAGE_SPLIT_RULE = "train, val and test as the source has them"
GRAY = "as the source has it: TensorFlow's in pickles, Pillow's in Mega's layout"


def is_copy(source: str, layouts: Layouts, publication: Publication, via: Via) -> bool:
    """Whether files of `layouts` are at `source`, and none of the publication itself.

    Raises `ValueError` if they are to be read in a way that they cannot.
    """
    found = holds(Path(source), layouts, unless=publication.members)
    if found and via != "direct":
        raise ValueError(f"prepare.via={via} reads {publication.archives[0].name}, not {source}")
    return found


def image_layouts(pickle_stem: str, mega_directory: str | None) -> Layouts:
    """The files of images; None where Mega's release does not have them."""
    layouts = {"pickles": [f"{pickle_stem}.{split}.pickle" for split in ("train", "dev", "test")]}
    if mega_directory is not None:
        layouts["mega"] = [
            f"{mega_directory}/{end}"
            for split in mega.SPLITS
            for end in (f"input/{split}.src", f"label/{split}.label")
        ]
    return layouts


def read_copied_reviews(
    layout: str, files: Mapping[str, Path], *, official: bool
) -> dict[str, list[Review]]:
    """The train and the test split, given one of `REVIEW_LAYOUTS` and its files in that order.

    Raises `ValueError` for malformed data, and for official ones that are cut too short.
    """
    splits: dict[str, list[Review]] = {}
    for split, path, examples in _read(layout, files, REVIEW_SPLITS, "text"):
        reviews = list(_located(examples, split, path))
        check_reviews(path, split, reviews)
        if official and (longest := max(len(text) for text, _ in reviews)) < CUT_BYTES:
            raise ValueError(
                f"{split} in {path} is cut at {longest:,} bytes, the official data at "
                f"{CUT_BYTES:,}; name other data with prepare.stand_in=NAME"
            )
        splits[split] = reviews
    return splits


def read_copied_images(
    layout: str, files: Mapping[str, Path], _: Path, *, num_pixels: int, num_classes: int
) -> dict[str, Sequences]:
    """The three splits, given what `image_layouts` says, and files in that order.

    Raises `ValueError` for malformed images, and for another size or number of classes.
    """
    splits: dict[str, Sequences] = {}
    for split, path, examples in _read(layout, files, mega.SPLITS, "pixels"):
        images = Sequences.of(_located(examples, split, path))
        if wrong := set(images.lengths().tolist()) - {num_pixels}:
            raise ValueError(
                f"{split} in {path} has images of {min(wrong):,} pixels, not {num_pixels:,}"
            )
        if (label := images.labels.max(initial=0)) >= num_classes:
            raise ValueError(
                f"{split} in {path} has label {label}, which is not in 0..{num_classes - 1}"
            )
        splits["val" if split == "valid" else split] = images
    return splits


def _read(
    layout: str,
    files: Mapping[str, Path],
    splits: Sequence[mega.MegaSplit],
    content: Literal["text", "pixels"],
) -> Iterator[tuple[mega.MegaSplit, Path, Iterator[tuple[bytes, int]]]]:
    """Each split, where it is, and its examples; `files` of pickles are one a split."""
    paths = list(files.values())
    if layout == "pickles":
        for split, path in zip(splits, paths, strict=True):
            yield split, path, pickles.read_pickle_split(path, content)
    else:
        read = mega.read_texts if content == "text" else mega.read_pixels
        directory = paths[0].parents[1]
        for split in splits:
            yield split, directory, read(directory, split)


def _located(
    examples: Iterator[tuple[bytes, int]], split: str, path: Path
) -> Iterator[tuple[bytes, int]]:
    """The examples; errors say where they are from."""
    try:
        yield from examples
    except ValueError as error:
        raise ValueError(f"{split} in {path}: {error}") from error
