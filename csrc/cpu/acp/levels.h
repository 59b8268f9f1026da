// The levels of a sample, each a convolution and max pooling of the one before, and their aggregation.
#pragma once

#include "../convolutions.h"
#include "../depthwise.h"
#include "plan.h"

namespace fastattn::FASTATTN_ISA {

struct AcpParams {
    std::vector<DepthwiseParams> convs;
    std::vector<PointwiseParams> proj;  // of each level, or of the sum; the first has the bias

    AcpParams(const AcpPlan& plan, bool backward, Bump& bump) {
        for (int kernel : plan.kernels) convs.push_back(DepthwiseParams::take(bump, plan.channels, kernel, backward));
        for (int i = 0; i < plan.matrices(); ++i)
            proj.push_back(PointwiseParams::take(bump, plan.channels, plan.channels, backward));
    }

    // One thread's part
    void read(const AcpPlan& plan, const void* const* tensors, int thread, int threads) const {
        with_element(plan.param_dtype, [&](auto element) {
            using T = typename decltype(element)::type;
            Reader<T> reader(tensors, thread, threads);
            const int channels = plan.channels;
            for (const DepthwiseParams& conv : convs) reader.depthwise(conv, channels);
            const T* weight = reader.next();
            for (size_t i = 0; i < proj.size(); ++i)
                reader.matrix(weight + i * channels, static_cast<int64_t>(proj.size()) * channels, proj[i], channels,
                              channels);
            reader.vector(reader.next(), channels, proj[0].bias);
        });
    }
};

struct Levels {
    const AcpPlan& plan;
    const AcpParams& params;
    std::vector<Resized> maps;  // X_0 ... X_L, padded for the next convolution
    // for backward: [block][pixel][L], which pixel of its window a maximum is; from level 1 on
    std::vector<int32_t*> places;

    Levels(const AcpPlan& plan, const AcpParams& params, bool backward, Bump& bump) : plan(plan), params(params) {
        for (int i = 0; i <= plan.layers(); ++i) {
            const Map map = Map::take(bump, plan.channels, plan.level_height(i), plan.level_width(i), plan.padding(i));
            const int32_t* rows = nearest(map.height, plan.height, 1, bump);
            maps.push_back({map, rows, nearest(map.width, plan.width, L, bump)});
            places.push_back(backward && i ? reinterpret_cast<int32_t*>(bump.take(padded(plan.channels) * map.pixels()))
                                           : nullptr);
        }
    }

    // Block b of all levels; `convolved` is a block's map of the size of x
    void build(int b, const Map& convolved) const {
        for (int i = 0; i < plan.layers(); ++i) {
            const DepthwiseParams& p = params.convs[i];
            const Map &from = maps[i].map, &to = maps[i + 1].map;
            const Map whole{convolved.data, from.height, from.width, 0};
            clear_pads(from, b);
            depthwise(from, b, p.taps + b * p.block(), p.kernel, 1, load(p.bias + b * L), whole, 0, false);
            if (places[i + 1]) pool<true>(whole, to, b, places[i + 1] + b * to.pixels() * L);
            else pool<false>(whole, to, b, nullptr);
        }
    }

private:
    // The greatest of each window, of equal ones the first; a NaN is the greatest
    template <bool PLACES>
    INLINE_BODY void pool(const Map& from, const Map& to, int b, int32_t* places) const {
        const int size = plan.pool_size;
        for (int y = 0; y < to.height; ++y)
            for (int x = 0; x < to.width; ++x) {
                const int bottom = std::min(from.height, (y + 1) * size), right = std::min(from.width, (x + 1) * size);
                V top = load(from.at(0, y * size, x * size));
                I place{};
                for (int i = y * size; i < bottom; ++i)
                    for (int j = x * size; j < right; ++j) {
                        const V v = load(from.at(0, i, j));
                        const I greater = (v > top) | (v != v);
                        top = greater ? v : top;
                        if (PLACES) place = greater ? I{} + ((i - y * size) * size + j - x * size) : place;
                    }
                store(to.at(b, y, x), top);
                if (PLACES) std::memcpy(places + (int64_t{y} * to.width + x) * L, &place, sizeof place);
            }
    }
};

}  // namespace fastattn::FASTATTN_ISA
