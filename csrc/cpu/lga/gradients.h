// The gradients of the parameters of local-global attention.
#pragma once

#include "../convolutions.h"
#include "plan.h"

namespace fastattn::FASTATTN_ISA {

struct HeadGradients {
    double* weights;  // [3 * dim][d]
    double* bias;     // [3 * dim]
};

struct ScaleGradients {
    DepthwiseGradients depthwise;
    PointwiseGradients pointwise;
};

struct ConvGradients {
    DepthwiseGradients depthwise;
    HeadGradients heads;
};

struct LgaGradients {
    std::vector<ScaleGradients> scales;
    PointwiseGradients attention;
    float* encoding;  // [block][encoding height * width][L]
    std::vector<ConvGradients> convs;
    std::vector<double*> alphas;  // of each branch
    PointwiseGradients out;

    void arrange(const LgaPlan& plan, Sums& sums) {
        const int dim = plan.dim;
        for (int i = 0; i < plan.num_scales; ++i) {
            const DepthwiseGradients d = sums.depthwise(dim, 3);
            scales.push_back({d, sums.pointwise(dim, dim)});
        }
        attention = sums.pointwise(dim, plan.num_scales + 1);
        encoding = sums.floats(padded(dim) * plan.encoding_height * plan.encoding_width);
        for (const auto& kernels : plan.branches) {
            for (int kernel : kernels) {
                const DepthwiseGradients d = sums.depthwise(dim, kernel);
                double* weights = sums.doubles(int64_t{3} * dim * plan.head_dim());
                convs.push_back({d, {weights, sums.doubles(int64_t{3} * dim)}});
            }
            alphas.push_back(sums.doubles(1));
        }
        out = sums.pointwise(dim, dim);
    }

    // One thread's part
    void write(const LgaPlan& plan, void* const* tensors, int thread, int threads) const {
        Writer writer(tensors, thread, threads);
        const int dim = plan.dim;
        for (const ScaleGradients& scale : scales) {
            writer.depthwise(scale.depthwise, dim);
            writer.pointwise(scale.pointwise, dim, dim);
        }
        writer.pointwise(attention, dim, plan.num_scales + 1);
        writer.by_channels(encoding, dim, plan.encoding_height * plan.encoding_width);
        size_t conv = 0;
        for (size_t i = 0; i < plan.branches.size(); ++i) {
            for (size_t j = 0; j < plan.branches[i].size(); ++j, ++conv) {
                writer.depthwise(convs[conv].depthwise, dim);
                writer.copy(convs[conv].heads.weights, int64_t{3} * dim * plan.head_dim());
                writer.copy(convs[conv].heads.bias, int64_t{3} * dim);
            }
            writer.copy(alphas[i], 1);
        }
        writer.pointwise(out, dim, dim);
    }
};

}  // namespace fastattn::FASTATTN_ISA
