// Passes over one channels_last sample, x [H][W][C] (or some channels of it, see the constructor); lanes run along C.
#pragma once

#include "passes.h"

namespace fastattn::FASTATTN_ISA {

template <class T>
class Nhwc {
public:
    using Map = T;

    Nhwc(const ScsaPlan& plan, float*) : Nhwc(plan, plan.channels, 0) {}
    // A map that holds some channels only: the first of them, and the elements from pixel to pixel
    Nhwc(const ScsaPlan& plan, int64_t stride, int first) : plan_(plan), stride_(stride), first_(first) {}
    static int64_t scratch_size(const ScsaPlan&) { return 0; }

    // A team divides the passes that write a map by rows: a line of the map, and its neighbour, then have one writer.
    static constexpr bool kWritesByRows = true;

    const T* fetch(const T* x, Range, int) const { return x; }

    // mean_h [H][C], mean_w [W][C]
    INLINE_BODY void axis_means(const T* x, Range range, float* mean_h, float* mean_w) const {
        const int H = plan_.height, W = plan_.width;
        const int64_t C = plan_.channels, line = W * stride_;
        const auto rows = [&](int h, auto count) {
            for_stripes(range, [&](int c, auto k, auto m) {
                V row[count.value][k.value] = {};
                const T* p = at(x, h, 0, c);
                float* col = mean_w + c;
                for (int w = 0; w < W; ++w, p += stride_, col += C)
                    each<k.value>(m, [&](int v, auto lanes) {
                        V s = h == 0 ? V{} : load(col + v * L, lanes);
                        for (int r = 0; r < count.value; ++r) {
                            const V e = load(p + r * line + v * L, lanes);
                            row[r][v] += e;
                            s += e;
                        }
                        store(col + v * L, h + count.value == H ? s * (1.0f / H) : s, lanes);
                    });
                for (int r = 0; r < count.value; ++r)
                    each<k.value>(m, [&](int v, auto lanes) {
                        store(mean_h + (h + r) * C + c + v * L, row[r][v] * (1.0f / W), lanes);
                    });
            });
        };
        int h = 0;
        for (; h + 4 <= H; h += 4) rows(h, std::integral_constant<int, 4>{});
        for (; h < H; ++h) rows(h, std::integral_constant<int, 1>{});
    }

    // y [N][C] = pool(x * a_h * a_w), and with max pooling the place in the plane of each maximum, argmax [N][C]
    INLINE_BODY void gated_pool(const T* x, Range range, const float* a_h, const float* a_w, float* y,
                                int32_t* argmax) const {
        if (argmax) return max_pool(x, range, a_h, a_w, y, argmax);
        const int64_t C = plan_.channels;
        const float scale = 1.0f / (plan_.window_h * plan_.window_w);
        for (int n = plan_.pooled - 1; n >= 0; --n) {  // backwards: the last rows are still in cache
            const int h0 = n / plan_.pooled_w * plan_.window_h, w0 = n % plan_.pooled_w * plan_.window_w;
            for_stripes(range, [&](int c, auto k, auto m) {
                V total[k.value] = {};
                for (int h = h0; h < h0 + plan_.window_h; ++h) {
                    V row[k.value] = {};
                    const T* p = at(x, h, w0, c);
                    for (int w = w0; w < w0 + plan_.window_w; ++w, p += stride_)
                        each<k.value>(m, [&](int v, auto lanes) {
                            row[v] = fused(load(p + v * L, lanes), gate(a_w, w, c + v * L, lanes), row[v]);
                        });
                    each<k.value>(m, [&](int v, auto lanes) {
                        total[v] = fused(row[v], gate(a_h, h, c + v * L, lanes), total[v]);
                    });
                }
                each<k.value>(m, [&](int v, auto lanes) { store(y + n * C + c + v * L, total[v] * scale, lanes); });
            });
        }
    }

    // out = x * (a_w * (a_h * g))
    INLINE_BODY void gated_product(const T* x, Range range, Range rows, const float* a_h, const float* a_w,
                                   const float* g, T* out) const {
        for (int h = rows.begin; h < rows.end; ++h)
            for_stripes(range, [&](int c, auto k, auto m) {
                V a[k.value];
                each<k.value>(m, [&](int v, auto lanes) {
                    a[v] = gate(a_h, h, c + v * L, lanes) * (g ? load(g + c + v * L, lanes) : splat(1.0f));
                });
                const T* p = at(x, h, 0, c);
                T* d = at(out, h, 0, c);
                for (int w = 0; w < plan_.width; ++w, p += stride_, d += stride_)
                    each<k.value>(m, [&](int v, auto lanes) {
                        store(d + v * L, load(p + v * L, lanes) * (gate(a_w, w, c + v * L, lanes) * a[v]), lanes);
                    });
            });
    }

