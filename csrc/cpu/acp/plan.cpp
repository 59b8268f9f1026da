#include "plan.h"

#include <utility>

#include "../checks.h"

namespace fastattn {

AcpPlan AcpPlan::make(int batch, int channels, int height, int width, std::vector<int> kernels, int pool_size, bool sum,
                      int x_dtype, int param_dtype, bool channels_last) {
    require(batch > 0 && channels > 0 && height > 0 && width > 0, "every size must be positive");
    require(!kernels.empty(), "there must be a layer");
    require_odd(kernels);
    require(pool_size > 0, "pool_size must be positive");
    const DType x = dtype_of(x_dtype), param = dtype_of(param_dtype);
    return {batch, channels, height, width, std::move(kernels), pool_size, sum, x, param, channels_last};
}

}  // namespace fastattn
