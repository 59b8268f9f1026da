// Backward of attention.h: rows of the softmax are formed again from the saved maximum and denominator.
#pragma once

#include "attention.h"

namespace fastattn::FASTATTN_ISA {

// The rows of each head in chunks that a team divides, however large it is: sums over the rows are always the same
// ones.
struct Chunks {
    int size, rows, per_head, count;  // channels of a head, rows of a chunk, chunks

    explicit Chunks(const ScsaPlan& plan) : size(plan.channels / plan.head_num) {
        const int wanted = std::max(1, 16 / plan.head_num);
        rows = static_cast<int>(round_up((size + wanted - 1) / wanted, 16));
        per_head = (size + rows - 1) / rows;
        count = per_head * plan.head_num;
    }
    Range of(int chunk) const {
        const int first = chunk / per_head * size, begin = first + chunk % per_head * rows;
        return {begin, std::min(begin + rows, first + size)};
    }
};

// What the chunks of one place in their heads add to the channels
struct AttentionPartials {
    float* k;  // [N][C], gradient of k, times log2(e)
    float* v;  // [C]

    static int64_t size(const ScsaPlan& plan) { return (int64_t{plan.pooled} + 1) * plan.channels + 32; }
    AttentionPartials(const ScsaPlan& plan, float* memory)
        : k(memory),
          v(memory + int64_t{plan.pooled} * plan.channels) {}
};

// Those of all places
struct HeadPartials {
    float* memory;
    int places;

    static int64_t size(const ScsaPlan& plan) { return Chunks(plan).per_head * AttentionPartials::size(plan); }
    AttentionPartials of(const ScsaPlan& plan, int place) const {
        return {plan, memory + place * AttentionPartials::size(plan)};
    }
};

// Floats of scratch for attend and attend_backward
inline int64_t attention_scratch(const ScsaPlan& plan) {
    return 2 * int64_t{plan.pooled} * L + 14 * round_up(plan.channels, 16);
}

// Whether one head with one pixel can be expanded, and how
struct BackwardExpansion {
    Span k, a, b;  // of k, of k - middle, of natural logits' factors
    int row_cells, channel_cells;
    bool holds;

