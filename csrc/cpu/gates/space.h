// The gate of the pixels: a convolution of two maps, normalised, and its gradients.
#pragma once

#include <cmath>

#include "passes.h"
#include "plan.h"

namespace fastattn::FASTATTN_ISA {

// Maps with zeros around them, as far as a kernel and a vector reach
struct Padded {
    float* data;
    int height, width, reach;

    int row() const { return width + 2 * reach + L; }
    int64_t size() const { return int64_t{height + 2 * reach} * row(); }
    float* map(int index) const { return data + index * size(); }

    static int64_t floats(const GatesPlan& plan, int count) {
        return count * Padded{nullptr, plan.height, plan.width, plan.kernel / 2}.size();
    }
    static Padded of(const GatesPlan& plan, float* data, int count, const float* maps) {
        Padded padded{data, plan.height, plan.width, plan.kernel / 2};
        std::fill(data, data + count * padded.size(), 0.0f);
        for (int i = 0; i < count; ++i)
            for (int y = 0; y < plan.height; ++y)
                std::copy(maps + i * plan.pixels() + y * plan.width, maps + i * plan.pixels() + (y + 1) * plan.width,
                          padded.map(i) + (y + padded.reach) * padded.row() + padded.reach);
        return padded;
    }
};

// out = the sum over `count` maps of their convolutions, or those with the kernel turned round
INLINE_BODY inline void convolve(const Padded& in, int count, const float* kernel, bool turned, float* out) {
    const int size = 2 * in.reach + 1, taps = size * size;
    for (int y = 0; y < in.height; ++y)
        for_lanes(0, in.width, [&](int x, auto m) {
            V sum{};
            for (int map = 0; map < count; ++map)
                for (int i = 0; i < size; ++i) {
                    const float *row = in.map(map) + (y + i) * in.row() + x, *k = kernel + map * taps;
                    for (int j = 0; j < size; ++j)
                        sum += load(row + j) * k[turned ? taps - 1 - (i * size + j) : i * size + j];
                }
            store(out + y * in.width + x, sum, m);
        });
}

// d_kernel += the gradient of the kernel
INLINE_BODY inline void convolve_taps(const Padded& in, int count, const float* d_out, float* d_kernel) {
    const int size = 2 * in.reach + 1;
    for (int map = 0; map < count; ++map)
        for (int i = 0; i < size; ++i)
            for (int j = 0; j < size; ++j) {
                V total{};
                for (int y = 0; y < in.height; ++y)
                    for_lanes(0, in.width, [&](int x, auto m) {
                        total += load(d_out + y * in.width + x, m) * load(in.map(map) + (y + i) * in.row() + x + j);
                    });
                d_kernel[(map * size + i) * size + j] += sum(total);
            }
}

// The normalisation of what the convolution gives
struct SpaceNorm {
    float mean, variance, epsilon, weight, bias;

    float scale() const { return 1.0f / std::sqrt(variance + epsilon); }
    // gate = the sigmoid of the normalised
    void gate(const float* logits, int64_t count, float* gates) const {
        const float a = scale() * weight, b = bias - mean * a;
        for_lanes(0, static_cast<int>(count),
                  [&](int i, auto m) { store(gates + i, sigmoid(load(logits + i, m) * a + b), m); });
    }
    void measure(const float* logits, int64_t count) {
        double sum = 0, squares = 0;
        for (int64_t i = 0; i < count; ++i) sum += logits[i];
        const double centre = sum / static_cast<double>(count);
        for (int64_t i = 0; i < count; ++i) squares += (logits[i] - centre) * (logits[i] - centre);
        mean = static_cast<float>(centre), variance = static_cast<float>(squares / static_cast<double>(count));
    }
};

}  // namespace fastattn::FASTATTN_ISA
