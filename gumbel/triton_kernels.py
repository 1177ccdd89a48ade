"""The fused sampler's Triton kernels: noise from a counter, one-hots forward, ĝ backward.

Noise is never stored: word c of row r in stream s is Philox4x32 of the counter (c, r, s) under a
seed that lies on the device, so the backward pass draws it again, and a captured CUDA graph gets
fresh noise by a new seed. Stream 0 decides D; streams 1 … k are Gumbel-Rao's conditionals.

Rows of up to `LONGEST_TILE` categories are held in registers, many rows to a program; longer ones
are walked in chunks, one row to a program. Arithmetic is float32 whatever the logits' dtype.
(Philox: Salmon et al. 2011; its four words give two draws of 46 bits each.)
"""

import os

import triton
import triton.language as tl
from triton.language.extra import libdevice

LONGEST_TILE = 4096
"""Most categories, rounded up to a power of two, of a row held in registers."""

STRAIGHT_THROUGH = tl.constexpr(0)
ST_GUMBEL = tl.constexpr(1)
GUMBEL_RAO = tl.constexpr(2)
GAPPED = tl.constexpr(3)
REINMAX = tl.constexpr(4)

NO_STATISTIC = tl.constexpr(0)  # what forward leaves of each row for backward
LOG_SUM_EXP = tl.constexpr(1)
MAXIMUM = tl.constexpr(2)

ROUNDS = tl.constexpr(7)  # the fewest that pass every test of BigCrush (Salmon et al., table 2)
_FAR_DOWN = tl.constexpr(-1e30)  # a running maximum that began at −∞ would give −∞ − (−∞)


if os.environ.get("TRITON_INTERPRET") == "1":  # where there is no libdevice

    @triton.jit
    def _log(x):
        return tl.log(x)

else:

    @triton.jit
    def _log(x):
        """One instruction, 2e-7 off near 1: enough for noise."""
        return libdevice.fast_logf(x)


