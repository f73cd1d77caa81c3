"""Memory and multiply-adds of every core, beside the paper's Table 3 and the released code."""

from dataclasses import dataclass

from tabulate import tabulate

from attention.base import AttentionDims
from attention.conformance.cost import cost
from lra.model import AttentionFactory
from lra.report.comparison import MISSING

NUM_FEATURES = 256
HEAD_DIM = 32


@dataclass(frozen=True)
class Published:
    """What the paper and its released code say about a row."""

    multiply_adds: str
    """Table 3, leading term."""
    saved_mib: float | None
    """Kept for the backward pass by the released code at n = 2048, measured with torch 2.13."""
    remark: str = ""


PUBLISHED = {
    "softmax": Published("2n²p", 97.5, "the release with dropout 0.1"),
    "softmax_no_dropout": Published("2n²p", None),
    "softmax_fused": Published("2n²p", None),
    "v_mean": Published(MISSING, 0.0, "a mean: no matrix product"),
    "bigbird": Published("5ndp", 17.5, "the two global rows have no part in the middle"),
    "performer": Published("3ndp", 22.2, "φ(Q), φ(K), φ(K)'V and φ(Q)(φ(K)'V): four, not three"),
    "nystromformer": Published("4ndp", 32.7, "and 24d³ for the pseudo-inverse, d²p per product"),
    "reformer": Published(MISSING, None, "left out there; 2 hashes, chunks of 64 see 128 keys"),
    "linformer": Published("4ndp", 9.6),
    "linformer_jlt": Published(MISSING, None, "attention stays exact: 2n²p and 2ndp"),
    "informer": Published("3ndp", 141.9, "u = 256 / ln n rounded up twice, up to 9 % over d"),
    "informer_masked": Published("3ndp", 137.6, "as informer"),
    "skeinformer": Published("4ndp", 18.3, "on a GPU ndp more: pilot scores computed twice"),
    "skeinformer_uniform": Published("4ndp", 5.2, "the release without pilot reuse"),
    "skeinformer_no_norm": Published("4ndp", 57.8, "the exact denominator costs n²p more"),
    "skeinformer_simple_norm": Published("4ndp", 17.8, "the release without pilot reuse"),
    "skeinformer_no_reuse": Published("4ndp", 18.3, "no exact pilot rows: ndp less"),
}


def cost_row(name: str, build: AttentionFactory) -> list[str]:
    """Saved MiB at n = 2048, and multiply-adds a head in units of n d p at n = 2048 and 4096."""
    core = build(AttentionDims(num_heads=2, head_dim=HEAD_DIM, max_seq_len=4096))
    measured = [cost(core, num_tokens) for num_tokens in (2048, 4096)]
    units = [m.multiply_adds / (m.num_tokens * NUM_FEATURES * HEAD_DIM) for m in measured]
    published = PUBLISHED.get(name, Published(MISSING, None))
    release = MISSING if published.saved_mib is None else f"{published.saved_mib:.1f}"
    return [
        name,
        f"{measured[0].saved_bytes / 2**20:.2f}",
        release,
        *(f"{unit:.2f}" for unit in units),
        published.multiply_adds,
        published.remark,
    ]


def cost_table(rows: list[list[str]]) -> str:
    """The rows as Markdown."""
    headings = ["variant", "saved MiB", "release", "ndp, n = 2048", "n = 4096", "Table 3", "remark"]
    alignment = ("left", *["right"] * 5, "left")
    return tabulate(rows, headings, "github", disable_numparse=True, colalign=alignment)
