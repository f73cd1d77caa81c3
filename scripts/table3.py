"""Table 3: multiply-adds by counting, beside the paper's formulas and the corrected ones.

    python scripts/table3.py
    python scripts/table3.py attention=mine,skeinformer

Counted on one sequence of 2,048 and of 4,096 tokens, two heads, p = 32, float32, with what autograd
keeps for the backward pass. Options: attention=all, num_features=256, out=outputs/table3. Writes a
JSON file a count, and the table as CSV, Markdown and LaTeX. Takes a minute on two cores.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from attention.base import AttentionDims
from attention.conformance.cost import cost
from lra.benchmark.cells import CellStore, new_session, read_cells
from lra.command_line import parse_overrides, read_options
from lra.files import write_text
from lra.report.table3 import HEAD_DIM, LENGTHS, NUM_HEADS, table, write_csv
from lra.variants import load_attention, selected_variants


@dataclass
class Options:
    """What the command line may set."""

    attention: str = "all"
    num_features: int = 256
    out: str = "outputs/table3"


def main(overrides: list[str]) -> int:
    """Count, print and write the table, and return the exit status."""
    try:
        options, unknown = read_options(Options, overrides)
        if unknown:
            raise ValueError(f"no option {unknown[0]}; --help lists them")
        out = Path(options.out)
        config = {"num_features": options.num_features}
        store = CellStore(out / "counts", config, torch.device("cpu"))
        for name in tqdm(selected_variants(options.attention), disable=None, leave=False):
            count(name, options.num_features, store)
        cells = read_cells(out / "counts")
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    shown = table(cells)
    write_text(out / "table3.md", shown.markdown())
    write_text(out / "table3.tex", shown.latex())
    write_csv(out / "table3.csv", cells)
    print(shown.markdown())
    return 0


def count(name: str, num_features: int, store: CellStore) -> None:
    """Count one variant anew: a count belongs to the code as it is."""
    build = load_attention(name, num_features)
    core = build(AttentionDims(NUM_HEADS, HEAD_DIM, max(LENGTHS)))
    for num_tokens in LENGTHS:
        counted = cost(core, num_tokens)
        cell = {
            "label": name,
            "num_tokens": num_tokens,
            "session": new_session(),
            "status": "measured",
            "reason": None,
            "measures": {
                "multiply_adds": counted.multiply_adds,
                "saved_bytes": counted.saved_bytes,
            },
        }
        store.write(cell, f"n_{num_tokens}", name)


if __name__ == "__main__":
    sys.exit(main(parse_overrides(sys.argv[1:], __doc__)))
