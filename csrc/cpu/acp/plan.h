// What one call of aggressive convolution pooling computes, apart from its pointers; shared by all instruction-set
// levels.
#pragma once

#include <cstdint>
#include <vector>

#include "../dtype.h"

namespace fastattn {

// Parameters, and their gradients, in this order: weight and bias of each convolution, of the projection.
struct AcpPlan {
    int batch, channels, height, width;
    std::vector<int> kernels;  // of each layer
    int pool_size;
    bool sum;  // the levels are summed before the projection, which else is of their concatenation
    DType dtype, param_dtype;
    bool channels_last;

    // std::invalid_argument where sizes or options do not fit; dtypes by their codes
    static AcpPlan make(int batch, int channels, int height, int width, std::vector<int> kernels, int pool_size,
                        bool sum, int x_dtype, int param_dtype, bool channels_last);

    int layers() const { return static_cast<int>(kernels.size()); }
    int64_t pixels() const { return int64_t{height} * width; }
    int64_t elements() const { return batch * channels * pixels(); }
    int matrices() const { return sum ? 1 : layers() + 1; }  // side by side in the projection's weight
    int param_count() const { return 2 * layers() + 2; }     // as listed above
    static constexpr int64_t saved_size() { return 0; }      // backward forms all anew
    int padding(int level) const { return level < layers() ? kernels[level] / 2 : 0; }  // that the next layer needs
    int level_height(int level) const { return pooled(height, level); }
    int level_width(int level) const { return pooled(width, level); }

private:
    int pooled(int size, int level) const {
        for (int i = 0; i < level; ++i) size = (size - 1) / pool_size + 1;
        return size;
    }
};

}  // namespace fastattn
