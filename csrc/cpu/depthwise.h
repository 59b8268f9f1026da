// Depthwise convolution of one block of a map, zeros around it, and its gradients; taps [kernel * kernel][L].
#pragma once

#include "products.h"

namespace fastattn::FASTATTN_ISA {

// R pixels of a row: rows [first, end) of the kernel, whose input lies at `in` and every `row` after
template <int R>
__attribute__((noinline)) void depthwise_tile(const float* in, int64_t row, int64_t step, const float* taps, int kernel,
                                              Range kernel_rows, V bias, float* out, bool accumulate) {
    V sum[R];
    for (int r = 0; r < R; ++r) sum[r] = accumulate ? load(out + r * L) + bias : bias;
    for (int i = kernel_rows.begin; i < kernel_rows.end; ++i, in += row) {
        const float* tap = taps + int64_t{i} * kernel * L;
        const float* p = in;
        V line[R] = {};  // a row of the kernel is summed by itself: fewer roundings follow one another
        for (int j = 0; j < kernel; ++j, p += L, tap += L) {
            const V t = load(tap);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) line[r] += t * load(p + r * step);
        }
        for (int r = 0; r < R; ++r) sum[r] += line[r];
    }
    for (int r = 0; r < R; ++r) store(out + r * L, sum[r]);
}

// The same for stride 1 and a kernel whose row of taps fits the registers beside the sums: each input is loaded once
// for all of them
template <int K, int R>
__attribute__((noinline)) void depthwise_row_tile(const float* in, int64_t row, const float* taps, Range kernel_rows,
                                                  V bias, float* out, bool accumulate) {
    V sum[R];
    for (int r = 0; r < R; ++r) sum[r] = accumulate ? load(out + r * L) + bias : bias;
    taps += int64_t{kernel_rows.begin} * K * L;
    for (int i = kernel_rows.begin; i < kernel_rows.end; ++i, in += row, taps += K * L) {
        V tap[K], line[R] = {};
        for (int j = 0; j < K; ++j) tap[j] = load(taps + j * L);
#pragma GCC unroll 32
        for (int p = 0; p < R + K - 1; ++p) {
            const V v = load(in + p * L);
#pragma GCC unroll 16
            for (int j = 0; j < K; ++j)
                if (p - j >= 0 && p - j < R) line[p - j] += tap[j] * v;
        }
        for (int r = 0; r < R; ++r) sum[r] += line[r];
    }
    for (int r = 0; r < R; ++r) store(out + r * L, sum[r]);
}

// The rows of the kernel that lie inside of the map, for a row of the output
inline Range inside(int kernel, int stride, int y, int height) {
    const int top = y * stride - kernel / 2;
    return {std::max(0, -top), std::min(kernel, height - top)};
}

template <int K>
inline void depthwise_by_rows(const Map& in, int in_block, const float* taps, V bias, const Map& out, int out_block,
                              bool accumulate) {
    constexpr int registers = L == 16 ? 32 : 16;
    for_tiles<std::min(kTile, (registers - 2 - K) / 2)>({0, out.width}, [&](int x, auto count) {
        for (int y = 0; y < out.height; ++y) {
            const Range rows = inside(K, 1, y, in.height);
            depthwise_row_tile<K, count.value>(in.at(in_block, y - K / 2 + rows.begin, x - K / 2), in.row(), taps, rows,
                                               bias, out.at(out_block, y, x), accumulate);
        }
    });
}

// out (block) (+)= bias + convolution of in (block); in is padded by at least kernel / 2
inline void depthwise(const Map& in, int in_block, const float* taps, int kernel, int stride, V bias, const Map& out,
                      int out_block, bool accumulate) {
    if (stride == 1 && kernel == 3) return depthwise_by_rows<3>(in, in_block, taps, bias, out, out_block, accumulate);
    if (stride == 1 && kernel == 5) return depthwise_by_rows<5>(in, in_block, taps, bias, out, out_block, accumulate);
    if constexpr (L == 16) {
        if (stride == 1 && kernel == 7)
            return depthwise_by_rows<7>(in, in_block, taps, bias, out, out_block, accumulate);
        if (stride == 1 && kernel == 11)
            return depthwise_by_rows<11>(in, in_block, taps, bias, out, out_block, accumulate);
    }
    for_tiles<kTile>({0, out.width}, [&](int x, auto count) {
        for (int y = 0; y < out.height; ++y) {
            const Range rows = inside(kernel, stride, y, in.height);
            depthwise_tile<count.value>(in.at(in_block, y * stride - kernel / 2 + rows.begin, x * stride - kernel / 2),
                                        in.row(), int64_t{stride} * L, taps, kernel, rows, bias,
                                        out.at(out_block, y, x), accumulate);
        }
    });
}

// taps [R][L] += grad x in, over some pixels of a row
template <int R>
inline void add_products(const float* grad, const float* in, int64_t step, int width, V* sum) {
    for (int x = 0; x < width; ++x, grad += L, in += step) {
        const V g = load(grad);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) sum[r] += g * load(in + r * L);
    }
}

// For one row of the kernel and R columns of it from `column` on
template <int R>
__attribute__((noinline)) void depthwise_taps_tile(const Map& grad, int grad_block, const Map& in, int in_block,
                                                   int kernel, int stride, int i, int column, float* taps) {
    const int piece = std::max(1, kExact / grad.width);  // rows
    for (int y0 = 0; y0 < grad.height; y0 += piece) {
        V sum[R] = {};
        for (int y = y0; y < std::min(grad.height, y0 + piece); ++y) {
            const int source = y * stride + i - kernel / 2;
            if (source < 0 || source >= in.height) continue;
            add_products<R>(grad.at(grad_block, y, 0), in.at(in_block, source, column - kernel / 2),
                            int64_t{stride} * L, grad.width, sum);
        }
        for (int r = 0; r < R; ++r) store(taps + r * L, load(taps + r * L) + sum[r]);
    }
}

// taps += gradient
inline void depthwise_taps(const Map& grad, int grad_block, const Map& in, int in_block, int kernel, int stride,
                           float* taps) {
    for (int i = 0; i < kernel; ++i)
        for_tiles<kTile>({0, kernel}, [&](int column, auto count) {
            depthwise_taps_tile<count.value>(grad, grad_block, in, in_block, kernel, stride, i, column,
                                             taps + (int64_t{i} * kernel + column) * L);
        });
}

// in (block) += what a strided convolution's gradient gives to its input; in is padded by at least kernel / 2, and its
// padding is written to
inline void depthwise_scatter(const Map& grad, int grad_block, const float* taps, int kernel, int stride, const Map& in,
                              int in_block) {
    for (int y = 0; y < grad.height; ++y) {
        const Range rows = inside(kernel, stride, y, in.height);
        for (int x = 0; x < grad.width; ++x) {
            const V g = load(grad.at(grad_block, y, x));
            for (int i = rows.begin; i < rows.end; ++i) {
                float* p = in.at(in_block, y * stride - kernel / 2 + i, x * stride - kernel / 2);
                for (int j = 0; j < kernel; ++j, p += L)
                    store(p, load(p) + g * load(taps + (int64_t{i} * kernel + j) * L));
            }
        }
    }
}

}  // namespace fastattn::FASTATTN_ISA
