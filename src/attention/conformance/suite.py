"""The properties, and the verdict on a variant."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from attention.conformance import invariances, numerics, padding, state
from attention.conformance.subject import Measurement, Property, Subject

PROPERTIES = (
    Property("shapes", "shape and dtype of v in four dtypes, zeros at padding", numerics.shapes),
    Property("padding_length", "more padding changes no token", padding.padding_length),
    Property("padding_content", "garbage in padding changes no token", padding.padding_content),
    Property("holes", "the same with padding before and between tokens", padding.holes),
    Property("empty_sequence", "no tokens: zeros, finite gradients", padding.empty_sequence),
    Property("short_sequences", "finite at every short length", padding.short_sequences),
    Property("batch_mates", "other sequences do not matter", invariances.batch_mates),
    Property("head_independence", "other heads do not matter", invariances.head_independence),
    Property("singletons", "one sequence, one head, one token", invariances.singletons),
    Property("permutation", "permuted tokens give permuted outputs", invariances.permutation),
    Property("constant_values", "constant values are returned", invariances.constant_values),
    Property("key_shift", "a shift of all keys changes nothing", invariances.key_shift),
    Property("large_scores", "scores of 60, 100, 1000 in low precision", numerics.large_scores),
    Property("gradcheck", "gradients against finite differences", numerics.gradcheck),
    Property("parameters", "all trained, all in the state dict", state.parameters),
    Property("determinism", "the seed decides, and content draws nothing", state.determinism),
    Property("modes", "evaluation differs in dropout alone", state.modes),
    Property("checkpointing", "recomputed gradients are the same", state.checkpointing),
)
"""What the contract promises; the names are those of `AttentionCore.not_promised`."""


@dataclass(frozen=True)
class Verdict:
    """What became of one property of one variant."""

    variant: str
    checked: Property
    worst: Measurement
    """The first figure above its limit, or the one closest to it."""
    reason: str | None
    """Why the variant does not promise the property, if it does not."""
    error: Exception | None

    @property
    def status(self) -> Literal["pass", "FAIL", "not promised", "HOLDS"]:
        """`HOLDS` is a declared exception that holds: as wrong as `FAIL`."""
        if self.reason is None or self.error is not None:
            return "pass" if self.worst.holds else "FAIL"
        return "HOLDS" if self.worst.holds else "not promised"

    @property
    def is_error(self) -> bool:
        """Whether the variant and its declaration disagree."""
        return self.status in ("FAIL", "HOLDS")

    @property
    def explanation(self) -> str:
        """What was measured, and the likely cause if that is an error."""
        if self.status == "not promised":
            return f"{self.reason}"
        figures = f"{self.worst.what}: {self.worst.figure:.2g}, limit {self.worst.limit:.2g}"
        if self.status == "HOLDS":
            return f"declared as not promised ({self.reason}), but holds; {figures}"
        return figures if self.worst.holds else f"{figures}; {self.worst.likely_cause}"


def examine(subject: Subject, checked: Property) -> Verdict:
    """Measure one property; torch's generator is left as it was.

    Raises ValueError if the variant does not promise something that is not a property.
    """
    reasons = subject.core().not_promised()
    unknown = reasons.keys() - {known.name for known in PROPERTIES}
    if unknown:
        names = ", ".join(known.name for known in PROPERTIES)
        raise ValueError(f"{subject.name}: not_promised() names {unknown}, not one of {names}")
    error: Exception | None = None
    with torch.random.fork_rng(devices=[]):
        try:
            worst = worst_measurement(checked.check(subject))
        except Exception as raised:  # whatever the variant under test may raise
            error = raised
            what = f"{type(raised).__name__}: {raised}"
            worst = Measurement(what, float("nan"), 0.0, "the variant cannot run here")
    return Verdict(subject.name, checked, worst, reasons.get(checked.name), error)


def worst_measurement(measurements: Iterator[Measurement]) -> Measurement:
    """The first that breaks its limit, or the one closest to it."""
    worst = next(measurements)
    for measurement in measurements:
        if not worst.holds:
            break
        if not measurement.holds or measurement.severity > worst.severity:
            worst = measurement
    return worst
