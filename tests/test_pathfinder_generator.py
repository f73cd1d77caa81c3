"""Regenerated Pathfinder: the original's pixels on its uniforms, its statistics without them."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy.stats import binomtest, mannwhitneyu, ttest_ind

from lra.tasks.pathfinder_contour import Stream
from lra.tasks.pathfinder_generator import PathfinderGenerator, generate, replay
from lra.tasks.pathfinder_kernel import draw_image
from lra.tasks.pathfinder_raster import PIVOT_X, PIVOT_Y, X, Y
from lra.tasks.pathfinder_tables import PARAMETERS, build_tables

GOLDEN = Path(__file__).parent / "golden"
UNIFORMS = np.random.RandomState(7).random_sample(60_000)


@pytest.mark.parametrize(
    ("resolution", "contour_length"),
    [(32, 14), (32, 9), (32, 6), (64, 14), (128, 14), (256, 14)],
)
def test_replays_the_originals_pixels_and_draws(resolution, contour_length):
    golden = np.load(GOLDEN / f"pathfinder{resolution}_contour{contour_length}_seed7.npz")
    count = len(golden["images"])
    images, labels, draws = replay(resolution, contour_length, count, UNIFORMS)
    assert_array_equal(draws, golden["draws"])
    assert_array_equal(labels, golden["labels"])
    assert_array_equal(images, golden["images"])


def test_a_replay_does_not_go_on_where_its_uniforms_end():
    with pytest.raises(ValueError, match=r"2000 uniforms end within image 1 of 24"):
        replay(32, 14, 24, UNIFORMS[:2000])


def test_few_orientations_start_a_contour():
    alive = [
        int((build_tables(resolution, margin).kernel_sizes >= 0).sum())
        for resolution, parameters in PARAMETERS.items()
        for margin in parameters.margins
    ]
    assert alive == [30, 95, 354, 360, 360]


def find_markers(image):
    """The pixels that end a bright square of 2 x 2; paddles are but one pixel wide."""
    bright = image >= 185
    return np.argwhere(bright[1:, 1:] & bright[:-1, 1:] & bright[1:, :-1] & bright[:-1, :-1]) + 1


def test_the_label_says_whether_one_contour_holds_both_markers():
    generator = PathfinderGenerator(32, 14)
    tables, seeds = generator.tables[0], generator.seeds[0]
    rng = np.random.default_rng(5)
    stream = Stream(np.empty(0), np.zeros(1, np.int64), rng)
    image, contours = np.empty((32, 32), np.uint8), np.empty((2, 14, 5), np.int64)
    for i in range(300):
        draw_image(stream, tables, seeds, i % 2, generator.distractor_shape, contours, image)
        heads, pivots = contours[:, 1:, [Y, X]], contours[:, 1:, [PIVOT_Y, PIVOT_X]]
        assert np.abs(heads - pivots).max() <= 3  # paddles hang together
        assert np.abs(np.diff(pivots, axis=1)).max() <= 2 * 3 + 2
        ends = contours[:, [0, -1]][..., [Y, X]]
        is_marked = (find_markers(image)[:, None, None] == ends).all(-1).any(0)  # contour, end
        assert is_marked.sum(axis=0).tolist() == [1, 1]
        assert is_marked.any(axis=1).sum() == 2 - i % 2


def test_an_image_depends_on_nothing_but_its_seed_and_number():
    gains = []
    images, labels = generate(32, 14, seed=3, first=0, num_images=150, num_workers=1)
    again, same = generate(
        32, 14, seed=3, first=0, num_images=150, num_workers=3, progress=gains.append
    )
    assert_array_equal(again, images)
    assert_array_equal(same, labels)
    assert sum(gains) == 150
    alone, label = generate(32, 14, seed=3, first=137, num_images=1, num_workers=1)
    assert_array_equal(alone[0], images[137])
    assert label[0] == labels[137]
    others = [
        generate(32, length, seed=seed, first=0, num_images=150, num_workers=1)[0]
        for seed, length in ((4, 14), (3, 9))
    ]
    assert len({image.tobytes() for image in [*images, *others[0], *others[1]]}) == 450


def assert_close_to(values, expected, rounding):
    """Within four standard errors and the rounding of what is expected."""
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - expected) < 4 * error + rounding


@pytest.fixture(scope="module")
def hard():
    return generate(32, 14, seed=11, first=0, num_images=4000, num_workers=1)


@pytest.mark.parametrize(
    ("resolution", "contour_length", "count", "mean", "zero_percent", "rounding"),
    [
        (32, 14, 4000, 20.16, 65.9, 0.1),
        (32, 9, 2000, 15.5, 73.3, 0.1),
        (32, 6, 2000, 13.1, 77.1, 0.1),
        (64, 14, 40, 13.3, 74.1, 0.3),  # expected from no more than 300 images
    ],
)
def test_brightness_is_the_originals(
    hard, resolution, contour_length, count, mean, zero_percent, rounding
):
    images, labels = hard
    if (resolution, contour_length) != (32, 14):
        images, labels = generate(
            resolution, contour_length, seed=11, first=0, num_images=count, num_workers=1
        )
    for values, expected in (
        (images.mean(axis=(1, 2)), mean),
        ((images == 0).mean(axis=(1, 2)) * 100, zero_percent),
    ):
        error = values.std() / len(values) ** 0.5
        assert abs(values.mean() - expected) < 4 * error + rounding
        assert ttest_ind(values[labels == 0], values[labels == 1]).pvalue > 0.001
    assert (images.max(axis=(1, 2)) == 255).all()
    assert binomtest(int(labels.sum()), count).pvalue > 0.001
    assert len({image.tobytes() for image in images}) == count


def test_the_distance_of_markers_tells_as_little_as_in_the_original(hard):
    images, labels = hard
    spans = np.array([np.ptp(find_markers(image), axis=0) for image in images])
    distances = np.hypot(*spans.T)
    statistic = mannwhitneyu(distances[labels == 1], distances[labels == 0]).statistic
    area = statistic / (labels == 0).sum() / (labels == 1).sum()
    assert abs(area - 0.537) < 0.04  # four standard errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": 48}, r"resolution=48 is not one of \[32, 64, 128, 256\]"),
        ({"contour_length": 7}, r"contour_length=7 is not one of \(6, 9, 14\)"),
        ({"num_images": 0}, "num_images=0 .* below 1"),
        ({"first": -1}, "first=-1 below 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(settings, message):
    valid = {"resolution": 32, "contour_length": 14, "first": 0, "num_images": 1}
    with pytest.raises(ValueError, match=message):
        generate(**{**valid, **settings}, seed=0, num_workers=1)
