// Passes over one contiguous sample, x [C][H][W]; lanes run along W.
// Vectors outside of the passes are [length][C]; inside they are [channel][length], so blocks of L channels are
// transposed on the way in and out.
#pragma once

#include "passes.h"

namespace fastattn::FASTATTN_ISA {

// The gates of a block of L channels, [channel][H] and [channel][W]; ones where there are none.
class BlockGates {
public:
    BlockGates(const ScsaPlan& plan, Bump& bump)
        : plan_(plan),
          hp_(round_up(plan.height, L)),
          wp_(round_up(plan.width, L)),
          h_(bump.take(L * hp_)),
          w_(bump.take(L * wp_)) {
        if (!plan.spatial) {
            std::fill(h_, h_ + L * hp_, 1.0f);
            std::fill(w_, w_ + L * wp_, 1.0f);
        }
    }
    static int64_t size(const ScsaPlan& plan) {
        return int64_t{L} * (round_up(plan.height, L) + round_up(plan.width, L));
    }

    void fetch(const float* a_h, const float* a_w, int c, int n) {
        if (!plan_.spatial) return;
        transpose_in(a_h + c, plan_.channels, plan_.height, n, h_, hp_);
        transpose_in(a_w + c, plan_.channels, plan_.width, n, w_, wp_);
    }
    const float* h(int i) const { return h_ + i * hp_; }
    const float* w(int i) const { return w_ + i * wp_; }

private:
    const ScsaPlan& plan_;
    int hp_, wp_;
    float *h_, *w_;
};

template <class T>
class Nchw {
public:
    using Map = T;
    static constexpr bool kWritesByRows = false;

    Nchw(const ScsaPlan& plan, float* scratch) : plan_(plan), scratch_(scratch) {}

    static int64_t scratch_size(const ScsaPlan& plan) {
        const int64_t h = round_up(plan.height, L), w = round_up(plan.width, L), n = round_up(plan.pooled, L),
                      ph = plan.pooled_h;
        const int64_t means = L * (h + L + w);
        const int64_t pool = L * (n + L) + L * (ph * w + 4);
        const int64_t gather = means + L * ph * w + h * w + L * (h * plan.pooled_w + L);
        const int64_t input = L * (h + w + n + L) + ph * w + w;
        return 2 * BlockGates::size(plan) + std::max(std::max(means, pool), std::max(gather, input)) + 256;
    }

    const T* fetch(const T* x, Range, int) const { return x; }

    // mean_h [H][C], mean_w [W][C]
    INLINE_BODY void axis_means(const T* x, Range range, float* mean_h, float* mean_w) const {
        const int H = plan_.height, W = plan_.width, C = plan_.channels, wp = round_up(W, L);
        Bump bump(scratch_);
        float* rows = bump.take(L * H + L);  // [channel][H]
        float* cols = bump.take(L * wp);     // [channel][W]
        for_blocks(range, [&](int c, int n) {
            for_columns(W, [&](int w0, auto nv, auto m) {
                RowSums row_sums(rows, w0 > 0);
                for (int i = 0; i < n; ++i) {
                    const T* p = x + (c + i) * plan_.pixels + w0;
                    V col[nv.value] = {};
                    for (int h = 0; h < H; ++h, p += W) {
                        V row{};
                        each<nv.value>(m, [&](int v, auto lanes) {
                            const V e = load(p + v * L, lanes);
                            col[v] += e;
                            row += e;
                        });
                        row_sums.push(row);
                    }
                    for (int v = 0; v < nv.value; ++v) store(cols + i * wp + w0 + v * L, col[v]);
                }
                row_sums.flush();
            });
            transpose_out(rows, H, n, H, mean_h + c, C, 1.0f / W);
            transpose_out(cols, wp, n, W, mean_w + c, C, 1.0f / H);
        });
    }

