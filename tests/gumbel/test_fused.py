"""The fused kernels against the eager estimators: same noise, same sample, same gradient.

On a GPU they run compiled; elsewhere in Triton's interpreter, on smaller sizes.
"""

import math

import pytest
import torch
from gumbelrl.gumbel import FactoredCategorical, gumbel_noise, gumbel_softmax, make_estimator
from gumbelrl.gumbel import fused as fused_module
from gumbelrl.gumbel.fused import (
    KINDS,
    Fused,
    draw_seed,
    fused_index,
    fused_noise,
    fused_sample,
    usable,
)
from scipy import stats

triton = pytest.importorskip("triton", reason="the fused sampler needs Triton")
tl = pytest.importorskip("triton.language")
triton_kernels = pytest.importorskip("gumbelrl.gumbel.triton_kernels")

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
LONG = 5000  # beyond the longest row that is held in registers
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered")  # masked lanes
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")


def seed(number=12345):
    return torch.tensor([number], device=DEVICE)


def logits_and_mask(shape, dtype=torch.float32, masked=False):
    generator = torch.Generator(DEVICE).manual_seed(sum(shape))
    logits = torch.randn(shape, device=DEVICE, generator=generator).to(dtype)
    mask = None
    if masked:
        mask = torch.rand(shape, device=DEVICE, generator=generator) < 0.6
        mask[..., -1] = True
    return logits.requires_grad_(), mask


def settings(kind):
    extra = {"gumbel_rao": {"k": 3}, "gapped_st": {"gap": 0.7}}
    return extra.get(kind, {})


def eager(kind, tau, logits, mask):
    """The estimator's own formula in float64 on the kernels' noise, as (sample, leaf)."""
    estimator = make_estimator(kind, temperature=float(tau), **settings(kind))
    k = settings(kind).get("k", 0)
    noise = torch.stack([fused_noise(logits.shape, seed(), s) for s in range(1 + k)]).double()
    theta = logits.detach().double()
    theta = (theta if mask is None else theta.where(mask, -math.inf)).requires_grad_()
    return estimator.relax(theta, noise if k else noise[0]), theta


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "dtype", "masked", "tau"),
    [
        ((3, 1), torch.float32, False, 1.0),
        ((70, 7), torch.float32, True, 0.5),
        ((5, 2, 18), torch.float32, False, 1.0),
        ((5, 18), torch.bfloat16, True, 2.0),
        ((2, 64), torch.float16, False, 1.0),
        ((9, 300), torch.float32, True, "tensor"),
        ((1, LONG), torch.float32, True, 0.5),
        ((2, LONG), torch.bfloat16, False, "tensor"),
    ],
)
def test_sample_and_gradient_are_those_of_the_eager_estimator(kind, shape, dtype, masked, tau):
    logits, mask = logits_and_mask(shape, dtype, masked)
    tau = torch.tensor([0.7], device=DEVICE) if tau == "tensor" else tau
    got = fused_sample(logits, Fused(kind, tau, **settings(kind)), mask, seed())
    want, theta = eager(kind, tau, logits, mask)
    assert got.dtype == dtype
    assert torch.equal(got.double(), want)
    g = torch.randn(shape, device=DEVICE).to(dtype)
    (got_grad,) = torch.autograd.grad(got, logits, g)
    (want_grad,) = torch.autograd.grad(want, theta, g.double())
    close = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(
        got_grad.double(), want_grad, rtol=max(close, 1e-4), atol=close * want_grad.abs().max()
    )
    if mask is not None:
        assert (got[~mask] == 0).all()
        assert (got_grad[~mask] == 0).all()


def test_tile_and_chunks_draw_the_same():
    """Where a row is too long for registers nothing but the walk differs."""
    logits, mask = logits_and_mask((2, 1000), masked=True)
    grad = torch.randn(2, 1000, device=DEVICE)
    results = []
    for longest in (4096, 256):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(triton_kernels, "LONGEST_TILE", longest)
            patch.setattr(fused_module, "FORWARD_CHUNK", (256, 4))
            patch.setattr(fused_module, "BACKWARD_CHUNK", (256, 4))
            for kind in KINDS:
                d = fused_sample(logits, Fused(kind, 0.5, **settings(kind)), mask, seed())
                results.append((d, torch.autograd.grad(d, logits, grad)[0]))
    for (d, back), (other_d, other_back) in zip(results[:5], results[5:], strict=True):
        assert torch.equal(d, other_d)
        torch.testing.assert_close(back, other_back, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(20_000,), (500, 18), (3, 5000)])
