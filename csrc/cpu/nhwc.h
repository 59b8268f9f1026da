// Passes over one channels_last sample, x [H][W][C]; lanes run along C.
#pragma once

#include "passes.h"

namespace fastattn::FASTATTN_ISA {

template <class T>
class Nhwc {
public:
    Nhwc(const Plan& plan, float*) : plan_(plan) {}
    static int64_t scratch_size(const Plan&) { return 0; }

    // mean_h [H][C], mean_w [W][C]
    void axis_means(const T* x, Range range, float* mean_h, float* mean_w) const {
        const int H = plan_.height, W = plan_.width;
        const int64_t C = plan_.channels, line = W * C;
        for_stripes(range, [&](int c, auto k, auto m) {
            const auto rows = [&](int h, auto count) {
                V row[count.value][k.value] = {};
                const T* p = x + h * line + c;
                float* col = mean_w + c;
                for (int w = 0; w < W; ++w, p += C, col += C)
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
                    each<k.value>(m, [&](int v, auto lanes) { store(mean_h + (h + r) * C + c + v * L, row[r][v] * (1.0f / W), lanes); });
            };
            int h = 0;
            for (; h + 4 <= H; h += 4) rows(h, std::integral_constant<int, 4>{});
            for (; h < H; ++h) rows(h, std::integral_constant<int, 1>{});
        });
    }

    // y [N][C] = pool(x * a_h * a_w), and with max pooling the place in the plane of each maximum, argmax [N][C]
    void gated_pool(const T* x, Range range, const float* a_h, const float* a_w, float* y, int32_t* argmax) const {
        if (argmax) return max_pool(x, range, a_h, a_w, y, argmax);
        const int64_t C = plan_.channels;
        const float scale = 1.0f / (plan_.window_h * plan_.window_w);
        for_stripes(range, [&](int c, auto k, auto m) {
            for (int n = 0; n < plan_.pooled; ++n) {
                const int h0 = n / plan_.pooled_w * plan_.window_h, w0 = n % plan_.pooled_w * plan_.window_w;
                V total[k.value] = {};
                for (int h = h0; h < h0 + plan_.window_h; ++h) {
                    V row[k.value] = {};
                    const T* p = x + (int64_t{h} * plan_.width + w0) * C + c;
                    for (int w = w0; w < w0 + plan_.window_w; ++w, p += C)
                        each<k.value>(m, [&](int v, auto lanes) { row[v] += load(p + v * L, lanes) * gate(a_w, w, c + v * L, lanes); });
                    each<k.value>(m, [&](int v, auto lanes) { total[v] += row[v] * gate(a_h, h, c + v * L, lanes); });
                }
                each<k.value>(m, [&](int v, auto lanes) { store(y + n * C + c + v * L, total[v] * scale, lanes); });
            }
        });
    }

    // out = x * (a_w * (a_h * g))
    void gated_product(const T* x, Range range, const float* a_h, const float* a_w, const float* g, T* out) const {
        const int H = plan_.height, W = plan_.width;
        const int64_t C = plan_.channels;
        for_stripes(range, [&](int c, auto k, auto m) {
            for (int h = 0; h < H; ++h) {
                V a[k.value];
                each<k.value>(m, [&](int v, auto lanes) {
                    a[v] = gate(a_h, h, c + v * L, lanes) * (g ? load(g + c + v * L, lanes) : splat(1.0f));
                });
                const T* p = x + int64_t{h} * W * C + c;
                T* d = out + int64_t{h} * W * C + c;
                for (int w = 0; w < W; ++w, p += C, d += C)
                    each<k.value>(m, [&](int v, auto lanes) {
                        store(d + v * L, load(p + v * L, lanes) * (gate(a_w, w, c + v * L, lanes) * a[v]), lanes);
                    });
            }
        });
    }

    // r_h = sum_w d x a_w, r_w = sum_h d x a_h; s_h, s_w: sums of x a_w over each row's windows, of x a_h over each column's
    void gather(const T* d, const T* x, Range range, const float* a_h, const float* a_w, const Gathered& out) const {
        const int H = plan_.height, used_h = out.s_h ? plan_.pooled_h * plan_.window_h : 0;
        for_lanes(range.begin, range.end, [&](int c, auto m) {
            int h = 0;
            const auto rows = [&](auto count, bool windows) {
                gather_rows<count.value>(d, x, a_h, a_w, out, c, m, h, windows);
                h += count.value;
            };
            const auto until = [&](int end, bool windows) {
                if constexpr (L == 16)
                    while (end - h >= 7) rows(std::integral_constant<int, 7>{}, windows);
                while (end - h >= 4) rows(std::integral_constant<int, 4>{}, windows);
                while (end - h >= 2) rows(std::integral_constant<int, 2>{}, windows);
                while (h < end) rows(std::integral_constant<int, 1>{}, windows);
            };
            while (h < used_h) until(h + plan_.window_h, true);
            until(H, false);
        });
    }

