#include "plan.h"

#include "../../bindings.h"

namespace fastattn {
namespace {

CatPlan make_plan(int batch, int tokens, int channels, int concepts, int x_dtype, int param_dtype) {
    require(batch > 0 && tokens > 0 && channels > 0 && concepts > 0, "every size must be positive");
    return {batch, tokens, channels, concepts, dtype(x_dtype), dtype(param_dtype)};
}

}  // namespace

void bind_cat(py::module_& m) {
    bind_plan(m, "CatPlan", &make_plan, "batch", "tokens", "channels", "concepts", "x_dtype", "param_dtype");
}

}  // namespace fastattn
