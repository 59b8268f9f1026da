#include "plan.h"

#include <algorithm>
#include <array>

#include "../checks.h"

namespace fastattn {

ScsaPlan ScsaPlan::make(bool spatial, bool channel, int batch, int channels, int height, int width,
                        std::array<int, 4> kernel_sizes, int head_num, int window_h, int window_w, bool max_pool,
                        bool softmax_gate, bool qkv_bias, int x_dtype, int param_dtype, bool channels_last) {
    ScsaPlan plan{};
    plan.spatial = spatial;
    plan.channel = channel;
    plan.batch = batch, plan.channels = channels, plan.height = height, plan.width = width;
    std::copy(kernel_sizes.begin(), kernel_sizes.end(), plan.kernel_sizes);
    plan.head_num = head_num;
    plan.window_h = window_h, plan.window_w = window_w;
    plan.max_pool = max_pool, plan.softmax_gate = softmax_gate, plan.qkv_bias = qkv_bias;
    plan.dtype = dtype_of(x_dtype), plan.param_dtype = dtype_of(param_dtype);
    plan.channels_last = channels_last;
    require(spatial || channel, "a plan needs a spatial or a channel part");
    require(batch > 0 && channels > 0 && height > 0 && width > 0, "every size must be positive");
    if (spatial) {
        require(channels % 4 == 0, "channels must be divisible by 4");
        require_odd({kernel_sizes.begin(), kernel_sizes.end()});
    }
    if (channel) {
        require(head_num > 0 && channels % head_num == 0, "channels must be divisible by head_num");
        require(window_h > 0 && window_h <= height && window_w > 0 && window_w <= width, "the window must fit the map");
    }
    plan.complete();
    return plan;
}

void ScsaPlan::complete() {
    pooled_h = channel ? height / window_h : 0;
    pooled_w = channel ? width / window_w : 0;
    pooled = pooled_h * pooled_w;
    largest_kernel = spatial ? *std::max_element(kernel_sizes, kernel_sizes + 4) : 1;
    pixels = static_cast<int64_t>(height) * width;
}

}  // namespace fastattn
