// Matrix products over the channels of maps (1x1 convolutions) and over their pixels (Gram matrices).
#pragma once

#include "maps.h"

namespace fastattn::FASTATTN_ISA {

constexpr int kTile = L == 16 ? 12 : 6;     // pixels whose results are held in registers, for two blocks of channels
constexpr int kGramRows = L == 16 ? 8 : 4;  // rows of a Gram matrix that are, for so many blocks of columns:
constexpr int kGramBlocks = L == 16 ? 3 : 2;
constexpr int kExact = 64;  // pixels summed in fp32 before the sum goes on in its own type

// f(std::integral_constant<int, n>) for 1 <= n <= N
template <int N, class F>
inline void with_count(int n, F&& f) {
    if constexpr (N > 1) {
        if (n < N) return with_count<N - 1>(n, f);
    }
    f(std::integral_constant<int, N>{});
}

// f(first, count as a constant) for a range in nearly equal tiles of at most N
template <int N, class F>
inline void for_tiles(Range range, F&& f) {
    const int length = range.end - range.begin, tiles = (length + N - 1) / N;
    for (int i = 0; i < tiles; ++i) {
        const int first = range.begin + static_cast<int>(int64_t{length} * i / tiles);
        const int end = range.begin + static_cast<int>(int64_t{length} * (i + 1) / tiles);
        with_count<N>(end - first, [&](auto count) { f(first, count); });
    }
}

// One tile: R pixels, NB blocks of output channels. weights [NB][input channel][L]
template <int R, int NB>
__attribute__((noinline)) void product_tile(const float* in, int64_t in_block, Range channels, const float* weights,
                                            int64_t weight_block, const float* bias, float* out, int64_t out_block,
                                            bool accumulate) {
    V sum[NB][R];
    for (int b = 0; b < NB; ++b)
        for (int r = 0; r < R; ++r) {
            sum[b][r] = bias ? load(bias + b * L) : V{};
            if (accumulate) sum[b][r] += load(out + b * out_block + r * L);
        }
    for (int c = channels.begin; c < channels.end;) {
        const int end = std::min(channels.end, (c / L + 1) * L);
        const float* p = in + c / L * in_block + c % L;
        for (; c < end; ++c, ++p, weights += L) {
            V w[NB];
            for (int b = 0; b < NB; ++b) w[b] = load(weights + b * weight_block);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const V s = splat(p[r * L]);
                for (int b = 0; b < NB; ++b) sum[b][r] += w[b] * s;
            }
        }
    }
    for (int b = 0; b < NB; ++b)
        for (int r = 0; r < R; ++r) store(out + b * out_block + r * L, sum[b][r]);
}

// out[block] (+)= bias + weights of the block x the channels of in, at the columns of the rows;
// weights [block][input channel of the range][L], bias [block][L] or null
inline void product(const Map& in, Range channels, const float* weights, const float* bias, const Map& out,
                    Range out_blocks, Range rows, Range columns, bool accumulate) {
    const int64_t weight_block = int64_t{channels.end - channels.begin} * L;
    // what is read again for the next blocks of channels stays in the cache
    const int piece = std::max(kTile, (1 << 15) / std::max(1, channels.end - channels.begin) / kTile * kTile);
    for (int y = rows.begin; y < rows.end; ++y)
        for (int x0 = columns.begin; x0 < columns.end; x0 += piece)
            for (int b = out_blocks.begin; b < out_blocks.end; b += 2) {
                const float* w = weights + (b - out_blocks.begin) * weight_block;
                const float* shift = bias ? bias + int64_t{b - out_blocks.begin} * L : nullptr;
                for_tiles<kTile>({x0, std::min(x0 + piece, columns.end)}, [&](int x, auto count) {
                    const auto tile =
                        b + 2 <= out_blocks.end ? product_tile<count.value, 2> : product_tile<count.value, 1>;
                    tile(in.at(0, y, x), in.block(), channels, w, weight_block, shift, out.at(b, y, x), out.block(),
                         accumulate);
                });
            }
}

// out[block] (+)= bias + weights of the block x the channels of in, at all columns of maps of one row
inline void linear(const Map& in, int channels, const float* weights, const float* bias, const Map& out,
                   Range out_blocks, bool accumulate = false) {
    product(in, {0, channels}, weights, bias, out, out_blocks, {0, 1}, {0, in.width}, accumulate);
}

// sums [R][stride] += rows (R channels of one block) x columns (NB blocks), over some of the pixels of two maps of one
// size; returns the next pixel
template <int R, int NB, class Sum>
__attribute__((noinline)) int64_t gram_tile(const Map& rows, const float* row, const Map& columns, const float* column,
                                            int64_t start, int64_t end, Sum* sums, int64_t stride) {
    const int64_t column_block = columns.block();
    const int lines = std::max(1, kExact / rows.width);  // summed together: lines of the map, or a part of one
    while (start < end) {
        const int y0 = static_cast<int>(start / rows.width), x0 = static_cast<int>(start % rows.width);
        const int count = std::min(kExact, rows.width - x0), y1 = std::min(rows.height, y0 + lines);
        V sum[R][NB] = {};
        for (int y = y0; y < y1; ++y) {
            const float *p = row + y * rows.row() + x0 * L, *q = column + y * columns.row() + x0 * L;
            for (int x = 0; x < count; ++x, p += L, q += L) {
                V c[NB];
                for (int b = 0; b < NB; ++b) c[b] = load(q + b * column_block);
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) {
                    const V s = splat(p[r]);
                    for (int b = 0; b < NB; ++b) sum[r][b] += s * c[b];
                }
            }
        }
        start += static_cast<int64_t>(y1 - y0) * count;
        for (int r = 0; r < R; ++r)
            for (int b = 0; b < NB; ++b)
                for (int i = 0; i < L; ++i) sums[r * stride + b * L + i] += sum[r][b][i];
    }
    return start;
}

// sums [channel of the range][stride] += the channels of `rows` x the blocks of `columns`, over the pixels
template <class Sum>
inline void gram(const Map& rows, Range channels, const Map& columns, Range column_blocks, Sum* sums, int64_t stride) {
    // what is read again for the next rows stays in the cache
    const int64_t piece = std::max(kExact, (1 << 16) / (std::max(1, column_blocks.end - column_blocks.begin) * L));
    for (int64_t start = 0, next = rows.pixels(); start < rows.pixels(); start = next)
        for (int first = channels.begin, end; first < channels.end; first = end) {
            end = std::min(channels.end, (first / L + 1) * L);
            for_tiles<kGramRows>({first, end}, [&](int c, auto count) {
                for_tiles<kGramBlocks>(column_blocks, [&](int b, auto wide) {
                    next = gram_tile<count.value, wide.value>(
                        rows, rows.at(c / L, 0, 0) + c % L, columns, columns.at(b, 0, 0), start,
                        std::min(start + piece, rows.pixels()),
                        sums + (c - channels.begin) * stride + int64_t{b - column_blocks.begin} * L, stride);
                });
            });
        }
}

}  // namespace fastattn::FASTATTN_ISA
