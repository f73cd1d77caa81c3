"""What only a GPU shows: the same functions as on the CPU, no waiting, resuming, memory.

Skipped where there is none; `pytest tests/test_cuda.py` runs them where there is.
"""

import subprocess
import sys
from functools import partial

import pytest
import torch
from conftest import ATTENTIONS, ROOT
from test_trainer import Listener, make_trainer  # noqa: F401
from torch.testing import assert_close

from attention.conformance.subject import (
    BLOCK_SIZE,
    NUM_FEATURES,
    Subject,
    attend_with_gradients,
    inputs_for,
    lengths_mask,
    relative_error,
)
from attention.skeinformer_cuda import biased_attention, squared_columns
from lra.benchmark.cores import Candidate, CoreRun, Workload, exact_attention, peak_bytes
from lra.embedding import TokenEmbedding
from lra.run import cost
from lra.variants import load_attention, load_miniature

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda")


@pytest.fixture
def no_waiting():
    """Inside, whatever makes the host wait for the device raises an error."""
    torch.cuda.synchronize()
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def core_run(attention, *overrides, num_tokens=1024, precision="fp32"):
    workload = Workload(
        batch_size=2,
        num_heads=2,
        head_dim=32,
        num_tokens=num_tokens,
        padding=0.1,
        precision=precision,
        device=CUDA,
    )
    return CoreRun(Candidate(attention, load_attention(attention, 256, overrides)), workload)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_core_is_the_function_that_it_is_on_the_cpu(attention):
    core = Subject(attention, load_miniature(attention, NUM_FEATURES, BLOCK_SIZE)).core().eval()
    inputs = inputs_for(core, lengths_mask([45, 20, 0], 45))
    expected, expected_gradients = attend_with_gradients(core, inputs)
    inputs = inputs.map(lambda leaf: leaf.to(CUDA), inputs.token_mask.to(CUDA))
    out, gradients = attend_with_gradients(core.to(CUDA), inputs)
    assert relative_error(out.cpu(), expected) < 1e-6
    for gradient, expected_gradient in zip(
        gradients.leaves, expected_gradients.leaves, strict=True
    ):
        assert relative_error(gradient.cpu(), expected_gradient) < 1e-6


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_half_precision_is_as_near_to_exact_attention(attention):
    errors = {}
    for precision in ("fp32", "bf16"):
        run = core_run(attention, precision=precision)
        q, k, v = (tensor.double() for tensor in run.inputs)
        errors[precision] = run.error(exact_attention(q, k, v, run.token_mask))
        run.train()
    assert errors["bf16"] < 1.05 * errors["fp32"] + 0.02


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_no_core_makes_the_host_wait(attention, precision, no_waiting):
    run = core_run(attention, precision=precision)
    run.train()
    no_waiting()
    run.train()
    run.infer()


@pytest.mark.parametrize("attention", ["skeinformer", "softmax_fused"])
def test_a_compiled_model_is_the_same_function(attention):
    done = subprocess.run(  # checked types are no part of what is compiled
        [sys.executable, "-c", COMPILED, attention],
        capture_output=True,
        text=True,
        cwd=ROOT / "src",
    )
    assert done.returncode == 0, done.stderr


COMPILED = """
import sys
import torch
from attention.base import AttentionDims
from lra.variants import load_attention

core = load_attention(sys.argv[1], 64)(AttentionDims(2, 32, 512)).cuda().eval()
q, k, v = torch.randn(3, 2, 2, 512, 32, device="cuda").requires_grad_()
given = (q, k, v, (torch.arange(512) < torch.tensor([[512], [300]])).cuda())
function = core
if sys.argv[1] == "skeinformer":
    given, function = (*given, *core.draw_noise(q)), core.attend
results = []
for form in (function, torch.compile(function)):
    out = form(*given)
    results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
for plain, compiled in zip(*results, strict=True):
    torch.testing.assert_close(compiled, plain, atol=2e-5, rtol=2e-4)
"""


@pytest.fixture
def make_cuda_trainer(make_trainer):  # noqa: F811
    return partial(make_trainer, device=CUDA)


@pytest.mark.parametrize("attention", ["skeinformer", "softmax_fused", "v_mean"])
@pytest.mark.parametrize("packed", ["false", "true"])
def test_a_training_step_makes_the_host_wait_for_nothing(
    make_cuda_trainer, attention, packed, no_waiting
):
    trainer = make_cuda_trainer(f"attention={attention}", f"model.packed={packed}")
    trainer.train_step()
    no_waiting()
    trainer.train_step()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("attention", ["skeinformer", "softmax", "bigbird"])
def test_a_paused_run_goes_on_bit_for_bit(make_cuda_trainer, attention, precision):
    overrides = (f"attention={attention}", f"trainer.precision={precision}")
    whole = make_cuda_trainer(*overrides, name="whole")
    whole.fit(Listener())
    make_cuda_trainer(*overrides, "trainer.pause_at_step=5", name="paused").fit(Listener())
    resumed = make_cuda_trainer(*overrides, name="paused")
    resumed.fit(Listener())
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert cost(resumed)["peak_allocated_bytes"] > 0


