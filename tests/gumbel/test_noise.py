"""Noise: right tails, right conditionals, finite always. Seeds are fixed; the false-alarm rate
stated with a test is that of drawing another seed."""

import math

import pytest
import torch
from gumbelrl.gumbel import conditional_gumbels, gumbel_noise, noise
from gumbelrl.gumbel.gradient import choose
from scipy import stats


def capped(n, generator):
    """What 24-bit uniforms give, as in most libraries: no Gumbel above 16.64."""
    u = torch.rand(n, generator=generator)
    return -torch.log(-torch.log1p(-u.clamp(min=2.0**-24)))


def block_maxima(draw, blocks, size, seed):
    """Maxima of blocks minus log(size): again standard Gumbels, so they show the far tail."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([draw(size, generator).max() for _ in range(blocks)]) - math.log(size)


@pytest.mark.parametrize("source", ["large", "small"])
def test_block_maxima_are_gumbel_again(source, monkeypatch):
    """KS at p = 1e-4 (the false-alarm rate), and some of the ~18 in 300 beyond 2.78 (for none to
    appear: 1e-8; 100 blocks of the slower source: 2e-3, seed fixed)."""
    blocks = 300
    if source == "small":  # the path of small tensors, forced to these sizes
        monkeypatch.setattr(noise, "_LARGE", 2**62)
        blocks = 100
    maxima = block_maxima(lambda n, g: gumbel_noise((n,), g), blocks, 2**20, seed=1)
    assert stats.kstest(maxima.numpy(), "gumbel_r").pvalue > 1e-4
    assert (maxima > 2.78).any()


def test_the_block_test_sees_a_capped_source():
    """The same test refuses 24-bit uniforms: none beyond 2.78 = 24 log 2 − 20 log 2."""
    maxima = block_maxima(capped, 100, 2**20, seed=1)
    assert not (maxima > 2.78).any()


@pytest.mark.parametrize("n", [1000, 2**14, 100_003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_standard_gumbel(n, dtype):
    """KS at p = 1e-4 on the two paths (torch below 2^14 draws, blocks above)."""
    g = gumbel_noise((n,), torch.Generator().manual_seed(5), dtype)
    assert g.dtype == dtype
    assert stats.kstest(g.numpy(), "gumbel_r").pvalue > 1e-4


def test_blocks_are_independent():
    """Correlation of neighbours and of places one block apart: |r| < 5/sqrt(n), 6e-7 each."""
    g = gumbel_noise((2**20,), torch.Generator().manual_seed(2))
    u = torch.exp(-torch.exp(-g)) - 0.5
    for lag in (1, 2, noise._BLOCK):
        r = (u[lag:] * u[:-lag]).mean() / u.var()
        assert abs(r) < 5 / 2**10


def test_extreme_uniforms_stay_finite():
    """u = 0, and a u that rounds to 1: 8 in 10^8 draws are inf in the usual formula."""
    g = noise._from_uniform_(torch.tensor([0.0, 2.0**-53, 1.0 - 2.0**-53, 1.0]))
    assert g.isfinite().all()
    assert g[0] > 37
    assert g[-1] < -2.8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_logits_get_wide_noise(dtype):
    assert gumbel_noise(torch.zeros(3, dtype=dtype)).dtype == torch.float32


@pytest.mark.parametrize("shape", [(7, 3), (300, 100), (0,), ()])
def test_the_generator_decides(shape):
    a = gumbel_noise(shape, torch.Generator().manual_seed(3))
    state = torch.random.get_rng_state()
    b = gumbel_noise(shape, torch.Generator().manual_seed(3))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert a.shape == torch.Size(shape)
    assert torch.equal(a, b)
    if a.numel():
        generator = torch.Generator().manual_seed(3)
        gumbel_noise(shape, generator)
        assert not torch.equal(gumbel_noise(shape, generator), a)


def conditionals(theta, n, seed):
    generator = torch.Generator().manual_seed(seed)
    big = theta.expand(n, -1)
    chosen = choose(big + gumbel_noise(big, generator)).bool()
    return conditional_gumbels(big, chosen, gumbel_noise(big, generator))


@pytest.mark.parametrize(
    "theta", [[0.0, 1.0, -2.0], [30.0, 0.0, -30.0], [1e4, -1e4, 0.0], [0.3, -math.inf, 1.0]]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conditional_winner_is_the_given_one(theta, dtype):
    """Whatever D is given, even one of probability e^-20000, and without ties."""
    theta = torch.tensor(theta, dtype=dtype)
    for i in range(3):
        if theta[i] == -math.inf:
            continue
        index = torch.full((2000,), i)
        big = theta.expand(2000, 3)
        z = conditional_gumbels(
            big, torch.nn.functional.one_hot(index, 3).bool(), gumbel_noise(big)
        )
        top = z.topk(2, -1)
        assert (top.indices[:, 0] == i).all()
        assert (top.values[:, 0] > top.values[:, 1]).all()
        assert not z.isnan().any()
        assert (z[:, theta == -math.inf] == -math.inf).all()


def test_conditionals_over_d_are_plain_gumbels_again():
    """KS of z − θ for each category at p = 1e-4: false alarm 3e-4."""
    theta = torch.tensor([0.5, -1.0, 1.5], dtype=torch.float64)
    z = conditionals(theta, 20_000, seed=4)
    for column in (z - theta).T:
        assert stats.kstest(column.numpy(), "gumbel_r").pvalue > 1e-4


def test_conditionals_agree_with_rejection():
    """Two-sample KS against noise kept because its argmax was D: false alarm 3e-4."""
    theta = torch.tensor([0.5, -1.0, 1.5], dtype=torch.float64)
    plain = theta + gumbel_noise((60_000, 3), dtype=torch.float64)
    kept = plain[plain.argmax(-1) == 1]
    index = torch.ones(len(kept), dtype=torch.int64)
    big = theta.expand(len(kept), 3)
    z = conditional_gumbels(big, torch.nn.functional.one_hot(index, 3).bool(), gumbel_noise(big))
    for j in range(3):
        assert stats.ks_2samp(z[:, j].numpy(), kept[:, j].numpy()).pvalue > 1e-4


def test_conditional_gradient_is_that_of_finite_differences():
    theta = torch.tensor([[0.5, -1.0, 1.5, -math.inf]], dtype=torch.float64, requires_grad=True)
    d = torch.tensor([[False, True, False, False]])
    g = gumbel_noise((1, 4), dtype=torch.float64)

    def finite_part(free):
        full = torch.cat([free, torch.full((1, 1), -math.inf, dtype=torch.float64)], -1)
        return conditional_gumbels(full, d, g)[:, :3]

    free = theta.detach()[:, :3].requires_grad_()
    assert torch.autograd.gradcheck(finite_part, (free,))
    z = conditional_gumbels(theta, d, g)
    (slope,) = torch.autograd.grad(z.softmax(-1)[0, 0], theta)
    assert slope.isfinite().all()
    assert slope[0, 3] == 0