@triton.jit
def _gumbel_of(high, low):
    """G = −log E, E = −log(1 − u), u of 46 bits from two words: never above 32.6, never infinite.

    Below 1/64, −log(1 − u) is summed as its series: 1 − u would drop the digits of a small u.
    """
    # 23 bits of each word as the fraction of a float in [1, 2); 1 + 2^-23 is taken off before
    # the second is added, so no digit of a small u is rounded away.
    u = ((high & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True) - 1.00000011920928955
    rest = ((low & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    u = rest * 1.1920928955078125e-07 + u  # 2^-23
    u = tl.minimum(tl.maximum(u, 7.105427357601002e-15), 0.99999994)  # 2^-47, 1 − 2^-24
    series = u * (1.0 + u * (0.5 + u * (0.33333333 + u * 0.25)))
    return -_log(tl.where(u < 0.015625, series, -_log(1.0 - u)))


@triton.jit
def _noise(seed, row, first, stream, WIDTH: tl.constexpr):
    """Standard Gumbels [R, WIDTH] of rows [R, 1], from category `first` (even) on."""
    pair = (first // 2 + tl.arange(0, WIDTH // 2))[None, :] + row * 0
    c1 = row + pair * 0
    c2 = stream + pair * 0
    a, b, c, d = tl.philox(
        seed,
        pair.to(tl.uint32, bitcast=True),
        c1.to(tl.uint32, bitcast=True),
        c2.to(tl.uint32, bitcast=True),
        (pair * 0).to(tl.uint32, bitcast=True),
        n_rounds=ROUNDS,
    )
    return tl.interleave(_gumbel_of(a, b), _gumbel_of(c, d))


@triton.jit
def _load_theta(logits, mask, at, mask_at, inside, HAS_MASK: tl.constexpr):
    """Logits as float32, −∞ where forbidden or outside."""
    theta = tl.load(logits + at, mask=inside, other=-float("inf")).to(tl.float32)
    if HAS_MASK:
        allowed = tl.load(mask + mask_at, mask=inside, other=0)
        theta = tl.where(allowed != 0, theta, -float("inf"))
    return theta


@triton.jit
def _inverse_temperature(temperature, TEMPERATURE_ON_DEVICE: tl.constexpr):
    if TEMPERATURE_ON_DEVICE:
        return 1.0 / tl.load(temperature)
    else:
        return 1.0 / temperature


@triton.jit
def noise_tile(seed, out, n_rows, K, stream, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """G [n_rows, K] of one stream."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    first = tl.program_id(1) * WIDTH
    column = first + tl.arange(0, WIDTH)[None, :]
    g = _noise(tl.load(seed), row, first, stream, WIDTH)
    tl.store(out + row.to(tl.int64) * K + column, g, mask=(row < n_rows) & (column < K))


@triton.jit
def forward_tile(
    logits, mask, seed, one_hot, index, statistic, n_rows, mask_stride,
    K: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, HAS_MASK: tl.constexpr,
    WRITE_ONE_HOT: tl.constexpr, STATISTIC: tl.constexpr,
):  # fmt: skip
    """D = onehot argmax(θ + G) of ROWS rows."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = rows[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    inside = (row < n_rows) & (column < K)
    at = row.to(tl.int64) * K + column
    mask_at = row.to(tl.int64) * mask_stride + column
    theta = _load_theta(logits, mask, at, mask_at, inside, HAS_MASK)
    z = theta + _noise(tl.load(seed), row, 0, 0, WIDTH)
    # The first of the largest; cheaper than argmax, whose reduction carries pairs. A row of NaN has
    # none: it gets its last category, and a NaN gradient.
    ties = tl.where(z == tl.max(z, 1)[:, None], column, K - 1)
    chosen = tl.min(ties, 1)  # [ROWS]
    if WRITE_ONE_HOT:
        d = tl.where(column == chosen[:, None], 1.0, 0.0)
        tl.store(one_hot + at, d.to(one_hot.dtype.element_ty), mask=inside)
    tl.store(index + rows, chosen.to(tl.int64), mask=rows < n_rows)
    if STATISTIC == LOG_SUM_EXP:
        top = tl.max(theta, 1)
        total = tl.sum(tl.exp(theta - top[:, None]), 1)
        tl.store(statistic + rows, top + tl.log(total), mask=rows < n_rows)
    elif STATISTIC == MAXIMUM:
        tl.store(statistic + rows, tl.max(theta, 1), mask=rows < n_rows)


@triton.jit
def _shifted(theta, is_d, top, statistic, noise, gap, KIND: tl.constexpr):
    """x of ĝ = J(S_τ(x)) g/τ, see the eager estimators for the formulas."""
    if KIND == ST_GUMBEL:
        return theta + noise
    elif KIND == GUMBEL_RAO:
        # −logaddexp(−a, −b) = min(a, b) − log(1 + e^{−|a−b|}), without −∞ − (−∞) at masked a.
        a = theta + noise
        others = tl.minimum(a, top) - tl.log(1.0 + tl.exp(-tl.abs(a - top)))
        return tl.where(is_d, top, others)
    elif KIND == GAPPED:
        below = theta - statistic
        pushed = theta - tl.maximum(below + gap, 0.0)
        return tl.where(is_d, statistic, pushed)
    else:
        return theta


@triton.jit
def _softmax(x):
    e = tl.exp(x - tl.max(x, 1)[:, None])
    return e / tl.sum(e, 1)[:, None]


@triton.jit
def _jacobian_product(p, g):
    """J(p) g = p (g − ⟨p, g⟩)."""
    return p * (g - tl.sum(p * g, 1)[:, None])


@triton.jit
def backward_tile(
    logits, mask, seed, index, statistic, grad, out, n_rows, mask_stride, temperature, gap,
    K: tl.constexpr, k: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    HAS_MASK: tl.constexpr, KIND: tl.constexpr, TEMPERATURE_ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """ĝ of ROWS rows from ∂f/∂D."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = rows[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    inside = (row < n_rows) & (column < K)
    at = row.to(tl.int64) * K + column
    mask_at = row.to(tl.int64) * mask_stride + column
    theta = _load_theta(logits, mask, at, mask_at, inside, HAS_MASK)
    g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    inverse = _inverse_temperature(temperature, TEMPERATURE_ON_DEVICE)
    if KIND == STRAIGHT_THROUGH:
        back = inverse * _jacobian_product(_softmax(theta * inverse), g)
    elif KIND == ST_GUMBEL:
        z = theta + _noise(tl.load(seed), row, 0, 0, WIDTH)
        back = inverse * _jacobian_product(_softmax(z * inverse), g)
    else:
        is_d = column == tl.load(index + rows, mask=rows < n_rows, other=0)[:, None]
        if KIND == REINMAX:
            m = 0.5 * (_softmax(theta * inverse) + is_d.to(tl.float32))
            back = 2.0 * _jacobian_product(m, g) - 0.5 * _jacobian_product(_softmax(theta), g)
        else:
            known = tl.load(statistic + rows, mask=rows < n_rows, other=0.0)[:, None]
            if KIND == GAPPED:
                x = _shifted(theta, is_d, known, known, theta, gap, KIND)
                back = inverse * _jacobian_product(_softmax(x * inverse), g)
            else:
                back = tl.zeros(theta.shape, tl.float32)
                key = tl.load(seed)
                for stream in range(1, k + 1):
                    noise = _noise(key, row, 0, stream, WIDTH)
                    top = known + tl.sum(tl.where(is_d, noise, 0.0), 1)[:, None]
                    x = _shifted(theta, is_d, top, known, noise, gap, KIND)
                    back += _jacobian_product(_softmax(x * inverse), g)
                back = back * (inverse / k)
    tl.store(out + at, back.to(out.dtype.element_ty), mask=inside)


@triton.jit
def forward_long(
    logits, mask, seed, one_hot, index, statistic, mask_stride,
    K: tl.constexpr, WIDTH: tl.constexpr, HAS_MASK: tl.constexpr,
    WRITE_ONE_HOT: tl.constexpr, STATISTIC: tl.constexpr,
):  # fmt: skip
    """`forward_tile` for one long row: each lane keeps its best, zeros are written on the way."""
    row = tl.program_id(0) + tl.zeros([1, 1], tl.int32)
    start = tl.program_id(0).to(tl.int64) * K
    mask_start = tl.program_id(0).to(tl.int64) * mask_stride
    lanes = tl.arange(0, WIDTH)[None, :]
    key = tl.load(seed)
    best = tl.full([1, WIDTH], -float("inf"), tl.float32)
    where = tl.zeros([1, WIDTH], tl.int32) + lanes
    m = tl.full([1, WIDTH], _FAR_DOWN, tl.float32)
    s = tl.zeros([1, WIDTH], tl.float32)
    for first in range(0, K, WIDTH):
        column = first + lanes
        inside = column < K
        theta = _load_theta(logits, mask, start + column, mask_start + column, inside, HAS_MASK)
        z = theta + _noise(key, row, first, 0, WIDTH)
        better = z > best  # the first one on a tie
        best = tl.where(better, z, best)
        where = tl.where(better, column, where)
        if WRITE_ONE_HOT:
            zero = tl.zeros([1, WIDTH], tl.float32).to(one_hot.dtype.element_ty)
            tl.store(one_hot + start + column, zero, mask=inside)
        if STATISTIC == LOG_SUM_EXP:
            higher = tl.maximum(m, theta)
            s = s * tl.exp(m - higher) + tl.exp(theta - higher)
            m = higher
        elif STATISTIC == MAXIMUM:
            m = tl.maximum(m, theta)
    top = tl.max(best)
    chosen = tl.min(tl.where(best == top, where, K - 1))
    tl.store(index + tl.program_id(0), chosen.to(tl.int64))
    if WRITE_ONE_HOT:
        tl.debug_barrier()  # the zeros of other lanes come first
        tl.store(
            one_hot + start + chosen, tl.full([], 1.0, tl.float32).to(one_hot.dtype.element_ty)
        )
    if STATISTIC == LOG_SUM_EXP:
        highest = tl.max(m)
        known = highest + tl.log(tl.sum(s * tl.exp(m - highest)))
        tl.store(statistic + tl.program_id(0), known)
    elif STATISTIC == MAXIMUM:
        tl.store(statistic + tl.program_id(0), tl.max(m))


@triton.jit
def _x_of_chunk(
    theta, column, chosen, known, key, row, first, stream, gap,
    WIDTH: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """`_shifted` of a chunk of one row, its noise drawn here."""
    is_d = column == chosen
    if KIND == ST_GUMBEL:
        return theta + _noise(key, row, first, 0, WIDTH)
    elif KIND == GUMBEL_RAO:
        beside = _noise(key, row, chosen // 2 * 2, stream, 2)  # G_i and its neighbour
        odd = tl.arange(0, 2)[None, :] == chosen % 2
        top = known + tl.sum(tl.where(odd, beside, 0.0))
        noise = _noise(key, row, first, stream, WIDTH)
        return _shifted(theta, is_d, top, known, noise, gap, KIND)
    else:
        return _shifted(theta, is_d, known, known, theta, gap, KIND)


@triton.jit
def backward_long(
    logits, mask, seed, index, statistic, grad, out, mask_stride, temperature, gap,
    K: tl.constexpr, k: tl.constexpr, WIDTH: tl.constexpr, HAS_MASK: tl.constexpr,
    KIND: tl.constexpr, TEMPERATURE_ON_DEVICE: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """`backward_tile` for one long row, walked twice: sums of each softmax first, ĝ then.

    TERMS, a power of two, is at least k. ReinMax's two softmaxes are terms 0 (at τ) and 1.
    """
    row = tl.program_id(0) + tl.zeros([1, 1], tl.int32)
    start = tl.program_id(0).to(tl.int64) * K
    mask_start = tl.program_id(0).to(tl.int64) * mask_stride
    lanes = tl.arange(0, WIDTH)[None, :]
    key = tl.load(seed)
    chosen = tl.load(index + tl.program_id(0)).to(tl.int32)
    known = 0.0
    if KIND == GUMBEL_RAO or KIND == GAPPED:  # noqa: SIM109
        known = tl.load(statistic + tl.program_id(0))
    inverse = _inverse_temperature(temperature, TEMPERATURE_ON_DEVICE)
    term_ids = tl.arange(0, TERMS)
    maxima = tl.zeros([TERMS], tl.float32)
    totals = tl.full([TERMS], 1.0, tl.float32)
    means = tl.zeros([TERMS], tl.float32)  # ⟨p, g⟩
    for term in range(0, k):
        scale = inverse
        if KIND == REINMAX:
            scale = tl.where(term == 0, inverse, 1.0)
        m = tl.full([1, WIDTH], _FAR_DOWN, tl.float32)
        s = tl.zeros([1, WIDTH], tl.float32)
        t = tl.zeros([1, WIDTH], tl.float32)
        for first in range(0, K, WIDTH):
            column = first + lanes
            inside = column < K
            theta = _load_theta(logits, mask, start + column, mask_start + column, inside, HAS_MASK)
            g = tl.load(grad + start + column, mask=inside, other=0.0).to(tl.float32)
            x = _x_of_chunk(
                theta, column, chosen, known, key, row, first, term + 1, gap, WIDTH, KIND
            )
            x = x * scale
            higher = tl.maximum(m, x)
            shrink = tl.exp(m - higher)
            e = tl.exp(x - higher)
            s = s * shrink + e
            t = t * shrink + e * g
            m = higher
        highest = tl.max(m)
        weight = tl.exp(m - highest)
        total = tl.sum(s * weight)
        maxima = tl.where(term_ids == term, highest, maxima)
        totals = tl.where(term_ids == term, total, totals)
        means = tl.where(term_ids == term, tl.sum(t * weight) / total, means)
    g_chosen = tl.load(grad + start + chosen).to(tl.float32)
    for first in range(0, K, WIDTH):
        column = first + lanes
        inside = column < K
        theta = _load_theta(logits, mask, start + column, mask_start + column, inside, HAS_MASK)
        g = tl.load(grad + start + column, mask=inside, other=0.0).to(tl.float32)
        back = tl.zeros([1, WIDTH], tl.float32)
        for term in range(0, k):
            scale = inverse
            if KIND == REINMAX:
                scale = tl.where(term == 0, inverse, 1.0)
            x = _x_of_chunk(
                theta, column, chosen, known, key, row, first, term + 1, gap, WIDTH, KIND
            )
            this = term_ids == term
            highest = tl.sum(tl.where(this, maxima, 0.0))
            total = tl.sum(tl.where(this, totals, 0.0))
            mean = tl.sum(tl.where(this, means, 0.0))
            p = tl.exp(x * scale - highest) / total
            if KIND == REINMAX:
                half = 0.5 * (p + (column == chosen).to(tl.float32))
                first_term = 2.0 * half * (g - 0.5 * (mean + g_chosen))
                back += tl.where(term == 0, first_term, -0.5 * p * (g - mean))
            else:
                back += p * (g - mean)
        if KIND == GUMBEL_RAO:
            back = back * (inverse / k)
        elif KIND != REINMAX:
            back = back * inverse
        tl.store(out + start + column, back.to(out.dtype.element_ty), mask=inside)
