// fastattn::whole_cat_{forward,backward}, as fastattn/interaction/cat/operation.py defines them.
#include "../cpu/cat/plan.h"

#include "operators.h"

namespace fastattn {
namespace {

const char* const kName = "whole_cat";

CatPlan plan_of(const Call& call) {
    const int channels = size(call.x, 2);
    if (call.params.size() != CatPlan::param_count()) refuse(kName, "wrong number of parameters");
    const int concepts = call.params[0].dim() ? size(call.params[0], 0) : 0;
    bool fits = has_shape(call.params[0], {concepts, channels});
    for (int i : {1, 3}) fits &= has_shape(call.params[i], {channels, channels});
    for (int i : {2, 4}) fits &= has_shape(call.params[i], {channels});
    if (!fits) refuse(kName, "the parameters do not fit the channels of x");
    return CatPlan::make(size(call.x, 0), size(call.x, 1), channels, concepts, call.x_dtype, call.param_dtype);
}

Pair cat_forward(Tensor x, std::vector<Tensor> params, bool save) {
    const Call call = token_call(kName, x, params);
    const CatPlan plan = plan_of(call);
    const std::vector<int64_t> shape =
        save ? std::vector<int64_t>{plan.batch, plan.saved_size()} : std::vector<int64_t>{0};
    return run_forward(plan, call, torch::stable::new_empty(x, shape, ScalarType::Float));
}

Pair cat_backward(Tensor grad_out, Tensor x, Tensor saved, std::vector<Tensor> params, bool need_x, bool need_params) {
    const Call call = token_call(kName, x, params);
    return run_backward(plan_of(call), call, grad_out, saved, ScalarType::Float, need_x, need_params);
}

}  // namespace

void register_cat(Operators& operators) { operators.add(kName, "", TORCH_BOX(&cat_forward), TORCH_BOX(&cat_backward)); }

}  // namespace fastattn
