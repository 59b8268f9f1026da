// fastattn::whole_acp_{forward,backward}, as fastattn/interaction/acp/operation.py defines them.
#include "../cpu/acp/plan.h"

#include "operators.h"

namespace fastattn {
namespace {

const char* const kName = "whole_acp";

AcpPlan plan_of(const Call& call, int64_t pool_size) {
    const int channels = size(call.x, 1);
    const size_t layers = call.params.size() / 2;  // the last is the projection
    if (layers < 2 || call.params.size() % 2) refuse(kName, "wrong number of parameters");
    std::vector<int> kernels;
    bool fits = true, sum = false;
    for (size_t i = 0; i < layers; ++i) {
        const Tensor& weight = call.params[2 * i];
        if (weight.dim() != 4) refuse(kName, "a weight does not have 4 dimensions");
        if (i + 1 < layers) {
            kernels.push_back(size(weight, 2));
            fits &= has_shape(weight, {channels, 1, kernels.back(), kernels.back()});
        } else {
            sum = weight.size(1) == channels;
            fits &= has_shape(weight, {channels, channels * (sum ? 1 : static_cast<int64_t>(layers)), 1, 1});
        }
        fits &= has_shape(call.params[2 * i + 1], {channels});
    }
    if (!fits) refuse(kName, "the parameters do not fit the channels of x");
    return AcpPlan::make(size(call.x, 0), channels, size(call.x, 2), size(call.x, 3), kernels,
                         static_cast<int>(pool_size), sum, call.x_dtype, call.param_dtype, call.channels_last);
}

Pair acp_forward(Tensor x, std::vector<Tensor> params, int64_t pool_size, bool) {
    const Call call = map_call(kName, x, params);
    return run_forward(plan_of(call, pool_size), call, nothing(x, ScalarType::Float));
}

Pair acp_backward(Tensor grad_out, Tensor x, Tensor saved, std::vector<Tensor> params, int64_t pool_size, bool need_x,
                  bool need_params) {
    const Call call = map_call(kName, x, params);
    return run_backward(plan_of(call, pool_size), call, grad_out, saved, ScalarType::Float, need_x, need_params);
}

}  // namespace

void register_acp(Operators& operators) {
    operators.add(kName, ", int pool_size", TORCH_BOX(&acp_forward), TORCH_BOX(&acp_backward));
}

}  // namespace fastattn
