"""The rows and columns of the paper's tables: their order and their labels.

Chen et al., NAACL 2022, Table 1.
"""

TASKS = {
    "text": "Text",
    "listops": "ListOps",
    "retrieval": "Retrieval",
    "pathfinder": "Pathfinder",
    "image": "Image",
}
"""Configuration and heading, in the paper's order; its average is over these five."""

ROWS = {
    "softmax": "Standard",
    "softmax_no_dropout": "· w/o dropout",
    "v_mean": "V-Mean",
    "bigbird": "BigBird",
    "performer": "Performer",
    "nystromformer": "Nyströmformer",
    "reformer": "Reformer",
    "linformer": "Linformer",
    "linformer_jlt": "· w/ unreduced JLT",
    "informer": "Informer",
    "informer_masked": "· w/ padding mask",
    "skeinformer": "Skeinformer",
    "skeinformer_uniform": "· w/o column sampling",
    "skeinformer_no_norm": "· w/o row normalization",
    "skeinformer_simple_norm": "· w/ simple row normalization",
    "skeinformer_no_reuse": "· w/o pilot sampling reutilization",
}
"""Configuration and label, in the paper's order; a label with · is an ablation of the row above."""

RELEASED = ("skeinformer_uniform", "skeinformer_no_norm", "skeinformer_simple_norm")
"""Ablations which the released code combines with the loss of pilot reutilization."""

EXTRAS = {
    "softmax_fused": "Standard, fused, w/o dropout",
    "nystromformer_conv": "Nyströmformer w/ convolution",
    "linformer_frozen": "Linformer, frozen projection",
}
"""Rows of ours that the paper lacks."""


def paper_rows(protocol: str) -> dict[str, str]:
    """The sixteen rows under a protocol: `paper` takes the ablations as they were released."""
    if protocol != "paper":
        return dict(ROWS)
    return {f"{k}_released" if k in RELEASED else k: label for k, label in ROWS.items()}


def row_label(attention: str, protocol: str) -> str:
    """The paper's or our label of a variant; the user's own keep their name."""
    return (paper_rows(protocol) | EXTRAS).get(attention, attention)


def order_of_rows(attentions: set[str], protocol: str) -> list[str]:
    """The paper's rows, all of them, then the extras and the user's own variants that were run."""
    rows = list(paper_rows(protocol))
    extras = [name for name in EXTRAS if name in attentions]
    return [*rows, *extras, *sorted(attentions - {*rows, *extras})]
