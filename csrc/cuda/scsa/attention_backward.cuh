// Backward of attention.cuh: rows and columns of the attention are formed again from what forward saved of each row.
#pragma once

#include "scsa/attention.cuh"

// The fields of backward's boards: of a channel's row, its gate's gradient and that times the gate, what takes it to
// the slope, and what forward saved; sums of the pooled map's gradients and of both axes'; the pooled map
enum GradientField {
    kGateGradient,
    kGateProduct,
    kFactor,
    kValueMean,
    kTop,
    kRestOfRow,
    kScore,
    kSum,
    kProduct,
    kAxisSum,
    kAxisProduct = kAxisSum + 2,
    kMap = kAxisProduct + 2
};

// Where a parameter's gradient lies among a sample's
struct GradientPlaces {
    float* gradients;
    int channels, taps;  // of a group of channels, all kernels together

    __device__ GradientPlaces(const Call& call, int sample)
        : gradients(call.gradients + static_cast<long long>(sample) * call.gradient_size),
          channels(call.channels),
          taps(call.kernels[0] + call.kernels[1] + call.kernels[2] + call.kernels[3]) {}

    __device__ void tap(const Call& call, int channel, int t, float v) const {
        const int in_group = channels / 4, group = channel / in_group;
        int before = 0;
        for (int i = 0; i < group; ++i) before += call.kernels[i];
        write(gradients + in_group * before + (channel - group * in_group) * call.kernels[group] + t, v);
    }
    // One of conv_bias, norm_h.weight, norm_h.bias, norm_w.weight, norm_w.bias
    __device__ void spatial(int which, int channel, float v) const {
        write(gradients + channels / 4 * taps + which * channels + channel, v);
    }
    // One of norm.weight, norm.bias, q, k, v weights, q, k, v biases
    __device__ void channel(int which, int channel, float v) const {
        write(gradients + (SPATIAL ? channels / 4 * taps + 5 * channels : 0) + which * channels + channel, v);
    }
};

// Of all channels, in shared memory, [9][C]: one address, and not nine, stays in registers
struct Attention {
    float* first;
    int channels;

    __device__ Attention(Memory& memory, int channels) : first(memory.take<float>(9 * channels)), channels(channels) {}

    __device__ float& query(int c) const { return first[c]; }
    __device__ float& query_offset(int c) const { return first[channels + c]; }
    __device__ float& key(int c) const { return first[2 * channels + c]; }
    __device__ float& key_offset(int c) const { return first[3 * channels + c]; }
    __device__ float& value(int c) const { return first[4 * channels + c]; }
    __device__ float& top(int c) const { return first[5 * channels + c]; }
    __device__ float& rest(int c) const { return first[6 * channels + c]; }
    __device__ float& score(int c) const { return first[7 * channels + c]; }
    // gradient of the row's output, over the sum of its powers
    __device__ float& slope(int c) const { return first[8 * channels + c]; }
};

// Gradients of some rows' scores, and of the scores of their channels as keys, in shared memory: [rows][head] each
struct Scores {
    float *by_row, *by_column;
    float* by_value;  // shares of the channel's value in the rows, times their gradients
};

// The block's gradients of its queries and keys, [c, n], then that of the pooled map in the first's place; and of its
// values, [c]
struct PooledGradients {
    float *query, *key, *value;
};

__device__ __forceinline__ int pooled_at(const Slice& slice, int windows, int c, int n) {
    return NHWC ? n * slice.count + c : c * windows + n;
}

// What the others need of a channel of the block's, given the gradient of its gate; by one thread
__device__ __forceinline__ void publish_row(const Boards& boards, const Saved& saved, int c, int channel, float dg) {
    const float g = read(saved.gate + channel);
    boards.put(c, kGateGradient, dg);
    boards.put(c, kGateProduct, g * dg);
    boards.put(c, kFactor, (SOFTMAX ? g : g * (1.0f - g)) / read(saved.sum + channel));
    boards.put(c, kValueMean, read(saved.value + channel));
    boards.put(c, kTop, read(saved.top + channel));
    boards.put(c, kRestOfRow, read(saved.rest + channel));
    boards.put(c, kScore, read(saved.score + channel));
}

__device__ __forceinline__ void prepare_attention(const Call& call, const Boards& boards, float rstd,
                                                  const Attention& to) {
    const float shift = SOFTMAX ? warp_sum_of(call.channels, [&](int c) { return boards.at(c, kGateProduct); }) : 0.0f;
    for (int c = threadIdx.x; c < call.channels; c += THREADS) {
        const Projection query(call, rstd, kQuery, c), key(call, rstd, kKey, c);
        const float* channel = boards.of(c);
        to.query(c) = query.factor, to.query_offset(c) = query.offset;
        to.key(c) = key.factor, to.key_offset(c) = key.offset;
        to.value(c) = boards.get(channel, kValueMean);
        to.top(c) = boards.get(channel, kTop);
        to.rest(c) = boards.get(channel, kRestOfRow);
        to.score(c) = boards.get(channel, kScore);
        to.slope(c) = (boards.get(channel, kGateGradient) - shift) * boards.get(channel, kFactor);
    }
}

