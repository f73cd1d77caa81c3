"""The paper's Figure 1, digitized, to stand beside what is measured."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from lra.approximation.summary import Row

PUBLISHED_WEIGHTS = {
    "initialized": "initialized",
    "pretrained": "pretrained",
    "minilm": "pretrained",
}
"""Which panels of the paper's figure stand beside a source."""


@cache
def published_figure() -> Any:
    """The digitized figure with its source and precision."""
    return json.loads(files("lra.approximation").joinpath("published_figure1.json").read_text())


def published_errors(row: Row, attention: str) -> dict[int, float]:
    """By number of features, the paper's mean spectral errors for the setting of a row.

    Empty where the paper has none.
    """
    figure = published_figure()
    wanted = (PUBLISHED_WEIGHTS.get(row.source), row.num_tokens, 1)
    for panel in figure["panels"]:
        if (panel["weights"], panel["num_tokens"], row.temperature) == wanted:
            errors = panel["spectral"].get(attention, [])
            return dict(zip(figure["num_features"], errors, strict=False))
    return {}
