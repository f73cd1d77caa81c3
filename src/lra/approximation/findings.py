"""What the rows of a study show, in words; every number is computed from them."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lra.approximation.summary import Estimate, Row, settings

EXACT = 1e-10
"""Relative error below which a variant in float64 is called exact."""
SIGNIFICANT = 3.0
"""Standard errors."""


def findings(rows: Sequence[Row]) -> list[str]:
    """Sentences, in the order of the settings."""
    sentences = []
    for setting in settings(rows):
        group = [row for row in rows if row.setting == setting]
        name = f"{group[0].source}, n = {group[0].num_tokens}, scores × {group[0].temperature:g}"
        sentences += [f"- {name}: {sentence}" for sentence in of_setting(group)]
    return [*sentences, *(f"- {sentence}" for sentence in about_initial_weights(rows))]


def of_setting(group: Sequence[Row]) -> Iterator[str]:
    """What one setting shows."""
    share = group[0].v_mean_spectral.mean / group[0].exact_spectral.mean
    yield (
        f"the mean of the values alone is off by {share:.1%} of ||BV||₂: "
        + ("attention is nearly uniform" if share < 0.2 else "attention is far from uniform")
        + f"; {best_and_worst(group)}."
    )
    by_name = {(row.attention, row.num_features): row for row in group}
    yield from importance_against_uniform(by_name)
    exact = {row.attention for row in group if row.relative.mean < EXACT}
    if exact:
        yield f"exact to {EXACT:g}: {', '.join(sorted(exact))}."
    yield from closed_forms(group)
    yield from linformer_noise(group)


def best_and_worst(group: Sequence[Row]) -> str:
    """The variants of lowest and highest error, and how many are no better than V-Mean."""
    ordered = sorted(group, key=lambda row: row.spectral.mean)
    best, worst = ordered[0], ordered[-1]
    worse = {r.attention for r in group if is_above_one(r.ratio_to_v_mean)}
    ending = f"; worse than V-Mean at some d: {', '.join(sorted(worse))}" if worse else ""
    return f"lowest error {of_v_mean(best)}, highest {of_v_mean(worst)}{ending}"


def of_v_mean(row: Row) -> str:
    """A variant and its error as a multiple of V-Mean's."""
    d = "" if row.num_features is None else f" at d = {row.num_features}"
    return f"{row.attention}{d}, {row.ratio_to_v_mean.mean:.3g} of V-Mean's"


def is_above_one(ratio: Estimate) -> bool:
    """Whether a ratio is above 1 by more than chance."""
    return ratio.mean - 1 > SIGNIFICANT * ratio.standard_error and ratio.mean > 1 + 1e-6


def importance_against_uniform(by_name: Mapping[tuple[str, int | None], Row]) -> Iterator[str]:
    """Skeinformer against its ablation without column sampling."""
    pairs = [
        (d, by_name[name, d].spectral.mean / by_name["skeinformer_uniform", d].spectral.mean)
        for name, d in by_name
        if name == "skeinformer" and ("skeinformer_uniform", d) in by_name
    ]
    if pairs:
        listed = ", ".join(f"{ratio:.3f} at d = {d}" for d, ratio in pairs)
        yield f"importance sampling has this share of the error of uniform sampling: {listed}."


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
    yield (
        f"linformer as initialized is BV plus noise of mean zero: its squared error is "
        f"{level:.4g} + {slope:.4g} / d, in theory {level_theory:.4g} + {slope_theory:.4g} / d "
        f"(level × {level / level_theory:.3f}, slope × {slope / slope_theory:.3f})."
    )


def about_initial_weights(rows: Sequence[Row]) -> Iterator[str]:
    """Which variants have weights that training would change."""
    untrained = {row.attention for row in rows if row.untrained_parameters}
    if untrained:
        yield f"with weights of its own as initialized, untrained: {', '.join(sorted(untrained))}."