    // y [N][C] = pool(x * a_h * a_w), and with max pooling the place in the plane of each maximum, argmax [N][C]
    INLINE_BODY void gated_pool(const T* x, Range range, const float* a_h, const float* a_w, float* y,
                                int32_t* argmax) const {
        const int C = plan_.channels, W = plan_.width, N = plan_.pooled, ph = plan_.pooled_h;
        const int used_w = plan_.pooled_w * plan_.window_w;
        Bump bump(scratch_);
        BlockGates gates(plan_, bump);
        float* pooled = bump.take(L * N + L);                        // [channel][N]
        float* bands = bump.take(int64_t{L} * ph * used_w + 4 * L);  // [channel][H'][W' * window]
        for_blocks(range, [&](int c, int n) {
            gates.fetch(a_h, a_w, c, n);
            for (int i = 0; i < n; ++i) {
                const T* plane = x + (c + i) * plan_.pixels;
                const float *ah = gates.h(i), *aw = gates.w(i);
                if (argmax) {
                    max_pool(plane, ah, aw, pooled + i * N, argmax + c + i);
                    continue;
                }
                for_columns(used_w, [&](int w0, auto nv, auto m) {
                    V gate[nv.value];
                    for (int v = 0; v < nv.value; ++v) gate[v] = load(aw + w0 + v * L);
                    const T* p = plane + w0;
                    float* d = bands + int64_t{i} * ph * used_w + w0;
                    for (int b = 0, h = 0; b < ph; ++b, d += used_w) {
                        V band[nv.value] = {};
                        for (const int end = h + plan_.window_h; h < end; ++h, p += W) {
                            const V a = splat(ah[h]);
                            each<nv.value>(m, [&](int v, auto lanes) { band[v] += a * load(p + v * L, lanes); });
                        }
                        each<nv.value>(m, [&](int v, auto lanes) { store(d + v * L, band[v] * gate[v], lanes); });
                    }
                });
            }
            if (!argmax) segment_sums(bands, n * N, plan_.window_w, 1.0f / (plan_.window_h * plan_.window_w), pooled);
            transpose_out(pooled, N, n, N, y + c, C, 1.0f);
        });
    }

    // out = x * (a_h * (a_w * g))
    INLINE_BODY void gated_product(const T* x, Range range, Range, const float* a_h, const float* a_w, const float* g,
                                   T* out) const {
        const int H = plan_.height, W = plan_.width;
        Bump bump(scratch_);
        BlockGates gates(plan_, bump);
        for_blocks(range, [&](int c, int n) {
            gates.fetch(a_h, a_w, c, n);
            for (int i = 0; i < n; ++i) {
                const float *ah = gates.h(i), *aw = gates.w(i);
                const V scale = splat(g ? g[c + i] : 1.0f);
                for_columns(W, [&](int w0, auto nv, auto m) {
                    V gate[nv.value];
                    for (int v = 0; v < nv.value; ++v) gate[v] = load(aw + w0 + v * L) * scale;
                    const T* p = x + (c + i) * plan_.pixels + w0;
                    T* d = out + (c + i) * plan_.pixels + w0;
                    for (int h = 0; h < H; ++h, p += W, d += W) {
                        const V a = splat(ah[h]);
                        each<nv.value>(m, [&](int v, auto lanes) {
                            store(d + v * L, load(p + v * L, lanes) * (a * gate[v]), lanes);
                        });
                    }
                });
            }
        });
    }

