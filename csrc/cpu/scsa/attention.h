// PCSA's channel attention on the pooled map y [N][C]: GroupNorm(1), depthwise q, k, v, softmax over channels, mean
// over pixels. mean_n(A v) = A mean_n(v), so a row of A is formed, reduced and forgotten; lanes run along channels.
#pragma once

#include "exp_sums.h"
#include "gate.h"
#include "monomials.h"

namespace fastattn::FASTATTN_ISA {

// Of one sample, [C] each; `team` data, every worker fills its own channels.
struct AttentionRows {
    float *o, *top, *inverse;  // attention output, logit maximum (base 2), 1 / sum of 2^(logit - maximum)
};

// A worker's own copies, for all channels.
struct Projections {
    float *q, *k;            // [N][C]; q carries log2(e) / sqrt(C / heads)
    float* v;                // [C], mean over pixels
    float* bound;            // [C], |k_j| of each channel
    float mean, rest, rstd;  // of the GroupNorm, whose mean is mean + rest to more than fp32

    static int64_t size(const ScsaPlan& plan) { return (2 * int64_t{plan.pooled} + 2) * plan.channels + 64; }
    Projections(const ScsaPlan& plan, Bump& bump) {
        const int64_t n = int64_t{plan.pooled} * plan.channels;
        q = bump.take(n);
        k = bump.take(n);
        v = bump.take(plan.channels);
        bound = bump.take(plan.channels);
    }

