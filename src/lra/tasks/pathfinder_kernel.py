"""Pathfinder's random process, compiled: one image from a stream of uniforms.

Two target contours, each a chain of paddles, are sampled by rejection; shorter distractors follow.
Both markers lie at the two ends of one contour (label 1) or at one end of each (label 0). A mask
holds the exclusion zones of the paddles so far; a paddle's own zone enters it when the next paddle
of its contour is there, which is what lets a contour continue.

    weight of a candidate = (1 - max of the mask around its head) · max(cos δ, 0)²

Quirks of the original that shape its distribution, and are kept: orientations in which no contour
can start (`start_kernels`); the first contour's last paddle never enters the mask, so distractors
may cross it; at side 32 distractors are brighter than targets.

Numba compiles every function at its first call; `no_type_check` keeps run-time type checkers,
whose wrappers numba cannot compile, away from them.
"""

from typing import NamedTuple, no_type_check

import numba
import numpy as np
from jaxtyping import Float64, Int32, Int64

from lra.tasks.pathfinder_tables import NUM_FIRST

NUM_COLUMNS = 5
ORIENTATION, Y, X, PIVOT_Y, PIVOT_X = range(NUM_COLUMNS)
"""A paddle is a row: where its picture lies, and the end that the next one turns on."""

_NUM_TRIALS = 3
_NUM_DISTRACTOR_TRIES = 5
_OCCUPIED = 77  # of 255: a mask above 0.3
_COLLISION = 459  # 1.8 · 255
_MIN_WEIGHT = 1e-4
_MIN_FREE_PERCENT = 1

compiled = numba.njit(nogil=True, error_model="numpy")


class Stream(NamedTuple):
    """Uniforms in [0, 1): those of a buffer, then a generator's."""

    buffer: Float64[np.ndarray, " n"]
    position: Int64[np.ndarray, " 1"]
    """Number of uniforms drawn so far."""
    rng: np.random.Generator


class Seeds(NamedTuple):
    """Where the first contour can start, for each of 360 orientations: flat pixel indices."""

    pixels: Int32[np.ndarray, "360 k"]
    counts: Int64[np.ndarray, " 360"]


@compiled
@no_type_check
def draw(stream):
    """The next uniform."""
    position = stream.position[0]
    stream.position[0] += 1
    return stream.buffer[position] if position < len(stream.buffer) else stream.rng.random()


@compiled
@no_type_check
def draw_integer(stream, n):
    """Uniform in 0..n - 1."""
    return int(draw(stream) * n)


@compiled
@no_type_check
def find_seeds(tables, side):
    """The pixels where the first contour can start: it meets only a frame of 2 s."""
    mask = np.zeros((side, side), dtype=np.uint8)
    pixels = np.zeros((NUM_FIRST, side * side), dtype=np.int32)
    counts = np.zeros(NUM_FIRST, dtype=np.int64)
    for degree in range(NUM_FIRST):
        counts[degree] = free_pixels(tables, mask, degree, 2 * tables.seed_distance, pixels[degree])
    return Seeds(pixels[:, : counts.max()].copy(), counts)


@compiled
@no_type_check
def draw_image(stream, tables, seeds, label, distractor_shape, contours, image):
    """Fill `image`; `contours` [2, N, 5] receives the targets. Returns whose end is marked."""
    side = len(image)
    mask = np.empty((side, side), dtype=np.uint8)
    weights = np.empty(len(tables.offsets))
    while not draw_targets(stream, tables, seeds, mask, contours, weights):
        pass
    last = contours.shape[1] - 1
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
    compose(tables, targets, distractors, markers, image)
    return start, end


@compiled
@no_type_check
def draw_targets(stream, tables, seeds, mask, contours, weights):
    """One attempt at both contours, side by side; False where one cannot go on."""
    frame, (height, width) = tables.frame, mask.shape
    if not seed_first(stream, tables, seeds, mask, contours[0]):
        return False
    if not seed_second(stream, tables, mask, contours):
        return False
    for y in range(height):
        for x in range(width):
            mask[y, x] = 0 if frame <= min(y, height - 1 - y, x, width - 1 - x) else 255
    for i in range(1, contours.shape[1]):
        draw_integer(stream, 1)  # a contrast, out of one
        for k in range(2):
            if not extend(stream, tables, mask, contours[k], i, weights):
                return False
    return True


@compiled
@no_type_check
def seed_first(stream, tables, seeds, mask, contour):
    """Place the first contour's first paddle."""
    for _ in range(_NUM_TRIALS):
        degree = draw_integer(stream, NUM_FIRST)
        if seeds.counts[degree] == 0:
            return False
        pixel = seeds.pixels[degree, draw_integer(stream, seeds.counts[degree])]
        y, x = divmod(pixel, mask.shape[1])
        if start_contour(tables, len(mask), degree, y, x, contour):
            return True
    return False


