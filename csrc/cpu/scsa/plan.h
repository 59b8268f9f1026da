// What one call computes, apart from its pointers; shared by all instruction-set levels.
#pragma once

#include <cstdint>

#include "../dtype.h"
#include "../levels.h"

namespace fastattn {

struct ScsaPlan {
    bool spatial;  // SMSA: multi-scale gates along height and width
    bool channel;  // PCSA: pooling and channel attention
    int batch, channels, height, width;
    int kernel_sizes[4];
    int head_num;
    int window_h, window_w;
    bool max_pool, softmax_gate, qkv_bias;
    DType dtype, param_dtype;
    bool channels_last;

    // Derived by `complete()`.
    int pooled_h, pooled_w, pooled;  // 0 without `channel`
    int largest_kernel;
    int64_t pixels;      // height * width
    int64_t saved_size;  // floats that forward keeps for backward, per sample
    int param_count;

    void complete();
};

// Parameters, and their gradients, in this order: 4 convolution weights, 4 convolution biases,
// norm_h, norm_w (weight, bias each) with `spatial`; norm (weight, bias), q, k, v weights, q, k, v biases with `channel`.
struct ScsaForwardArgs {
    const void* x;
    void* out;
    float* saved;  // null: keep nothing
    const void* const* params;
    int threads;
};

struct ScsaBackwardArgs {
    const void* grad_out;
    const void* x;
    const float* saved;
    const void* const* params;
    void* grad_x;              // null: not needed
    void* const* grad_params;  // null: not needed
    int threads;
};

FASTATTN_IN_EVERY_LEVEL(void scsa_forward(const ScsaPlan&, const ScsaForwardArgs&); void scsa_backward(const ScsaPlan&, const ScsaBackwardArgs&);)

}  // namespace fastattn