    // r_h = sum_w d x a_w, r_w = sum_h d x a_h; s_h, s_w: sums of x a_w over each row's windows, of x a_h over each
    // column's
    INLINE_BODY void gather(const T* d, const T* x, Range range, const float* a_h, const float* a_w,
                            const Gathered& out) const {
        const int H = plan_.height, used_h = out.s_h ? plan_.pooled_h * plan_.window_h : 0;
        int h = 0;
        const auto until = [&](int end, bool windows) {
            const auto rows = [&](auto count) {
                for_stripes<2>(range, [&](int c, auto k, auto m) {
                    if (plan_.spatial) gather_rows<true, count.value, k.value>(d, x, a_h, a_w, out, c, m, h, windows);
                    else gather_rows<false, count.value, k.value>(d, x, a_h, a_w, out, c, m, h, windows);
                });
                h += count.value;
            };
            while (end - h >= 4) rows(std::integral_constant<int, 4>{});
            if (end - h == 3) rows(std::integral_constant<int, 3>{});
            if (end - h == 2) rows(std::integral_constant<int, 2>{});
            if (end - h == 1) rows(std::integral_constant<int, 1>{});
        };
        while (h < used_h) until(h + plan_.window_h, true);
        until(H, false);
    }

    // dx = (d g + pooled) a_h a_w + m_h + m_w
    INLINE_BODY void input_gradient(const T* d, Range range, Range rows, const float* a_h, const float* a_w,
                                    const InputGradient& in, T* dx) const {
        const int W = plan_.width, ph = in.pooled ? plan_.pooled_h : 0, pw = plan_.pooled_w;
        const int64_t C = plan_.channels;
        for (int h = rows.end - 1; h >= rows.begin; --h)  // backwards: the last rows are still in cache
            for_stripes(range, [&](int c, auto k, auto m) {
                V g[k.value], a[k.value], offset[k.value], shift[k.value];
                each<k.value>(m, [&](int v, auto lanes) {
                    g[v] = in.g ? load(in.g + c + v * L, lanes) : splat(1.0f);
                    a[v] = gate(a_h, h, c + v * L, lanes);
                    offset[v] = in.m_h ? load(in.m_h + h * C + c + v * L, lanes) : V{};
                });
                const T* p = at(d, h, 0, c);
                T* q = at(dx, h, 0, c);
                int w = 0;
                const auto columns = [&](int end) {
                    for (; w < end; ++w, p += stride_, q += stride_)
                        each<k.value>(m, [&](int v, auto lanes) {
                            const V s =
                                (load(p + v * L, lanes) * g[v] + shift[v]) * (gate(a_w, w, c + v * L, lanes) * a[v]);
                            store(q + v * L, in.m_w ? s + (load(in.m_w + w * C + c + v * L, lanes) + offset[v]) : s,
                                  lanes);
                        });
                };
                const int band = h / plan_.window_h;
                for (int i = 0; band < ph && i < pw; ++i) {
                    const float* pooled = in.pooled + (int64_t{band} * pw + i) * C + c;
                    each<k.value>(m, [&](int v, auto lanes) { shift[v] = load(pooled + v * L, lanes); });
                    columns(w + plan_.window_w);
                }
                for (V& v : shift) v = V{};
                columns(W);
            });
    }

private:
    // f(c, number of vectors, mask of the last one): as many vectors of a pixel together as WIDEST allows
    template <int WIDEST = L == 16 ? 4 : 2, class F>
    static void for_stripes(Range range, F&& f) {
        int c = range.begin;
        if constexpr (WIDEST >= 4)
            for (; c + 4 * L <= range.end; c += 4 * L) f(c, std::integral_constant<int, 4>{}, Full{});
        for (; c + 2 * L <= range.end; c += 2 * L) f(c, std::integral_constant<int, 2>{}, Full{});
        for_lanes(c, range.end, [&](int c, auto m) { f(c, std::integral_constant<int, 1>{}, m); });
    }

