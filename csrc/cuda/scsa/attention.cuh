// Pooling, and channel attention reduced to its gate: rows of C x C are formed, used and forgotten.
#pragma once

#include "scsa/gates.cuh"

// The gates of both axes where there are any
struct Gates {
    const float *rows, *columns;

    __device__ float of(const Slice& slice, int c, int h, int w) const {
        return SPATIAL ? rows[slice.at(c, h, kRows)] * columns[slice.at(c, w, kColumns)] : 1.0f;
    }
    // As the reference multiplies, so that equal maxima are equal here
    __device__ float product(const Slice& slice, float x, int c, int h, int w) const {
        return SPATIAL ? x * rows[slice.at(c, h, kRows)] * columns[slice.at(c, w, kColumns)] : x;
    }
};

// The greatest value, NaN above all, and its first place
struct Maximum {
    float value;
    int place;

    __device__ void add(float v, int at) {
        if (v > value || (v == value && at < place) || (isnan(v) && !isnan(value))) value = v, place = at;
    }
};

// The rows of a window are shared by `lanes` threads, each of which takes every so many-th: a fixed order whatever the
// block has.
__device__ __forceinline__ void pool(const Call& call, const Slice& slice, const Map<X>& x, const Gates& gates,
                                     const Boards& boards, int* places) {
    const int windows = call.pooled_h * call.pooled_w, items = slice.count * windows, lanes = call.lanes;
    const int mine = threadIdx.x & (lanes - 1);
    for (int i0 = 0; i0 < items; i0 += THREADS / lanes) {  // all threads come along, as they exchange sums
        const int i = i0 + threadIdx.x / lanes;
        const int c = NHWC ? i % slice.count : i / windows, n = NHWC ? i / slice.count : i % windows;
        const int h0 = n / call.pooled_w * call.window_h, w0 = n % call.pooled_w * call.window_w;
        float total = 0.0f;
        Maximum best{-INFINITY, h0 * slice.width + w0};
        if (i < items)
            for (int h = h0 + mine; h < h0 + call.window_h; h += lanes)
                for (int w = w0; w < w0 + call.window_w; ++w) {
                    const int pixel = h * slice.width + w;
                    const float v = gates.product(slice, x.at(c, pixel), c, h, w);
                    if (MAX) best.add(v, pixel);
                    else total += v;
                }
        for (int mask = lanes / 2; mask; mask /= 2)
            if (MAX) {
                const float v = __shfl_xor_sync(0xffffffffu, best.value, mask);
                best.add(v, __shfl_xor_sync(0xffffffffu, best.place, mask));
            } else total += __shfl_xor_sync(0xffffffffu, total, mask);
        if (i >= items || mine) continue;
        boards.put(c, kPooled + n, MAX ? best.value : total / (call.window_h * call.window_w));
        if (MAX && SAVE) {
            touch(places + n * call.channels + slice.first + c, 4, true);
            places[n * call.channels + slice.first + c] = best.place;
        }
    }
}

// Of each channel over the pooled pixels: the mean, what its rounding left, and the squares about it
__device__ __forceinline__ void pooled_statistics(const Slice& slice, int windows, const Boards& boards) {
    for (int c = warp(); c < slice.count; c += warps()) {
        const float* channel = boards.of(slice.first + c);
        const auto y = [&](int n) { return boards.get(channel, kPooled + n); };
        const float mean = warp_sum_of(windows, y) / windows;
        const float rest = warp_sum_of(windows, [&](int n) { return y(n) - mean; }) / windows;
        const float squares = warp_sum_of(windows, [&](int n) {
            const float apart = y(n) - mean - rest;
            return apart * apart;
        });
        if (lane()) continue;
        boards.put(c, kMean, mean);
        boards.put(c, kRest, rest);
        boards.put(c, kSquares, squares);
    }
}

// GroupNorm(1) of the pooled map; its mean is mean + rest, to more than float32
struct PooledNorm {
    float mean, rest, rstd;

    __device__ float centred(float y) const { return y - mean - rest; }
};

// By one warp, out of all channels' statistics
__device__ __forceinline__ PooledNorm pooled_norm(const Call& call, int windows, const Boards& boards) {
    const int channels = call.channels;
    PooledNorm norm{};
    norm.mean = warp_sum_of(channels, [&](int c) { return boards.at(c, kMean); }) / channels;
    norm.rest = warp_sum_of(channels,
                            [&](int c) {
                                const float* channel = boards.of(c);
                                return boards.get(channel, kMean) - norm.mean + boards.get(channel, kRest);
                            }) /
                channels;
    const float squares = warp_sum_of(channels, [&](int c) {
        const float* channel = boards.of(c);
        const float apart = norm.centred(boards.get(channel, kMean)) + boards.get(channel, kRest);
        return boards.get(channel, kSquares) + windows * apart * apart;
    });
    norm.rstd = 1.0f / sqrtf(squares / (static_cast<float>(windows) * channels) + kEpsilon);
    return norm;
}

// From a centred pooled value to a channel's query, key or value
struct Projection {
    float factor, offset;