    BackwardExpansion(const Projections& p, int first, int size)
        : k(span(p.k + first, size)),
          a(k - k.middle()),
          b(span(p.q + first, size) * kLn2),
          row_cells(taylor_cells(k.reach(), b)),
          channel_cells(taylor_cells(b.reach(), a)) {
        const bool peaked = 2.0f * k.reach() * std::max(-b.low, b.high) > __builtin_logf(static_cast<float>(size));
        holds = row_cells && channel_cells && !peaked;  // v - o would cancel in a row that is nearly one-hot
    }
};

// One head with one pixel
inline void attend_backward_by_expansion(const ScsaPlan& plan, const Projections& p, int first, int size,
                                         const BackwardExpansion& expansion, const AttentionRows& saved,
                                         const float* d_o, float* dq, const AttentionPartials& out, float* scratch) {
    Bump bump(scratch);
    float* a = bump.take(size);  // k - middle
    float* ones = bump.take(size);
    float* v = bump.take(size);        // v - middle
    float* b = bump.take(size);        // natural logits are b_i (k_j - middle), up to a term of row i
    float* shifted = bump.take(size);  // b - middle
    float* w0 = bump.take(size);       // share of exp(a_j b_i) in the softmax, times d_o
    float* w1 = bump.take(size);       // and times o - middle of v
    float *s0 = bump.take(size), *s1 = bump.take(size), *d0 = bump.take(size), *d1 = bump.take(size);
    const Span &span_k = expansion.k, &span_a = expansion.a, &span_b = expansion.b, span_v = span(p.v + first, size);
    for_lanes(0, size, [&](int j, auto m) {
        store(a + j, load(p.k + first + j, m) - span_k.middle(), m);
        store(v + j, load(p.v + first + j, m) - span_v.middle(), m);
        store(ones + j, splat(1.0f), m);
    });
    for_lanes(0, size, [&](int i, auto m) { store(b + i, load(p.q + first + i, m) * kLn2, m); });

    // dq_i = scale * sum_j t_ij (k_j - middle), t_ij = softmax_ij d_o_i (v_j - o_i); the rows of t sum to zero
    const float* by_value[2] = {ones, v};
    float *sums[2] = {s0, s1}, *slopes[2] = {d0, d1};
    exp_sums(a, by_value, size, b, span_b, expansion.row_cells, size, sums, slopes);
    const float scale = logit_scale(plan);
    for_lanes(0, size, [&](int i, auto m) {
        const int row = first + i;
        const V share =
            load(saved.inverse + row, m) * exp2(load(p.q + row, m) * span_k.middle() - load(saved.top + row, m));
        const V w = share * load(d_o + row, m), o = load(saved.o + row, m) - span_v.middle();
        store(dq + row, w * (load(d1 + i, m) - o * load(d0 + i, m)) * scale, m);
        store(w0 + i, w, m);
        store(w1 + i, w * o, m);
        store(shifted + i, load(b + i, m) - span_b.middle(), m);
    });

    // the same sums over rows: dv_j = sum_i softmax_ij d_o_i, dk_j = sum_i t_ij b_i
    const float* by_row[2] = {w0, w1};
    exp_sums(shifted, by_row, size, a, span_a, expansion.channel_cells, size, sums, slopes);
    for_lanes(0, size, [&](int j, auto m) {
        const V e = exp2(load(a + j, m) * (span_b.middle() * kLog2e));
        const V g0 = load(s0 + j, m) * e, g1 = load(s1 + j, m) * e;
        const V b0 = load(d0 + j, m) * e + g0 * span_b.middle(), b1 = load(d1 + j, m) * e + g1 * span_b.middle();
        float *dv = out.v + first + j, *dk = out.k + first + j;
        store(dv, g0, m);
        store(dk, (load(v + j, m) * b0 - b1) * kLog2e, m);
    });
}

// Rows of one head, at most L, and what they add to all its channels: sums that start with them, or go on
struct RowBlock {
    const int* rows;
    int count, first;
    bool starts;
};

// dq [N][C] of these rows; scratch: 2 * N * L floats
INLINE_BODY inline void attend_rows_backward(const ScsaPlan& plan, const RowBlock& block, const Projections& p,
                                             const AttentionRows& saved, const float* d_o, float* dq,
                                             const AttentionPartials& out, float* scratch) {
    const int64_t C = plan.channels;
    const int N = plan.pooled, first = block.first, end = first + plan.channels / plan.head_num;
    float* q = scratch;                 // [N][L]
    float* dq_block = scratch + N * L;  // [N][L]
    fetch_rows(plan, p.q, block.rows, block.count, q);
    std::fill(dq_block, dq_block + N * L, 0.0f);
    // zero behind the last row; o + o_rest is the attention output to more than fp32
    float top[L] = {}, inverse[L] = {}, weight[L] = {}, o[L] = {}, o_rest[L] = {};
    for (int r = 0; r < block.count; ++r) {
        const int i = block.rows[r];
        top[r] = saved.top[i], inverse[r] = saved.inverse[i], o[r] = saved.o[i];
        weight[r] = inverse[r] * d_o[i];
    }
    if (!(largest(load(inverse)) <= 0.5f)) {  // a row is nearly one-hot: v - o cancels there
        V denominator[L] = {}, rest[L] = {};
        for_lanes(first, end, [&](int c, auto m) {
            V s[L];
            logits(q, p.k + c, C, N, m, s);
            const V v = load(p.v + c, m);
            for (int r = 0; r < L; ++r) {
                const V e = keep(exp2(s[r] - top[r]), m);
                denominator[r] += e;
                rest[r] += e * (v - o[r]);
            }
        });
        store(o_rest, sum_rows(rest) / sum_rows(denominator));
    }
    for_lanes(first, end, [&](int c, auto m) {
        V t[L];
        logits(q, p.k + c, C, N, m, t);
        const V v = load(p.v + c, m);
        V dv = block.starts ? V{} : load(out.v + c, m);
        for (int r = 0; r < L; ++r) {
            const V e = exp2(t[r] - top[r]) * weight[r];
            dv += e;
            t[r] = keep(e * (v - o[r] - o_rest[r]), m);
        }
        store(out.v + c, dv, m);
        for (int n = 0; n < N; ++n) {
            V dk = block.starts ? V{} : load(out.k + n * C + c, m);
            for (int r = 0; r < L; ++r) dk += t[r] * q[n * L + r];
            store(out.k + n * C + c, dk, m);
        }
        transpose(t);
        for (int n = 0; n < N; ++n) {
            V s = load(dq_block + n * L);
            const float* k = p.k + n * C + c;
            if (lanes(m) == L)
                for (int j = 0; j < L; ++j) s += t[j] * k[j];
            else
                for (int j = 0; j < lanes(m); ++j) s += t[j] * k[j];
            store(dq_block + n * L, s);
        }
    });
    const float scale = logit_scale(plan);
    for (int n = 0; n < N; ++n)
        for (int r = 0; r < block.count; ++r) dq[n * C + block.rows[r]] = dq_block[n * L + r] * scale;
}

// The same of one chunk's rows
inline void attend_chunk_backward(const ScsaPlan& plan, Range chunk, const Projections& p, const AttentionRows& saved,
                                  const float* d_o, float* dq, const AttentionPartials& out, float* scratch) {
    for_row_blocks(plan, chunk, [&](Range block, int first) {
        int rows[L];
        for (int i = block.begin; i < block.end; ++i) rows[i - block.begin] = i;
        const RowBlock these{rows, block.end - block.begin, first, block.begin == chunk.begin};
        attend_rows_backward(plan, these, p, saved, d_o, dq, out, scratch);
    });
}

// One head by monomials of its small logits, and directly for the few rows whose logits may be larger. With u_i =
// d_o_i / sum_j exp(q_i k_j), dq_i is the slope at q_i of u_i sum_j exp(q k_j) (v_j - o_i), dk_j that at k_j of
// sum_i u_i exp(q_i k) (v_j - o_i), and dv_j = sum_i u_i exp(q_i k_j). scratch: 2 * N * L and 2 * C + 32 floats
inline void attend_backward_by_monomials(const ScsaPlan& plan, const Projections& p, const SmallLogits& small,
                                         float bound, const AttentionRows& saved, const float* d_o, float* dq,
                                         const AttentionPartials& out, float* scratch) {
    const int64_t C = plan.channels;
    const int N = plan.pooled, first = small.first, size = small.size;
    const Monomials monomials(N, ExpPolynomial(bound, kSlopeRemainder).integral());
    const float middle = span(p.v + first, size).middle();
    float coefficients[2 * kMaxMonomials];
    Bump bump(scratch);
    float *u = bump.take(size), *o = bump.take(size);  // zero for rows that are done directly; o - middle

    monomials.moments(p.k + first, C, 1.0f, size, coefficients, [&](int j, auto m, auto& v, auto& one) {
        v = load(p.v + first + j, m) - middle;
        one = Lanes<decltype(m)>{} + 1.0f;
    });
    const float scale = logit_scale(plan);
    for_twins(0, size, [&](int i, auto m) {
        const int row = first + i;
        Lanes<decltype(m)> slopes[kMaxMonomials];
        const auto mine = load(saved.o + row, m) - middle;
        const auto share = load(saved.inverse + row, m) * exp2(load(saved.top + row, m) * -1.0f) * load(d_o + row, m);
        monomials.slopes(
            p.q + row, C, kLn2, m, coefficients, [&](auto weighted, auto plain) { return weighted - mine * plain; },
            slopes);
        for (int n = 0; n < N; ++n) store(dq + n * C + row, slopes[n] * share * scale, m);
        store(u + i, share, m);
        store(o + i, mine, m);
    });
    for (int i = 0; i < size; ++i)
        if (small.beyond(i, bound)) u[i] = 0.0f;

    monomials.moments(p.q + first, C, kLn2, size, coefficients, [&](int i, auto m, auto& share, auto& by_o) {
        share = load(u + i, m);
        by_o = share * load(o + i, m);
    });
    for_twins(first, first + size, [&](int c, auto m) {
        Lanes<decltype(m)> slopes[kMaxMonomials];
        const auto v = load(p.v + c, m) - middle;
        const auto dv = monomials.slopes(
            p.k + c, C, 1.0f, m, coefficients, [&](auto plain, auto by_o) { return v * plain - by_o; }, slopes);
        store(out.v + c, dv, m);
        for (int n = 0; n < N; ++n) store(out.k + n * C + c, slopes[n] * kLog2e, m);
    });
    float* block = bump.take(2 * N * L);
    small.for_larger({first, first + size}, bound, [&](const int* rows, int count) {
        attend_rows_backward(plan, {rows, count, first, false}, p, saved, d_o, dq, out, block);
    });
}

// The same of several chunks
inline void attend_backward(const ScsaPlan& plan, Range range, const Projections& p, const AttentionRows& saved,
                            const float* d_o, float* dq, const HeadPartials& partials, float* scratch) {
    const Chunks chunks(plan);
    for (int begin = range.begin, end; begin < range.end; begin = end) {  // of one head
        const int first = begin / chunks.per_head * chunks.size;
        end = std::min(range.end, (begin / chunks.per_head + 1) * chunks.per_head);
        const auto each = [&](auto&& f) {
            for (int i = begin; i < end; ++i) f(i, partials.of(plan, i % chunks.per_head));
        };
        const auto first_for_all = [&](auto&& f) {  // the head's first chunk stands for all
            each([&](int i, const AttentionPartials& out) {
                if (i % chunks.per_head == 0) return f(out);
                for (int n = 0; n <= plan.pooled; ++n) {  // of k, and of v behind it
                    float* sums = out.k + int64_t{n} * plan.channels + first;
                    std::fill(sums, sums + chunks.size, 0.0f);
                }
            });
        };
        if (plan.pooled == 1) {
            const BackwardExpansion expansion(p, first, chunks.size);
            if (expansion.holds) {
                first_for_all([&](const AttentionPartials& out) {
                    attend_backward_by_expansion(plan, p, first, chunks.size, expansion, saved, d_o, dq, out, scratch);
                });
                continue;
            }
        } else {
            const SmallLogits small(plan, p, first, chunks.size, scratch);
            // instructions of a channel: for a monomial, for a pair
            const float bound = small.bound_that_pays(22, 3 * plan.pooled + 18, true);
            if (bound >= 0.0f) {
                first_for_all([&](const AttentionPartials& out) {
                    attend_backward_by_monomials(plan, p, small, bound, saved, d_o, dq, out,
                                                 scratch + round_up(chunks.size, 16));
                });
                continue;
            }
        }
        each([&](int i, const AttentionPartials& out) {
            attend_chunk_backward(plan, chunks.of(i), p, saved, d_o, dq, out, scratch);
        });
    }
}

// From dq, and the partials for k and v: the gradient of the normalised map's scaled form (takes dq's place), its sums
// per channel for the GroupNorm, and parameter gradients (null: not needed).
INLINE_BODY inline void project_backward(const ScsaPlan& plan, Range range, const ScsaParams& p, const float* y,
                                         const PooledStatistics& statistics, const Projections& projected,
                                         const HeadPartials& partials, float* dq, float* sum_dy, float* sum_dy_y,
                                         const ScsaParams* grads) {
    const int64_t C = plan.channels;
    const int N = plan.pooled;
    for_lanes(range.begin, range.end, [&](int c, auto m) {
        const V rstd = splat(projected.rstd);
        const V weight = load(p.norm_weight + c, m), bias = load(p.norm_bias + c, m);
        const V wq = load(p.q_weight + c, m), wk = load(p.k_weight + c, m), wv = load(p.v_weight + c, m);
        V dv{};
        for (int i = 0; i < partials.places; ++i) dv += load(partials.of(plan, i).v + c, m);
        const V from_v = dv * wv * (1.0f / N);
        V q1{}, q0{}, k1{}, k0{}, s0{}, s1{};
        for (int n = 0; n < N; ++n) {
            const V unit = projected.centred(load(y + n * C + c, m)) * rstd, e = unit * weight + bias;
            const V q = load(dq + n * C + c, m);
            V k{};
            for (int i = 0; i < partials.places; ++i) k += load(partials.of(plan, i).k + n * C + c, m);
            k *= kLn2;
            const V d = q * wq + k * wk + from_v;
            q1 += q * e, q0 += q;
            k1 += k * e, k0 += k;
            s0 += d, s1 += d * unit;
            store(dq + n * C + c, d * weight, m);
        }
        store(sum_dy + c, s0 * weight, m);
        store(sum_dy_y + c, s1 * weight, m);
        if (!grads) return;
        const auto add = [&](float* row, V v) { store(row + c, load(row + c, m) + v, m); };
        add(grads->norm_weight, s1);
        add(grads->norm_bias, s0);
        add(grads->q_weight, q1);
        add(grads->q_bias, q0);
        add(grads->k_weight, k1);
        add(grads->k_bias, k0);
        const V mean = projected.centred(load(statistics.mean + c, m)) + load(statistics.rest + c, m);
        add(grads->v_weight, dv * (mean * rstd * weight + bias));
        add(grads->v_bias, dv);
    });
}

// The GroupNorm's backward: gradient dn [N][C] of the normalised map -> that of the map, times `scale`
inline void pooled_gradient(const ScsaPlan& plan, Range range, const float* y, const Projections& projected,
                            const float* sum_dy, const float* sum_dy_y, float scale, float* dn) {
    const int64_t C = plan.channels;
    const float count = static_cast<float>(plan.pooled) * plan.channels;
    const float m0 = sum_over(sum_dy, 0, plan.channels) / count, m1 = sum_over(sum_dy_y, 0, plan.channels) / count;
    const V factor = splat(projected.rstd * scale);
    for_lanes(range.begin, range.end, [&](int c, auto m) {
        for (int n = 0; n < plan.pooled; ++n) {
            const V unit = projected.centred(load(y + n * C + c, m)) * projected.rstd;
            store(dn + n * C + c, (load(dn + n * C + c, m) - m0 - unit * m1) * factor, m);
        }
    });
}

}  // namespace fastattn::FASTATTN_ISA
