"""A table as Markdown and as LaTeX."""

from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate


@dataclass(frozen=True)
class Table:
    """Cells as text, with a caption that says what they are."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: tuple[int, ...] = (0,)
    """The columns that are words; the others are numbers."""

    def markdown(self) -> str:
        """The caption, and the table below it."""
        return f"**{self.caption}**\n\n{self._render('github')}\n"

    def latex(self) -> str:
        """A `tabular` with the rules of booktabs, below the caption as a comment."""
        return f"% {self.caption}\n{self._render('latex_booktabs')}\n"

    def _render(self, style: str) -> str:
        columns = range(len(self.headings))
        alignment = ["left" if column in self.words else "right" for column in columns]
        return tabulate(self.rows, self.headings, style, disable_numparse=True, colalign=alignment)


def significant(value: float) -> str:
    """Three significant digits, or the whole number where it has more."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
