"""Contours of Pathfinder's generator, compiled: chains of paddles drawn at random.

A mask holds the zones around the paddles so far. A paddle's own zone enters it when the next paddle
of its contour is there, which is what lets a contour continue. That one turns on a pivot beyond the
last head, and of its heads there

    weight of a candidate = (1 - largest mask around its head) · max(cos δ, 0)²

with the turn δ.
"""

from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float64, Int64

from lra.tasks.pathfinder_raster import (
    ORIENTATION,
    PIVOT_X,
    PIVOT_Y,
    X,
    Y,
    collides,
    compiled,
    is_inside,
    stamp,
)
from lra.tasks.pathfinder_tables import NUM_FIRST

NUM_TRIALS = 3
"""For a paddle that leaves the image or meets others."""

_MIN_WEIGHT = 1e-4


class Stream(NamedTuple):
    """Uniforms in [0, 1): those of a buffer, and after its end a generator's."""

    buffer: Float64[np.ndarray, " n"]
    position: Int64[np.ndarray, " 1"]
    """Number of uniforms drawn so far."""
    rng: np.random.Generator


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
def start_contour(tables, side, degree, y, x, contour):
    """Put the first paddle's tail at (y, x); False where the paddle leaves the image."""
    head_y, head_x = step(y, x, tables.units[degree], tables.paddle_length)
    pivot_y, pivot_x = step(head_y, head_x, tables.back_units[degree], tables.pivot_distance)
    write_paddle(contour[0], degree, y, x, pivot_y, pivot_x)
    return is_inside(side, head_y, head_x) and is_inside(side, pivot_y, pivot_x)


@compiled
@no_type_check
def step(y, x, unit, distance):
    """`distance` along a unit step; rounded up only after the sum, whose last bits decide."""
    return int(np.ceil(y + distance * unit[0])), int(np.ceil(x + distance * unit[1]))


@compiled
@no_type_check
def write_paddle(paddle, orientation, y, x, pivot_y, pivot_x):
    """Fill the row of a paddle."""
    paddle[ORIENTATION] = orientation
    paddle[Y] = y
    paddle[X] = x
    paddle[PIVOT_Y] = pivot_y
    paddle[PIVOT_X] = pivot_x


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
    for _ in range(NUM_TRIALS):
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
    """The candidate at which the cumulative probability exceeds `uniform`, else the first one."""
    cumulative, first = 0.0, -1
    for j in range(len(weights)):
        if weights[j] < 0:
            continue
        if first < 0:
            first = j
        cumulative += weights[j] / total
        if cumulative > uniform:
            return j
    return first
