// The tensors of a call of an operator, as the kernels take them, and its two directions; on torch's stable ABI.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>
#include <tuple>
#include <vector>

#include "../cpu/dispatch.h"

namespace fastattn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Pair = std::tuple<Tensor, Tensor>;

// x lies densely, as NCHW, channels_last or tokens; the parameters are contiguous, of x's dtype or all of float32.
struct Call {
    Tensor x;
    std::vector<Tensor> params;
    int x_dtype, param_dtype;  // codes of DType
    bool channels_last;

    std::vector<const void*> addresses() const;
};

// std::runtime_error, with the operator's name, unless x is a map (B, C, H, W) of a dtype that the kernels compute
Call map_call(const std::string& name, const Tensor& x, const std::vector<Tensor>& params);
// The same for tokens (B, N, C)
Call token_call(const std::string& name, const Tensor& x, const std::vector<Tensor>& params);

[[noreturn]] void refuse(const std::string& name, const std::string& why);
int size(const Tensor& x, int64_t dim);
// Whether a parameter has this shape
bool has_shape(const Tensor& parameter, const std::vector<int64_t>& shape);
Tensor nothing(const Tensor& x, ScalarType dtype);
Tensor like_x(const Tensor& given, const Call& call);

// out, and what was kept for backward in `saved`, unless that is empty
template <class Plan>
Pair run_forward(const Plan& plan, const Call& call, Tensor saved) {
    Tensor out = torch::stable::empty_like(call.x);
    const auto params = call.addresses();
    float* kept = saved.numel() ? static_cast<float*>(saved.mutable_data_ptr()) : nullptr;
    const int threads = static_cast<int>(torch::stable::get_num_threads());
    forward(plan, {call.x.const_data_ptr(), out.mutable_data_ptr(), kept, params.data(), threads});
    return {std::move(out), std::move(saved)};
}

// The gradients of x, and of the parameters in one tensor of a dtype, each empty where it is not needed
template <class Plan>
Pair run_backward(const Plan& plan, const Call& call, const Tensor& grad_out, const Tensor& saved, ScalarType dtype,
                  bool need_x, bool need_params) {
    const Tensor grad = like_x(grad_out, call);
    Tensor grad_x = need_x ? torch::stable::empty_like(call.x) : nothing(call.x, call.x.scalar_type());
    int64_t total = 0;
    for (const Tensor& p : call.params) total += p.numel();
    Tensor flat = torch::stable::new_empty(call.x, std::vector<int64_t>{need_params ? total : 0}, dtype);
    std::vector<void*> grads;
    char* next = need_params ? static_cast<char*>(flat.mutable_data_ptr()) : nullptr;
    for (size_t i = 0; need_params && i < call.params.size(); ++i) {
        grads.push_back(next);
        next += call.params[i].numel() * flat.element_size();
    }
    const auto params = call.addresses();
    backward(plan, {grad.const_data_ptr(), call.x.const_data_ptr(), static_cast<const float*>(saved.const_data_ptr()),
                    params.data(), need_x ? grad_x.mutable_data_ptr() : nullptr, need_params ? grads.data() : nullptr,
                    static_cast<int>(torch::stable::get_num_threads())});
    return {std::move(grad_x), std::move(flat)};
}

}  // namespace fastattn
