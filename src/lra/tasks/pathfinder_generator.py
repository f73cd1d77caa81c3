"""Pathfinder, regenerated: are two markers joined by a dashed contour?

Linsley, Kim, Veerabadran, Windolf & Serre, "Learning long-range spatial dependencies with
horizontal gated recurrent units", NeurIPS 2018, https://arxiv.org/abs/1805.08315, with the
parameters of Tay et al., "Long Range Arena", ICLR 2021, https://arxiv.org/abs/2011.04006.

The distribution is that of the original program, quirks included: fed with the same uniforms,
`replay` gives the original's pixels. Paddles are drawn once, into tables; an image then is integer
work, nearly all of it for contours that are rejected. Departures:

- A generator of its own for each image, so that neither workers nor other images matter.
- For contours of 9 and 6 paddles the number of distractors follows the formula that is documented
  for 14; which number the release used is not known.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from lra.tasks.pathfinder_contour import Stream, draw_integer
from lra.tasks.pathfinder_kernel import draw_image, find_seeds
from lra.tasks.pathfinder_raster import NUM_COLUMNS
from lra.tasks.pathfinder_tables import PARAMETERS, build_tables

CONTOUR_LENGTHS = (6, 9, 14)
"""Paddles in a target contour; a distractor has a third as many."""

_CHUNK = 64


class PathfinderGenerator:
    """Draws images of one resolution and contour length."""

    def __init__(self, resolution: int, contour_length: int) -> None:
        if resolution not in PARAMETERS:
            raise ValueError(f"resolution={resolution} is not one of {sorted(PARAMETERS)}")
        if contour_length not in CONTOUR_LENGTHS:
            raise ValueError(f"contour_length={contour_length} is not one of {CONTOUR_LENGTHS}")
        parameters = PARAMETERS[resolution]
        self.resolution = resolution
        self.contour_length = contour_length
        self.tables = [build_tables(resolution, margin) for margin in parameters.margins]
        self.seeds = [find_seeds(tables, resolution) for tables in self.tables]
        num_paddles = contour_length // 3
        self.distractor_shape = (parameters.distractor_paddles // num_paddles, num_paddles)

    def draw(self, stream: Stream, image: UInt8[np.ndarray, "r r"]) -> int:
        """Fill `image` from a stream, and return its label: 1 for markers on one contour."""
        label: int = draw_integer(stream, 2)
        margin = draw_integer(stream, len(self.tables))
        contours = np.empty((2, self.contour_length, NUM_COLUMNS), dtype=np.int64)
        tables, seeds = self.tables[margin], self.seeds[margin]
        draw_image(stream, tables, seeds, label, self.distractor_shape, contours, image)
        return label


def replay(
    resolution: int, contour_length: int, num_images: int, uniforms: Float64[np.ndarray, " u"]
) -> tuple[UInt8[np.ndarray, "n r r"], UInt8[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Images and labels drawn from one stream of uniforms in [0, 1), and the uniforms used so far.

    Raises `ValueError` if there are too few.
    """
    generator = PathfinderGenerator(resolution, contour_length)
    stream = Stream(uniforms, np.zeros(1, dtype=np.int64), np.random.default_rng(0))
    images = np.empty((num_images, resolution, resolution), dtype=np.uint8)
    labels = np.empty(num_images, dtype=np.uint8)
    draws = np.empty(num_images, dtype=np.int64)
    for i in range(num_images):
        labels[i] = generator.draw(stream, images[i])
        draws[i] = stream.position[0]
        if draws[i] > len(uniforms):
            raise ValueError(f"{len(uniforms)} uniforms end within image {i} of {num_images}")
    return images, labels, draws


def generate(
    resolution: int,
    contour_length: int,
    *,
    seed: int,
    first: int,
    num_images: int,
    num_workers: int,
    progress: Callable[[int], object] | None = None,
    out: UInt8[np.ndarray, "n r r"] | None = None,
) -> tuple[UInt8[np.ndarray, "n r r"], UInt8[np.ndarray, " n"]]:
    """Images `first`, `first` + 1, … and their labels; image i depends on `seed` and i alone.

    Images go to `out` if it is given. `progress` is told the number of images gained.
    """
    if min(num_images, num_workers) < 1 or first < 0:
        raise ValueError(
            f"num_images={num_images} or num_workers={num_workers} is below 1, "
            f"or first={first} below 0"
        )
    generator = PathfinderGenerator(resolution, contour_length)
    if out is None:
        out = np.empty((num_images, resolution, resolution), dtype=np.uint8)
    labels = np.empty(num_images, dtype=np.uint8)
    draw_chunk = partial(_draw_chunk, generator, seed, first, out, labels)
    pool = ThreadPoolExecutor(num_workers)  # compiled code releases the interpreter's lock
    try:
        for gained in pool.map(draw_chunk, range(0, num_images, _CHUNK)):
            if progress is not None:
                progress(gained)
    finally:
        pool.shutdown(cancel_futures=True)
    return out, labels


def _draw_chunk(
    generator: PathfinderGenerator,
    seed: int,
    first: int,
    images: UInt8[np.ndarray, "n r r"],
    labels: UInt8[np.ndarray, " n"],
    start: int,
) -> int:
    """Draw the images from `start` on, and return how many."""
    level = CONTOUR_LENGTHS.index(generator.contour_length)
    rows = range(start, min(start + _CHUNK, len(labels)))
    buffer, position = np.empty(0), np.zeros(1, dtype=np.int64)
    for row in rows:
        sequence = np.random.SeedSequence(seed, spawn_key=(level, first + row))
        stream = Stream(buffer, position, np.random.default_rng(sequence))
        labels[row] = generator.draw(stream, images[row])
    return len(rows)