    __device__ Projection(const Call& call, float rstd, int role, int channel) {
        const float w = read(call.qkv_weights[role] + channel);
        factor = read(call.norm_weight + channel) * rstd * w;
        offset = read(call.norm_bias + channel) * w + (BIAS ? read(call.qkv_biases[role] + channel) : 0.0f);
    }
    __device__ float operator()(float centred) const { return centred * factor + offset; }
};

enum Role { kQuery, kKey, kValue };

// Projections of all channels, in shared memory: [C] each
struct Keys {
    float *factor, *offset, *value;  // the value is a mean over pixels
};

__device__ __forceinline__ void project(const Call& call, const PooledNorm& norm, const Boards& boards,
                                        const Keys& keys) {
    for (int c = threadIdx.x; c < call.channels; c += THREADS) {
        const Projection key(call, norm.rstd, kKey, c), value(call, norm.rstd, kValue, c);
        const float* channel = boards.of(c);
        keys.factor[c] = key.factor;
        keys.offset[c] = key.offset;
        keys.value[c] = value(norm.centred(boards.get(channel, kMean)) + boards.get(channel, kRest));
    }
}

// A row's softmax so far: the largest score, the sum of powers relative to it, the value at it, and what the others add
// to that value. Backward needs the two apart: value_j - output cancels where a row is nearly one-hot.
struct SoftmaxRow {
    float score, sum, top, rest;  // rest is yet to be divided by sum

    __device__ void add(const SoftmaxRow& other) {
        if (other.sum == 0.0f) return;
        if (other.score > score) {
            SoftmaxRow larger = other;
            larger.add_smaller(*this);
            *this = larger;
        } else add_smaller(other);
    }

private:
    __device__ void add_smaller(const SoftmaxRow& other) {
        const float factor = other.sum == 0.0f ? 0.0f : expf(other.score - score);
        sum += factor * other.sum;
        rest += factor * (other.rest + other.sum * (other.top - top));
    }
};

__device__ __forceinline__ SoftmaxRow attention_row(const Call& call, int windows, const PooledNorm& norm,
                                                    const Boards& boards, const Keys& keys, int i) {
    const int size = call.channels / call.heads, first = i / size * size;
    const Projection query(call, norm.rstd, kQuery, i);
    const float temperature = 1.0f / sqrtf(static_cast<float>(size));
    const float* own = boards.of(i);
    SoftmaxRow row{-INFINITY, 0.0f, 0.0f, 0.0f};
    for (int j = first + lane(); j < first + size; j += kWarp) {
        const float* other = boards.of(j);
        const float factor = keys.factor[j], offset = keys.offset[j];
        float score = 0.0f;
        for (int n = 0; n < windows; ++n)
            score += query(norm.centred(boards.get(own, kPooled + n))) *
                     (norm.centred(boards.get(other, kPooled + n)) * factor + offset);
        row.add({score * temperature, 1.0f, keys.value[j], 0.0f});
    }
    for (int distance = kWarp / 2; distance; distance /= 2) {
        SoftmaxRow other;
        other.score = __shfl_down_sync(0xffffffffu, row.score, distance);
        other.sum = __shfl_down_sync(0xffffffffu, row.sum, distance);
        other.top = __shfl_down_sync(0xffffffffu, row.top, distance);
        other.rest = __shfl_down_sync(0xffffffffu, row.rest, distance);
        if (lane() < distance) row.add(other);
    }
    return row;  // lane 0's is whole
}

// The rows of the block's channels: a warp each. With a softmax gate their outputs go to the board.
__device__ __forceinline__ void attend(const Call& call, const Slice& slice, int windows, const PooledNorm& norm,
                                       const Boards& boards, const Keys& keys, float* gate, const Saved& saved) {
    for (int c = warp(); c < slice.count; c += warps()) {
        const int i = slice.first + c;
        const SoftmaxRow row = attention_row(call, windows, norm, boards, keys, i);
        if (lane()) continue;
        const float rest = row.rest / row.sum, output = row.top + rest;
        if (SOFTMAX) boards.put(c, kOutput, output);
        else gate[c] = sigmoid(output);
        if (!SAVE) continue;
        write(saved.value + i, keys.value[i]);
        write(saved.top + i, row.top);
        write(saved.rest + i, rest);
        write(saved.score + i, row.score);
        write(saved.sum + i, row.sum);
    }
}

// Softmax of all channels' outputs: every warp sums them all, and writes its part of the block's.
__device__ __forceinline__ void softmax_gate(const Call& call, const Slice& slice, const Boards& boards, float* gate) {
    float top = -INFINITY;
    for (int c = lane(); c < call.channels; c += kWarp) top = fmaxf(top, boards.at(c, kOutput));
    top = warp_max(top);
    const float total = warp_sum_of(call.channels, [&](int c) { return expf(boards.at(c, kOutput) - top); });
    for (int c = threadIdx.x; c < slice.count; c += THREADS)
        gate[c] = expf(boards.at(slice.first + c, kOutput) - top) / total;
}