    template <class P>
    P* at(P* map, int h, int w, int c) const {
        return map + (int64_t{h} * plan_.width + w) * stride_ + (c - first_);
    }

    template <class M>
    V gate(const float* a, int i, int c, M m) const {
        return plan_.spatial ? load(a + static_cast<int64_t>(i) * plan_.channels + c, m) : splat(1.0f);
    }

    // R rows of K vectors; `windows`: they lie in one band of windows. No branch on SPATIAL lies between the products
    // and their sums, so that all vectors' are fused, and rounded, alike.
    template <bool SPATIAL, int R, int K, class M>
    void gather_rows(const T* d, const T* x, const float* a_h, const float* a_w, const Gathered& out, int c, M m, int h,
                     bool windows) const {
        const int W = plan_.width, pw = plan_.pooled_w, used_w = windows ? pw * plan_.window_w : 0;
        const int64_t C = plan_.channels, line = W * stride_;
        const bool first_row = h == 0, first_of_band = windows && h % plan_.window_h == 0;
        const auto gate = [&](const float* a, int i, int channel, auto lanes) {
            if constexpr (SPATIAL) return load(a + i * C + channel, lanes);
            else return splat(1.0f);
        };
        V row[R][K] = {}, window[R][K] = {};
        const T *px = at(x, h, 0, c), *pd = at(d, h, 0, c);
        float* col = out.r_w + c;
        float* band = windows ? out.s_w + int64_t{h / plan_.window_h} * W * C + c : nullptr;
        const auto pixel = [&](int w, auto in_window) {
            each<K>(m, [&](int v, auto lanes) {
                const V aw = gate(a_w, w, c + v * L, lanes);
                V dc{}, xc{};
                for (int r = 0; r < R; ++r) {
                    const V e = load(px + r * line + v * L, lanes), de = load(pd + r * line + v * L, lanes) * e;
                    const V ah = gate(a_h, h + r, c + v * L, lanes);
                    row[r][v] += de * aw;
                    dc += de * ah;
                    if (in_window.value) {
                        window[r][v] += e * aw;
                        xc += e * ah;
                    }
                }
                store(col + v * L, first_row ? dc : load(col + v * L, lanes) + dc, lanes);
                if (in_window.value) store(band + v * L, first_of_band ? xc : load(band + v * L, lanes) + xc, lanes);
            });
            px += stride_, pd += stride_, col += C;
            if (in_window.value) band += C;
        };
        int w = 0;
        for (int i = 0; w < used_w; ++i) {
            for (const int end = w + plan_.window_w; w < end; ++w) pixel(w, std::true_type{});
            for (int r = 0; r < R; ++r)
                each<K>(m, [&](int v, auto lanes) {
                    store(out.s_h + (int64_t{h + r} * pw + i) * C + c + v * L, window[r][v], lanes);
                    window[r][v] = V{};
                });
        }
        for (; w < W; ++w) pixel(w, std::false_type{});
        for (int r = 0; r < R; ++r)
            each<K>(m, [&](int v, auto lanes) { store(out.r_h + (h + r) * C + c + v * L, row[r][v], lanes); });
    }

    void max_pool(const T* x, Range range, const float* a_h, const float* a_w, float* y, int32_t* argmax) const {
        const int64_t C = plan_.channels;
        for_lanes(range.begin, range.end, [&](int c, auto m) {
            for (int n = 0; n < plan_.pooled; ++n) {
                const int h0 = n / plan_.pooled_w * plan_.window_h, w0 = n % plan_.pooled_w * plan_.window_w;
                V best = splat(-__builtin_inff());
                I place = I{} + (h0 * plan_.width + w0);
                for (int h = h0; h < h0 + plan_.window_h; ++h)
                    for (int w = w0; w < w0 + plan_.window_w; ++w) {
                        const V s = load(at(x, h, w, c), m) * gate(a_h, h, c, m) * gate(a_w, w, c, m);
                        const I better = (s > best) | (s != s);
                        best = better ? s : best;
                        place = better ? I{} + (h * plan_.width + w) : place;
                    }
                store(y + n * C + c, best, m);
                store(reinterpret_cast<float*>(argmax) + n * C + c, reinterpret_cast<V>(place), m);
            }
        });
    }

    const ScsaPlan& plan_;
    int64_t stride_;
    int first_;
};

}  // namespace fastattn::FASTATTN_ISA
