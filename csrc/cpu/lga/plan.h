// What one call of local-global attention computes, apart from its pointers; shared by all instruction-set levels.
#pragma once

#include <cstdint>
#include <vector>

#include "../dtype.h"
#include "../levels.h"

namespace fastattn {

struct LgaPlan {
    int batch, dim, height, width;
    int num_heads;
    int num_scales;
    std::vector<std::vector<int>> branches;  // kernel sizes of each
    int encoding_height, encoding_width;
    bool released;  // contraction
    DType dtype, param_dtype;
    bool channels_last;

    int head_dim() const { return dim / num_heads; }
    int64_t pixels() const { return int64_t{height} * width; }
    int64_t elements() const { return batch * dim * pixels(); }
    int coarse_height(int scale) const { return (height - 1) / (1 << scale) + 1; }
    int coarse_width(int scale) const { return (width - 1) / (1 << scale) + 1; }
    int padding() const {  // that the largest kernel needs
        int largest = 1;
        for (const auto& kernels : branches)
            for (int kernel : kernels) largest = kernel > largest ? kernel : largest;
        return largest / 2;
    }
    int param_count() const {  // as listed below
        int count = 4 * num_scales + 5;
        for (const auto& kernels : branches) count += 4 * static_cast<int>(kernels.size()) + 1;
        return count;
    }
};

// Parameters, and their gradients, in this order: of each scale depthwise weight and bias, pointwise weight and bias; scale attention
// weight and bias; position encoding; of each branch its convolutions, each as a scale's, then alpha; out_conv weight and bias.
struct LgaForwardArgs {
    const void* x;
    void* out;
    float* z;  // as x, float; null: not kept
    const void* const* params;
    int threads;
};

struct LgaBackwardArgs {
    const void* grad_out;
    const void* x;
    const float* z;
    const void* const* params;
    void* grad_x;              // null: not needed
    float* const* grad_params;  // null: not needed
    int threads;
};

FASTATTN_IN_EVERY_LEVEL(void lga_forward(const LgaPlan&, const LgaForwardArgs&); void lga_backward(const LgaPlan&, const LgaBackwardArgs&);)

}  // namespace fastattn
