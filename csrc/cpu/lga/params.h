// The parameters of one call in the arrangements that the passes read, and their gradients.
#pragma once

#include <vector>

#include "../convolutions.h"
#include "plan.h"

namespace fastattn::FASTATTN_ISA {

// The grouped 1x1 convolution behind a depthwise one, for queries, keys and values; double, as all d x d algebra
struct HeadParams {
    double* weights;  // [3 * dim][d]
    double* bias;     // [3 * dim]
};

struct ScaleParams {
    DepthwiseParams depthwise;
    PointwiseParams pointwise;
};

struct ConvParams {
    int branch;
    double* share;  // of its result in the output: alpha / kernels of its branch
    DepthwiseParams depthwise;
    HeadParams heads;
};

class LgaParams {
public:
    std::vector<ScaleParams> scales;
    PointwiseParams attention;  // over scales
    float* encoding;            // [block][encoding height * width][L]
    std::vector<ConvParams> convs;
    PointwiseParams out;
    double* total;  // of the shares

    LgaParams(const LgaPlan& plan, bool backward, Bump& bump) {
        const int dim = plan.dim;
        const auto heads = [&] {
            const int64_t rows = int64_t{3} * dim;
            double* weights = reinterpret_cast<double*>(bump.take(2 * rows * plan.head_dim()));
            return HeadParams{weights, reinterpret_cast<double*>(bump.take(2 * rows))};
        };
        for (int i = 0; i < plan.num_scales; ++i) {
            const DepthwiseParams d = DepthwiseParams::take(bump, dim, 3, false);
            scales.push_back({d, PointwiseParams::take(bump, dim, dim, backward)});
        }
        attention = PointwiseParams::take(bump, dim, plan.num_scales + 1, backward);
        encoding = bump.take(padded(dim) * plan.encoding_height * plan.encoding_width);
        for (size_t i = 0; i < plan.branches.size(); ++i)
            for (int kernel : plan.branches[i]) {
                const DepthwiseParams d = DepthwiseParams::take(bump, dim, kernel, backward);
                convs.push_back({static_cast<int>(i), reinterpret_cast<double*>(bump.take(2)), d, heads()});
            }
        out = PointwiseParams::take(bump, dim, dim, backward);
        total = reinterpret_cast<double*>(bump.take(2));
    }

    // One thread's part
    void read(const LgaPlan& plan, const void* const* tensors, int thread, int threads) const {
        with_element(plan.param_dtype, [&](auto element) {
            using T = typename decltype(element)::type;
            if (thread == 0) read_shares<T>(plan, tensors);
            read(plan, Reader<T>(tensors, thread, threads));
        });
    }

private:
    template <class T>
    void read_shares(const LgaPlan& plan, const void* const* tensors) const {
        int tensor = 4 * plan.num_scales + 3;
        size_t conv = 0;
        *total = 0;
        for (const auto& kernels : plan.branches) {
            tensor += 4 * static_cast<int>(kernels.size());
            const double alpha = load_one(static_cast<const T*>(tensors[tensor++]));
            *total += alpha;
            for (size_t i = 0; i < kernels.size(); ++i)
                *convs[conv++].share = alpha / static_cast<double>(kernels.size());
        }
    }

    template <class T>
    void read(const LgaPlan& plan, Reader<T> reader) const {
        const int dim = plan.dim;
        for (const ScaleParams& scale : scales) {
            reader.depthwise(scale.depthwise, dim);
            reader.pointwise(scale.pointwise, dim, dim);
        }
        reader.pointwise(attention, dim, plan.num_scales + 1);
        reader.by_lanes(reader.next(), dim, plan.encoding_height * plan.encoding_width, encoding, nullptr);
        const auto doubles = [&](int64_t count, double* to) {
            const T* from = reader.next();
            if (reader.mine())
                for (int64_t i = 0; i < count; ++i) to[i] = load_one(from + i);
        };
        size_t conv = 0;
        for (const auto& kernels : plan.branches) {
            for (size_t i = 0; i < kernels.size(); ++i, ++conv) {
                reader.depthwise(convs[conv].depthwise, dim);
                doubles(int64_t{3} * dim * plan.head_dim(), convs[conv].heads.weights);
                doubles(int64_t{3} * dim, convs[conv].heads.bias);
            }
            reader.next();  // alpha
        }
        reader.pointwise(out, dim, dim);
    }
};

}  // namespace fastattn::FASTATTN_ISA
