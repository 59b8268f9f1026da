// Passes over one contiguous sample whose rows are short against a vector: the map is first rearranged, as fp32, to
// blocks of L channels, [block][H][W][L], where the channels_last passes apply with no lane unused.
#pragma once

#include "nhwc.h"

namespace fastattn::FASTATTN_ISA {

template <class T>
class Narrow {
public:
    using Map = float;
    static constexpr bool kWritesByRows = false;

    static bool serves(const ScsaPlan& plan) { return plan.width <= 8 && plan.width <= L; }
    static int64_t scratch_size(const ScsaPlan& plan) { return 2 * map_size(plan) + 64; }
    Narrow(const ScsaPlan& plan, float* scratch) : plan_(plan), maps_{scratch, scratch + map_size(plan)} {}

    INLINE_BODY const float* fetch(const T* x, Range range, int slot) const {
        for_blocks(range, [&](int c, int n) {
            float* block = maps_[slot] + c * plan_.pixels;
            for_pixels([&](int64_t p, int count, auto m) {
                V r[L];
                for (int i = 0; i < L; ++i) r[i] = i < n ? load(x + (c + i) * plan_.pixels + p, m) : V{};
                transpose(r);
                for (int i = 0; i < count; ++i) store(block + (p + i) * L, r[i]);
            });
        });
        return maps_[slot];
    }

    void axis_means(const float* x, Range range, float* mean_h, float* mean_w) const {
        for_blocks(range, [&](int c, int n) { block(c).axis_means(x + c * plan_.pixels, {c, c + n}, mean_h, mean_w); });
    }
    void gated_pool(const float* x, Range range, const float* a_h, const float* a_w, float* y, int32_t* argmax) const {
        for_blocks(range,
                   [&](int c, int n) { block(c).gated_pool(x + c * plan_.pixels, {c, c + n}, a_h, a_w, y, argmax); });
    }
    void gather(const float* d, const float* x, Range range, const float* a_h, const float* a_w,
                const Gathered& out) const {
        for_blocks(range, [&](int c, int n) {
            block(c).gather(d + c * plan_.pixels, x + c * plan_.pixels, {c, c + n}, a_h, a_w, out);
        });
    }
    void gated_product(const float* x, Range range, Range rows, const float* a_h, const float* a_w, const float* g,
                       T* out) const {
        for_blocks(range, [&](int c, int n) {
            float* map = maps_[0] + c * plan_.pixels;  // x itself: every element is read once before it is written
            block(c).gated_product(x + c * plan_.pixels, {c, c + n}, rows, a_h, a_w, g, map);
            put(map, c, n, out);
        });
    }
    void input_gradient(const float* d, Range range, Range rows, const float* a_h, const float* a_w,
                        const InputGradient& in, T* dx) const {
        for_blocks(range, [&](int c, int n) {
            float* map = maps_[0] + c * plan_.pixels;
            block(c).input_gradient(d + c * plan_.pixels, {c, c + n}, rows, a_h, a_w, in, map);
            put(map, c, n, dx);
        });
    }

private:
    static int64_t map_size(const ScsaPlan& plan) { return (plan.channels + L) * plan.pixels; }
    Nhwc<float> block(int c) const { return {plan_, int64_t{L}, c}; }

    // f(first channel, channels); a block lies at its first channel times the pixels
    template <class F>
    static void for_blocks(Range range, F&& f) {
        for (int c = range.begin; c < range.end; c += L) f(c, std::min(L, range.end - c));
    }

    template <class F>
    void for_pixels(F&& f) const {
        int64_t p = 0;
        for (; p + L <= plan_.pixels; p += L) f(p, L, Full{});
        if (p < plan_.pixels) f(p, static_cast<int>(plan_.pixels - p), Tail(static_cast<int>(plan_.pixels - p)));
    }

    INLINE_BODY void put(const float* map, int c, int n, T* out) const {
        for_pixels([&](int64_t p, int count, auto m) {
            V r[L];
            for (int i = 0; i < L; ++i) r[i] = i < count ? load(map + (p + i) * L) : V{};
            transpose(r);
            for (int i = 0; i < n; ++i) store(out + (c + i) * plan_.pixels + p, r[i], m);
        });
    }

    const ScsaPlan& plan_;
    float* maps_[2];  // of x, of the output's gradient
};

}  // namespace fastattn::FASTATTN_ISA
