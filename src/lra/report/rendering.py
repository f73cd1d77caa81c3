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
    num_text_columns: int = 1
    """The first columns, which are words; the others are numbers."""

    def markdown(self) -> str:
        """The caption, and the table below it."""
        return f"**{self.caption}**\n\n{self._render('github')}\n"

    def latex(self) -> str:
        """A `tabular` with the rules of booktabs, below the caption as a comment."""
        return f"% {self.caption}\n{self._render('latex_booktabs')}\n"

    def _render(self, style: str) -> str:
        words = min(self.num_text_columns, len(self.headings))
        alignment = [*["left"] * words, *["right"] * (len(self.headings) - words)]
        return tabulate(self.rows, self.headings, style, disable_numparse=True, colalign=alignment)
