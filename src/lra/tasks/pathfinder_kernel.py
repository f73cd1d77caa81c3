"""Pathfinder's random process, compiled: one image from a stream of uniforms.

Two target contours are sampled by rejection; shorter distractors follow. Markers lie at the two
ends of one contour (label 1) or at one end of each (label 0).

Quirks of the original that shape its distribution, and are kept: orientations in which no contour
can start (`start_kernels`); the first contour's last paddle never enters the mask, so distractors
may cross it; at side 32, distractors are brighter than targets.
"""

from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Int32, Int64

from lra.tasks.pathfinder_contour import (
    NUM_TRIALS,
    draw_integer,
    extend,
    start_contour,
)
from lra.tasks.pathfinder_raster import (
    NUM_COLUMNS,
    X,
    Y,
    compiled,
    compose,
    copy,
    count_unoccupied,
    draw_frame,
    find_free,
    stamp,
    stamp_all,
    stamp_marker,
)
from lra.tasks.pathfinder_tables import NUM_FIRST

_NUM_DISTRACTOR_TRIES = 5
_MIN_FREE_PERCENT = 1


class Seeds(NamedTuple):
    """Where a first contour can start, for each orientation of its first paddle."""

    pixels: Int32[np.ndarray, "360 k"]
    counts: Int64[np.ndarray, " 360"]


@compiled
@no_type_check
def find_seeds(tables, side):
    """Where the first contour can start: nothing is there yet but a frame of 2 s."""
    mask = np.zeros((side, side), dtype=np.uint8)
    pixels = np.zeros((NUM_FIRST, side * side), dtype=np.int32)
    counts = np.zeros(NUM_FIRST, dtype=np.int64)
    for degree in range(NUM_FIRST):
        border = 2 * tables.seed_distance
        counts[degree] = find_start(tables, mask, degree, border, pixels[degree])
    return Seeds(pixels[:, : counts.max()].copy(), counts)


@compiled
@no_type_check
def find_start(tables, mask, degree, border, free):
    """List in `free` where a paddle of this orientation can start, and return the number."""
    size = tables.kernel_sizes[degree]
    return find_free(mask, border, tables.kernels[degree, :size], free) if size >= 0 else 0


@compiled
@no_type_check
def draw_image(stream, tables, seeds, label, distractor_shape, contours, image):
    """Fill `image` [n, n] and `contours` [2, paddles, columns], the targets.

    `distractor_shape` is (number, paddles each). Returns on which contours the markers are: on the
    first paddle of one, and on the last of one.
    """
    side, last = len(image), contours.shape[1] - 1
    mask = np.empty((side, side), dtype=np.uint8)
    weights = np.empty(len(tables.offsets))
    while not draw_targets(stream, tables, seeds, mask, contours, weights):
        pass
    stamp(mask, tables.masks, contours[1, last])
    targets = np.zeros((side, side), dtype=np.uint8)
    stamp_all(targets, tables.lines, contours[0])
    stamp_all(targets, tables.lines, contours[1])
    distractors = np.zeros((side, side), dtype=np.uint8)
    draw_distractors(stream, tables, mask, distractor_shape, distractors, weights)
    start = draw_integer(stream, 2)
    end = start if label == 1 else 1 - start
    markers = np.zeros((side, side), dtype=np.uint8)
    stamp_marker(markers, tables.markers, contours[start, 0])
    stamp_marker(markers, tables.markers, contours[end, last])
    target_values, distractor_values = tables.target_values, tables.distractor_values
    compose(targets, target_values, distractors, distractor_values, markers, image)
    return start, end


@compiled
@no_type_check
def draw_targets(stream, tables, seeds, mask, contours, weights):
    """One attempt at both contours, in turns; False where one cannot go on."""
    if not seed_first(stream, tables, seeds, len(mask), contours[0]):
        return False
    if not seed_second(stream, tables, len(mask), contours):
        return False
    draw_frame(mask, tables.frame)
    for i in range(1, contours.shape[1]):
        draw_integer(stream, 1)  # the contrast, of which there is one
        for k in range(2):
            if not extend(stream, tables, mask, contours[k], i, weights):
                return False
    return True


@compiled
@no_type_check
def seed_first(stream, tables, seeds, side, contour):
    """Place the first contour's first paddle."""
    for _ in range(NUM_TRIALS):
        degree = draw_integer(stream, NUM_FIRST)
        count = seeds.counts[degree]
        if count == 0:
            return False
        y, x = divmod(seeds.pixels[degree, draw_integer(stream, count)], side)
        if start_contour(tables, side, degree, y, x, contour):
            return True
    return False


@compiled
@no_type_check
def seed_second(stream, tables, side, contours):
    """Place the second contour's first paddle at a distance from the first's, wherever that is."""
    for _ in range(NUM_TRIALS):
        degree = draw_integer(stream, NUM_FIRST)
        unit = tables.compass[draw_integer(stream, 360)]
        y = int(np.rint(contours[0, 0, Y] + tables.seed_distance * unit[0]))
        x = int(np.rint(contours[0, 0, X] + tables.seed_distance * unit[1]))
        if start_contour(tables, side, degree, y, x, contours[1]):
            return True
    return False


@compiled
@no_type_check
def draw_distractors(stream, tables, mask, shape, picture, weights):
    """Add distractors to the picture; one whose tries all fail is left out."""
    number, num_paddles = shape
    side = len(mask)
    contour = np.empty((num_paddles, NUM_COLUMNS), dtype=np.int64)
    free = np.empty(side * side, dtype=np.int32)
    trial_mask = np.empty((side, side), dtype=np.uint8)
    for _ in range(number):
        for _ in range(_NUM_DISTRACTOR_TRIES):
            copy(mask, trial_mask)
            if draw_distractor(stream, tables, trial_mask, contour, free, weights):
                stamp(trial_mask, tables.masks, contour[num_paddles - 1])
                copy(trial_mask, mask)
                stamp_all(picture, tables.lines, contour)
                break


@compiled
@no_type_check
def draw_distractor(stream, tables, mask, contour, free, weights):
    """One try at a distractor; False where it finds no room."""
    draw_integer(stream, 1)  # the contrast, of which there is one
    if not seed_distractor(stream, tables, mask, contour, free):
        return False
    for i in range(1, len(contour)):
        draw_integer(stream, 1)
        if not extend(stream, tables, mask, contour, i, weights):
            return False
    return True


@compiled
@no_type_check
def seed_distractor(stream, tables, mask, contour, free):
    """Place a distractor's first paddle where the mask leaves room."""
    for _ in range(NUM_TRIALS):
        degree = draw_integer(stream, NUM_FIRST)
        if 100 * count_unoccupied(mask) < _MIN_FREE_PERCENT * mask.size:
            return False
        count = find_start(tables, mask, degree, 1, free)
        if count == 0:
            return False
        y, x = divmod(free[draw_integer(stream, count)], len(mask))
        if start_contour(tables, len(mask), degree, y, x, contour):
            return True
    return False
