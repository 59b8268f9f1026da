// What one call computes, apart from its pointers; shared by all instruction-set levels.
#pragma once

#include <cstdint>

namespace fastattn {

enum class DType { float32, bfloat16, float16 };

struct Plan {
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
struct ForwardArgs {
    const void* x;
    void* out;
    float* saved;  // null: keep nothing
    const void* const* params;
    int threads;
};

struct BackwardArgs {
    const void* grad_out;
    const void* x;
    const float* saved;
    const void* const* params;
    void* grad_x;              // null: not needed
    void* const* grad_params;  // null: not needed
    int threads;
};

// One instruction-set level
#define FASTATTN_DECLARE_LEVEL(level)                       \
    namespace level {                                       \
    void forward(const Plan&, const ForwardArgs&);          \
    void backward(const Plan&, const BackwardArgs&);        \
    }
FASTATTN_DECLARE_LEVEL(baseline)
FASTATTN_DECLARE_LEVEL(avx2)
FASTATTN_DECLARE_LEVEL(avx512)
#undef FASTATTN_DECLARE_LEVEL

// At least `floats` floats, 64-byte aligned, owned by the calling thread and reused by its next call.
float* workspace(int64_t floats);

}  // namespace fastattn
