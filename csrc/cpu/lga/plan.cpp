#include "plan.h"

#include <utility>

#include "../checks.h"

namespace fastattn {

LgaPlan LgaPlan::make(int batch, int dim, int height, int width, int num_heads, int num_scales,
                      std::vector<std::vector<int>> branches, int encoding_h, int encoding_w, bool released,
                      int x_dtype, int param_dtype, bool channels_last) {
    require(batch > 0 && dim > 0 && height > 0 && width > 0, "every size must be positive");
    require(num_heads > 0 && dim % num_heads == 0, "dim must be divisible by num_heads");
    require(num_scales > 0 && num_scales <= 15, "there must be 1 to 15 scales");
    require(encoding_h > 0 && encoding_w > 0, "the position encoding must not be empty");
    require(!branches.empty(), "there must be a branch");
    for (const auto& kernels : branches) {
        require(!kernels.empty(), "a branch must have a kernel");
        require_odd(kernels);
    }
    const DType x = dtype_of(x_dtype), param = dtype_of(param_dtype);
    return {batch,      dim,        height,   width, num_heads, num_scales,   std::move(branches),
            encoding_h, encoding_w, released, x,     param,     channels_last};
}

}  // namespace fastattn
