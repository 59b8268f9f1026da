// fastattn::gates_{forward,backward}, as fastattn/zoo/operation.py defines them.
#include "../cpu/gates/plan.h"

#include "operators.h"

namespace fastattn {
namespace {

const char* const kName = "gates";

GatesPlan plan_of(const Call& call, const std::vector<int64_t>& program, const std::vector<double>& numbers) {
    std::vector<int64_t> numels;
    for (const Tensor& p : call.params) numels.push_back(p.numel());
    return GatesPlan::make(size(call.x, 0), size(call.x, 1), size(call.x, 2), size(call.x, 3),
                           std::vector<int>(program.begin(), program.end()), numbers, numels, call.x_dtype,
                           call.param_dtype, call.channels_last);
}

Pair gates_forward(Tensor x, std::vector<Tensor> params, std::vector<int64_t> program, std::vector<double> numbers,
                   bool save) {
    const Call call = map_call(kName, x, params);
    const GatesPlan plan = plan_of(call, program, numbers);
    return run_forward(
        plan, call, torch::stable::new_empty(x, std::vector<int64_t>{save ? plan.saved_size() : 0}, ScalarType::Float));
}

Pair gates_backward(Tensor grad_out, Tensor x, Tensor saved, std::vector<Tensor> params, std::vector<int64_t> program,
                    std::vector<double> numbers, bool need_x, bool need_params) {
    const Call call = map_call(kName, x, params);
    return run_backward(plan_of(call, program, numbers), call, grad_out, saved, ScalarType::Float, need_x, need_params);
}

}  // namespace

void register_gates(Operators& operators) {
    operators.add(kName, ", int[] program, float[] numbers", TORCH_BOX(&gates_forward), TORCH_BOX(&gates_backward));
}

}  // namespace fastattn
