#include "call.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace fastattn {
namespace {

using torch::headeronly::MemoryFormat;

int code(const std::string& name, ScalarType dtype) {
    switch (dtype) {
        case ScalarType::Float: return 0;
        case ScalarType::BFloat16: return 1;
        case ScalarType::Half: return 2;
        default:
            refuse(name, std::string("x is ") + torch::headeronly::toString(dtype) +
                             "; the kernels compute Float, BFloat16 and Half");
    }
}

Tensor as_channels_last(const Tensor& x) { return torch::stable::contiguous(x, MemoryFormat::ChannelsLast); }

Call make_call(const std::string& name, Tensor x, const std::vector<Tensor>& params, bool channels_last) {
    const auto of_x = [&](const Tensor& p) { return p.scalar_type() == x.scalar_type(); };
    const auto dtype = std::all_of(params.begin(), params.end(), of_x) ? x.scalar_type() : ScalarType::Float;
    Call call{x, {}, code(name, x.scalar_type()), code(name, dtype), channels_last};
    for (const Tensor& p : params)
        call.params.push_back(torch::stable::contiguous(
            p.scalar_type() == dtype ? p : torch::stable::to(p, std::optional<ScalarType>(dtype))));
    return call;
}

}  // namespace

std::vector<const void*> Call::addresses() const {
    std::vector<const void*> found;
    for (const Tensor& p : params) found.push_back(p.const_data_ptr());
    return found;
}

Call map_call(const std::string& name, const Tensor& x, const std::vector<Tensor>& params) {
    if (x.dim() != 4) refuse(name, "x has " + std::to_string(x.dim()) + " dimensions, not 4");
    const bool channels_last = !x.is_contiguous() && x.stride(1) == 1 && x.stride(3) > 1;
    Tensor dense = channels_last ? as_channels_last(x) : torch::stable::contiguous(x);
    return make_call(name, dense, params, !dense.is_contiguous());
}

Call token_call(const std::string& name, const Tensor& x, const std::vector<Tensor>& params) {
    if (x.dim() != 3) refuse(name, "x has " + std::to_string(x.dim()) + " dimensions, not 3");
    return make_call(name, torch::stable::contiguous(x), params, false);
}

void refuse(const std::string& name, const std::string& why) {
    throw std::runtime_error("fastattn::" + name + " in C++: " + why);
}

int size(const Tensor& x, int64_t dim) {
    const int64_t found = x.size(dim);
    if (found > std::numeric_limits<int>::max()) throw std::runtime_error("fastattn: a size is 2^31 or more");
    return static_cast<int>(found);
}

bool has_shape(const Tensor& parameter, const std::vector<int64_t>& shape) {
    const auto sizes = parameter.sizes();
    return std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end());
}

Tensor nothing(const Tensor& x, ScalarType dtype) {
    return torch::stable::new_empty(x, std::vector<int64_t>{0}, dtype);
}

Tensor like_x(const Tensor& given, const Call& call) {
    return call.channels_last ? as_channels_last(given) : torch::stable::contiguous(given);
}

}  // namespace fastattn
