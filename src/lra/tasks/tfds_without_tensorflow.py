"""TensorFlow Datasets where TensorFlow is not installed: writing and reading its directories.

Import it where it is needed only: it takes a second.
"""

import io
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image
from tensorflow_datasets.core.download.checksums import UrlInfo
from tensorflow_datasets.proto import tf_example_generated_pb2 as proto

from lra.tasks.sources import Source

Field = Literal["text", "image"]
Example = tuple[str | int, dict[str, object]]


class ArchiveBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """One archive: verified by TFDS, read by `read`, stored in TFDS's order as array_record."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos: Mapping[str, UrlInfo] | None = None

    def __init__(
        self,
        directory: Path,
        source: Source,
        features: tfds.features.FeaturesDict,
        read: Callable[[Path], Mapping[str, Iterable[Example]]],
    ) -> None:
        self._features, self._read = features, read
        self._url = source.path.absolute().as_uri()
        info = UrlInfo(source.path.stat().st_size, source.sha256, source.path.name)
        self.url_infos = {self._url: info}
        super().__init__(data_dir=directory, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=self._features)

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> Mapping[str, Iterable[Example]]:
        splits = self._read(Path(dl_manager.download(self._url)))
        return {split: map(_encodable, examples) for split, examples in splits.items()}

    def _generate_examples(self) -> Iterator[Example]:
        raise NotImplementedError("the generators of all splits come from one pass")


@contextmanager
def tfds_directory(
    source: Source,
    *,
    field: Field,
    num_classes: int,
    read: Callable[[Path], Mapping[str, Iterable[Example]]],
) -> Iterator[Path]:
    """The source if it is a directory of TFDS; else one for the time being, prepared from it.

    `read` gives keys and examples, `{field: value, "label": class}`, of each split of an archive;
    values are bytes or uint8 pixels.
    """
    if source.form == "tfds":
        yield source.path
        return
    features = {"text": tfds.features.Text(), "image": tfds.features.Image(shape=(32, 32, 3))}
    label = tfds.features.ClassLabel(num_classes=num_classes)
    fields = tfds.features.FeaturesDict({field: features[field], "label": label})
    config = tfds.download.DownloadConfig(manual_dir=source.path.parent, try_download_gcs=False)
    tfds.disable_progress_bar()
    with TemporaryDirectory() as folder:
        builder = ArchiveBuilder(Path(folder), source, fields, read)
        builder.download_and_prepare(download_dir=folder, download_config=config)
        yield Path(builder.data_dir)


def read_directory(directory: Path, split: str, field: Field) -> Iterator[tuple[bytes, int]]:
    """Value and label of each example in the order of TFDS; an image is a PNG file's content.

    Raises `ValueError` where the directory lacks the split, the field or records.
    """
    builder = tfds.builder_from_directory(directory)
    if split not in builder.info.splits or not {field, "label"} <= set(builder.info.features):
        raise ValueError(f"{directory} has no split {split} with {field} and label")
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        examples = _from_array_record(builder, split, field)
    else:
        examples = _from_tfrecord(map(Path, builder.info.splits[split].filepaths), field)
    count = 0
    for example in examples:
        yield example
        count += 1
    if count != (expected := builder.info.splits[split].num_examples):
        raise ValueError(f"split {split} of {directory} has {count} records, expected {expected}")


def decode_image(png: bytes) -> UInt8[np.ndarray, "32 32 3"]:
    """The pixels of a PNG file."""
    return np.asarray(Image.open(io.BytesIO(png)))


def _encodable(example: Example) -> Example:
    """Pixels as an image, since TFDS encodes arrays with TensorFlow."""
    key, fields = example
    return key, {
        k: Image.fromarray(np.asarray(v)) if k == "image" else v for k, v in fields.items()
    }


def _from_array_record(
    builder: tfds.core.DatasetBuilder, split: str, field: Field
) -> Iterator[tuple[bytes, int]]:
    decoders = {"image": tfds.decode.SkipDecoding()} if field == "image" else None
    for example in builder.as_data_source(split=split, decoders=decoders):
        yield example[field], int(example["label"])


def _from_tfrecord(paths: Iterable[Path], field: Field) -> Iterator[tuple[bytes, int]]:
    for path in paths:
        with open(path, "rb") as file:
            while head := file.read(12):  # length, and its checksum
                record = file.read(struct.unpack("<Q", head[:8])[0])
                if len(file.read(4)) < 4:  # the record's checksum
                    raise ValueError(f"{path} is cut off")
                features = proto.Example.FromString(record).features.feature
                yield features[field].bytes_list.value[0], features["label"].int64_list.value[0]
