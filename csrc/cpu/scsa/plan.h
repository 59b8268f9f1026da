// What one call computes, apart from its pointers; shared by all instruction-set levels.
#pragma once

#include <array>
#include <cstdint>

#include "../dtype.h"

namespace fastattn {

// Parameters, and their gradients, in this order: 4 convolution weights, 4 convolution biases,
// norm_h, norm_w (weight, bias each) with `spatial`; norm (weight, bias), q, k, v weights, q, k, v biases with
// `channel`.
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
    int64_t pixels;  // height * width

    void complete();

    // std::invalid_argument where sizes or options do not fit; dtypes by their codes
    static ScsaPlan make(bool spatial, bool channel, int batch, int channels, int height, int width,
                         std::array<int, 4> kernel_sizes, int head_num, int window_h, int window_w, bool max_pool,
                         bool softmax_gate, bool qkv_bias, int x_dtype, int param_dtype, bool channels_last);

    int64_t elements() const { return batch * channels * pixels; }
    int param_count() const { return (spatial ? 12 : 0) + (channel ? (qkv_bias ? 8 : 5) : 0); }  // as listed above
    // Floats that forward keeps of a sample: axis means; pooled map, its argmax; attention output, logit maximum,
    // reciprocal softmax denominator; [C] each, or rows of that
    int64_t saved_size() const {
        const int64_t rows =
            (spatial ? int64_t{height} + width : 0) + (channel ? int64_t{pooled} * (max_pool ? 2 : 1) + 3 : 0);
        return rows * channels;
    }
};

}  // namespace fastattn
