// The mixture of scales, z = x + sum of shares times resized scale features + position encoding, and its gradient.
#pragma once

#include "../depthwise.h"
#include "gradients.h"
#include "params.h"

namespace fastattn::FASTATTN_ISA {

struct Mixture {
    const LgaPlan& plan;
    const LgaParams& params;
    Map x;                       // padded for 3x3
    std::vector<Map> depthwise;  // of each scale
    std::vector<Resized> coarse;
    Map logits;
    int64_t plane;
    float* shares;  // [scale + 1][plane], the first is x's own, which drops out
    Resized encoding;

    Mixture(const LgaPlan& plan, const LgaParams& params, Bump& bump) : plan(plan), params(params) {
        const int dim = plan.dim;
        x = Map::take(bump, dim, plan.height, plan.width, 1);
        const auto resized = [&](const Map& map) {
            const int32_t* rows = nearest(map.height, plan.height, 1, bump);
            return Resized{map, rows, nearest(map.width, plan.width, L, bump)};
        };
        for (int i = 0; i < plan.num_scales; ++i) {
            depthwise.push_back(Map::take(bump, dim, plan.coarse_height(i), plan.coarse_width(i)));
            coarse.push_back(resized(Map::take(bump, dim, plan.coarse_height(i), plan.coarse_width(i))));
        }
        logits = Map::take(bump, plan.num_scales + 1, plan.height, plan.width);
        plane = round_up(plan.pixels(), L);
        shares = bump.take((plan.num_scales + 1) * plane);
        encoding = resized({params.encoding, plan.encoding_height, plan.encoding_width, 0});
    }

    // depthwise convolutions of a block of x
    void convolve(int b) const {
        clear_pads(x, b);
        for (int i = 0; i < plan.num_scales; ++i) {
            const DepthwiseParams& p = params.scales[i].depthwise;
            FASTATTN_ISA::depthwise(x, b, p.taps + b * p.block(), 3, 1 << i, load(p.bias + b * L), depthwise[i], b,
                                    false);
        }
    }

    // scale features from one on; needs all blocks of `depthwise`
    void project(int first, Team team) const {
        const Range all{0, blocks(plan.dim)};
        for (int i = first; i < plan.num_scales; ++i) {
            const PointwiseParams& p = params.scales[i].pointwise;
            product(depthwise[i].flat(), {0, plan.dim}, p.weights, p.bias, coarse[i].map.flat(), all, {0, 1},
                    part(depthwise[i].pixels(), team), false);
        }
    }

    // softmax over scales of some rows; needs all blocks of x
    INLINE_BODY void weigh(Range rows) const {
        const int count = plan.num_scales + 1;
        product(x, {0, plan.dim}, params.attention.weights, params.attention.bias, logits, {0, blocks(count)}, rows,
                {0, plan.width}, false);
        for_planes(rows, [&](int64_t p, int n) {
            V score[kMaxShares], top = splat(-__builtin_inff()), total{};
            read_lanes(logits, count, p, n, score);
            for (int i = 0; i < count; ++i) top = max(top, score[i]);
            for (int i = 0; i < count; ++i) total += score[i] = exp(score[i] - top);
            for (int i = 0; i < count; ++i) store_some(shares + i * plane + p, score[i] / total, n);
        });
    }

    // a block of z; needs the scale features and shares
    INLINE_BODY void mix(int b, const Map& z) const {
        clear_pads(z, b);
        for (int y = 0; y < plan.height; ++y) {
            const float* rows[kMaxShares];
            for (int i = 0; i < plan.num_scales; ++i) rows[i] = coarse[i].row(b, y);
            const float *from = x.at(b, y, 0), *codes = encoding.row(b, y),
                        *share = shares + plane + int64_t{y} * plan.width;
            float* to = z.at(b, y, 0);
            for (int c = 0; c < plan.width; ++c) {
                V s{};  // by itself, as it is the smaller part
                for (int i = 0; i < plan.num_scales; ++i)
                    s += share[i * plane + c] * load(rows[i] + coarse[i].columns[c]);
                store(to + c * L, load(from + c * L) + load(codes + encoding.columns[c]) + s);
            }
        }
    }

    static constexpr int kMaxShares = 16;

    // f(first pixel, pixels) for pieces of at most L pixels of some rows
    template <class F>
    void for_planes(Range rows, F&& f) const {
        const int64_t end = int64_t{rows.end} * plan.width;
        for (int64_t p = int64_t{rows.begin} * plan.width; p < end; p += L)
            f(p, static_cast<int>(std::min<int64_t>(L, end - p)));
    }

    static void store_some(float* p, V v, int n) {
        if (n == L) store(p, v, Full{});
        else store(p, v, Tail(n));
    }

    // channels [0, count) of n pixels of a map without padding: one vector of pixels for each
    static void read_lanes(const Map& map, int count, int64_t pixel, int n, V* channels) {
        for (int b = 0; b < blocks(count); ++b) {
            V r[L] = {};
            for (int i = 0; i < n; ++i) r[i] = load(map.at(b) + (pixel + i) * L);
            transpose(r);
            for (int i = b * L; i < std::min(count, (b + 1) * L); ++i) channels[i] = r[i - b * L];
        }
    }
};

}  // namespace fastattn::FASTATTN_ISA
