#include "plan.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

namespace fastattn {

void Plan::complete() {
    pooled_h = channel ? height / window_h : 0;
    pooled_w = channel ? width / window_w : 0;
    pooled = pooled_h * pooled_w;
    largest_kernel = spatial ? *std::max_element(kernel_sizes, kernel_sizes + 4) : 1;
    pixels = static_cast<int64_t>(height) * width;
    // axis means | pooled map, its argmax | attention output, logit maximum, reciprocal softmax denominator
    const int64_t rows = (spatial ? int64_t{height} + width : 0) + (channel ? int64_t{pooled} * (max_pool ? 2 : 1) + 3 : 0);
    saved_size = rows * channels;
    param_count = (spatial ? 12 : 0) + (channel ? (qkv_bias ? 8 : 5) : 0);
}

float* workspace(int64_t floats) {
    struct Free {
        void operator()(float* p) const { std::free(p); }
    };
    thread_local std::unique_ptr<float, Free> memory;
    thread_local int64_t size = 0;
    if (floats > size) {
        memory.reset();
        size = 0;
        const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64;
        memory.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
        if (!memory) throw std::bad_alloc();
        size = floats;
    }
    return memory.get();
}

}  // namespace fastattn
