#include "plan.h"

#include "../checks.h"

namespace fastattn {

CatPlan CatPlan::make(int batch, int tokens, int channels, int concepts, int x_dtype, int param_dtype) {
    require(batch > 0 && tokens > 0 && channels > 0 && concepts > 0, "every size must be positive");
    return {batch, tokens, channels, concepts, dtype_of(x_dtype), dtype_of(param_dtype)};
}

}  // namespace fastattn