def test_a_batch_that_does_not_fit_is_halved_until_it_does(make_cuda_trainer):
    overrides = ("attention=softmax_no_dropout", "model.dropout=0.0", "trainer.batch_size=512")
    sizes, gradients = [], []
    total = torch.cuda.get_device_properties(CUDA).total_memory
    for spare_bytes in (total, 48 * 2**20):
        trainer = make_cuda_trainer(
            *overrides, "model.embed_dim=64", "trainer.micro_batch_size=auto"
        )
        batch = trainer.reader.batch(0)
        torch.cuda.empty_cache()
        allowed = min((torch.cuda.memory_reserved() + spare_bytes) / total, 1.0)
        torch.cuda.set_per_process_memory_fraction(allowed)
        try:
            trainer.accumulate_gradient(batch)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        sizes.append(trainer.micro_batch.size)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    assert sizes[1] < sizes[0] == 512
    assert_close(gradients[1], gradients[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("attention", ["skeinformer", "linformer", "performer"])
def test_a_cuda_graph_takes_the_same_steps(make_cuda_trainer, attention, precision):
    overrides = (
        f"attention={attention}",
        f"trainer.precision={precision}",
        "trainer.micro_batch_size=6",  # 6, 6 and 4 make a batch
    )
    plain = make_cuda_trainer(*overrides, name="plain")
    plain.fit(Listener())
    graph = (*overrides, "trainer.cuda_graph=true")
    make_cuda_trainer(*graph, "trainer.pause_at_step=5", name="graphed").fit(Listener())
    graphed = make_cuda_trainer(*graph, name="graphed")
    graphed.fit(Listener())
    for one, other in zip(graphed.model.parameters(), plain.model.parameters(), strict=True):
        assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_work_that_waits_is_no_cuda_graph():
    done = subprocess.run(  # a capture that fails leaves the device's generator behind
        [sys.executable, "-c", WAITING], capture_output=True, text=True, cwd=ROOT / "src"
    )
    assert "HostWaitsError: it makes the host wait" in done.stderr


WAITING = """
import torch
from lra.cuda_graph import capture

capture(lambda: torch.ones(1, device="cuda").item())
"""


def test_a_token_embedding_has_the_gradient_of_an_embedding():
    tokens = torch.randint(7, (30, 50), device=CUDA)
    grad = torch.randn(30, 50, 4, device=CUDA, dtype=torch.float64)
    gradients = []
    for kind in (TokenEmbedding, torch.nn.Embedding):
        torch.manual_seed(0)
        embedding = kind(7, 4).to(CUDA, torch.float64)
        embedding(tokens).backward(grad)
        gradients.append(embedding.weight.grad)
    assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_rows", "num_keys", "head_dim"),
    [(4096, 257, 32), (256, 2000, 32), (33, 20, 24), (1, 2, 8)],
)
def test_attention_with_a_bias_is_that_of_torch_in_float64(num_rows, num_keys, head_dim, dtype):
    shapes = [(2, n, 3, head_dim) for n in (num_rows, num_keys, num_keys, num_rows)]
    q, k, v, grad = (torch.randn(s, device=CUDA, dtype=dtype).transpose(1, 2) for s in shapes)
    qkv = [x.requires_grad_() for x in (q, k, v)]
    bias = torch.randn(2, 1, num_keys, device=CUDA).expand(-1, 3, -1).clone()
    bias[0, :, : num_keys // 2] = -torch.inf
    out, lse = biased_attention(*qkv, bias)
    doubles = [x.detach().double().requires_grad_() for x in qkv]
    scores = doubles[0] @ doubles[1].mT * head_dim**-0.5 + bias[:, :, None].double()
    expected = scores.softmax(-1) @ doubles[2]
    limit = 2e-6 if dtype == torch.float32 else 1e-2
    assert relative_error(out, expected) < limit
    gradients = torch.autograd.grad(out, qkv, grad)
    references = torch.autograd.grad(expected, doubles, grad.double())
    for gradient, reference in zip(gradients, references, strict=True):
        assert relative_error(gradient, reference) < 2 * limit
    squares = squared_columns(q.detach(), k.detach(), lse) * (bias > -torch.inf)
    scores_without = scores - bias[:, :, None].double().nan_to_num(neginf=0)
    mass = scores.logsumexp(-1, keepdim=True)
    references = (scores_without - mass).exp().square().sum(2) * (bias > -torch.inf)
    assert relative_error(squares, references.nan_to_num()) < 4 * limit


def test_skeinformer_needs_less_memory_than_exact_attention():
    peaks = {}
    for attention in ("skeinformer", "softmax"):
        run = core_run(attention, num_tokens=4096)
        run.train()
        peaks[attention] = peak_bytes(run.train, CUDA)
    assert peaks["skeinformer"] < peaks["softmax"] / 4
