"""What the rows of a study show, in words; every number is computed from them."""

from collections.abc import Iterator, Sequence

import numpy as np

from lra.approximation.published import published_errors
from lra.approximation.summary import Estimate, Row, settings

EXACT = 1e-10
"""Relative error below which a variant in float64 is called exact."""
SIGNIFICANT = 3.0
"""Standard errors."""
NEAR = 0.05
"""Relative distance from a closed form that holds in a limit only."""


def findings(rows: Sequence[Row]) -> list[str]:
    """Sentences: setting by setting, then across settings."""
    sentences = []
    for setting in settings(rows):
        group = [row for row in rows if row.setting == setting]
        name = f"{group[0].source}, n = {group[0].num_tokens}, scores × {group[0].temperature:g}"
        sentences += [f"{name}: {sentence}" for sentence in of_setting(group)]
    sentences += [*about_importance(rows), *about_training(rows), *about_initial_weights(rows)]
    return [f"- {sentence}" for sentence in sentences]


def of_setting(group: Sequence[Row]) -> Iterator[str]:
    """What one setting shows."""
    share = group[0].v_mean_spectral.mean / group[0].exact_spectral.mean
    yield (f"the mean of the values alone is off by {share:.1%} of ‖BV‖₂; {best_and_worst(group)}.")
    exact = {row.attention for row in group if row.relative.mean < EXACT}
    if exact:
        yield f"exact to {EXACT:g}: {', '.join(sorted(exact))}."
    yield from beside_the_paper(group)
    yield from closed_forms(group)
    yield from linformer_noise(group)


def beside_the_paper(group: Sequence[Row]) -> Iterator[str]:
    """Ratios to V-Mean of the methods that preserve the mean, measured and published."""
    v_mean = published_errors(group[0], "v_mean")
    for name in ("skeinformer", "informer"):
        published = published_errors(group[0], name)
        pairs = [
            (row.ratio_to_v_mean.mean, published[row.num_features] / v_mean[row.num_features])
            for row in group
            if row.attention == name and row.num_features in published
        ]
        if pairs:
            ours, theirs = (" ".join(f"{pair[i]:.3f}" for pair in pairs) for i in (0, 1))
            furthest = max(abs(a - b) for a, b in pairs)
            yield f"{name} to V-Mean {ours}, published {theirs}, at most {furthest:.3f} apart."


def best_and_worst(group: Sequence[Row]) -> str:
    """The variants of lowest and highest error, and how many are no better than V-Mean."""
    ordered = sorted(group, key=lambda row: row.spectral.mean)
    best, worst = ordered[0], ordered[-1]
    worse = {r.attention for r in group if is_above_one(r.ratio_to_v_mean)}
    ending = f"; worse than V-Mean at some d: {', '.join(sorted(worse))}" if worse else ""
    if len(group) == 1:
        return f"the error of {of_v_mean(best)}{ending}"
    return f"lowest error {of_v_mean(best)}, highest {of_v_mean(worst)}{ending}"


def of_v_mean(row: Row) -> str:
    """A variant and its error as a multiple of V-Mean's."""
    d = "" if row.num_features is None else f" at d = {row.num_features}"
    return f"{row.attention}{d}, {row.ratio_to_v_mean.mean:.3g} of V-Mean's"


def is_above_one(ratio: Estimate) -> bool:
    """Whether a ratio is above 1 by more than chance."""
    return ratio.mean - 1 > SIGNIFICANT * ratio.standard_error and ratio.mean > 1 + 1e-6


def about_importance(rows: Sequence[Row]) -> Iterator[str]:
    """Skeinformer against its ablation without column sampling, over temperature."""
    uniform = {
        (*row.setting, row.num_features): row.spectral.mean
        for row in rows
        if row.attention == "skeinformer_uniform"
    }
    shares: dict[str, list[str]] = {}
    for row in rows:
        other = uniform.get((*row.setting, row.num_features))
        if row.attention == "skeinformer" and other:
            name = f"{row.source}, n = {row.num_tokens}, d = {row.num_features}"
            share = f"{row.spectral.mean / other:.3f} at scores × {row.temperature:g}"
            shares.setdefault(name, []).append(share)
    for name, listed in shares.items():
        yield (
            f"{name}: with importance sampling the error is this share of that with uniform "
            f"sampling: {', '.join(listed)}."
        )


def about_training(rows: Sequence[Row]) -> Iterator[str]:
    """How the error of each variant at its largest d moves over the steps of a run."""
    curves: dict[tuple[str, int, float, str], list[Row]] = {}
    for row in rows:
        if row.step is not None:
            key = (row.model_family, row.num_tokens, row.temperature, row.attention)
            curves.setdefault(key, []).append(row)
    for (name, n, temperature, attention), curve in curves.items():
        largest = max(row.num_features or 0 for row in curve)
        steps = sorted(
            (row for row in curve if (row.num_features or 0) == largest),
            key=lambda row: row.step or 0,
        )
        if len(steps) > 1:
            top = max(steps, key=lambda row: row.relative.mean)
            yield (
                f"{name}, n = {n}, scores × {temperature:g}: the relative error of {attention}"
                f"{f', d = {largest},' if largest else ''} goes from "
                f"{steps[0].relative.mean:.3f} at step {steps[0].step} to "
                f"{steps[-1].relative.mean:.3f} at step {steps[-1].step}; it is highest, "
                f"{top.relative.mean:.3f}, at step {top.step}."
            )


def closed_forms(group: Sequence[Row]) -> Iterator[str]:
    """The unbiased estimators against theory; the worst case decides."""
    tested = [
        row for row in group if row.closed_form_z is not None and row.attention != "linformer"
    ]
    if tested:
        worst = max(tested, key=lambda row: abs(row.closed_form_z or 0.0))
        distance = abs(worst.closed_form_z or 0.0)
        verdict = "agree with" if distance < SIGNIFICANT else "depart from"
        names = ", ".join(sorted({row.attention for row in tested}))
        yield (
            f"squared errors of {names} {verdict} the closed form, at most {distance:.1f} "
            f"standard errors away ({worst.attention}, d = {worst.num_features})."
        )


def linformer_noise(group: Sequence[Row]) -> Iterator[str]:
    """A line through Linformer's mean squared error over 1/d, beside its closed form."""
    rows = [row for row in group if row.attention == "linformer" and row.mean_square]
    if len(rows) < 3:
        return
    inverse = np.array([1 / (row.num_features or 1) for row in rows])
    measured = np.array([row.mean_square for row in rows], dtype=np.float64)
    theory = np.array([row.predicted_mean_square for row in rows], dtype=np.float64)
    slope, level = np.polyfit(inverse, measured, 1)
    slope_theory, level_theory = np.polyfit(inverse, theory, 1)
    level_share, slope_share = level / level_theory, slope / slope_theory
    holds = max(abs(level_share - 1), abs(slope_share - 1)) < NEAR
    yield (
        "linformer as initialized "
        + ("is" if holds else "is not explained as")
        + f" BV plus noise of mean zero: its mean squared error is {level:.4g} + {slope:.4g} / d, "
        f"for near-uniform attention in theory {level_theory:.4g} + {slope_theory:.4g} / d "
        f"(level × {level_share:.3f}, slope × {slope_share:.3f})."
    )


def about_initial_weights(rows: Sequence[Row]) -> Iterator[str]:
    """Which variants have weights that training would change."""
    untrained = {row.attention for row in rows if row.untrained_parameters}
    if untrained:
        yield f"with weights of its own as initialized, untrained: {', '.join(sorted(untrained))}."