    // r_h = sum_w d x a_w, r_w = sum_h d x a_h; s_h, s_w: sums of x a_w over each row's windows, of x a_h over each
    // column's
    INLINE_BODY void gather(const T* d, const T* x, Range range, const float* a_h, const float* a_w,
                            const Gathered& out) const {
        const int C = plan_.channels, H = plan_.height, W = plan_.width, wp = round_up(W, L);
        const int ph = out.s_h ? plan_.pooled_h : 0, pw = plan_.pooled_w;
        const int used_h = ph * plan_.window_h, used_w = ph ? pw * plan_.window_w : 0;
        const Tail edge(used_w % L ? used_w % L : L);
        Bump bump(scratch_);
        BlockGates gates(plan_, bump);
        float* rows = bump.take(L * H + L);                       // [channel][H]
        float* cols = bump.take(L * wp);                          // [channel][W]
        float* bands = bump.take(int64_t{L} * ph * wp);           // [channel][H'][W]
        float* products = bump.take(int64_t{used_h} * used_w);    // [H' * window][W' * window]
        float* sums = bump.take(L * (int64_t{used_h} * pw + L));  // [channel][H' * window][W']
        for_blocks(range, [&](int c, int n) {
            gates.fetch(a_h, a_w, c, n);
            for (int i = 0; i < n; ++i) {
                const int64_t plane = (c + i) * plan_.pixels;
                const float *ah = gates.h(i), *aw = gates.w(i);
                for_columns(W, [&](int w0, auto nv, auto m) {
                    V gate[nv.value], col[nv.value] = {};
                    for (int v = 0; v < nv.value; ++v) gate[v] = load(aw + w0 + v * L);
                    const T *px = x + plane + w0, *pd = d + plane + w0;
                    RowSums row_sums(rows + i * H, w0 > 0);
                    float* t = products + w0;
                    for (int b = 0, h = 0; b < ph; ++b) {
                        V band[nv.value] = {};
                        for (const int end = h + plan_.window_h; h < end; ++h, px += W, pd += W, t += used_w) {
                            const V a = splat(ah[h]);
                            V row{};
                            each<nv.value>(m, [&](int v, auto lanes) {
                                const V e = load(px + v * L, lanes), de = load(pd + v * L, lanes) * e;
                                row += de * gate[v];
                                col[v] += de * a;
                                band[v] += e * a;
                                const int left = used_w - (w0 + v * L);
                                if (left >= L) store(t + v * L, e * gate[v]);
                                else if (left > 0) store(t + v * L, e * gate[v], edge);
                            });
                            row_sums.push(row);
                        }
                        float* s = bands + int64_t{i * ph + b} * wp + w0;
                        for (int v = 0; v < nv.value; ++v) store(s + v * L, band[v]);
                    }
                    for (int h = used_h; h < H; ++h, px += W, pd += W) {
                        const V a = splat(ah[h]);
                        V row{};
                        each<nv.value>(m, [&](int v, auto lanes) {
                            const V de = load(pd + v * L, lanes) * load(px + v * L, lanes);
                            row += de * gate[v];
                            col[v] += de * a;
                        });
                        row_sums.push(row);
                    }
                    row_sums.flush();
                    for (int v = 0; v < nv.value; ++v) store(cols + i * wp + w0 + v * L, col[v]);
                });
                if (ph) segment_sums(products, used_h * pw, plan_.window_w, 1.0f, sums + int64_t{i} * used_h * pw);
            }
            transpose_out(rows, H, n, H, out.r_h + c, C, 1.0f);
            transpose_out(cols, wp, n, W, out.r_w + c, C, 1.0f);
            if (!ph) return;
            transpose_out(sums, used_h * pw, n, used_h * pw, out.s_h + c, C, 1.0f);
            for (int b = 0; b < ph; ++b)
                transpose_out(bands + b * wp, ph * wp, n, W, out.s_w + int64_t{b} * W * C + c, C, 1.0f);
        });
    }