@compiled
@no_type_check
def seed_second(stream, tables, mask, contours):
    """Place the second contour's first paddle at a distance from the first's."""
    for _ in range(_NUM_TRIALS):
        degree = draw_integer(stream, NUM_FIRST)
        unit = tables.compass[draw_integer(stream, 360)]
        y = int(np.rint(contours[0, 0, Y] + tables.seed_distance * unit[0]))
        x = int(np.rint(contours[0, 0, X] + tables.seed_distance * unit[1]))
        if start_contour(tables, len(mask), degree, y, x, contours[1]):
            return True
    return False


@compiled
@no_type_check
def start_contour(tables, side, degree, y, x, contour):
    """A first paddle with its tail at (y, x); False where it leaves the image."""
    head_y, head_x = step(y, x, tables.units[degree], tables.paddle_length)
    pivot_y, pivot_x = step(head_y, head_x, tables.back_units[degree], tables.pivot_distance)
    write_paddle(contour[0], degree, y, x, pivot_y, pivot_x)
    return is_inside(side, head_y, head_x) and is_inside(side, pivot_y, pivot_x)


@compiled
@no_type_check
def extend(stream, tables, mask, contour, i, weights):
    """Add paddle i to a contour, and paddle i - 1 to the mask; False where none fits."""
    previous = contour[i - 1]
    distance = tables.pivot_distance + tables.margin
    unit = tables.units[previous[ORIENTATION]]
    pivot_y, pivot_x = step(previous[PIVOT_Y], previous[PIVOT_X], unit, distance)
    turns = tables.turns[previous[ORIENTATION]]
    total = weigh_candidates(tables, mask, turns, pivot_y, pivot_x, weights)
    if total < _MIN_WEIGHT:
        return False
    for _ in range(_NUM_TRIALS):
        j = choose(weights, total, draw(stream))
        y, x = pivot_y + tables.offsets[j, 0], pivot_x + tables.offsets[j, 1]
        write_paddle(contour[i], NUM_FIRST + j, y, x, pivot_y, pivot_x)
        if not collides(mask, tables.masks, contour[i]):
            stamp(mask, tables.masks, previous)
            return True
    return False


@compiled
@no_type_check
def weigh_candidates(tables, mask, turns, pivot_y, pivot_x, weights):
    """Fill `weights`, with -1 for heads outside the image, and return their sum."""
    offsets, disk, levels = tables.offsets, tables.disk, tables.levels
    side, total = len(mask), 0.0
    for j in range(len(offsets)):
        head_y, head_x = pivot_y + offsets[j, 0], pivot_x + offsets[j, 1]
        if not is_inside(side, head_y, head_x):
            weights[j] = -1
            continue
        weights[j] = 0
        if turns[j] > 0:
            highest = 0
            for k in range(len(disk)):
                y, x = head_y + disk[k, 0], head_x + disk[k, 1]
                if is_inside(side, y, x):
                    highest = max(highest, mask[y, x])
            weights[j] = (1 - levels[highest]) * turns[j]
            total += weights[j]
    return total


@compiled
@no_type_check
def choose(weights, total, uniform):
    """The first candidate whose cumulative probability is above `uniform`, else the first."""
    cumulative, first = 0.0, -1
    for j, weight in enumerate(weights):
        if weight < 0:
            continue
        if first < 0:
            first = j
        cumulative += weight / total
        if cumulative > uniform:
            return j
    return first


@compiled
@no_type_check
def draw_distractors(stream, tables, mask, shape, picture, weights):
    """Add `shape` = (number, paddles each) distractors; one whose tries all fail is left out."""
    number, num_paddles = shape
    contour = np.empty((num_paddles, NUM_COLUMNS), dtype=np.int64)
    free = np.empty(mask.size, dtype=np.int32)
    trial_mask = np.empty(mask.shape, dtype=np.uint8)
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
    draw_integer(stream, 1)  # a contrast, out of one
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
    for _ in range(_NUM_TRIALS):
        degree = draw_integer(stream, NUM_FIRST)
        if 100 * count_below(mask, _OCCUPIED) < _MIN_FREE_PERCENT * mask.size:
            return False
        count = free_pixels(tables, mask, degree, 1, free)
        if count == 0:
            return False
        y, x = divmod(free[draw_integer(stream, count)], mask.shape[1])
        if start_contour(tables, len(mask), degree, y, x, contour):
            return True
    return False