def test_noise_is_standard_gumbel(shape):
    """KS at p = 1e-4, in each stream; streams and neighbours uncorrelated, |r| < 5/√n."""
    streams = [fused_noise(shape, seed(3), s).flatten().double().cpu() for s in (0, 1)]
    for g in streams:
        assert stats.kstest(g.numpy(), "gumbel_r").pvalue > 1e-4
    a, b = (torch.exp(-torch.exp(-g)) - 0.5 for g in streams)
    n = len(a)
    for x, y in ((a, b), (a[1:], a[:-1]), (a[2:], a[:-2])):
        assert abs((x * y).mean() * 12) < 5 / math.sqrt(n)


@needs_gpu
def test_block_maxima_are_gumbel_again():
    """The far tail, as in test_noise.py: KS at p = 1e-4, and some of the ~18 in 300 beyond 2.78,
    where a 24-bit source has none (for none to appear: 1e-8)."""
    size = 2**20
    maxima = torch.stack([fused_noise((size,), seed(b)).max() for b in range(300)]).cpu()
    maxima -= math.log(size)
    assert stats.kstest(maxima.numpy(), "gumbel_r").pvalue > 1e-4
    assert (maxima > 2.78).any()


@triton.jit
def _gumbels_of_words(high, low, out, n: tl.constexpr):
    at = tl.arange(0, n)
    high = tl.load(high + at).to(tl.uint32, bitcast=True)
    low = tl.load(low + at).to(tl.uint32, bitcast=True)
    tl.store(out + at, triton_kernels._gumbel_of(high, low))