    V centred(V y) const { return (y - mean) - rest; }
};

inline float logit_scale(const ScsaPlan& plan) {
    return 1.0f / __builtin_sqrtf(static_cast<float>(plan.channels / plan.head_num));
}

// Of each channel over the pooled pixels, [C] each
struct PooledStatistics {
    float *mean,
        *rest;  // mean + rest is the mean to more than fp32, of values that may be large against what they vary by
    float* m2;  // sum of squared deviations from it
};

inline void pooled_statistics(const ScsaPlan& plan, Range range, const float* y, const PooledStatistics& out) {
    const int64_t C = plan.channels;
    const int N = plan.pooled;
    for_lanes(range.begin, range.end, [&](int c, auto m) {
        V s{}, r{}, d{};
        for (int n = 0; n < N; ++n) s += load(y + n * C + c, m);
        s *= 1.0f / N;
        for (int n = 0; n < N; ++n) {
            const V e = load(y + n * C + c, m) - s;
            r += e;
            d += e * e;
        }
        store(out.mean + c, s, m);
        store(out.rest + c, r * (1.0f / N), m);
        store(out.m2 + c, d - r * (r * (1.0f / N)), m);
    });
}

// The GroupNorm's statistics out of all channels'
inline void merge_pooled(const ScsaPlan& plan, const PooledStatistics& y, Projections& out) {
    const int C = plan.channels;
    const float count = static_cast<float>(plan.pooled);
    out.mean = sum_over(y.mean, 0, C) / C;
    V rest{}, m2{};
    for_lanes(0, C, [&](int c, auto m) { rest += keep(load(y.mean + c, m) - out.mean + load(y.rest + c, m), m); });
    out.rest = sum(rest) / C;
    for_lanes(0, C, [&](int c, auto m) {
        const V e = keep(out.centred(load(y.mean + c, m)) + load(y.rest + c, m), m);
        m2 += load(y.m2 + c, m) + e * e * count;
    });
    out.rstd = 1.0f / __builtin_sqrtf(sum(m2) / (count * C) + kEps);
}

INLINE_BODY inline void project(const ScsaPlan& plan, const ScsaParams& p, const float* y,
                                const PooledStatistics& statistics, Projections& out) {
    const int64_t C = plan.channels;
    const int N = plan.pooled;
    merge_pooled(plan, statistics, out);
    const float q_factor = logit_scale(plan) * kLog2e;
    for_lanes(0, plan.channels, [&](int c, auto m) {
        const V scale = out.rstd * load(p.norm_weight + c, m), bias = load(p.norm_bias + c, m);
        const V wq = load(p.q_weight + c, m) * q_factor, wk = load(p.k_weight + c, m);
        const V q1 = scale * wq, q0 = bias * wq + load(p.q_bias + c, m) * q_factor;
        const V k1 = scale * wk, k0 = bias * wk + load(p.k_bias + c, m);
        V norm{};
        for (int n = 0; n < N; ++n) {
            const V e = out.centred(load(y + n * C + c, m)), k = e * k1 + k0;
            store(out.q + n * C + c, e * q1 + q0, m);
            store(out.k + n * C + c, k, m);
            norm += k * k;
        }
        const V normalized = (out.centred(load(statistics.mean + c, m)) + load(statistics.rest + c, m)) * scale + bias;
        store(out.v + c, normalized * load(p.v_weight + c, m) + load(p.v_bias + c, m), m);
        store(out.bound + c, norm, m);
    });
}

// f(rows, first channel of the head) for the rows of `range` in each block of L rows of a head
template <class F>
inline void for_row_blocks(const ScsaPlan& plan, Range range, F&& f) {
    const int size = plan.channels / plan.head_num;
    for (int first = range.begin / size * size; first < range.end; first += size) {
        const int end = std::min(range.end, first + size);
        for (int i = std::max(range.begin, first), next; i < end; i = next) {
            next = std::min(end, first + ((i - first) / L + 1) * L);
            f(Range{i, next}, first);
        }
    }
}

// q [N][C], these rows' columns -> block [N][L], zeros behind the last row
inline void fetch_rows(const ScsaPlan& plan, const float* q, const int* rows, int count, float* block) {
    for (int n = 0; n < plan.pooled; ++n)
        for (int r = 0; r < L; ++r) block[n * L + r] = r < count ? q[int64_t{n} * plan.channels + rows[r]] : 0.0f;
}

// The same of columns [i, i + rows)
inline void fetch_rows(const ScsaPlan& plan, const float* q, int i, int rows, float* block) {
    const Tail tail(rows);
    for (int n = 0; n < plan.pooled; ++n) store(block + n * L, load(q + int64_t{n} * plan.channels + i, tail));
}

// s[r] = base-2 logits of R rows for the channels at k, summed over pixels in parts so that rounding does not grow with
// their number
template <int R, class M>
inline void logits(const float* q_block, const float* k, int64_t stride, int pixels, M m, V (&s)[R]) {
    constexpr int kPart = 32;
    const auto add = [&](int begin, int end, V(&sum)[R]) {
        for (int n = begin; n < end; ++n) {
            const V kn = load(k + n * stride, m);
            for (int r = 0; r < R; ++r) sum[r] += kn * q_block[n * L + r];
        }
    };
    for (int r = 0; r < R; ++r) s[r] = V{};
    add(0, std::min(kPart, pixels), s);
    for (int n = kPart; n < pixels; n += kPart) {
        V part[R] = {};
        add(n, std::min(n + kPart, pixels), part);
        for (int r = 0; r < R; ++r) s[r] += part[r];
    }
}

// One head with one pixel, linear in its channels; false where the expansion's bound does not hold.
inline bool attend_by_expansion(const Projections& p, int first, int size, Range rows, const AttentionRows& out,
                                float* scratch) {
    const Span k = span(p.k + first, size);
    float* b = scratch;                 // natural logits are b_i (k_j - middle)
    float* a = b + round_up(size, 16);  // k - middle
    float* ones = a + round_up(size, 16);
    float* sums = ones + round_up(size, 16);
    const int begin = std::max(rows.begin, first), count = std::min(rows.end, first + size) - begin;
    for_lanes(0, count, [&](int i, auto m) { store(b + i, load(p.q + begin + i, m) * kLn2, m); });
    const Span span_b =
        span(p.q + first, size) * kLn2;  // of all rows: the result of one does not depend on who has the others
    const int cells = taylor_cells(k.reach(), span_b);
    if (!cells) return false;
    for_lanes(0, size, [&](int j, auto m) {
        store(a + j, load(p.k + first + j, m) - k.middle(), m);
        store(ones + j, splat(1.0f), m);
    });
    const float* weights[2] = {ones, p.v + first};
    float* values[2] = {sums, out.o + begin};
    float* slopes[2] = {nullptr, nullptr};
    exp_sums(a, weights, size, b, span_b, cells, count, values, slopes);
    for_lanes(0, count, [&](int i, auto m) {
        const V inverse = 1.0f / load(sums + i, m);
        store(out.inverse + begin + i, inverse, m);
        store(out.o + begin + i, load(out.o + begin + i, m) * inverse, m);
        store(out.top + begin + i, load(p.q + begin + i, m) * k.middle(), m);
    });
    return true;
}

// f(logits of R rows, the first of these rows, first channel, lanes) for a block of L rows: sums of R rows stay in
// registers
template <class F>
inline void for_logits(const ScsaPlan& plan, const Projections& p, int first, const float* q_block, F&& f) {
    constexpr int R = L / 2;
    for (int r0 = 0; r0 < L; r0 += R)
        for_lanes(first, first + plan.channels / plan.head_num, [&](int c, auto m) {
            V s[R];
            logits(q_block + r0, p.k + c, plan.channels, plan.pooled, m, s);
            f(s, r0, c, m);
        });
}

// Sums over a head's channels for a block of L rows: of weight(logits, row), and of that times v
template <class F>
inline void weighted_sums(const ScsaPlan& plan, const Projections& p, int first, const float* q_block, F&& weight,
                          V& denominator, V& output) {
    V sums[2][L] = {};
    for_logits(plan, p, first, q_block, [&](const auto& s, int r0, int c, auto m) {
        const V v = load(p.v + c, m);
        for (int r = 0; r < L / 2; ++r) {
            const V e = keep(weight(s[r], r0 + r), m);
            sums[0][r0 + r] += e;
            sums[1][r0 + r] += e * v;
        }
    });
    denominator = sum_rows(sums[0]);
    output = sum_rows(sums[1]);
}

// The rows named, at most L, of a head whose logits are all within exp2's range; scratch: N * L floats
inline void attend_rows(const ScsaPlan& plan, const Projections& p, int first, const int* rows, int count,
                        const AttentionRows& out, float* scratch) {
    fetch_rows(plan, p.q, rows, count, scratch);
    V denominator, output;
    weighted_sums(plan, p, first, scratch, [](V s, int) { return exp2_bounded(s); }, denominator, output);
    const V inverse = 1.0f / denominator;
    output *= inverse;
    for (int r = 0; r < count; ++r) {
        out.inverse[rows[r]] = inverse[r];
        out.o[rows[r]] = output[r];
        out.top[rows[r]] = 0.0f;
    }
}

// One head's rows by how large their logits can be: |q_i| times the largest |k_j|
struct SmallLogits {
    int first, size, pixels;
    const float* squares;  // [size], |q_i|^2 in base 2
    float k_square, most;  // of natural logits: the largest |k_j|^2, and logit

