"""Public implementations beside the variants: what is compared has to be the same function."""

import sys
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from attention.base import AttentionCore, AttentionDims
from lra.benchmark import peers
from lra.benchmark.peers import PEERS, Peer
from lra.variants import load_attention, variant_names

NUM_HEADS, HEAD_DIM, NUM_FEATURES = 2, 8, 32
by_label = pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.label)


def dims_for(peer: Peer) -> AttentionDims:
    """Heads and length at which nothing but rounding sets the peer apart from its variant."""
    num_heads = 1 if peer.package == "nystrom-attention" else NUM_HEADS  # maxima over heads
    # BigBird needs more blocks than a row has; two chunks are in reach of each other for any hash.
    lengths = {"bigbird": 14 * peers.BLOCK_SIZE, "reformer": 2 * peers.BLOCK_SIZE}
    return AttentionDims(num_heads, HEAD_DIM, lengths.get(peer.variant, 8 * NUM_FEATURES))


def draw_inputs(peer: Peer, dims: AttentionDims, num_sequences: int) -> list[Tensor]:
    """q, k, v as the backbone makes them: views of b n h p tensors."""
    shape = 3, num_sequences, dims.max_seq_len, dims.num_heads, dims.head_dim
    q, k, v = torch.randn(shape, dtype=torch.float64).transpose(2, 3)
    return [x.requires_grad_() for x in (q, q if peer.variant == "reformer" else k, v)]


def share_what_is_drawn(
    peer: Peer, ours: AttentionCore, theirs: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give the peer the variant's random blocks, features or parameters."""
    module = theirs.attention
    if peer.variant == "bigbird":
        blocks = list(ours.block_tables[-1, :, 1:-1, 5:].numpy())
        monkeypatch.setattr(module, "_bigbird_block_rand_mask_with_head", lambda **_: blocks)
    elif peer.variant == "nystromformer_conv":
        module.conv.load_state_dict(ours.conv.state_dict())
    elif peer.variant == "performer":
        module.projection_matrix.copy_(ours.projection)
        package = sys.modules["performer_pytorch.performer_pytorch"]
        monkeypatch.setattr(package, "softmax_kernel", partial(package.softmax_kernel, eps=0.0))
    elif peer.variant == "linformer":
        with torch.no_grad():
            ours.projection.copy_(ours.projection[:1].expand_as(ours.projection))
            module.proj_k.copy_(ours.projection[0].mT)
            module.proj_v.copy_(ours.projection[0].mT)


@by_label
def test_a_peer_computes_what_its_variant_does(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(peers, "NUM_HASHES", 1)
    overrides = ["attention.num_hashes=1"] if peer.variant == "reformer" else []
    dims = dims_for(peer)
    ours = load_attention(peer.variant, NUM_FEATURES, overrides)(dims).double()
    theirs = peer.build(dims, NUM_FEATURES).double()
    share_what_is_drawn(peer, ours, theirs, monkeypatch)
    inputs = draw_inputs(peer, dims, 1 if peer.package == "nystrom-attention" else 3)
    token_mask = torch.ones(len(inputs[0]), dims.max_seq_len, dtype=torch.bool)
    actual, expected = ours(*inputs, token_mask), theirs(*inputs, token_mask)
    # The packages for Reformer put an epsilon in different places.
    tolerance = 1e-5 if peer.package == "reformer-pytorch" else 1e-10
    assert_close(actual, expected, rtol=0, atol=tolerance)
    probe, leaves = torch.randn_like(actual), (inputs[0], inputs[2])
    assert_close(
        torch.autograd.grad((actual * probe).sum(), leaves),
        torch.autograd.grad((expected * probe).sum(), leaves),
        rtol=0,
        atol=10 * tolerance,
    )


@by_label
@pytest.mark.parametrize("num_tokens", [1024, 2048])
def test_a_peer_runs_as_it_is_benchmarked(peer: Peer, num_tokens: int) -> None:
    dims = AttentionDims(NUM_HEADS, HEAD_DIM, num_tokens)
    inputs = [x.float().detach().requires_grad_() for x in draw_inputs(peer, dims, 2)]
    module = peer.build(dims, NUM_FEATURES)
    out = module(*inputs, torch.ones(2, num_tokens, dtype=torch.bool))
    assert out.shape == inputs[2].shape
    out.square().sum().backward()
    leaves = [inputs[0], inputs[2], *module.parameters()]
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


def test_every_peer_stands_beside_a_variant_under_a_name_of_its_own() -> None:
    assert {peer.variant for peer in PEERS} <= set(variant_names())
    assert len({peer.label for peer in PEERS}) == len(PEERS)


def test_the_settings_are_those_of_the_variants() -> None:
    dims = AttentionDims(NUM_HEADS, HEAD_DIM, 64)
    cores = {peer.variant: load_attention(peer.variant, NUM_FEATURES)(dims) for peer in PEERS}
    assert cores["bigbird"].block_size == cores["reformer"].chunk_size == peers.BLOCK_SIZE
    assert cores["bigbird"].num_random_blocks == peers.NUM_RANDOM_BLOCKS
    assert cores["reformer"].num_hashes == peers.NUM_HASHES
    assert cores["nystromformer_conv"].conv.kernel_size == (peers.CONV_KERNEL_SIZE, 1)


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "linformer.linformer", None)
    (peer,) = (peer for peer in PEERS if peer.package == "linformer")
    with pytest.raises(ModuleNotFoundError, match=r"linformer.*pip install -e '\.\[dev\]'"):
        peer.build(AttentionDims(NUM_HEADS, HEAD_DIM, 64), NUM_FEATURES)
