"""Time, memory and error of attention cores against the length of the sequence.

    python scripts/bench_attention.py
    python scripts/bench_attention.py attention=mine,skeinformer lengths=1024,4096
    python scripts/bench_attention.py peers=true lengths=1024,4096     # beside public packages

All cores of a length take turns in one process; every cell is compared with `softmax` (written
out), `softmax_fused` and `v_mean`, measured in the same turns. A core that would exceed a budget
at a length is not begun there, and the table says so. Options, with their defaults:

    attention=softmax,...     names, a glob, or all; the default is the paper's methods
    settings=skeinformer:num_pilots=64,skeinformer:num_pilots=64:num_samples=512
                              further rows of these variants, with some of their keys set
    lengths=256,...,65536     tokens
    num_features=256          samples, landmarks, projections
    batch_size=2 num_heads=2 head_dim=32 padding=0.1
    precision=fp32            fp32 | bf16 | fp16
    device=auto               auto | cpu | cuda
    num_threads=null          of the CPU; null: as torch chooses
    rounds=15                 turns of each core, fewer (3 at least) where time_budget_seconds ends
    time_budget_seconds=90    of a cell
    memory_budget_gib=6       of a training step
    error_limit=8192          greatest length at which errors are measured
    cuda_graph=false          time each core as a CUDA graph, without the host's part
    peers=false               also the public implementations, at 1024 and 4096, without padding
    out=outputs/bench_attention

Every cell is a JSON file below `out`; started again, the same command measures what is missing.
Beside them: tables as CSV, Markdown and LaTeX, and pictures. The defaults take about 15
minutes on two cores.
"""

import sys
from pathlib import Path

import torch

from lra.benchmark.cells import read_cells
from lra.benchmark.core_study import PEER_LENGTHS, CoreOptions, cores_of, fill, peers_of
from lra.command_line import parse_overrides, read_options
from lra.report.scaling_report import write_report


def main(overrides: list[str]) -> int:
    """Measure what is missing, write tables and pictures, and return the exit status."""
    try:
        options, unknown = read_options(CoreOptions, overrides)
        if unknown:
            raise ValueError(f"no option {unknown[0]}; --help lists them")
        if options.num_threads is not None:
            torch.set_num_threads(options.num_threads)
        fill(options, "cores", cores_of(options), options.padding, options.lengths)
        if options.peers:
            lengths = [n for n in options.lengths if n in PEER_LENGTHS]
            fill(options, "peers", peers_of(options), 0.0, lengths)
        cells = read_cells(Path(options.out, "cores"))
        peers = read_cells(Path(options.out, "peers")) if options.peers else {}
    except (ValueError, OSError, ImportError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(write_report(Path(options.out), cells, peers))
    return 0


if __name__ == "__main__":
    sys.exit(main(parse_overrides(sys.argv[1:], __doc__)))
