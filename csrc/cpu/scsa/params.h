// The parameters of one call as fp32 vectors over channels, and their gradients in the same arrangement.
#pragma once

#include "../convolutions.h"
#include "passes.h"

namespace fastattn::FASTATTN_ISA {

// Every row has C floats. Convolution taps are [largest kernel][C], centred, zero outside a channel's own kernel.
struct ScsaParams {
    float* taps;
    float *conv_bias, *norm_h_weight, *norm_h_bias, *norm_w_weight, *norm_w_bias;
    float *norm_weight, *norm_bias, *q_weight, *k_weight, *v_weight, *q_bias, *k_bias, *v_bias;

    ScsaParams() = default;
    ScsaParams(const ScsaPlan& plan, bool, Bump& bump) { place(plan, bump.take(size(plan))); }

    void arrange(const ScsaPlan& plan, Sums& sums) { place(plan, sums.floats(size(plan))); }
    // One thread's part
    void read(const ScsaPlan& plan, const void* const* tensors, int thread, int threads) const;
    void write(const ScsaPlan& plan, void* const* tensors, int thread, int threads) const;

private:
    static int64_t size(const ScsaPlan& plan) { return (int64_t{plan.largest_kernel} + 13) * plan.channels; }

    void place(const ScsaPlan& plan, float* memory) {
        const int64_t C = plan.channels;
        taps = memory;
        float** vectors[] = {&conv_bias,   &norm_h_weight, &norm_h_bias, &norm_w_weight, &norm_w_bias,
                             &norm_weight, &norm_bias,     &q_weight,    &k_weight,      &v_weight,
                             &q_bias,      &k_bias,        &v_bias};
        float* next = memory + plan.largest_kernel * C;
        for (float** v : vectors) *v = next, next += C;
    }
};

// f(rows of p, index in the call's list, channel of the tensor's first element, channels of it in `range`, kernel size
// or 0)
template <class F>
inline void for_tensors(const ScsaPlan& plan, const ScsaParams& p, Range range, F&& f) {
    int index = 0;
    const auto tensor = [&](float* v, int first, int count, int kernel) {
        const Range part{std::max(range.begin, first), std::min(range.end, first + count)};
        if (part.begin < part.end) f(v, index, first, part, kernel);
        ++index;
    };
    if (plan.spatial) {
        const int group = plan.channels / 4;
        for (int i = 0; i < 4; ++i) {
            const int kernel = plan.kernel_sizes[i];
            tensor(p.taps + (plan.largest_kernel - kernel) / 2 * int64_t{plan.channels}, i * group, group, kernel);
        }
        for (int i = 0; i < 4; ++i) tensor(p.conv_bias, i * group, group, 0);
        for (float* v : {p.norm_h_weight, p.norm_h_bias, p.norm_w_weight, p.norm_w_bias})
            tensor(v, 0, plan.channels, 0);
    }
    if (plan.channel) {
        for (float* v : {p.norm_weight, p.norm_bias, p.q_weight, p.k_weight, p.v_weight})
            tensor(v, 0, plan.channels, 0);
        if (plan.qkv_bias)
            for (float* v : {p.q_bias, p.k_bias, p.v_bias}) tensor(v, 0, plan.channels, 0);
    }
}

inline void ScsaParams::read(const ScsaPlan& plan, const void* const* tensors, int thread, int threads) const {
    const int64_t C = plan.channels;
    const Range range = slice(plan.channels, thread, threads);
    if (plan.spatial)
        for (int t = 0; t < plan.largest_kernel; ++t)
            std::fill(taps + t * C + range.begin, taps + t * C + range.end, 0.0f);
    if (plan.channel && !plan.qkv_bias)
        for (float* v : {q_bias, k_bias, v_bias}) std::fill(v + range.begin, v + range.end, 0.0f);
    with_element(plan.param_dtype, [&](auto element) {
        for_tensors(plan, *this, range, [&](float* v, int index, int first, Range part, int kernel) {
            const auto* src = static_cast<const typename decltype(element)::type*>(tensors[index]);
            if (!kernel)
                return for_lanes(part.begin, part.end,
                                 [&](int c, auto m) { store(v + c, load(src + (c - first), m), m); });
            for (int c = part.begin; c < part.end; ++c)
                for (int t = 0; t < kernel; ++t) v[t * C + c] = load_one(src + int64_t{c - first} * kernel + t);
        });
    });
}

inline void ScsaParams::write(const ScsaPlan& plan, void* const* tensors, int thread, int threads) const {
    const int64_t C = plan.channels;
    const Range range = slice(plan.channels, thread, threads);
    with_element(plan.param_dtype, [&](auto element) {
        for_tensors(plan, *this, range, [&](const float* v, int index, int first, Range part, int kernel) {
            auto* dst = static_cast<typename decltype(element)::type*>(tensors[index]);
            if (!kernel)
                return for_lanes(part.begin, part.end,
                                 [&](int c, auto m) { store(dst + (c - first), load(v + c, m), m); });
            for (int c = part.begin; c < part.end; ++c)
                for (int t = 0; t < kernel; ++t) store_one(dst + int64_t{c - first} * kernel + t, v[t * C + c]);
        });
    });
}

}  // namespace fastattn::FASTATTN_ISA