    // dx = (d g + pooled) a_h a_w + m_h + m_w
    void input_gradient(const T* d, Range range, const float* a_h, const float* a_w, const InputGradient& in, T* dx) const {
        const int W = plan_.width, ph = in.pooled ? plan_.pooled_h : 0, pw = plan_.pooled_w;
        const int64_t C = plan_.channels;
        for_lanes(range.begin, range.end, [&](int c, auto m) {
            const V g = in.g ? load(in.g + c, m) : splat(1.0f);
            for (int h = 0; h < plan_.height; ++h) {
                const int band = h / plan_.window_h;
                const V a = gate(a_h, h, c, m), o = in.m_h ? load(in.m_h + h * C + c, m) : V{};
                const T* p = d + int64_t{h} * W * C + c;
                T* q = dx + int64_t{h} * W * C + c;
                int w = 0;
                const auto columns = [&](int end, V shift) {
                    for (; w < end; ++w, p += C, q += C) {
                        const V s = load(p, m) * g + shift, b = gate(a_w, w, c, m) * a;
                        store(q, in.m_w ? s * b + (load(in.m_w + w * C + c, m) + o) : s * b, m);
                    }
                };
                if (band < ph)
                    for (int k = 0; k < pw; ++k) columns(w + plan_.window_w, load(in.pooled + int64_t{band * pw + k} * C + c, m));
                columns(W, V{});
            }
        });
    }

private:
    static constexpr int kStripe = L == 16 ? 4 : 2;  // vectors of one pixel worked on together

    // f(c, number of vectors, mask of the last one)
    template <class F>
    static void for_stripes(Range range, F&& f) {
        int c = range.begin;
        for (; c + kStripe * L <= range.end; c += kStripe * L) f(c, std::integral_constant<int, kStripe>{}, Full{});
        for_lanes(c, range.end, [&](int c, auto m) { f(c, std::integral_constant<int, 1>{}, m); });
    }

    template <class M>
    V gate(const float* a, int i, int c, M m) const {
        return plan_.spatial ? load(a + static_cast<int64_t>(i) * plan_.channels + c, m) : splat(1.0f);
    }

    template <int R, class M>
    void gather_rows(const T* d, const T* x, const float* a_h, const float* a_w, const Gathered& out, int c, M m, int h, bool windows) const {
        const int W = plan_.width;
        const int64_t C = plan_.channels, line = W * C;
        const int pw = plan_.pooled_w, used_w = windows ? pw * plan_.window_w : 0;
        const bool first_of_window = windows && h % plan_.window_h == 0;
        V row[R] = {}, window[R] = {}, ah[R];
        for (int r = 0; r < R; ++r) ah[r] = gate(a_h, h + r, c, m);
        const T *px = x + h * line + c, *pd = d + h * line + c;
        float* col = out.r_w + c;
        float* band = windows ? out.s_w + h / plan_.window_h * line + c : nullptr;
        const auto pixel = [&](int w, auto in_band) {
            const V aw = gate(a_w, w, c, m);
            V dc{}, xc{};
            for (int r = 0; r < R; ++r) {
                const V e = load(px + r * line, m), de = load(pd + r * line, m) * e;
                row[r] += de * aw;
                dc += de * ah[r];
                if (in_band.value) {
                    window[r] += e * aw;
                    xc += e * ah[r];
                }
            }
            store(col, h == 0 ? dc : load(col, m) + dc, m);
            if (in_band.value) {
                store(band, first_of_window ? xc : load(band, m) + xc, m);
                band += C;
            }
            px += C, pd += C, col += C;
        };
        int w = 0;
        for (int k = 0; w < used_w; ++k) {
            for (const int end = w + plan_.window_w; w < end; ++w) pixel(w, std::true_type{});
            for (int r = 0; r < R; ++r) {
                store(out.s_h + (int64_t{h + r} * pw + k) * C + c, window[r], m);
                window[r] = V{};
            }
        }
        for (; w < W; ++w) pixel(w, std::false_type{});
        for (int r = 0; r < R; ++r) store(out.r_h + (h + r) * C + c, row[r], m);
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
                        const int at = h * plan_.width + w;
                        const V s = load(x + at * C + c, m) * gate(a_h, h, c, m) * gate(a_w, w, c, m);
                        const I better = (s > best) | (s != s);
                        best = better ? s : best;
                        place = better ? I{} + at : place;
                    }
                store(y + n * C + c, best, m);
                store(reinterpret_cast<float*>(argmax) + n * C + c, reinterpret_cast<V>(place), m);
            }
        });
    }

    const Plan& plan_;
};

}  // namespace fastattn
