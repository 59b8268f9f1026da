// The passes over one sample of a map, contiguous or channels_last: sums and products by channel, and by the rows and
// columns of each channel.
#pragma once

#include <array>

#include "../work.h"

namespace fastattn::FASTATTN_ISA {

struct Layout {
    int channels, height, width;
    bool channels_last;

    int64_t pixels() const { return int64_t{height} * width; }
};

// A sample; of a contiguous one whose channels' halves are interleaved, `half` channels each, the planes
template <class T>
struct Planes {
    T* data;
    int half = 0;

    T* of(int c, int64_t pixels) const {
        const int to = !half ? c : c < half ? 2 * c : 2 * (c - half) + 1;
        return data + to * pixels;
    }
};

template <size_t N>
constexpr int kCount = static_cast<int>(N);

// f(first channel, number of vectors, lanes of the last)
template <class F>
inline __attribute__((always_inline)) void for_chunks(Range channels, F&& f) {
    int c = channels.begin;
    for (; c + 4 * L <= channels.end; c += 4 * L) f(c, std::integral_constant<int, 4>{}, Full{});
    for (; c + L <= channels.end; c += L) f(c, std::integral_constant<int, 1>{}, Full{});
    if (c < channels.end) f(c, std::integral_constant<int, 1>{}, Tail(channels.end - c));
}

template <size_t N>
using Vectors = std::array<const float*, N>;  // each of one number for each channel, readable to a multiple of L
template <size_t N>
using Maps = std::array<const float*, N>;  // each of one number for each pixel

// out = f(numbers of the channel, of the pixel, elements of `in`...)
template <size_t K, size_t M, class To, class F, class... Ts>
INLINE_BODY void map_channels(const Layout& s, Range channels, const Vectors<K>& numbers, const Maps<M>& maps,
                              Planes<To> out, F&& f, Planes<const Ts>... in) {
    const int64_t pixels = s.pixels();
    if (!s.channels_last) {
        for (int c = channels.begin; c < channels.end; ++c) {
            V k[K], n[M];
            for (int i = 0; i < kCount<K>; ++i) k[i] = splat(numbers[i][c]);
            To* to = out.of(c, pixels);
            for_lanes(0, static_cast<int>(pixels), [&](int p, auto m) {
                for (int i = 0; i < kCount<M>; ++i) n[i] = load(maps[i] + p, m);
                store(to + p, f(k, n, load(in.of(c, pixels) + p, m)...), m);
            });
        }
        return;
    }
    for_chunks(channels, [&](int c, auto count, auto last) {
        constexpr int NV = decltype(count)::value;
        V k[NV][K], n[M];
        for (int v = 0; v < NV; ++v)
            for (int i = 0; i < kCount<K>; ++i) k[v][i] = load(numbers[i] + c + v * L);
        for (int64_t p = 0, at = c; p < pixels; ++p, at += s.channels) {
            for (int i = 0; i < kCount<M>; ++i) n[i] = splat(maps[i][p]);
            each<NV>(last, [&](int v, auto m) {
                store(out.data + at + v * L, f(k[v], n, load(in.data + at + v * L, m)...), m);
            });
        }
    });
}

// sums[i][channel] = the sums over the pixels; f(lanes, numbers of the channel, of the pixel, sums, elements of
// `in`...) adds to them
template <size_t S, size_t K, size_t M, class F, class... Ts>
INLINE_BODY void sum_channels(const Layout& s, Range channels, const Vectors<K>& numbers, const Maps<M>& maps,
                              const std::array<float*, S>& sums, F&& f, Planes<const Ts>... in) {
    const int64_t pixels = s.pixels();
    if (!s.channels_last) {
        for (int first = channels.begin; first < channels.end; first += L) {
            const int count = std::min(L, channels.end - first);
            V rows[S][L] = {};
            for (int r = 0; r < count; ++r) {
                V k[K], n[M], sum[4][S] = {};
                for (int i = 0; i < kCount<K>; ++i) k[i] = splat(numbers[i][first + r]);
                const auto add = [&](int64_t p, int u, auto m) {
                    for (int i = 0; i < kCount<M>; ++i) n[i] = load(maps[i] + p, m);
                    f(m, k, n, sum[u], load(in.of(first + r, pixels) + p, m)...);
                };
                int64_t p = 0;
                for (; p + 4 * L <= pixels; p += 4 * L)
                    for (int u = 0; u < 4; ++u) add(p + u * L, u, Full{});
                for_lanes(static_cast<int>(p), static_cast<int>(pixels), [&](int i, auto m) { add(i, 0, m); });
                for (int i = 0; i < kCount<S>; ++i) rows[i][r] = (sum[0][i] + sum[1][i]) + (sum[2][i] + sum[3][i]);
            }
            for (int i = 0; i < kCount<S>; ++i) {
                if (count == L) store(sums[i] + first, sum_rows(rows[i]));
                else store(sums[i] + first, sum_rows(rows[i]), Tail(count));
            }
        }
        return;
    }
    for_chunks(channels, [&](int c, auto count, auto last) {
        constexpr int NV = decltype(count)::value;
        constexpr int64_t kPiece = 16;  // pixels summed in fp32
        V k[NV][K], n[M];
        double total[NV][S][L] = {};
        for (int v = 0; v < NV; ++v)
            for (int i = 0; i < kCount<K>; ++i) k[v][i] = load(numbers[i] + c + v * L);
        for (int64_t p = 0, at = c; p < pixels;) {
            V sum[NV][S] = {};
            for (const int64_t end = std::min(pixels, p + kPiece); p < end; ++p, at += s.channels) {
                for (int i = 0; i < kCount<M>; ++i) n[i] = splat(maps[i][p]);
                each<NV>(last, [&](int v, auto m) { f(m, k[v], n, sum[v], load(in.data + at + v * L, m)...); });
            }
            for (int v = 0; v < NV; ++v)
                for (int i = 0; i < kCount<S>; ++i)
                    for (int lane = 0; lane < L; ++lane) total[v][i][lane] += sum[v][i][lane];
        }
        for (int i = 0; i < kCount<S>; ++i)
            each<NV>(last, [&](int v, auto m) {
                V sum;
                for (int lane = 0; lane < L; ++lane) sum[lane] = static_cast<float>(total[v][i][lane]);
                store(sums[i] + c + v * L, sum, m);
            });
    });
}

// largest[channel] = the maximum over the pixels
template <class T>
INLINE_BODY void max_channels(const Layout& s, Range channels, float* largest_of, const T* in) {
    const int64_t pixels = s.pixels();
    if (!s.channels_last) {
        for (int c = channels.begin; c < channels.end; ++c) {
            const T* p = in + c * pixels;
            V m = splat(load_one(p));
            int i = 0;
            for (; i + L <= pixels; i += L) m = max(load(p + i, Full{}), m);
            if (i < pixels) {  // lanes past the last repeat the first pixel
                const Tail tail(static_cast<int>(pixels - i));
                const V first = splat(load_one(p));
                m = max(load(p + i, tail) + (first - keep(first, tail)), m);
            }
            largest_of[c] = largest(m);
        }
        return;
    }
    for_chunks(channels, [&](int c, auto count, auto last) {
        constexpr int NV = decltype(count)::value;
        V most[NV];
        each<NV>(last, [&](int v, auto m) { most[v] = load(in + c + v * L, m); });
        for (int64_t p = 1, at = c + s.channels; p < pixels; ++p, at += s.channels)
            each<NV>(last, [&](int v, auto m) { most[v] = max(load(in + at + v * L, m), most[v]); });
        each<NV>(last, [&](int v, auto m) { store(largest_of + c + v * L, most[v], m); });
    });
}

constexpr float kLowest = -3.4028234663852886e38f;

// v, and outside of the lanes that take part the lowest number
template <class M>
inline V or_lowest(V v, M m) {
    const V low = splat(kLowest);
    return keep(v, m) + (low - keep(low, m));
}

// Over the channels, for pixels [pixels.begin, pixels.end): f(lanes, numbers of the channel, of the pixel, results,
// elements of `in`...) adds to the results, which begin as `start` and are `sums`; join(i, vector) is a number
template <size_t S, size_t K, size_t M, class F, class Join, class... Ts>
INLINE_BODY void sum_pixels(const Layout& s, Range pixels, const Vectors<K>& numbers, const Maps<M>& maps,
                            const std::array<float, S>& start, const std::array<float*, S>& sums, F&& f, Join&& join,
                            const Ts*... in) {
    if (!s.channels_last) {
        for (int i = 0; i < kCount<S>; ++i) std::fill(sums[i] + pixels.begin, sums[i] + pixels.end, start[i]);
        for (int c = 0; c < s.channels; ++c) {
            V k[K], n[M], sum[S];
            for (int i = 0; i < kCount<K>; ++i) k[i] = splat(numbers[i][c]);
            const int64_t at = c * s.pixels();
            for_lanes(pixels.begin, pixels.end, [&](int p, auto m) {
                for (int i = 0; i < kCount<M>; ++i) n[i] = load(maps[i] + p, m);
                for (int i = 0; i < kCount<S>; ++i) sum[i] = load(sums[i] + p, m);
                f(m, k, n, sum, load(in + at + p, m)...);
                for (int i = 0; i < kCount<S>; ++i) store(sums[i] + p, sum[i], m);
            });
        }
        return;
    }
    for (int p = pixels.begin; p < pixels.end; ++p) {
        V k[K], n[M], sum[S];
        for (int i = 0; i < kCount<M>; ++i) n[i] = splat(maps[i][p]);
        for (int i = 0; i < kCount<S>; ++i) sum[i] = splat(start[i]);
        const int64_t at = int64_t{p} * s.channels;
        for_lanes(0, s.channels, [&](int c, auto m) {
            for (int i = 0; i < kCount<K>; ++i) k[i] = load(numbers[i] + c);
            f(m, k, n, sum, load(in + at + c, m)...);
        });
        for (int i = 0; i < kCount<S>; ++i) sums[i][p] = join(i, sum[i]);
    }
}

// Columns of vectors: [row or column][stride] of the rows, then of the columns
struct Strip {
    float* data;
    int64_t stride;