def test_noise_is_the_gumbel_of_46_bits_to_its_ends():
    """−log(−log(1 − u)), u = high 2^-23 + low 2^-46, in float64; u = 0 and u → 1 stay finite."""
    n = 2**14
    words = torch.randint(2**23, (2, n))
    words[0, : n // 2] >>= torch.randint(1, 24, (n // 2,))  # the far tail, bit by bit
    words[:, 0] = 0
    words[:, 1] = 2**23 - 1
    out = torch.empty(n, device=DEVICE)
    high, low = words.to(DEVICE, torch.int32)
    _gumbels_of_words[(1,)](high, low, out, n=n)
    u = (words[0].double() * 2**23 + words[1]) / 2**46
    exact = -torch.log(-torch.log1p(-u.clamp(2**-47, 1 - 2**-24)))
    torch.testing.assert_close(out.cpu().double(), exact, rtol=1e-4, atol=1e-4)
    assert out[0] > 32
    assert (out[2:] > 25).any()  # a 24-bit source ends at 16.64


def test_the_sample_follows_the_probabilities():
    """χ² over 18 categories at p = 1e-4, for one-hots and for indices."""
    logits = torch.randn(18, device=DEVICE)
    big = logits.expand(200_000 if ON_GPU else 4_000, 18)
    expected = logits.double().softmax(-1).cpu().numpy() * len(big)
    generator = torch.Generator(DEVICE).manual_seed(1)
    d = fused_sample(big, Fused("st_gumbel"), generator=generator)
    assert ((d == 0) | (d == 1)).all()
    assert (d.sum(-1) == 1).all()
    index = fused_index(big, generator=generator)
    for counts in (d.sum(0), torch.bincount(index, minlength=18)):
        assert stats.chisquare(counts.double().cpu().numpy(), expected).pvalue > 1e-4


def test_an_action_17_nats_down_is_drawn_at_the_right_rate():
    """Within 5σ of the mean, 27.8 at 2^29 draws; the interpreter's 2^15 reach 6 nats, mean 81."""
    nats, blocks, rows = (17.0, 64, 2**23) if ON_GPU else (6.0, 1, 2**15)
    logits = torch.tensor([0.0, -nats], device=DEVICE).expand(rows, 2)
    generator = torch.Generator(DEVICE).manual_seed(0)
    hits = sum(fused_index(logits, generator=generator).sum().item() for _ in range(blocks))
    mean = blocks * rows / (1 + math.exp(nats))
    assert abs(hits - mean) < 5 * math.sqrt(mean)


def test_the_seed_decides_and_the_generator_draws_it():
    logits, _ = logits_and_mask((50, 9))
    a = fused_sample(logits, Fused("st_gumbel"), seed=seed())
    assert torch.equal(a, fused_sample(logits, Fused("st_gumbel"), seed=seed()))
    assert not torch.equal(a, fused_sample(logits, Fused("st_gumbel"), seed=seed(7)))
    generator = torch.Generator(DEVICE).manual_seed(0)
    first = draw_seed(logits.device, generator)
    assert first.shape == (1,)
    assert first != draw_seed(logits.device, generator)
    assert first == draw_seed(logits.device, generator.manual_seed(0))


def test_one_mask_serves_all_rows():
    logits, _ = logits_and_mask((40, 6))
    mask = torch.tensor([True, False, True, False, False, True], device=DEVICE)
    a = fused_sample(logits, Fused("st_gumbel"), mask, seed())
    b = fused_sample(logits, Fused("st_gumbel"), mask.expand(40, 6), seed())
    assert torch.equal(a, b)
    assert (a[:, ~mask] == 0).all()


@pytest.mark.parametrize("n", [7, LONG])
def test_nan_logits_give_a_one_hot_and_a_nan_gradient(n):
    """As the eager path: the fault shows in the gradient of its row and nowhere else."""
    values = torch.zeros(3, n, device=DEVICE)
    values[1] = math.nan
    values[2, 4] = math.nan
    logits = values.requires_grad_()
    d = fused_sample(logits, Fused("st_gumbel"), seed=seed())
    assert (d.sum(-1) == 1).all()
    (back,) = torch.autograd.grad(d, logits, torch.randn(3, n, device=DEVICE))
    assert back[0].isfinite().all()
    assert back[1].isnan().all()
    assert back[2].isnan().all()


def test_an_edited_sample_does_not_change_the_gradient():
    logits, _ = logits_and_mask((8, 5))
    d = fused_sample(logits, Fused("st_gumbel", 0.5), seed=seed())
    g = torch.randn(8, 5, device=DEVICE)
    (first,) = torch.autograd.grad((d * g).sum(), logits, retain_graph=True)
    d.data.zero_()
    (second,) = torch.autograd.grad((d * g).sum(), logits)
    assert torch.equal(first, second)


def test_where_it_serves():
    assert not usable(torch.zeros(3, dtype=torch.float64, device=DEVICE))
    assert not usable(torch.zeros(0, 3, device=DEVICE))
    assert usable(torch.zeros(2, 3, device=DEVICE)) == ON_GPU


def test_a_subclass_with_other_terms_is_not_taken_for_its_parent():
    cls = type(make_estimator("st_gumbel"))
    assert make_estimator("st_gumbel").fused() == Fused("st_gumbel")
    assert make_estimator("gumbel_rao", temperature=0.5, k=4).fused() == Fused("gumbel_rao", 0.5, 4)
    assert type("Mine", (cls,), {})().fused() is None
    for name in ("gumbel_softmax", "decoupled_st_gumbel", "reinmax_rao"):
        assert make_estimator(name).fused() is None


@needs_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_estimators_and_sampler_take_the_kernels_on_a_gpu(kind, monkeypatch):
    """Through the public calls, unequal factors, mixing and masks included."""
    logits, mask = logits_and_mask((64, 9), masked=True)
    mask[:, [0, 3, 5]] = True
    estimator = make_estimator(kind, **settings(kind))
    w = torch.randn(9, device=DEVICE)
    calls, forward = [], fused_module._forward
    monkeypatch.setattr(
        fused_module, "_forward", lambda *a, **k: calls.append(1) or forward(*a, **k)
    )
    for nvec, options in (((9,), {}), ((3, 3, 3), {}), ((3, 2, 4), {"uniform_mix": 0.2})):
        dist = FactoredCategorical(logits, nvec, mask, **options)
        generator = torch.Generator(DEVICE).manual_seed(0)
        calls.clear()
        value = estimator(dist, lambda d: (d * w).sum(-1).square(), generator)
        assert calls
        (back,) = torch.autograd.grad(value.sum(), logits)
        assert back.isfinite().all()
        assert (back[~mask] == 0).all()
        sample = dist.sample(generator)
        assert dist.one_hot(sample)[~mask].sum() == 0
    assert gumbel_noise((4, 5), torch.Generator(DEVICE), device=DEVICE).shape == (4, 5)


@needs_gpu
def test_a_captured_graph_replays_with_fresh_noise():
    logits = torch.zeros(256, 8, device=DEVICE, requires_grad=True)
    generator = torch.Generator(DEVICE).manual_seed(0)
    gumbel_softmax(logits, generator=generator)  # compiled before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        sample = gumbel_softmax(logits, generator=generator)
    seen = []
    for _ in range(3):
        graph.replay()
        seen.append(sample.detach().clone())
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


@needs_gpu
def test_compile_keeps_the_operator_whole():
    logits, mask = logits_and_mask((64, 9), masked=True)

    def f(logits, seed):
        return fused_sample(2 * logits, Fused("reinmax"), mask, seed).mul(3.0)

    eager_out = f(logits, seed())
    compiled = torch.compile(f, fullgraph=True)(logits, seed())
    assert torch.equal(compiled, eager_out)
    g = torch.randn(64, 9, device=DEVICE)
    for x, y in zip(
        torch.autograd.grad(compiled, logits, g),
        torch.autograd.grad(eager_out, logits, g),
        strict=True,
    ):
        torch.testing.assert_close(x, y)
    torch.library.opcheck(
        fused_module._operator, (logits, mask, seed(), 1.0, None, 4, 1, 1.0),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip
