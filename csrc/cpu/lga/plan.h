// What one call of local-global attention computes, apart from its pointers; shared by all instruction-set levels.
#pragma once

#include <cstdint>
#include <vector>

#include "../dtype.h"

namespace fastattn {

// Parameters, and their gradients, in this order: of each scale depthwise weight and bias, pointwise weight and bias;
// scale attention weight and bias; position encoding; of each branch its convolutions, each as a scale's, then alpha;
// out_conv weight and bias.
struct LgaPlan {
    int batch, dim, height, width;
    int num_heads;
    int num_scales;
    std::vector<std::vector<int>> branches;  // kernel sizes of each
    int encoding_height, encoding_width;
    bool released;  // contraction
    DType dtype, param_dtype;
    bool channels_last;

    // std::invalid_argument where sizes or options do not fit; dtypes by their codes
    static LgaPlan make(int batch, int dim, int height, int width, int num_heads, int num_scales,
                        std::vector<std::vector<int>> branches, int encoding_h, int encoding_w, bool released,
                        int x_dtype, int param_dtype, bool channels_last);

    int head_dim() const { return dim / num_heads; }
    int64_t pixels() const { return int64_t{height} * width; }
    int64_t elements() const { return batch * dim * pixels(); }
    int64_t saved_size() const { return dim * pixels(); }  // z, which lies as x does
    int coarse_height(int scale) const { return (height - 1) / (1 << scale) + 1; }
    int coarse_width(int scale) const { return (width - 1) / (1 << scale) + 1; }
    int padding() const {  // that the largest kernel needs
        int largest = 1;
        for (const auto& kernels : branches)
            for (int kernel : kernels) largest = kernel > largest ? kernel : largest;
        return largest / 2;
    }
    int param_count() const {  // as listed above
        int count = 4 * num_scales + 5;
        for (const auto& kernels : branches) count += 4 * static_cast<int>(kernels.size()) + 1;
        return count;
    }
};

}  // namespace fastattn
