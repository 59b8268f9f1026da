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
    return std::max<int64_t>(2 * int64_t{plan.pooled} * L, 14 * round_up(plan.channels, 16)) + 2 * kMaxMonomials;
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

// dq [N][C] of one chunk's rows, and what they add to all channels of their head
INLINE_BODY inline void attend_chunk_backward(const ScsaPlan& plan, Range chunk, const Projections& p,
                                              const AttentionRows& saved, const float* d_o, float* dq,
                                              const AttentionPartials& out, float* scratch) {
    const int64_t C = plan.channels;
    const int N = plan.pooled, size = plan.channels / plan.head_num;
    const V scale = splat(logit_scale(plan));
    for_row_blocks(plan, chunk, [&](Range block, int first) {
        const int i = block.begin, rows = block.end - i;
        const bool starts = i == chunk.begin;  // the sums
        float* q = scratch;                    // [N][L]
        float* dq_block = scratch + N * L;     // [N][L]
        fetch_rows(plan, p.q, i, rows, q);
        std::fill(dq_block, dq_block + N * L, 0.0f);
        float top[L], weight[L], o[L], o_rest[L] = {};  // o + o_rest is the attention output to more than fp32
        const Tail tail(rows);
        const V inverse = load(saved.inverse + i, tail);
        store(top, load(saved.top + i, tail));
        store(weight, inverse * load(d_o + i, tail));
        store(o, load(saved.o + i, tail));
        if (!(largest(inverse) <= 0.5f)) {  // a row is nearly one-hot: v - o cancels there
            V denominator[L] = {}, rest[L] = {};
            for_lanes(first, first + size, [&](int c, auto m) {
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
        for_lanes(first, first + size, [&](int c, auto m) {
            V t[L];
            logits(q, p.k + c, C, N, m, t);
            const V v = load(p.v + c, m);
            V dv = starts ? V{} : load(out.v + c, m);
            for (int r = 0; r < L; ++r) {
                const V e = exp2(t[r] - top[r]) * weight[r];
                dv += e;
                t[r] = keep(e * (v - o[r] - o_rest[r]), m);
            }
            store(out.v + c, dv, m);
            for (int n = 0; n < N; ++n) {
                V dk = starts ? V{} : load(out.k + n * C + c, m);
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
        for (int n = 0; n < N; ++n) store(dq + n * C + i, load(dq_block + n * L) * scale, tail);
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
        if (plan.pooled == 1) {
            const BackwardExpansion expansion(p, first, chunks.size);
            if (expansion.holds) {  // the head's first chunk stands for all
                each([&](int i, const AttentionPartials& out) {
                    if (i % chunks.per_head == 0)
                        return attend_backward_by_expansion(plan, p, first, chunks.size, expansion, saved, d_o, dq, out,
                                                            scratch);
                    for (float* sums : {out.k, out.v}) std::fill(sums + first, sums + first + chunks.size, 0.0f);
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
