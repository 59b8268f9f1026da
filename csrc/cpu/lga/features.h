// What the channel attention of one convolution needs of z, and the products that make its output, or gradients, from
// maps.
#pragma once

#include "attention.h"
#include "mixture.h"

namespace fastattn::FASTATTN_ISA {

// Blocks of the depthwise output that are read: of all slices, or of the values' alone
inline Range feature_blocks(const LgaPlan& plan) {
    const Slices slices(plan);
    return plan.released ? blocks_of(slices.channels(slices.first_value(), slices.heads - 1))
                         : Range{0, blocks(plan.dim)};
}

// Block of the depthwise output of z, less its means over the pixels
inline void convolve(const Map& z, const DepthwiseParams& p, int b, const Map& features, double* means) {
    depthwise(z, b, p.taps + b * p.block(), p.kernel, 1, load(p.bias + b * L), features, b, false);
    double sums[L] = {};
    add_sums(features, b, sums);
    V mean;
    for (int i = 0; i < L; ++i)
        mean[i] = static_cast<float>(means[b * L + i] = sums[i] / static_cast<double>(features.pixels()));
    for (float* p = features.at(b); p < features.at(b) + features.block(); p += L) store(p, load(p) - mean);
}

// A matrix from some input channels to one block of output channels, filled head by head
struct Packed {
    Range channels;  // of the input
    float* weights;  // [input channel][L]
    float* bias;     // [L]

    static int64_t size(const LgaPlan& plan) { return (1 + 3 * L + 6 * int64_t{plan.head_dim()}) * L; }

    Packed(Range channels, float* memory) : channels(channels), weights(memory + L), bias(memory) {
        std::fill(memory, memory + (1 + channels.end - channels.begin) * L, 0.0f);
    }
    float& at(int channel, int lane) const { return weights[(channel - channels.begin) * int64_t{L} + lane]; }
};

// Heads, or slices, that have channels in a block
inline Range of_block(int b, int dim, int d) { return {b * L / d, (std::min(dim, (b + 1) * L) - 1) / d + 1}; }

// values and offsets, times a convolution's share, as the matrix from the features to an output block
inline Packed pack_values(const HeadState& s, int b, double share, float* memory) {
    const int dim = s.plan.dim, d = s.d;
    const Range heads = of_block(b, dim, d);
    const Packed packed(s.slices.channels(s.slices.value(heads.begin), s.slices.value(heads.end - 1)), memory);
    for (int c = b * L; c < std::min(dim, (b + 1) * L); ++c) {
        const int slice = s.slices.value(c / d) * d;
        packed.bias[c - b * L] = static_cast<float>(share * s.offsets[c]);
        for (int i = 0; i < d; ++i)
            packed.at(slice + i, c - b * L) = static_cast<float>(share * s.values[int64_t{c} * d + i]);
    }
    return packed;
}

// block of `mixed` += share of the attention's output
inline void add_output(const HeadState& s, const Map& features, int b, double share, const Map& mixed, float* memory) {
    const Packed packed = pack_values(s, b, share, memory);
    const Map in = features.flat();
    product(in, packed.channels, packed.weights, packed.bias, mixed.flat().one(b), {0, 1}, {0, 1}, {0, in.width}, true);
}

// The three matrices to the gradient of a block of features: by values from the output's gradient, by queries and keys
// from the features
inline Packed pack_value_gradient(const HeadState& s, int b, double share, float* memory) {
    const int dim = s.plan.dim, d = s.d;
    const Range own = of_block(b, dim, d);
    const Range heads{s.slices.value_readers(own.begin).begin, s.slices.value_readers(own.end - 1).end};
    const Packed packed({heads.begin * d, std::max(heads.begin, heads.end) * d}, memory);
    for (int c = b * L; c < std::min(dim, (b + 1) * L); ++c) {
        const Range readers = s.slices.value_readers(c / d);
        for (int r = readers.begin * d; r < readers.end * d; ++r)
            packed.at(r, c - b * L) = static_cast<float>(share * s.values[int64_t{r} * d + c % d]);
    }
    return packed;
}

inline Packed pack_query_gradient(const HeadState& s, int b, float* memory) {
    const int dim = s.plan.dim, d = s.d;
    const Range own = of_block(b, dim, d);
    const Range heads{s.slices.query_readers(own.begin).begin, s.slices.query_readers(own.end - 1).end};
    const bool none = heads.begin >= heads.end;
    const Packed packed(none ? Range{0, 0} : s.slices.channels(s.slices.key(heads.begin), s.slices.key(heads.end - 1)),
                        memory);
    for (int c = b * L; c < std::min(dim, (b + 1) * L) && !none; ++c) {
        const Range readers = s.slices.query_readers(c / d);
        for (int head = readers.begin; head < readers.end; ++head) {
            const float* row = s.grad_gram + head * s.square + c % d * int64_t{d};
            for (int j = 0; j < d; ++j) packed.at(s.slices.key(head) * d + j, c - b * L) += row[j];
            packed.bias[c - b * L] += static_cast<float>(s.grad_query_mean[head * d + c % d]);
        }
    }
    return packed;
}

inline Packed pack_key_gradient(const HeadState& s, int b, float* memory) {
    const int dim = s.plan.dim, d = s.d;
    const Range own = of_block(b, dim, d);
    const Range heads{s.slices.key_readers(own.begin).begin, s.slices.key_readers(own.end - 1).end};
    const bool none = heads.begin >= heads.end;
    const Packed packed(
        none ? Range{0, 0} : s.slices.channels(Slices::query(heads.begin), Slices::query(heads.end - 1)), memory);
    for (int c = b * L; c < std::min(dim, (b + 1) * L) && !none; ++c) {
        const Range readers = s.slices.key_readers(c / d);
        for (int head = readers.begin; head < readers.end; ++head) {
            const float* column = s.grad_gram + head * s.square + c % d;
            for (int r = 0; r < d; ++r) packed.at(Slices::query(head) * d + r, c - b * L) += column[int64_t{r} * d];
            packed.bias[c - b * L] += static_cast<float>(s.grad_key_mean[head * d + c % d]);
        }
    }
    return packed;
}

}  // namespace fastattn::FASTATTN_ISA
