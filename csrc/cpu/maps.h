// One sample's maps as the passes hold them: fp32, [block of L channels][height][row][L]. Lanes past the last channel
// are zero.
#pragma once

#include "work.h"

namespace fastattn::FASTATTN_ISA {

inline int blocks(int channels) { return (channels + L - 1) / L; }
inline int64_t padded(int channels) { return int64_t{blocks(channels)} * L; }

struct Map {
    float* data;
    int height, width;
    int pad;            // columns of zeros on either side of a row
    int64_t apart = 0;  // floats from block to block, if others lie between

    int64_t row() const { return int64_t{width + 2 * pad} * L; }
    int64_t block() const { return apart ? apart : height * row(); }
    int64_t pixels() const { return int64_t{height} * width; }
    float* at(int b, int y, int x) const { return data + b * block() + y * row() + int64_t{pad + x} * L; }
    float* at(int b) const { return data + b * block(); }

    Map flat() const { return {data, 1, height * width, 0}; }                  // of a map without padding
    Map one(int b) const { return {data + b * block(), height, width, pad}; }  // the map of one block
    Map first(int count) const { return {data, 1, count, 0}; }                 // its memory as that of a map of one row
    // of a map of one row
    Map columns(Range range) const { return {at(0, 0, range.begin), 1, range.end - range.begin, 0, block()}; }

    static Map take(Bump& bump, int channels, int height, int width, int pad = 0) {
        Map map{nullptr, height, width, pad};
        map.data = bump.take(blocks(channels) * map.block());
        return map;
    }
};

inline void clear_pads(const Map& map, int b) {
    for (int y = 0; y < map.height; ++y)
        for (int x = 0; x < map.pad; ++x) {
            store(map.at(b, y, -1 - x), V{});
            store(map.at(b, y, map.width + x), V{});
        }
}

// A sample of a tensor (channels, H, W), contiguous or channels_last.
template <class T>
struct Tensor {
    T* data;
    int channels;
    bool channels_last;

    // block b of the map = the tensor's
    INLINE_BODY void fetch(const Map& map, int b) const {
        const int first = b * L, n = std::min(L, channels - first);
        if (channels_last) {
            const T* p = data + first;
            for (int y = 0; y < map.height; ++y)
                for (int x = 0; x < map.width; ++x, p += channels)
                    store(map.at(b, y, x), n == L ? load(p, Full{}) : load(p, Tail(n)));
            return;
        }
        const int64_t pixels = map.pixels();
        const bool more = first + 2 * L <= channels;
        for_pieces(map, b, [&](int64_t pixel, int count, auto&& places) {
            const T* p = data + first * pixels + pixel;
            V r[L] = {};
            for (int i = 0; i < n; ++i) {
                r[i] = count == L ? load(p + i * pixels, Full{}) : load(p + i * pixels, Tail(count));
                if (more) __builtin_prefetch(p + (i + L) * pixels);  // for the next block
            }
            transpose(r);
            places([&](int i, float* to) { store(to, r[i]); });
        });
    }

    // the tensor's channels of block `to` = block b of the map
    INLINE_BODY void put(const Map& map, int b, int to) const {
        const int first = to * L, n = std::min(L, channels - first);
        if (channels_last) {
            T* p = data + first;
            for (int y = 0; y < map.height; ++y)
                for (int x = 0; x < map.width; ++x, p += channels) {
                    if (n == L) store(p, load(map.at(b, y, x)), Full{});
                    else store(p, load(map.at(b, y, x)), Tail(n));
                }
            return;
        }
        const int64_t pixels = map.pixels();
        for_pieces(map, b, [&](int64_t pixel, int count, auto&& places) {
            T* p = data + first * pixels + pixel;
            V r[L] = {};
            places([&](int i, const float* from) { r[i] = load(from); });
            transpose(r);
            for (int i = 0; i < n; ++i) {
                if (count == L) store(p + i * pixels, r[i], Full{});
                else store(p + i * pixels, r[i], Tail(count));
            }
        });
    }

private:
    // f(first pixel, pixels, places) for pieces of at most L pixels; places(g) calls g(i, where pixel i of the piece is
    // in the map)
    template <class F>
    static void for_pieces(const Map& map, int b, F&& f) {
        const int64_t pixels = map.pixels(), gap = 2 * map.pad * L;
        float* at = map.at(b, 0, 0);
        int x = 0;
        for (int64_t p = 0; p < pixels; p += L) {
            const int count = static_cast<int>(std::min<int64_t>(L, pixels - p));
            f(p, count, [&](auto&& g) {
                for (int i = 0; i < count; ++i, at += L) {
                    g(i, at);
                    if (++x == map.width) x = 0, at += gap;
                }
            });
        }
    }
};

// sums[lane] += the sum of block b over the pixels
inline void add_sums(const Map& map, int b, double* sums) {
    D low = load(sums), high = load(sums + L / 2);
    for (int y = 0; y < map.height; ++y)
        for (int x = 0; x < map.width; ++x) {
            const float* p = map.at(b, y, x);
            low += load_wide(p);
            high += load_wide(p + L / 2);
        }
    store(sums, low);
    store(sums + L / 2, high);
}

// the sum of block b of one map times that of another, over pixels and channels
inline double sum_products(const Map& map, const Map& other, int b) {
    D sum[2] = {};
    for (int y = 0; y < map.height; ++y)
        for (int x = 0; x < map.width; ++x) {
            const float *p = map.at(b, y, x), *q = other.at(b, y, x);
            for (int half = 0; half < 2; ++half) sum[half] += load_wide(p + half * L / 2) * load_wide(q + half * L / 2);
        }
    sum[0] += sum[1];
    double total = 0;
    for (int i = 0; i < L / 2; ++i) total += sum[0][i];
    return total;
}

// floor(i * in / out) times a step, for every i < out
inline const int32_t* nearest(int in, int out, int step, Bump& bump) {
    int32_t* table = reinterpret_cast<int32_t*>(bump.take(out));
    if (!bump.measures())
        for (int i = 0; i < out; ++i) table[i] = static_cast<int32_t>(int64_t{i} * in / out) * step;
    return table;
}

struct Resized {  // a map of fewer or more pixels, read at the nearest
    Map map;
    const int32_t *rows, *columns;  // in rows, in floats

    float* row(int b, int y) const { return map.at(b, rows[y], 0); }
    float* at(int b, int y, int x) const { return row(b, y) + columns[x]; }
};

}  // namespace fastattn::FASTATTN_ISA