    SmallLogits(const ScsaPlan& plan, const Projections& p, int first, int size, float* scratch)
        : first(first),
          size(size),
          pixels(plan.pooled),
          squares(scratch) {
        const int64_t C = plan.channels;
        V largest_k{}, largest_q{};
        for_lanes(0, size, [&](int i, auto m) {
            V s{};
            for (int n = 0; n < pixels; ++n) {
                const V q = load(p.q + n * C + first + i, m);
                s += q * q;
            }
            store(scratch + i, s, m);
            largest_q = max(s, largest_q);
            largest_k = max(load(p.bound + first + i, m), largest_k);
        });
        k_square = largest(largest_k) * (kLn2 * kLn2);
        most = __builtin_sqrtf(largest(largest_q) * k_square);
    }

    bool beyond(int i, float bound) const { return squares[i] * k_square > bound * bound; }

    // The bound up to which monomials pay, where these and a pair of channels take so many instructions of a channel;
    // -1 where all rows directly are cheaper. With `slopes` a share of a row must not come near to 1.
    float bound_that_pays(int of_monomial, int of_pair, bool slopes) const {
        if (!(most < 60.0f)) return -1.0f;
        float bound = -1.0f;
        int64_t cost = int64_t{size} * of_pair * 3 / 4;  // what saves less does not pay
        for (const float wanted : {most, 0.7f, 0.4f, 0.2f}) {
            if (!(wanted <= most) || (slopes && 2.0f * wanted > __builtin_logf(static_cast<float>(size)))) continue;
            const int count = Monomials::number(pixels, wanted, slopes);
            if (!count) continue;
            int64_t now = int64_t{of_monomial} * count;
            for (int i = 0; i < size; ++i) now += beyond(i, wanted) * of_pair;
            if (now < cost) bound = wanted, cost = now;
        }
        return bound;
    }

