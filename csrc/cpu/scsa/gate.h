// SMSA's gate along one axis: depthwise multi-scale convolution, GroupNorm(4), sigmoid or softmax, and its backward.
// Everything is [length][C] with lanes along channels, the same for both memory formats.
#pragma once

#include "params.h"

namespace fastattn::FASTATTN_ISA {

constexpr float kEps = 1e-5f;  // of every GroupNorm

// One axis of one sample. Statistics are [C] each.
struct Axis {
    int length;
    const float* mean;                 // [length][C], mean of x over the other axis
    float* u;                          // [length][C], convolution output
    float* a;                          // [length][C], gate; may be u itself where u is not needed later
    float *channel_mean, *channel_m2;  // [C], of u: mean, and sum of squared deviations from it
    float *center, *rstd;              // [C], statistics of each channel's group
    const float *weight, *bias;        // [C], of the normalisation
};

// The kernel radius that the channels [c, c + n) need.
inline int radius(const ScsaPlan& plan, int c, int n) {
    const int group = plan.channels / 4;
    int k = 1;
    for (int i = c / group; i <= (c + n - 1) / group; ++i) k = std::max(k, plan.kernel_sizes[i]);
    return k / 2;
}

// u = conv(mean) + bias, and its statistics per channel
INLINE_BODY inline void convolve(const ScsaPlan& plan, const ScsaParams& p, Range range, const Axis& axis) {
    const int64_t C = plan.channels;
    const int n = axis.length, middle = plan.largest_kernel / 2;
    for_lanes(range.begin, range.end, [&](int c, auto m) {
        const int reach = radius(plan, c, std::min(L, range.end - c));
        const V bias = load(p.conv_bias + c, m);
        const auto rows = [&](auto fixed) {
            const int r = fixed.value ? fixed.value : reach;
            const float* taps = p.taps + (middle - r) * C + c;
            V tap[2 * fixed.value + 1];
            if constexpr (fixed.value > 0)
                for (int t = 0; t <= 2 * fixed.value; ++t) tap[t] = load(taps + t * C, m);
            V total{};
            for (int i = 0; i < n; ++i) {
                V s = bias;
                const float* src = axis.mean + (i - r) * C + c;
                if (fixed.value && i >= r && i + r < n) {
                    for (int t = 0; t <= 2 * fixed.value; ++t) s += tap[t] * load(src + t * C, m);
                } else {
                    for (int t = std::max(0, r - i); t <= std::min(2 * r, n - 1 - i + r); ++t)
                        s += load(taps + t * C, m) * load(src + t * C, m);
                }
                store(axis.u + i * C + c, s, m);
                total += s;
            }
            const V mean = total * (1.0f / n);
            V m2{};
            for (int i = 0; i < n; ++i) {
                const V e = load(axis.u + i * C + c, m) - mean;
                m2 += e * e;
            }
            store(axis.channel_mean + c, mean, m);
            store(axis.channel_m2 + c, m2, m);
        };
        switch (reach) {
            case 1: rows(std::integral_constant<int, 1>{}); break;
            case 2: rows(std::integral_constant<int, 2>{}); break;
            case 3: rows(std::integral_constant<int, 3>{}); break;
            case 4: rows(std::integral_constant<int, 4>{}); break;
            default: rows(std::integral_constant<int, 0>{});
        }
    });
}

inline float sum_over(const float* v, int begin, int end) {
    V s{};
    for_lanes(begin, end, [&](int c, auto m) { s += load(v + c, m); });
    return sum(s);
}

// Mean and 1 / standard deviation over the channels [begin, end), from `count` values per channel.
inline void merge_statistics(const float* channel_mean, const float* channel_m2, int begin, int end, int count,
                             float* mean, float* rstd) {
    const float mu = sum_over(channel_mean, begin, end) / (end - begin);
    V s{};
    for_lanes(begin, end, [&](int c, auto m) {
        const V e = keep(load(channel_mean + c, m) - mu, m);
        s += load(channel_m2 + c, m) + e * e * static_cast<float>(count);
    });
    const float variance = sum(s) / (static_cast<float>(count) * (end - begin));
    *mean = mu;
    *rstd = 1.0f / __builtin_sqrtf(variance + kEps);
}

// f(first, last) for the part of each of the four groups that `range` holds, and the group's own bounds
template <class F>
inline void for_groups(const ScsaPlan& plan, Range range, F&& f) {
    const int group = plan.channels / 4;
    for (int i = 0; i < 4; ++i) {
        const Range part{std::max(range.begin, i * group), std::min(range.end, (i + 1) * group)};
        if (part.begin < part.end) f(part, Range{i * group, (i + 1) * group});
    }
}

// a = gate(GroupNorm(u)); the channel statistics of all groups that `range` touches must be there
INLINE_BODY inline void normalize_and_gate(const ScsaPlan& plan, Range range, const Axis& axis) {
    const int64_t C = plan.channels;
    for_groups(plan, range, [&](Range part, Range group) {
        float mean, rstd;
        merge_statistics(axis.channel_mean, axis.channel_m2, group.begin, group.end, axis.length, &mean, &rstd);
        std::fill(axis.center + part.begin, axis.center + part.end, mean);
        std::fill(axis.rstd + part.begin, axis.rstd + part.end, rstd);
    });
    for_lanes(range.begin, range.end, [&](int c, auto m) {
        const V center = load(axis.center + c, m), scale = load(axis.rstd + c, m) * load(axis.weight + c, m),
                bias = load(axis.bias + c, m);
        float* a = axis.a + c;
        const auto logit = [&](int i) { return (load(axis.u + i * C + c, m) - center) * scale + bias; };
        if (!plan.softmax_gate) {
            for (int i = 0; i < axis.length; ++i) store(a + i * C, sigmoid(logit(i)), m);
            return;
        }
        V top = splat(-__builtin_inff()), total{};
        for (int i = 0; i < axis.length; ++i) top = max(top, logit(i));
        for (int i = 0; i < axis.length; ++i) {
            const V e = exp(logit(i) - top);
            total += e;
            store(a + i * C, e, m);
        }
        for (int i = 0; i < axis.length; ++i) store(a + i * C, load(a + i * C, m) / total, m);
    });
}

// Gradients of one axis. `da` [length][C] comes in; the gradient of the axis mean takes its place at the end.
struct AxisGradient {
    float* da;
    float *sum_dy, *sum_dy_y;  // [C]: sums of dû and dû û over the length
    float *weight, *bias;      // [C], accumulated gradients of the normalisation; null where not needed
};

// da -> dû (gradient of the normalised convolution output), with its sums per channel
INLINE_BODY inline void gate_backward(const ScsaPlan& plan, Range range, const Axis& axis, const AxisGradient& grad) {
    const int64_t C = plan.channels;
    for_lanes(range.begin, range.end, [&](int c, auto m) {
        const V center = load(axis.center + c, m), rstd = load(axis.rstd + c, m), weight = load(axis.weight + c, m);
        const float *u = axis.u + c, *a = axis.a + c;
        float* d = grad.da + c;
        V dot{};
        if (plan.softmax_gate)
            for (int i = 0; i < axis.length; ++i) dot += load(a + i * C, m) * load(d + i * C, m);
        V s0{}, s1{};
        for (int i = 0; i < axis.length; ++i) {
            const V g = load(a + i * C, m), y = (load(u + i * C, m) - center) * rstd;
            const V dz = plan.softmax_gate ? g * (load(d + i * C, m) - dot) : load(d + i * C, m) * (g * (1.0f - g));
            s0 += dz;
            s1 += dz * y;
            store(d + i * C, dz * weight, m);
        }
        if (plan.softmax_gate) s0 *= 0.0f;  // zero but for rounding, or NaN
        store(grad.sum_dy + c, s0 * weight, m);
        store(grad.sum_dy_y + c, s1 * weight, m);
        if (grad.weight) {
            store(grad.weight + c, load(grad.weight + c, m) + s1, m);
            store(grad.bias + c, load(grad.bias + c, m) + s0, m);
        }
    });
}

// dû -> gradient of the axis mean times `scale`; accumulates the gradients of taps and bias. `du` [length][C] is room
// to work in.
INLINE_BODY inline void convolve_backward(const ScsaPlan& plan, const ScsaParams& p, Range range, const Axis& axis,
                                          const AxisGradient& grad, float scale, float* du,
                                          const ScsaParams* param_grads) {
    const int64_t C = plan.channels;
    const int n = axis.length, middle = plan.largest_kernel / 2;
    float* mean_dy = axis.channel_mean;  // no longer needed
    float* mean_dy_y = axis.channel_m2;
    for_groups(plan, range, [&](Range part, Range group) {
        const float count = static_cast<float>(n) * (group.end - group.begin);
        std::fill(mean_dy + part.begin, mean_dy + part.end, sum_over(grad.sum_dy, group.begin, group.end) / count);
        std::fill(mean_dy_y + part.begin, mean_dy_y + part.end,
                  sum_over(grad.sum_dy_y, group.begin, group.end) / count);
    });
    for_lanes(range.begin, range.end, [&](int c, auto m) {
        const int r = radius(plan, c, std::min(L, range.end - c));
        const V center = load(axis.center + c, m), rstd = load(axis.rstd + c, m);
        const V m0 = load(mean_dy + c, m), m1 = load(mean_dy_y + c, m) * rstd;
        V deviation{};
        for (int i = 0; i < n; ++i) {
            const V e = load(axis.u + i * C + c, m) - center;
            deviation += e;
            store(du + i * C + c, rstd * (load(grad.da + i * C + c, m) - m0 - e * m1), m);
        }
        const V total = rstd * (load(grad.sum_dy + c, m) - m0 * static_cast<float>(n) - deviation * m1);  // of du
        const int64_t first = (middle - r) * C + c;  // of the taps in use
        for (int i = 0; i < n; ++i) {
            V s{};
            for (int t = std::max(0, i + r - n + 1); t <= std::min(2 * r, i + r); ++t)
                s += load(p.taps + first + t * C, m) * load(du + (i + r - t) * C + c, m);
            store(grad.da + i * C + c, s * scale, m);
        }
        if (!param_grads) return;
        store(param_grads->conv_bias + c, load(param_grads->conv_bias + c, m) + total, m);
        for (int t = 0; t <= 2 * r; ++t) {
            V s{};
            for (int i = std::max(0, r - t); i < std::min(n, n + r - t); ++i)
                s += load(du + i * C + c, m) * load(axis.mean + (i + t - r) * C + c, m);
            float* d = param_grads->taps + first + t * C;
            store(d, load(d, m) + s, m);
        }
    });
}

}  // namespace fastattn::FASTATTN_ISA