@compiled
@no_type_check
def free_pixels(tables, mask, degree, border, free):
    """List in `free` the pixels whose kernel meets nothing occupied, and return their number.

    The pixel itself may be occupied: the kernel need not contain it.
    """
    size = tables.kernel_sizes[degree]
    if size < 0:
        return 0
    height, width = mask.shape
    occupied = np.ones((height, width), dtype=np.bool_)
    for y in range(border, height - border):
        for x in range(border, width - border):
            occupied[y, x] = mask[y, x] >= _OCCUPIED
    blocked = np.zeros((height, width), dtype=np.bool_)
    for k in range(size):
        dy, dx = tables.kernels[degree, k, 0], tables.kernels[degree, k, 1]
        for y in range(max(0, -dy), min(height, height - dy)):
            for x in range(max(0, -dx), min(width, width - dx)):
                blocked[y, x] |= occupied[y + dy, x + dx]
    count = 0
    for y in range(height):
        for x in range(width):
            if not blocked[y, x]:
                free[count] = y * width + x
                count += 1
    return count


@compiled
@no_type_check
def step(y, x, unit, distance):
    """`distance` along a unit step; rounded up only after the sum, whose last bits decide."""
    return int(np.ceil(y + distance * unit[0])), int(np.ceil(x + distance * unit[1]))


@compiled
@no_type_check
def copy(source, target):
    for y in range(source.shape[0]):
        for x in range(source.shape[1]):
            target[y, x] = source[y, x]


@compiled
@no_type_check
def count_below(picture, limit):
    count = 0
    for y in range(picture.shape[0]):
        for x in range(picture.shape[1]):
            count += picture[y, x] < limit
    return count


@compiled
@no_type_check
def is_inside(side, y, x):
    """Whether a pixel is one of the image."""
    return 0 <= y < side and 0 <= x < side


@compiled
@no_type_check
def overlap(side, reach, y, x):
    """Bounds in the picture of the rows and columns of a patch centered at (y, x)."""
    top, bottom = max(0, y - reach), min(side, y + reach + 1)
    left, right = max(0, x - reach), min(side, x + reach + 1)
    return top, bottom, left, right


@compiled
@no_type_check
def stamp(picture, patches, paddle):
    """Maximum of a picture and a paddle's patch."""
    stamp_patch(picture, patches[paddle[ORIENTATION]], paddle[Y], paddle[X])


@compiled
@no_type_check
def stamp_patch(picture, patch, y, x):
    """Maximum of a picture and a patch centered at (y, x)."""
    reach = len(patch) // 2
    top, bottom, left, right = overlap(len(picture), reach, y, x)
    for i in range(top, bottom):
        for j in range(left, right):
            picture[i, j] = max(picture[i, j], patch[i - y + reach, j - x + reach])


@compiled
@no_type_check
def stamp_all(picture, patches, contour):
    """Maximum of a picture and the patches of a contour."""
    for i in range(len(contour)):
        stamp(picture, patches, contour[i])


@compiled
@no_type_check
def write_paddle(paddle, orientation, y, x, pivot_y, pivot_x):
    """Fill a row of a contour."""
    paddle[ORIENTATION] = orientation
    paddle[Y] = y
    paddle[X] = x
    paddle[PIVOT_Y] = pivot_y
    paddle[PIVOT_X] = pivot_x


@compiled
@no_type_check
def collides(mask, patches, paddle):
    """Whether a paddle's zone and the mask add up to too much somewhere."""
    y, x, patch = paddle[Y], paddle[X], patches[paddle[ORIENTATION]]
    reach = len(patch) // 2
    top, bottom, left, right = overlap(len(mask), reach, y, x)
    for i in range(top, bottom):
        for j in range(left, right):
            if int(mask[i, j]) + int(patch[i - y + reach, j - x + reach]) >= _COLLISION:
                return True
    return False


@compiled
@no_type_check
def stamp_marker(picture, markers, paddle):
    """The disk at an end of a contour."""
    y, x, reach = paddle[Y], paddle[X], len(markers) // 2
    i = reach + min(y, reach) - min(picture.shape[0] - 1 - y, reach)
    j = reach + min(x, reach) - min(picture.shape[1] - 1 - x, reach)
    stamp_patch(picture, markers[i, j], y, x)


@compiled
@no_type_check
def compose(tables, targets, distractors, markers, image):
    """Maximum of the pictures, scaled to 0..255 and rounded half up."""
    values = np.empty(image.shape)
    lowest, highest = np.inf, 0.0
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            paddles = max(
                tables.target_values[targets[y, x]], tables.distractor_values[distractors[y, x]]
            )
            values[y, x] = max(paddles, markers[y, x] / 255)
            lowest, highest = min(lowest, values[y, x]), max(highest, values[y, x])
    scale = 255 / (highest - lowest)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            image[y, x] = np.uint8((values[y, x] - lowest) * scale + 0.5)
