// Backward of gates.cuh: from the gradients of the gates to those of the axis means and of the parameters.
#pragma once

#include "scsa/attention_backward.cuh"

// From the gate's gradient to that of the standard score; its sums go to the board. A warp takes a channel.
__device__ __forceinline__ void normalisation_sums(const Call& call, const Slice& slice, const AxisVectors& v,
                                                   const float* statistics, const Boards& boards,
                                                   const GradientPlaces& gradients) {
    const int length = slice.length(v.axis);
    for (int c = warp(); c < slice.count; c += warps()) {
        const int channel = slice.first + c;
        const Normalisation norm(call, statistics, v.axis, channel);
        const auto at = [&](int l) { return slice.at(c, l, v.axis); };
        const float shift =
            SOFTMAX ? warp_sum_of(length, [&](int l) { return v.gate[at(l)] * v.gradient[at(l)]; }) : 0.0f;
        float sum = 0.0f, product = 0.0f;
        for (int l = lane(); l < length; l += kWarp) {
            const float a = v.gate[at(l)], d = (v.gradient[at(l)] - shift) * (SOFTMAX ? a : a * (1.0f - a));
            sum += d;
            product += d * norm.score(v.convolved[at(l)]);
            v.gradient[at(l)] = d * norm.weight;
        }
        sum = warp_sum(sum), product = warp_sum(product);
        if (lane()) continue;
        boards.put(c, kAxisSum + v.axis, sum * norm.weight);
        boards.put(c, kAxisProduct + v.axis, product * norm.weight);
        if (!NEED_PARAMS) continue;
        gradients.spatial(1 + 2 * v.axis, channel, product);
        gradients.spatial(2 + 2 * v.axis, channel, sum);
    }
}

// Means over each group along both axes, [axis][group][2]: of the scores' gradients, and of their products with them
__device__ __forceinline__ void group_gradient_sums(const Call& call, const Slice& slice, const Boards& boards,
                                                    float* sums) {
    const int size = call.channels / 4;
    for (int i = warp(); i < 8; i += warps()) {
        const int axis = i / 4, first = i % 4 * size;
        const float count = static_cast<float>(slice.length(axis)) * size;
        const float sum = warp_sum_of(size, [&](int c) { return boards.at(first + c, kAxisSum + axis); });
        const float product = warp_sum_of(size, [&](int c) { return boards.at(first + c, kAxisProduct + axis); });
        if (lane() == 0) sums[2 * i] = sum / count, sums[2 * i + 1] = product / count;
    }
}

// To the gradient of the convolution
__device__ __forceinline__ void normalisation_backward(const Call& call, const Slice& slice, const AxisVectors& v,
                                                       const float* statistics, const float* sums) {
    slice.for_axis(v.axis, [&](int c, int l) {
        const Normalisation norm(call, statistics, v.axis, slice.first + c);
        const float* of_group = sums + 2 * (4 * v.axis + (slice.first + c) / (call.channels / 4));
        const int at = slice.at(c, l, v.axis);
        v.gradient[at] = norm.rstd * (v.gradient[at] - of_group[0] - norm.score(v.convolved[at]) * of_group[1]);
    });
}

// Gradients of the convolutions' weights and biases, which both axes share: a thread takes a tap, or the bias
__device__ __forceinline__ void tap_gradients(const Call& call, const Slice& slice, const AxisVectors& rows,
                                              const AxisVectors& columns, const GradientPlaces& gradients) {
    const int most = max(max(call.kernels[0], call.kernels[1]), max(call.kernels[2], call.kernels[3]));
    for (int i = threadIdx.x; i < slice.count * (most + 1); i += THREADS) {
        const int c = i % slice.count, t = i / slice.count, channel = slice.first + c;
        const int size = call.kernels[channel / (call.channels / 4)];
        if (t > size) continue;
        const int shift = t == size ? 0 : t - size / 2;
        const auto sum = [&](const AxisVectors& v) {
            const int length = slice.length(v.axis);
            float total = 0.0f;
            for (int l = max(0, -shift); l < min(length, length - shift); ++l) {
                const float d = v.gradient[slice.at(c, l, v.axis)];
                total += t == size ? d : d * v.mean[slice.at(c, l + shift, v.axis)];
            }
            return total;
        };
        const float total = sum(rows) + sum(columns);
        if (t == size) gradients.spatial(0, channel, total);
        else gradients.tap(call, channel, t, total);
    }
}

// To the gradient of each pixel of a row or column, in place of the convolution
__device__ __forceinline__ void mean_gradient(const Call& call, const Slice& slice, const AxisVectors& v) {
    const float share = 1.0f / (v.axis == kRows ? slice.width : slice.height);
    slice.for_axis(v.axis, [&](int c, int l) {
        const Taps taps(call, slice.first + c);
        v.convolved[slice.at(c, l, v.axis)] = share * convolve_at(slice, taps, v.gradient, c, l, v.axis, true);
    });
}
