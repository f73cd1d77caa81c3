"""What Pathfinder's generator looks up: its parameters, and every paddle and marker drawn once.

Linsley, Kim, Veerabadran, Windolf & Serre, "Learning long-range spatial dependencies with
horizontal gated recurrent units", NeurIPS 2018, https://arxiv.org/abs/1805.08315, with the
parameters of Tay et al., "Long Range Arena", ICLR 2021, https://arxiv.org/abs/2011.04006.

Coordinates are (y, x), y down; orientation θ has the unit step (sin θ, cos θ). A contour starts
with a paddle of one of 360 orientations, θ = (d - 180)° for d = 0..359, and each further one has
the orientation of one of at most 49 pivot-to-head offsets. So an index o counts orientations, first
the 360, then the candidates; a paddle's pictures depend on o alone. Pillow's line and its Lanczos
filter are part of the definition.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, UInt8
from PIL import Image, ImageDraw

GENERATOR_VERSION = 1
"""Changes whenever the same settings and seed give other images."""

NUM_FIRST = 360
"""Orientations of a first paddle, one a degree."""

_ANTIALIASING = 2
_DEAD = -1


@dataclass(frozen=True)
class Parameters:
    """One resolution: lengths are in pixels, contrasts relative to a paddle of full brightness."""

    margins: tuple[int, ...]
    frame: int
    """Width of the frame that contours keep out of."""
    seed_distance: int
    """From the start of the first contour to that of the second."""
    paddle_length: int
    paddle_thickness: float
    marker_radius: float
    continuity: float
    """Factor on the angle between neighboring paddles before its cosine is taken."""
    distractor_paddles: int
    """In all distractors together."""
    target_contrast: float
    distractor_contrast: float


PARAMETERS = {
    32: Parameters((1,), 1, 7, 2, 0.5, 1.5, 1.0, 20, 2 * 0.75, 2.0),
    64: Parameters((1,), 1, 12, 5, 1.0, 2.5, 1.8, 22, 0.8, 0.8),
    128: Parameters((2, 3), 1, 20, 5, 1.5, 3.0, 1.8, 35, 0.9, 0.9),
    256: Parameters((3,), 22, 27, 5, 2.0, 5.0, 1.8, 30, 1.0, 1.0),
}


class Tables(NamedTuple):
    """One resolution and margin m. A patch is centered where the paddle is drawn from."""

    lines: UInt8[np.ndarray, "o r r"]
    """Brightness of a paddle."""
    masks: UInt8[np.ndarray, "o r r"]
    """Its exclusion zone: the paddle, m pixels wider all around."""
    units: Float64[np.ndarray, "o 2"]
    back_units: Float64[np.ndarray, "o 2"]
    """(sin, cos) of the orientation and of its opposite."""
    turns: Float64[np.ndarray, "o j"]
    """max(cos δ, 0)² of the turn δ from orientation o to candidate j."""
    offsets: Int64[np.ndarray, "j 2"]
    """From the pivot to the head of candidate j."""
    kernels: Int64[np.ndarray, "360 k 2"]
    kernel_sizes: Int64[np.ndarray, " 360"]
    """Offsets that have to be free where a first paddle starts; size -1 where none can."""
    compass: Float64[np.ndarray, "360 2"]
    """(sin, cos) of 0..359 degrees."""
    disk: Int64[np.ndarray, "d 2"]
    """Offsets within m pixels."""
    markers: UInt8[np.ndarray, "c c w w"]
    """By position along y and x: index reach + min(y, reach) - min(side - 1 - y, reach)."""
    levels: Float64[np.ndarray, " 256"]
    target_values: Float64[np.ndarray, " 256"]
    distractor_values: Float64[np.ndarray, " 256"]
    """Of an 8-bit pixel: plain, in a target contour, and in a distractor; rounded to float32."""
    frame: int
    seed_distance: int
    paddle_length: int
    pivot_distance: int
    """From a paddle's head back to its pivot, L + m; the next pivot is L + 2m further."""
    margin: int


def build_tables(resolution: int, margin: int) -> Tables:
    """Draw what the algorithm stamps; it takes less than a second."""
    p = PARAMETERS[resolution]
    pivot_distance = p.paddle_length + margin
    half_width = pivot_distance + math.ceil(p.paddle_thickness)
    offsets = candidate_offsets(pivot_distance)
    first = (np.arange(NUM_FIRST) - 180) * math.pi / 180
    following = [math.atan2(y, x) for y, x in offsets.tolist()]
    angles = [*first.tolist(), *following]
    drawn = [*first.tolist(), *map(flip, following)]
    canvases = np.stack([line_canvas(a, half_width, p) for a in drawn])
    masks = halve(widen(canvases, disk(margin * _ANTIALIASING)))
    kernels, kernel_sizes = start_kernels(masks[:NUM_FIRST], pivot_distance)
    return Tables(
        lines=halve(canvases),
        masks=masks,
        units=unit_steps(angles),
        back_units=unit_steps(map(flip, angles)),
        turns=turn_weights(np.array(angles), np.array(following), p.continuity),
        offsets=offsets,
        kernels=kernels,
        kernel_sizes=kernel_sizes,
        compass=unit_steps(degree * math.pi / 180 for degree in range(360)),
        disk=disk(margin),
        markers=draw_markers(p.marker_radius),
        levels=pixel_values(1.0),
        target_values=pixel_values(p.target_contrast),
        distractor_values=pixel_values(p.distractor_contrast),
        frame=p.frame,
        seed_distance=p.seed_distance,
        paddle_length=p.paddle_length,
        pivot_distance=pivot_distance,
        margin=margin,
    )


def flip(angle: float) -> float:
    """The opposite orientation."""
    return angle + math.pi if angle < 0 else angle - math.pi


