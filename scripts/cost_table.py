"""Memory kept for backward and multiply-adds of every core, beside the published figures.

    python scripts/cost_table.py
    python scripts/cost_table.py attention=mine,skeinformer

One sequence, two heads, p = 32, 256 features, float32, training mode. `ndp` is one product of an
n x p with a p x d matrix, d = 256: 2n²p is 16 ndp at n = 2048 and 32 at 4096.
"""

import sys

import torch
from tqdm import tqdm

from lra.command_line import parse_overrides
from lra.report.cost import NUM_FEATURES, cost_row, cost_table
from lra.variants import load_attention, selected_variants


def main(arguments: list[str]) -> int:
    """Print the table; return the exit status."""
    selection = arguments[0].removeprefix("attention=") if arguments else "all"
    torch.set_num_threads(1)
    try:
        names = selected_variants(selection)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    bar = tqdm(names, disable=None, leave=False)
    print(cost_table([cost_row(name, load_attention(name, NUM_FEATURES)) for name in bar]))
    return 0


if __name__ == "__main__":
    sys.exit(main(parse_overrides(sys.argv[1:], __doc__)))
