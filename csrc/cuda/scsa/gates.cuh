// The gates of the two axes: depthwise convolutions of four sizes, GroupNorm(4), sigmoid or softmax.
#pragma once

#include "scsa/passes.cuh"

// The vectors of an axis of the block's channels, in shared memory
struct AxisVectors {
    int axis;
    float* mean;       // of x over the other axis
    float* convolved;  // in forward the gate takes its place
    float* gate;
    float* gradient;  // in backward, of what was made last: gate, convolution
};

// A channel's convolution
struct Taps {
    const P* weights;
    int size;
    float bias;

    __device__ Taps(const Call& call, int channel) {
        const int in_group = call.channels / 4, group = channel / in_group, c = channel - group * in_group;
        size = call.kernels[group];
        weights = call.conv_weights[group] + c * size;
        bias = read(call.conv_biases[group] + c);
    }
};

// Element l of a channel's convolution of v, of which l lies at v[slice.at(c, l)]; reversed, of the transposed one
__device__ __forceinline__ float convolve_at(const Slice& slice, const Taps& taps, const float* v, int c, int l,
                                             int axis, bool reversed) {
    const int radius = taps.size / 2, length = slice.length(axis);
    float total = 0.0f;
    for (int t = max(0, radius - l); t < min(taps.size, length + radius - l); ++t)
        total += read(taps.weights + (reversed ? taps.size - 1 - t : t)) * v[slice.at(c, l + t - radius, axis)];
    return total;
}

__device__ __forceinline__ void axis_means(const Slice& slice, const Map<X>& x, const AxisVectors& rows,
                                           const AxisVectors& columns) {
    const int width = slice.width;
    const auto value = [&](int c, int h, int w) { return x.at(c, h * width + w); };
    sum_rows(slice, value, [&](int c, int h, float sum) { rows.mean[slice.at(c, h, kRows)] = sum / slice.width; });
    sum_columns(slice, value,
                [&](int c, int w, float sum) { columns.mean[slice.at(c, w, kColumns)] = sum / slice.height; });
}

__device__ __forceinline__ void convolve(const Call& call, const Slice& slice, const AxisVectors& v) {
    slice.for_axis(v.axis, [&](int c, int l) {
        const Taps taps(call, slice.first + c);
        v.convolved[slice.at(c, l, v.axis)] = convolve_at(slice, taps, v.mean, c, l, v.axis, false) + taps.bias;
    });
}

// The mean of each channel's convolution and the squares about it, to the board: a warp takes a channel.
__device__ __forceinline__ void channel_statistics(const Slice& slice, const AxisVectors& v, const Boards& boards) {
    const int length = slice.length(v.axis);
    for (int c = warp(); c < slice.count; c += warps()) {
        const auto value = [&](int l) { return v.convolved[slice.at(c, l, v.axis)]; };
        const float mean = warp_sum_of(length, value) / length;
        const float squares = warp_sum_of(length, [&](int l) { return (value(l) - mean) * (value(l) - mean); });
        if (lane()) continue;
        boards.put(c, 2 * v.axis + kMeanH, mean);
        boards.put(c, 2 * v.axis + kSquaresH, squares);
    }
}

// Of the groups along both axes, [axis][group]: mean and 1 / standard deviation; the same numbers in every block
__device__ __forceinline__ void group_statistics(const Call& call, const Slice& slice, const Boards& boards,
                                                 float* statistics) {
    const int size = call.channels / 4;
    for (int i = warp(); i < 8; i += warps()) {
        const int axis = i / 4, first = i % 4 * size, length = slice.length(axis), field = 2 * axis;
        const float mean = warp_sum_of(size, [&](int c) { return boards.at(first + c, kMeanH + field); }) / size;
        const float squares = warp_sum_of(size, [&](int c) {
            const float* channel = boards.of(first + c);
            const float apart = boards.get(channel, kMeanH + field) - mean;
            return boards.get(channel, kSquaresH + field) + length * apart * apart;
        });
        if (lane()) continue;
        statistics[2 * i] = mean;
        statistics[2 * i + 1] = 1.0f / sqrtf(squares / (static_cast<float>(length) * size) + kEpsilon);
    }
}

// A channel's normalisation along an axis: v * scale + shift, and v to its standard score
struct Normalisation {
    float mean, rstd, weight, bias;

    __device__ Normalisation(const Call& call, const float* statistics, int axis, int channel) {
        const float* group = statistics + 2 * (4 * axis + channel / (call.channels / 4));
        mean = group[0];
        rstd = group[1];
        weight = read(call.norm_weights[axis] + channel);
        bias = read(call.norm_biases[axis] + channel);
    }
    __device__ float score(float v) const { return (v - mean) * rstd; }
    __device__ float logit(float v) const { return score(v) * weight + bias; }
};

// From the convolution to the gate
__device__ __forceinline__ void make_gate(const Call& call, const Slice& slice, const AxisVectors& v,
                                          const float* statistics) {
    const int axis = v.axis;
    if (!SOFTMAX)
        return slice.for_axis(axis, [&](int c, int l) {
            const Normalisation norm(call, statistics, axis, slice.first + c);
            v.gate[slice.at(c, l, axis)] = sigmoid(norm.logit(v.convolved[slice.at(c, l, axis)]));
        });
    const int length = slice.length(axis);
    for (int c = warp(); c < slice.count; c += warps()) {
        const Normalisation norm(call, statistics, axis, slice.first + c);
        const auto logit = [&](int l) { return norm.logit(v.convolved[slice.at(c, l, axis)]); };
        float top = -INFINITY;
        for (int l = lane(); l < length; l += kWarp) top = fmaxf(top, logit(l));
        top = warp_max(top);
        const float total = warp_sum_of(length, [&](int l) { return expf(logit(l) - top); });
        for (int l = lane(); l < length; l += kWarp) v.gate[slice.at(c, l, axis)] = expf(logit(l) - top) / total;
    }
}