    // f(rows, how many) for those of `range` beyond the bound, at most L at a time
    template <class F>
    void for_larger(Range range, float bound, F&& f) const {
        int rows[L], count = 0;
        for (int i = range.begin; i < range.end; ++i) {
            if (beyond(i - first, bound)) rows[count++] = i;
            if (count == L || (count && i == range.end - 1)) {
                f(rows, count);
                count = 0;
            }
        }
    }
};

// One head by monomials of its small logits, linear in its channels, and directly for the few rows whose logits may be
// larger; false where all rows directly are cheaper.
inline bool attend_by_monomials(const ScsaPlan& plan, const Projections& p, int first, int size, Range rows,
                                const AttentionRows& out, float* scratch) {
    const int64_t C = plan.channels;
    const int N = plan.pooled;
    const Range own{std::max(rows.begin, first), std::min(rows.end, first + size)};
    const SmallLogits small(plan, p, first, size, scratch + N * L);
    const float bound = small.bound_that_pays(9, N + 13, false);
    if (bound < 0.0f) return false;

    const Monomials monomials(N, ExpPolynomial(bound, kRemainder));
    float coefficients[2 * kMaxMonomials];
    monomials.moments(p.k + first, C, 1.0f, size, coefficients, [&](int j, auto m, auto& one, auto& v) {
        v = load(p.v + first + j, m);
        one = Lanes<decltype(m)>{} + 1.0f;
    });
    for_twins(own.begin, own.end, [&](int c, auto m) {
        Lanes<decltype(m)> denominator, output;
        monomials.sums(p.q + c, C, kLn2, m, coefficients, denominator, output);
        const auto inverse = reciprocal_of(denominator);
        store(out.inverse + c, inverse, m);
        store(out.o + c, output * inverse, m);
        store(out.top + c, Lanes<decltype(m)>{}, m);
    });
    small.for_larger(own, bound,
                     [&](const int* larger, int count) { attend_rows(plan, p, first, larger, count, out, scratch); });
    return true;
}

// o_i = sum_j softmax_j(q_i k_j) v_j for the rows of `range`; the maximum is sought where it is needed or kept.
// scratch: N * L floats, and 4 * C + 64
INLINE_BODY inline void attend(const ScsaPlan& plan, Range range, const Projections& p, const AttentionRows& out,
                               bool save, float* scratch) {
    const int64_t C = plan.channels;
    const int N = plan.pooled, size = plan.channels / plan.head_num;
    int expanded = -1;  // head that was done by an expansion
    for_row_blocks(plan, range, [&](Range block, int first) {
        const int i = block.begin, rows = block.end - i;
        if (i == std::max(range.begin, first) &&
            (N == 1 ? attend_by_expansion(p, first, size, range, out, scratch)
                    : attend_by_monomials(plan, p, first, size, range, out, scratch)))
            expanded = first;
        if (expanded == first) return;
        fetch_rows(plan, p.q, i, rows, scratch);
        // |logit| <= |q_i| max |k_j|: where that is small, for all rows of the block, no maximum has to be subtracted
        V q_norm{}, k_norm{};
        const int whole = i - (i - first) % L;
        for_lanes(whole, std::min(whole + L, first + size), [&](int c, auto m) {
            for (int n = 0; n < N; ++n) q_norm += load(p.q + n * C + c, m) * load(p.q + n * C + c, m);
        });
        for_lanes(first, first + size, [&](int c, auto m) { k_norm = max(load(p.bound + c, m), k_norm); });
        const bool bounded = largest(q_norm) * largest(k_norm) <= 60.0f * 60.0f && sum(q_norm) == sum(q_norm);
        V top[L];
        for (int r = 0; r < L; ++r) top[r] = splat(bounded && !save ? 0.0f : -__builtin_inff());
        if (!bounded || save) {
            for_logits(plan, p, first, scratch, [&](const auto& s, int r0, int, auto m) {
                for (int r = 0; r < L / 2; ++r)
                    top[r0 + r] = max(top[r0 + r], lanes(m) == L ? s[r] : splat(largest(s[r], lanes(m))));
            });
            for (int r = 0; r < L; ++r) top[r] = splat(largest(top[r]));
        }
        V denominator, output;
        if (bounded)
            weighted_sums(plan, p, first, scratch, [](V s, int) { return exp2_bounded(s); }, denominator, output);
        else weighted_sums(plan, p, first, scratch, [&](V s, int r) { return exp2(s - top[r]); }, denominator, output);
        const Tail tail(rows);
        V tops;
        for (int r = 0; r < L; ++r) tops[r] = top[r][0];
        const V inverse = 1.0f / denominator;
        store(out.inverse + i, bounded ? inverse * exp2(tops) : inverse, tail);
        store(out.o + i, output * inverse, tail);
        store(out.top + i, tops, tail);
    });
}

}  // namespace fastattn::FASTATTN_ISA