    float* at(int64_t column) const { return data + column * stride; }
};

// Memory of one thread for strips of L channels with the positions side by side
struct AxesScratch {
    float *numbers[2], *sums;
    int rows, columns;  // floats of a channel, of either axis

    AxesScratch(const Layout& s, Bump& bump) : rows(padded(s.height)), columns(padded(s.width)) {
        for (float*& n : numbers) n = bump.take(L * (rows + columns));
        sums = bump.take(L * (rows + columns));
    }
    float* row(float* of, int c) const { return of + c * (rows + columns); }

private:
    static int padded(int size) { return (size + L - 1) / L * L + L; }
};

template <size_t K>
inline void read_strips(const Layout& s, int c, int count, const std::array<Strip, K>& numbers, const AxesScratch& to) {
    for (int i = 0; i < kCount<K>; ++i) {
        const int stride = to.rows + to.columns;
        transpose_in(numbers[i].data + c, numbers[i].stride, s.height, count, to.numbers[i], stride);
        transpose_in(numbers[i].at(s.height) + c, numbers[i].stride, s.width, count, to.numbers[i] + to.rows, stride);
    }
}

// out = f(numbers of the channel's row, of its column, elements of `in`...)
template <size_t K, class To, class F, class... Ts>
INLINE_BODY void map_axes(const Layout& s, Range channels, const std::array<Strip, K>& numbers,
                          const AxesScratch& scratch, To* out, F&& f, const Ts*... in) {
    if (!s.channels_last) {
        for (int first = channels.begin; first < channels.end; first += L) {
            const int count = std::min(L, channels.end - first);
            read_strips(s, first, count, numbers, scratch);
            for (int r = 0; r < count; ++r)
                for (int y = 0; y < s.height; ++y) {
                    V row[K];
                    const float* columns[K];
                    for (int i = 0; i < kCount<K>; ++i) {
                        row[i] = splat(scratch.row(scratch.numbers[i], r)[y]);
                        columns[i] = scratch.row(scratch.numbers[i], r) + scratch.rows;
                    }
                    const int64_t at = (first + r) * s.pixels() + int64_t{y} * s.width;
                    for_lanes(0, s.width, [&](int x, auto m) {
                        V column[K];
                        for (int i = 0; i < kCount<K>; ++i) column[i] = load(columns[i] + x);
                        store(out + at + x, f(row, column, load(in + at + x, m)...), m);
                    });
                }
        }
        return;
    }
    for_chunks(channels, [&](int c, auto count, auto last) {
        constexpr int NV = decltype(count)::value;
        int64_t at = c;
        for (int y = 0; y < s.height; ++y) {
            V row[NV][K];
            for (int v = 0; v < NV; ++v)
                for (int i = 0; i < kCount<K>; ++i) row[v][i] = load(numbers[i].at(y) + c + v * L);
            for (int x = 0; x < s.width; ++x, at += s.channels)
                each<NV>(last, [&](int v, auto m) {
                    V column[K];
                    for (int i = 0; i < kCount<K>; ++i) column[i] = load(numbers[i].at(s.height + x) + c + v * L);
                    store(out + at + v * L, f(row[v], column, load(in + at + v * L, m)...), m);
                });
        }
    });
}

// sums = those over each row and each column; f(numbers of the row, of the column, sum of the row, of the column,
// elements of `in`...) adds to them
template <size_t K, class F, class... Ts>
INLINE_BODY void sum_axes(const Layout& s, Range channels, const std::array<Strip, K>& numbers,
                          const AxesScratch& scratch, Strip sums, F&& f, const Ts*... in) {
    if (!s.channels_last) {
        for (int first = channels.begin; first < channels.end; first += L) {
            const int count = std::min(L, channels.end - first);
            read_strips(s, first, count, numbers, scratch);
            for (int r = 0; r < count; ++r) {
                float *to_rows = scratch.row(scratch.sums, r), *to_columns = to_rows + scratch.rows;
                std::fill(to_columns, to_columns + scratch.columns, 0.0f);
                RowSums rows(to_rows, false);
                for (int y = 0; y < s.height; ++y) {
                    V row[K], sum{};
                    const float* columns[K];
                    for (int i = 0; i < kCount<K>; ++i) {
                        row[i] = splat(scratch.row(scratch.numbers[i], r)[y]);
                        columns[i] = scratch.row(scratch.numbers[i], r) + scratch.rows;
                    }
                    const int64_t at = (first + r) * s.pixels() + int64_t{y} * s.width;
                    for_lanes(0, s.width, [&](int x, auto m) {
                        V column[K], down = load(to_columns + x);
                        for (int i = 0; i < kCount<K>; ++i) column[i] = load(columns[i] + x);
                        f(row, column, sum, down, load(in + at + x, m)...);
                        store(to_columns + x, down);
                    });
                    rows.push(sum);
                }
                rows.flush();
            }
            const int stride = scratch.rows + scratch.columns;
            transpose_out(scratch.sums, stride, count, s.height, sums.data + first, sums.stride, 1.0f);
            transpose_out(scratch.sums + scratch.rows, stride, count, s.width, sums.at(s.height) + first, sums.stride,
                          1.0f);
        }
        return;
    }
    for_chunks(channels, [&](int c, auto count, auto last) {
        constexpr int NV = decltype(count)::value;
        int64_t at = c;
        for (int y = 0; y < s.height; ++y) {
            V row[NV][K], sum[NV] = {};
            for (int v = 0; v < NV; ++v)
                for (int i = 0; i < kCount<K>; ++i) row[v][i] = load(numbers[i].at(y) + c + v * L);
            for (int x = 0; x < s.width; ++x, at += s.channels)
                each<NV>(last, [&](int v, auto m) {
                    V column[K];
                    float* to = sums.at(s.height + x) + c + v * L;
                    for (int i = 0; i < kCount<K>; ++i) column[i] = load(numbers[i].at(s.height + x) + c + v * L);
                    V down = y ? load(to, m) : V{};
                    f(row[v], column, sum[v], down, load(in + at + v * L, m)...);
                    store(to, down, m);
                });
            each<NV>(last, [&](int v, auto m) { store(sums.at(y) + c + v * L, sum[v], m); });
        }
    });
}

}  // namespace fastattn::FASTATTN_ISA
