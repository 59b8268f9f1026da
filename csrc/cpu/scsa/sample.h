// How the work is split, and the buffers of one sample.
#pragma once

#include "attention_backward.h"
#include "narrow.h"
#include "nchw.h"

namespace fastattn::FASTATTN_ISA {

// What a worker writes of a map of the sample. Waits for the team where that needs the others' results.
struct Share {
    Range channels, rows;
};

template <class Passes>
inline Share written_share(const ScsaPlan& plan, Range range, Team team) {
    if (!Passes::kWritesByRows || !team.shared) return {range, {0, plan.height}};
    team.sync();
    const auto edge = [&](int64_t rank) { return static_cast<int>(plan.height * rank / team.size); };
    return {{0, plan.channels}, {edge(team.rank), edge(team.rank + 1)}};
}

// f(passes, element type) for the plan's memory format and dtype
template <class F>
inline void with_passes(const ScsaPlan& plan, F&& f) {
    const auto call = [&](auto element) {
        using T = typename decltype(element)::type;
        if (plan.channels_last) f(Type<Nhwc<T>>{}, element);
        else if (Narrow<T>::serves(plan)) f(Type<Narrow<T>>{}, element);
        else f(Type<Nchw<T>>{}, element);
    };
    with_element(plan.dtype, call);
}

// Buffers of one sample, shared by its team
struct Sample {
    float *mean_h, *mean_w;  // [H][C], [W][C]
    float* y;                // [N][C]
    int32_t* argmax;         // [N][C], null unless max pooling
    AttentionRows rows;
    Axis h, w;
    PooledStatistics statistics;
    float* g;  // [C], channel gate

    static int64_t size(const ScsaPlan& plan) {
        const int64_t gates = 2 * (int64_t{plan.height} + plan.width) + 8;
        return plan.saved_size() + (gates + 4) * plan.channels + 32 * 16;
    }

    // `saved` (null: no such buffer) holds what forward keeps for backward; backward needs u beside a.
    Sample(const ScsaPlan& plan, const ScsaParams& p, Bump& bump, float* saved, bool keep_convolution) {
        const int64_t C = plan.channels;
        const auto keep = [&](int64_t rows) {
            if (!saved) return bump.take(rows * C);
            float* piece = saved;
            saved += rows * C;
            return piece;
        };
        const auto axis = [&](int length, const float* mean, const float* weight, const float* bias) {
            float* u = bump.take(length * C);
            float* a = keep_convolution ? bump.take(length * C) : u;
            return Axis{length, mean, u, a, bump.take(C), bump.take(C), bump.take(C), bump.take(C), weight, bias};
        };
        if (plan.spatial) {
            mean_h = keep(plan.height);
            mean_w = keep(plan.width);
        }
        argmax = nullptr;
        if (plan.channel) {
            y = keep(plan.pooled);
            if (plan.max_pool) argmax = reinterpret_cast<int32_t*>(keep(plan.pooled));
            rows.o = keep(1);
            rows.top = keep(1);
            rows.inverse = keep(1);
        }
        h = w = Axis{};
        if (plan.spatial) {
            h = axis(plan.height, mean_h, p.norm_h_weight, p.norm_h_bias);
            w = axis(plan.width, mean_w, p.norm_w_weight, p.norm_w_bias);
        }
        statistics = {bump.take(C), bump.take(C), bump.take(C)};
        g = plan.channel ? bump.take(C) : nullptr;
    }
};

// g = gate(o) for the channels of `range`
inline void channel_gate(const ScsaPlan& plan, Range range, const float* o, float* g) {
    if (!plan.softmax_gate) {
        for_lanes(range.begin, range.end, [&](int c, auto m) { store(g + c, sigmoid(load(o + c, m)), m); });
        return;
    }
    V top = splat(-__builtin_inff());
    for_lanes(0, plan.channels, [&](int c, auto m) { top = max(top, splat(largest(load(o + c, m), lanes(m)))); });
    const auto share = [&](int c, auto m) { return exp(load(o + c, m) - top); };
    V total{};
    for_lanes(0, plan.channels, [&](int c, auto m) { total += keep(share(c, m), m); });
    const V inverse = splat(1.0f / sum(total));
    for_lanes(range.begin, range.end, [&](int c, auto m) { store(g + c, share(c, m) * inverse, m); });
}

}  // namespace fastattn::FASTATTN_ISA