def unit_steps(angles: Iterable[float]) -> Float64[np.ndarray, "n 2"]:
    """(sin θ, cos θ) of each angle."""
    return np.array([(math.sin(angle), math.cos(angle)) for angle in angles])


def disk(radius: int) -> Int64[np.ndarray, "d 2"]:
    """All offsets (dy, dx) with dy² + dx² <= radius²."""
    dy, dx = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    within = dy**2 + dx**2 <= radius**2
    return np.stack([dy[within], dx[within]], axis=1)


def candidate_offsets(pivot_distance: int) -> Int64[np.ndarray, "j 2"]:
    """Where the head of a paddle can be, seen from its pivot: the pixels of a circle, sorted."""
    spacing = 360 / (2 * math.pi * pivot_distance)
    count = math.ceil(360 / spacing)
    steps = unit_steps(math.radians(i * spacing) for i in range(count))
    return np.unique(np.floor(pivot_distance * steps).astype(np.int64), axis=0)


def turn_weights(
    angles: Float64[np.ndarray, " o"], following: Float64[np.ndarray, " j"], continuity: float
) -> Float64[np.ndarray, "o j"]:
    """Preference for small turns: max(cos min(c |turn|, π/2), 0)²."""
    turn = np.abs(following - angles[:, None])
    turn = np.minimum(turn, 2 * math.pi - turn)
    return np.maximum(np.cos(np.minimum(continuity * turn, math.pi / 2)), 0) ** 2


def line_canvas(angle: float, half_width: int, parameters: Parameters) -> UInt8[np.ndarray, "s s"]:
    """A paddle from the center of a canvas of twice the resolution."""
    center = _ANTIALIASING * half_width
    length = _ANTIALIASING * parameters.paddle_length
    end_y = math.ceil(center + length * math.sin(angle))
    end_x = math.ceil(center + length * math.cos(angle))
    canvas = Image.new("L", (2 * center + 1, 2 * center + 1))
    thickness = int(_ANTIALIASING * parameters.paddle_thickness)
    ImageDraw.Draw(canvas).line((center, center, end_x, end_y), fill=255, width=thickness)
    return np.asarray(canvas)


def widen(
    canvases: UInt8[np.ndarray, "n s s"], offsets: Int64[np.ndarray, "d 2"]
) -> UInt8[np.ndarray, "n s s"]:
    """Maximum over a neighborhood; outside counts as 0."""
    side, reach = canvases.shape[1], int(offsets.max())
    padded = np.pad(canvases, ((0, 0), (reach, reach), (reach, reach)))
    widened = np.zeros_like(canvases)
    for dy, dx in (offsets + reach).tolist():
        np.maximum(widened, padded[:, dy : dy + side, dx : dx + side], out=widened)
    return widened


def halve(canvases: UInt8[np.ndarray, "n s s"]) -> UInt8[np.ndarray, "n r r"]:
    """Resize from side 4R + 1 to 2R + 1."""
    side = canvases.shape[1] // 2 + 1
    return np.stack([resize(canvas, side, side) for canvas in canvases])


def resize(canvas: UInt8[np.ndarray, "s t"], height: int, width: int) -> UInt8[np.ndarray, "h w"]:
    """Pillow's Lanczos filter."""
    image = Image.fromarray(canvas).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image)


def start_kernels(
    masks: UInt8[np.ndarray, "360 r r"], reach: int
) -> tuple[Int64[np.ndarray, "360 k 2"], Int64[np.ndarray, " 360"]]:
    """Offsets that must be free for a paddle to start, and their number; -1 where it never can.

    They are the exclusion zone at full strength, one pixel off center, as in the original. There
    a pixel whose kernel lies outside the image altogether is a minimum that leaves no pixel free;
    some corner is such a pixel unless each closed quadrant holds an offset.
    """
    center = masks.shape[1] // 2
    found = [np.argwhere(mask == 255) - center + 1 for mask in masks]
    found = [offsets[(np.abs(offsets) <= reach).all(axis=1)] for offsets in found]
    kernels = np.zeros((NUM_FIRST, max(map(len, found)), 2), dtype=np.int64)
    sizes = np.full(NUM_FIRST, _DEAD)
    for degree, offsets in enumerate(found):
        signs = ((-1, -1), (-1, 1), (1, -1), (1, 1))
        if all((offsets * sign >= 0).all(axis=1).any() for sign in signs):
            sizes[degree] = len(offsets)
            kernels[degree, : len(offsets)] = offsets
    return kernels, sizes


def draw_markers(radius: float) -> UInt8[np.ndarray, "c c w w"]:
    """Disks for every position relative to the frame; farther than the reach, it has no effect."""
    reach = marker_reach(radius)
    classes = range(2 * reach + 1)
    width = 2 * reach + 1
    markers = np.zeros((width, width, width, width), dtype=np.uint8)
    for i in classes:
        for j in classes:
            above, left = min(i, reach), min(j, reach)
            height, breadth = width - abs(i - reach), width - abs(j - reach)
            dy, dx = np.ogrid[: 2 * height, : 2 * breadth]
            within = (dy - 2 * above) ** 2 + (dx - 2 * left) ** 2 <= (2 * radius) ** 2
            canvas = np.where(within, 255, 0).astype(np.uint8)
            y, x = reach - above, reach - left
            markers[i, j, y : y + height, x : x + breadth] = resize(canvas, height, breadth)
    return markers


def marker_reach(radius: float) -> int:
    """Half-width in pixels of all that a marker's disk and the filter can touch."""
    return math.ceil(radius) + 7


def pixel_values(contrast: float) -> Float64[np.ndarray, " 256"]:
    """k / 255 · contrast for k = 0..255, rounded to float32."""
    return (np.arange(256) / 255 * contrast).astype(np.float32).astype(np.float64)
