"""The study of cores: which rows there are, beside what, at which lengths."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import nn
from tqdm import tqdm

from attention.base import AttentionDims
from lra.benchmark.budget import Budget
from lra.benchmark.cells import CellStore
from lra.benchmark.cores import Candidate, Workload
from lra.benchmark.peers import PEERS, Peer
from lra.benchmark.scaling import Row, Scaling
from lra.run import choose_device
from lra.settings import DTYPES, Precision
from lra.variants import load_attention, selected_variants

METHODS = (
    "softmax,softmax_fused,v_mean,bigbird,performer,nystromformer,reformer,linformer,informer,"
    "skeinformer"
)
REFERENCES = ("softmax", "softmax_fused", "v_mean")
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
PEER_LENGTHS = (1024, 4096)


@dataclass
class CoreOptions:
    """What the command line may set; `scripts/bench_attention.py` explains each."""

    attention: str = METHODS
    settings: str = "skeinformer:num_pilots=64,skeinformer:num_pilots=64:num_samples=512"
    lengths: list[int] = field(default_factory=lambda: list(LENGTHS))
    num_features: int = 256
    batch_size: int = 2
    num_heads: int = 2
    head_dim: int = 32
    padding: float = 0.1
    precision: str = "fp32"
    device: str = "auto"
    num_threads: int | None = None
    rounds: int = 15
    time_budget_seconds: float = 90.0
    memory_budget_gib: float = 6.0
    error_limit: int = 8192
    cuda_graph: bool = False
    peers: bool = False
    out: str = "outputs/bench_attention"

    def __post_init__(self) -> None:
        if self.precision not in DTYPES:
            raise ValueError(f"precision={self.precision} is not one of {', '.join(DTYPES)}")
        if not 0 <= self.padding < 0.5:
            raise ValueError(f"padding={self.padding} is not in [0, 0.5)")
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"lengths={self.lengths} are not positive")
        self.lengths = sorted(set(self.lengths))


def fill(
    options: CoreOptions,
    study: str,
    rows: tuple[list[Row], list[Candidate]],
    padding: float,
    lengths: list[int],
) -> None:
    """Measure the missing cells of one study, length after length."""
    device = choose_device(options.device)
    precision: Precision = options.precision  # type: ignore[assignment]
    config = {
        key: getattr(options, key)
        for key in ("num_features", "batch_size", "num_heads", "head_dim", "precision")
    }
    config |= {"padding": padding} | ({"cuda_graph": True} if options.cuda_graph else {})
    store = CellStore(Path(options.out, study), config, device)
    scaling = Scaling(
        store,
        rows[0],
        others=rows[1],
        budget=Budget(options.time_budget_seconds, options.memory_budget_gib * 2**30),
        num_rounds=options.rounds,
        error_limit=options.error_limit,
    )
    for num_tokens in tqdm(lengths, unit="length", disable=None, leave=False):
        workload = Workload(
            batch_size=options.batch_size,
            num_heads=options.num_heads,
            head_dim=options.head_dim,
            num_tokens=num_tokens,
            padding=padding,
            precision=precision,
            device=device,
            cuda_graph=options.cuda_graph,
        )
        scaling.fill(workload)


def cores_of(options: CoreOptions) -> tuple[list[Row], list[Candidate]]:
    """Our variants, each beside the references; references that are no rows come second."""
    candidates = [candidate(name, options) for name in selected_variants(options.attention)]
    names = {c.label for c in candidates}
    for setting in filter(None, options.settings.split(",")):
        name, *pairs = setting.split(":")
        if names.issuperset(selected_variants(name)):
            overrides = [f"attention.{pair}" for pair in pairs]
            candidates.append(candidate(name, options, overrides, "_".join([name, *pairs])))
    rows = [Row(c, tuple(r for r in REFERENCES if r != c.label)) for c in candidates]
    labels = {c.label for c in candidates}
    return rows, [candidate(name, options) for name in REFERENCES if name not in labels]


def peers_of(options: CoreOptions) -> tuple[list[Row], list[Candidate]]:
    """Public implementations, each beside our variant."""
    ours = {peer.variant: candidate(peer.variant, options) for peer in PEERS}
    rows = [
        Row(
            Candidate(
                peer.label,
                partial(build_peer, peer, options.num_features),
                ours[peer.variant].shares_qk,
            ),
            (peer.variant,),
        )
        for peer in PEERS
    ]
    return rows, list(ours.values())


def build_peer(peer: Peer, num_features: int, dims: AttentionDims) -> nn.Module:
    """A public implementation with as many features as ours."""
    return peer.build(dims, num_features)


def candidate(
    name: str, options: CoreOptions, overrides: Sequence[str] = (), label: str | None = None
) -> Candidate:
    """A variant of `conf/attention`."""
    build = load_attention(name, options.num_features, overrides)
    smallest = AttentionDims(options.num_heads, options.head_dim, min(options.lengths))
    shares_qk = "qk" in build(smallest).projections
    return Candidate(label or name, build, shares_qk)
