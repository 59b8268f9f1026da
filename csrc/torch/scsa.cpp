// fastattn::{scsa,smsa,pcsa}_{forward,backward}, as fastattn/scsa/operation.py defines them.
#include "../cpu/scsa/plan.h"

#include "operators.h"

namespace fastattn {
namespace {

struct Options {
    std::string name;
    bool spatial, channel;
    int64_t head_num = 1, window = -1;
    std::string mode = "avg_pool", gate;
};

void check(const Options& options, const Tensor& x, ScalarType out_dtype, const std::string& backend) {
    if (backend != "auto" && backend != "native")
        refuse(options.name, "it was exported for the backend " + backend + "; here is auto, or native");
    if (out_dtype != x.scalar_type()) refuse(options.name, "the output's dtype is not x's: export it without autocast");
    if (options.mode != "avg_pool" && options.mode != "max_pool")
        refuse(options.name, "down_sample_mode " + options.mode + " has no fast path");
}

ScsaPlan plan_of(const Options& options, const Call& call) {
    const int channels = size(call.x, 1), height = size(call.x, 2), width = size(call.x, 3);
    const int64_t group = std::max(channels / 4, 1);
    const size_t expected = (options.spatial ? 12 : 0) + (options.channel ? 5 : 0);
    const bool biases = options.channel && call.params.size() == expected + 3;
    if (call.params.size() != expected + (biases ? 3 : 0)) refuse(options.name, "wrong number of parameters");
    std::array<int, 4> kernels{};
    for (size_t i = 0; i < call.params.size(); ++i) {
        const int64_t count = call.params[i].numel();
        bool fits = count == channels;
        if (options.spatial && i < 4) {
            kernels[i] = static_cast<int>(count / group);
            fits = count == kernels[i] * group;
        } else if (options.spatial && i < 8) {
            fits = count == group;
        }
        if (!fits) refuse(options.name, "parameter " + std::to_string(i) + " does not fit the channels of x");
    }
    const bool whole = options.window == -1;
    return ScsaPlan::make(options.spatial, options.channel, size(call.x, 0), channels, height, width, kernels,
                          static_cast<int>(options.head_num), whole ? height : static_cast<int>(options.window),
                          whole ? width : static_cast<int>(options.window), options.mode == "max_pool" && !whole,
                          options.gate == "softmax", biases, call.x_dtype, call.param_dtype, call.channels_last);
}

Pair forward_of(const Options& options, const Tensor& x, const std::vector<Tensor>& params, ScalarType out_dtype,
                const std::string& backend, bool save) {
    check(options, x, out_dtype, backend);
    const Call call = map_call(options.name, x, params);
    const ScsaPlan plan = plan_of(options, call);
    const std::vector<int64_t> shape =
        save ? std::vector<int64_t>{plan.batch, plan.saved_size()} : std::vector<int64_t>{0};
    return run_forward(plan, call, torch::stable::new_empty(x, shape, ScalarType::Float));
}

Pair backward_of(const Options& options, const Tensor& grad_out, const Tensor& x, const Tensor& saved,
                 const std::vector<Tensor>& params, ScalarType out_dtype, const std::string& backend, bool need_x,
                 bool need_params) {
    check(options, x, out_dtype, backend);
    const Call call = map_call(options.name, x, params);
    const auto dtype = call.params.front().scalar_type();
    return run_backward(plan_of(options, call), call, grad_out, saved, dtype, need_x, need_params);
}

template <bool spatial>
Options with_channel(int64_t head_num, int64_t window, std::string mode, std::string gate) {
    return {spatial ? "scsa" : "pcsa", spatial, true, head_num, window, std::move(mode), std::move(gate)};
}

template <bool spatial>
Pair channel_forward(Tensor x, std::vector<Tensor> params, int64_t head_num, int64_t window, std::string mode,
                     std::string gate, ScalarType out_dtype, std::string backend, bool save) {
    return forward_of(with_channel<spatial>(head_num, window, mode, gate), x, params, out_dtype, backend, save);
}

template <bool spatial>
Pair channel_backward(Tensor grad_out, Tensor x, Tensor saved, std::vector<Tensor> params, int64_t head_num,
                      int64_t window, std::string mode, std::string gate, ScalarType out_dtype, std::string backend,
                      bool need_x, bool need_params) {
    return backward_of(with_channel<spatial>(head_num, window, mode, gate), grad_out, x, saved, params, out_dtype,
                       backend, need_x, need_params);
}

Options smsa(std::string gate) { return {"smsa", true, false, 1, -1, "avg_pool", std::move(gate)}; }

Pair smsa_forward(Tensor x, std::vector<Tensor> params, std::string gate, ScalarType out_dtype, std::string backend,
                  bool save) {
    return forward_of(smsa(gate), x, params, out_dtype, backend, save);
}

Pair smsa_backward(Tensor grad_out, Tensor x, Tensor saved, std::vector<Tensor> params, std::string gate,
                   ScalarType out_dtype, std::string backend, bool need_x, bool need_params) {
    return backward_of(smsa(gate), grad_out, x, saved, params, out_dtype, backend, need_x, need_params);
}

}  // namespace

void register_scsa(Operators& operators) {
    const std::string gate = ", str gate_layer, ScalarType out_dtype, str backend";
    const std::string channel = ", int head_num, int window_size, str down_sample_mode" + gate;
    operators.add("scsa", channel, TORCH_BOX(&channel_forward<true>), TORCH_BOX(&channel_backward<true>));
    operators.add("smsa", gate, TORCH_BOX(&smsa_forward), TORCH_BOX(&smsa_backward));
    operators.add("pcsa", channel, TORCH_BOX(&channel_forward<false>), TORCH_BOX(&channel_backward<false>));
}

}  // namespace fastattn
