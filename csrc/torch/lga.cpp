// fastattn::lga_{forward,backward}, as fastattn/lga/operation.py defines them.
#include "../cpu/lga/plan.h"

#include "operators.h"

namespace fastattn {
namespace {

LgaPlan plan_of(const Call& call, int64_t num_scales, const std::vector<int64_t>& branches, int64_t num_heads,
                bool released) {
    const int dim = size(call.x, 1);
    size_t next = 0;
    const auto take = [&](const std::vector<int64_t>& shape) {
        if (next >= call.params.size() || !has_shape(call.params[next], shape))
            refuse("lga", "parameter " + std::to_string(next) + " does not fit x and the options");
        ++next;
    };
    const auto separable = [&](int64_t kernel, int64_t outputs, int64_t groups) {
        take({dim, 1, kernel, kernel}), take({dim});
        take({outputs, dim / groups, 1, 1}), take({outputs});
    };
    const auto side = [&](size_t index, int64_t axis) {
        if (index >= call.params.size() || call.params[index].dim() != 4) refuse("lga", "parameters are missing");
        return size(call.params[index], axis);
    };
    if (num_heads < 1 || dim % num_heads) refuse("lga", "the channels are no multiple of the heads");
    for (int64_t i = 0; i < num_scales; ++i) separable(3, dim, 1);
    take({num_scales + 1, dim, 1, 1}), take({num_scales + 1});
    const int encoding_h = side(next, 2), encoding_w = side(next, 3);
    take({1, dim, encoding_h, encoding_w});
    std::vector<std::vector<int>> kernels;
    for (int64_t count : branches) {
        kernels.emplace_back();
        for (int64_t i = 0; i < count; ++i) {
            kernels.back().push_back(side(next, 2));
            separable(kernels.back().back(), 3 * dim, num_heads);
        }
        take({1});
    }
    take({dim, dim, 1, 1}), take({dim});
    if (next != call.params.size()) refuse("lga", "there are more parameters than the options say");
    return LgaPlan::make(size(call.x, 0), dim, size(call.x, 2), size(call.x, 3), static_cast<int>(num_heads),
                         static_cast<int>(num_scales), kernels, encoding_h, encoding_w, released, call.x_dtype,
                         call.param_dtype, call.channels_last);
}

// z lies as x does, in float32
Tensor empty_z(const Tensor& x) {
    return torch::stable::empty_like(torch::stable::to(x, std::optional<ScalarType>(ScalarType::Float)));
}

Pair lga_forward(Tensor x, std::vector<Tensor> params, int64_t num_scales, std::vector<int64_t> branches,
                 int64_t num_heads, bool released, bool save) {
    const Call call = map_call("lga", x, params);
    const LgaPlan plan = plan_of(call, num_scales, branches, num_heads, released);
    return run_forward(plan, call, save ? empty_z(call.x) : nothing(x, ScalarType::Float));
}

Pair lga_backward(Tensor grad_out, Tensor x, Tensor saved, std::vector<Tensor> params, int64_t num_scales,
                  std::vector<int64_t> branches, int64_t num_heads, bool released, bool need_x, bool need_params) {
    const Call call = map_call("lga", x, params);
    const LgaPlan plan = plan_of(call, num_scales, branches, num_heads, released);
    return run_backward(plan, call, grad_out, like_x(saved, call), ScalarType::Float, need_x, need_params);
}

}  // namespace

void register_lga(Operators& operators) {
    operators.add("lga", ", int num_scales, int[] branches, int num_heads, bool released", TORCH_BOX(&lga_forward),
                  TORCH_BOX(&lga_backward));
}

}  // namespace fastattn