    // dx = (d g + pooled) a_h a_w + m_h + m_w
    INLINE_BODY void input_gradient(const T* d, Range range, Range, const float* a_h, const float* a_w,
                                    const InputGradient& in, T* dx) const {
        const int C = plan_.channels, H = plan_.height, W = plan_.width, N = plan_.pooled;
        const int hp = round_up(H, L), wp = round_up(W, L), np = round_up(N, L);
        const int ph = in.pooled ? plan_.pooled_h : 0, pw = plan_.pooled_w;
        Bump bump(scratch_);
        BlockGates gates(plan_, bump);
        float* mh = bump.take(L * hp);                     // [channel][H]
        float* mw = bump.take(L * wp);                     // [channel][W]
        float* pooled = bump.take(L * np + L);             // [channel][N]
        float* spread = bump.take(int64_t{ph} * wp + wp);  // [H'][W], and a row of zeros
        if (!in.m_h) {
            std::fill(mh, mh + L * hp, 0.0f);
            std::fill(mw, mw + L * wp, 0.0f);
        }
        std::fill(spread, spread + int64_t{ph + 1} * wp, 0.0f);
        for_blocks(range, [&](int c, int n) {
            gates.fetch(a_h, a_w, c, n);
            if (in.m_h) {
                transpose_in(in.m_h + c, C, H, n, mh, hp);
                transpose_in(in.m_w + c, C, W, n, mw, wp);
            }
            if (ph) transpose_in(in.pooled + c, C, N, n, pooled, np);
            for (int i = 0; i < n; ++i) {
                const float *ah = gates.h(i), *aw = gates.w(i);
                const V g = splat(in.g ? in.g[c + i] : 1.0f);
                for (int b = 0; b < ph; ++b) spread_windows(pooled + i * np + b * pw, aw, spread + b * wp);
                for_columns(W, [&](int w0, auto nv, auto m) {
                    V scale[nv.value], shift[nv.value], offset[nv.value];
                    for (int v = 0; v < nv.value; ++v) {
                        scale[v] = load(aw + w0 + v * L) * g;
                        offset[v] = load(mw + i * wp + w0 + v * L);
                    }
                    const T* p = d + (c + i) * plan_.pixels + w0;
                    T* q = dx + (c + i) * plan_.pixels + w0;
                    for (int b = 0, h = 0; h < H; ++b) {
                        for (int v = 0; v < nv.value; ++v) shift[v] = load(spread + b * wp + w0 + v * L);
                        for (const int end = b < ph ? h + plan_.window_h : H; h < end; ++h, p += W, q += W) {
                            const V a = splat(ah[h]), o = splat(mh[i * hp + h]);
                            each<nv.value>(m, [&](int v, auto lanes) {
                                const V t = load(p + v * L, lanes) * scale[v] + shift[v];
                                store(q + v * L, t * a + (offset[v] + o), lanes);
                            });
                        }
                    }
                });
            }
        });
    }

private:
    template <class F>
    static void for_blocks(Range range, F&& f) {
        for (int c = range.begin; c < range.end; c += L) f(c, std::min(L, range.end - c));
    }

    // row[w] = windows[w / window] * gate[w] below W' * window
    void spread_windows(const float* windows, const float* gate, float* row) const {
        const int pw = plan_.pooled_w, size = plan_.window_w;
        for (int k = 0, w = 0; k < pw; ++k)
            for (const int end = w + size; w < end; ++w) row[w] = windows[k] * gate[w];
    }

    void max_pool(const T* plane, const float* ah, const float* aw, float* y, int32_t* argmax) const {
        for (int b = 0; b < plan_.pooled_h; ++b)
            for (int k = 0; k < plan_.pooled_w; ++k) {
                float best = -__builtin_inff();
                int place = b * plan_.window_h * plan_.width + k * plan_.window_w;
                for (int h = b * plan_.window_h; h < (b + 1) * plan_.window_h; ++h)
                    for (int w = k * plan_.window_w; w < (k + 1) * plan_.window_w; ++w) {
                        const float s = load_one(plane + int64_t{h} * plan_.width + w) * ah[h] * aw[w];
                        if (s > best || s != s) best = s, place = h * plan_.width + w;
                    }
                *y++ = best;
                *argmax = place;
                argmax += plan_.channels;
            }
    }

    const ScsaPlan& plan_;
    float* scratch_;
};

}  // namespace fastattn::FASTATTN_ISA