// The scores of `rows` channels from c0 on of the block's, one thread each
__device__ __forceinline__ void score_gradients(const Call& call, const Slice& slice, int windows,
                                                const PooledNorm& norm, const Boards& boards, const Attention& all,
                                                int c0, int rows, const Scores& to) {
    const int size = call.channels / call.heads;
    const float temperature = 1.0f / sqrtf(static_cast<float>(size));
    for (int at = threadIdx.x; at < rows * size; at += THREADS) {
        const int i = slice.first + c0 + at / size, j = i / size * size + at % size;
        const float *own = boards.of(i), *other = boards.of(j);
        float by_row = 0.0f, by_column = 0.0f;
        for (int n = 0; n < windows; ++n) {
            const float y_i = norm.centred(boards.get(own, kMap + n));
            const float y_j = norm.centred(boards.get(other, kMap + n));
            by_row += (y_i * all.query(i) + all.query_offset(i)) * (y_j * all.key(j) + all.key_offset(j));
            by_column += (y_i * all.key(i) + all.key_offset(i)) * (y_j * all.query(j) + all.query_offset(j));
        }
        const float row = expf(by_row * temperature - all.score(i)) * all.slope(i);
        const float column = expf(by_column * temperature - all.score(j)) * all.slope(j);
        to.by_row[at] = row * (all.value(j) - all.top(i) - all.rest(i)) * temperature;
        to.by_column[at] = column * (all.value(i) - all.top(j) - all.rest(j)) * temperature;
        to.by_value[at] = column;
    }
}

// store(i, sum over j < count of term(i, j)) for every i < items: by one thread each, or by one warp
template <class Term, class Store>
__device__ __forceinline__ void sum_each(int items, int count, bool by_warps, Term term, Store store) {
    if (by_warps) {
        for (int i = warp(); i < items; i += warps()) {
            const float total = warp_sum_of(count, [&](int j) { return term(i, j); });
            if (lane() == 0) store(i, total);
        }
        return;
    }
    for (int i = threadIdx.x; i < items; i += THREADS) {
        float total = 0.0f;
        for (int j = 0; j < count; ++j) total += term(i, j);
        store(i, total);
    }
}

// From the scores' gradients to those of the same channels' queries, keys and values
__device__ __forceinline__ void score_sums(const Call& call, const Slice& slice, int windows, const PooledNorm& norm,
                                           const Boards& boards, const Attention& all, int c0, int rows,
                                           const Scores& scores, const PooledGradients& to) {
    const int size = call.channels / call.heads;
    const bool by_warps = windows < 8;  // few sums, of many terms each
    const auto head = [&](int row) { return (slice.first + c0 + row) / size * size; };
    const auto centred = [&](int n, int j) { return norm.centred(boards.at(j, kMap + n)); };
    const auto at = [&](int i) { return pooled_at(slice, windows, c0 + i / windows, i % windows); };
    sum_each(
        rows * windows, size, by_warps,
        [&](int i, int j) {
            const int c = head(i / windows) + j;
            return scores.by_row[i / windows * size + j] * (centred(i % windows, c) * all.key(c) + all.key_offset(c));
        },
        [&](int i, float sum) { to.query[at(i)] = sum; });
    sum_each(
        rows * windows, size, by_warps,
        [&](int i, int j) {
            const int c = head(i / windows) + j;
            return scores.by_column[i / windows * size + j] *
                   (centred(i % windows, c) * all.query(c) + all.query_offset(c));
        },
        [&](int i, float sum) { to.key[at(i)] = sum; });
    sum_each(
        rows, size, true, [&](int row, int j) { return scores.by_value[row * size + j]; },
        [&](int row, float sum) { to.value[c0 + row] = sum; });
}

// Through the projections: the gradient of the normalised map times the norm's weight takes the queries' place; its
// sums go to the board.
__device__ __forceinline__ void project_backward(const Call& call, const Slice& slice, int windows,
                                                 const PooledNorm& norm, const Boards& boards,
                                                 const GradientPlaces& places, const PooledGradients& of) {
    for (int c = warp(); c < slice.count; c += warps()) {
        const int channel = slice.first + c;
        const float weight = read(call.norm_weight + channel), bias = read(call.norm_bias + channel);
        const float query = read(call.qkv_weights[kQuery] + channel), key = read(call.qkv_weights[kKey] + channel);
        const float value = read(call.qkv_weights[kValue] + channel), from_value = of.value[c] * value / windows;
        float sums[7] = {};  // of gradients and their products: norm, norm's bias, q, k, then q, k's biases; of the map
        for (int n = lane(); n < windows; n += kWarp) {
            const int at = pooled_at(slice, windows, c, n);
            const float score = norm.centred(boards.own(c, kMap + n)) * norm.rstd;
            const float normalised = score * weight + bias, by_query = of.query[at], by_key = of.key[at];
            const float d = by_query * query + by_key * key + from_value;
            sums[0] += d * score, sums[1] += d;
            sums[2] += by_query * normalised, sums[3] += by_key * normalised;
            sums[4] += by_query, sums[5] += by_key;
            sums[6] += normalised;
            of.query[at] = d * weight;
        }
#pragma unroll
        for (float& sum : sums) sum = warp_sum(sum);
        if (lane()) continue;
        boards.put(c, kProduct, sums[0] * weight);
        boards.put(c, kSum, sums[1] * weight);
        if (!NEED_PARAMS) continue;
#pragma unroll
        for (int i = 0; i < 4; ++i) places.channel(i, channel, sums[i]);
        places.channel(4, channel, of.value[c] * sums[6] / windows);
        if (!BIAS) continue;
        places.channel(5, channel, sums[4]);
        places.channel(6, channel, sums[5]);
        places.channel(7, channel, of.value[c]);
    }
}
