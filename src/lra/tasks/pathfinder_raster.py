"""Pictures of Pathfinder's generator, compiled: stamping patches, testing them, finding room.

Pictures and patches are uint8 and square. A patch is centered at a pixel and cut at the frame.
Numba compiles each function at its first call; `no_type_check` keeps away the wrappers of run-time
type checkers, which it cannot compile. Arrays are handed to as few functions as possible: each
hand-over counts references, and that would be most of the time.
"""

from typing import no_type_check

import numpy as np

try:
    import numba
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "generating Pathfinder needs numba; install it with: pip install 'lra-harness[pathfinder]'"
    ) from error

NUM_COLUMNS = 5
ORIENTATION, Y, X, PIVOT_Y, PIVOT_X = range(NUM_COLUMNS)
"""A paddle is a row of integers: its picture, where it lies, and where the next one turns."""

_OCCUPIED = 77  # of 255: a mask above 0.3
_COLLISION = 459  # 1.8 · 255

compiled = numba.njit(nogil=True)


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
def stamp_patch(picture, patch, y, x):
    """Maximum of a picture and a patch."""
    reach = len(patch) // 2
    top, bottom, left, right = overlap(len(picture), reach, y, x)
    for i in range(top, bottom):
        for j in range(left, right):
            picture[i, j] = max(picture[i, j], patch[i - y + reach, j - x + reach])


@compiled
@no_type_check
def stamp(picture, patches, paddle):
    """Maximum of a picture and a paddle's patch."""
    stamp_patch(picture, patches[paddle[ORIENTATION]], paddle[Y], paddle[X])


@compiled
@no_type_check
def stamp_all(picture, patches, contour):
    """Maximum of a picture and the patches of a contour."""
    for i in range(len(contour)):
        stamp(picture, patches, contour[i])


@compiled
@no_type_check
def stamp_marker(picture, markers, paddle):
    """Maximum of a picture and the disk at a paddle."""
    y, x, reach, last = paddle[Y], paddle[X], len(markers) // 2, len(picture) - 1
    i = reach + min(y, reach) - min(last - y, reach)
    j = reach + min(x, reach) - min(last - x, reach)
    stamp_patch(picture, markers[i, j], y, x)


@compiled
@no_type_check
def collides(mask, patches, paddle):
    """Whether a paddle's patch and the mask add up to too much somewhere."""
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
def draw_frame(mask, width):
    """Clear a mask but for a frame of 255."""
    side = len(mask)
    for y in range(side):
        for x in range(side):
            mask[y, x] = 0 if width <= min(y, side - 1 - y, x, side - 1 - x) else 255


@compiled
@no_type_check
def copy(source, target):
    """Copy a picture; a loop compiles in a tenth of the time of an assignment."""
    for y in range(len(source)):
        for x in range(len(source)):
            target[y, x] = source[y, x]


@compiled
@no_type_check
def count_unoccupied(mask):
    """Number of pixels that are not occupied."""
    count = 0
    for y in range(len(mask)):
        for x in range(len(mask)):
            count += mask[y, x] < _OCCUPIED
    return count


@compiled
@no_type_check
def find_free(mask, border, offsets, free):
    """List in `free` the pixels that have nothing occupied at `offsets`, and return their number.

    A frame as wide as `border` is occupied, what lies outside the image is not. Indices are flat.
    """
    side = len(mask)
    occupied = np.ones((side, side), dtype=np.bool_)
    for y in range(border, side - border):
        for x in range(border, side - border):
            occupied[y, x] = mask[y, x] >= _OCCUPIED
    blocked = np.zeros((side, side), dtype=np.bool_)
    for k in range(len(offsets)):
        dy, dx = offsets[k, 0], offsets[k, 1]
        for y in range(max(0, -dy), min(side, side - dy)):
            for x in range(max(0, -dx), min(side, side - dx)):
                blocked[y, x] |= occupied[y + dy, x + dx]
    count = 0
    for y in range(side):
        for x in range(side):
            if not blocked[y, x]:
                free[count] = y * side + x
                count += 1
    return count


@compiled
@no_type_check
def compose(targets, target_values, distractors, distractor_values, markers, image):
    """Maximum of three pictures by their values, scaled to 0..255 and rounded half up."""
    side = len(image)
    values = np.empty((side, side))
    lowest, highest = np.inf, 0.0
    for y in range(side):
        for x in range(side):
            value = max(target_values[targets[y, x]], distractor_values[distractors[y, x]])
            values[y, x] = max(value, markers[y, x] / 255)
            lowest, highest = min(lowest, values[y, x]), max(highest, values[y, x])
    scale = 255 / (highest - lowest)
    for y in range(side):
        for x in range(side):
            image[y, x] = np.uint8((values[y, x] - lowest) * scale + 0.5)
