"""Check attention variants against the contract, and measure what they cost.

    python scripts/check_attention.py attention=mine
    python scripts/check_attention.py attention=mine,softmax
    python scripts/check_attention.py 'attention=glob(skein*)'
    python scripts/check_attention.py attention=mine attention.window_size=4

The properties are checked on a miniature: few features, blocks of few tokens, short sequences.
A size that the miniature does not know (it knows num_features, block_size and chunk_size) is
overridden as in the last line. Costs are measured with 256 features. Exits with 1 if a promise is
broken, or if what a variant declares as not promised holds after all.
"""

import sys

import torch

from attention.conformance.cost import costs
from attention.conformance.subject import BLOCK_SIZE, DIMS, NUM_FEATURES, Subject
from attention.conformance.suite import PROPERTIES, examine
from lra.command_line import parse_overrides
from lra.conformance_report import cost_table, verdict_table
from lra.variants import load_attention, load_miniature, selected_variants

COST_FEATURES = 256


def main(arguments: list[str]) -> int:
    """Print a table of properties and one of costs for each variant; return the exit code."""
    selections = [a.removeprefix("attention=") for a in arguments if a.startswith("attention=")]
    if not selections:
        raise SystemExit(f"name a variant:\n{__doc__}")
    overrides = [a for a in arguments if not a.startswith("attention=")]
    torch.set_num_threads(1)
    has_error = False
    for name in selected_variants(",".join(selections)):
        subject = Subject(name, load_miniature(name, NUM_FEATURES, BLOCK_SIZE, overrides))
        verdicts = [examine(subject, checked) for checked in PROPERTIES]
        has_error |= any(verdict.is_error for verdict in verdicts)
        print(f"\nattention={name}: {NUM_FEATURES} features, up to {DIMS.max_seq_len} tokens")
        print(verdict_table(verdicts))
        print(f"\ncost of a training step: b=1, h=2, p=32, {COST_FEATURES} features, one thread")
        print(cost_table(costs(load_attention(name, COST_FEATURES))), flush=True)
    return int(has_error)


if __name__ == "__main__":
    try:
        sys.exit(main(parse_overrides(sys.argv[1:], __doc__)))
    except ValueError as error:
        sys.exit(str(error))
