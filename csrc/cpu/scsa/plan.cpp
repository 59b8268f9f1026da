#include "plan.h"

#include <algorithm>

namespace fastattn {

void ScsaPlan::complete() {
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

}  // namespace fastattn
