// The Python module fastattn._native: raw pointers in, nothing of torch. Tensors are checked on the Python side.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/dispatch.h"

namespace py = pybind11;
using fastattn::AcpPlan;
using fastattn::CatPlan;
using fastattn::LgaPlan;
using fastattn::ScsaPlan;

namespace {

fastattn::DType dtype(int code) {
    if (code < 0 || code > 2) throw std::invalid_argument("dtype code must be 0 (float32), 1 (bfloat16) or 2 (float16)");
    return static_cast<fastattn::DType>(code);
}

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

ScsaPlan make_scsa_plan(bool spatial, bool channel, int batch, int channels, int height, int width, std::array<int, 4> kernel_sizes, int head_num,
               int window_h, int window_w, bool max_pool, bool softmax_gate, bool qkv_bias, int x_dtype, int param_dtype, bool channels_last) {
    ScsaPlan plan{};
    plan.spatial = spatial;
    plan.channel = channel;
    plan.batch = batch, plan.channels = channels, plan.height = height, plan.width = width;
    std::copy(kernel_sizes.begin(), kernel_sizes.end(), plan.kernel_sizes);
    plan.head_num = head_num;
    plan.window_h = window_h, plan.window_w = window_w;
    plan.max_pool = max_pool, plan.softmax_gate = softmax_gate, plan.qkv_bias = qkv_bias;
    plan.dtype = dtype(x_dtype), plan.param_dtype = dtype(param_dtype);
    plan.channels_last = channels_last;
    require(spatial || channel, "a plan needs a spatial or a channel part");
    require(batch > 0 && channels > 0 && height > 0 && width > 0, "every size must be positive");
    if (spatial) {
        require(channels % 4 == 0, "channels must be divisible by 4");
        for (int k : kernel_sizes) require(k > 0 && k % 2 == 1, "kernel sizes must be odd");
    }
    if (channel) {
        require(head_num > 0 && channels % head_num == 0, "channels must be divisible by head_num");
        require(window_h > 0 && window_h <= height && window_w > 0 && window_w <= width, "the window must fit the map");
    }
    plan.complete();
    return plan;
}

LgaPlan make_lga_plan(int batch, int dim, int height, int width, int num_heads, int num_scales, std::vector<std::vector<int>> branches,
                      int encoding_height, int encoding_width, bool released, int x_dtype, int param_dtype, bool channels_last) {
    require(batch > 0 && dim > 0 && height > 0 && width > 0, "every size must be positive");
    require(num_heads > 0 && dim % num_heads == 0, "dim must be divisible by num_heads");
    require(num_scales > 0 && num_scales <= 15, "there must be 1 to 15 scales");
    require(encoding_height > 0 && encoding_width > 0, "the position encoding must not be empty");
    require(!branches.empty(), "there must be a branch");
    for (const auto& kernels : branches) {
        require(!kernels.empty(), "a branch must have a kernel");
        for (int k : kernels) require(k > 0 && k % 2 == 1, "kernel sizes must be odd");
    }
    return {batch, dim, height, width, num_heads, num_scales, std::move(branches), encoding_height, encoding_width, released,
            dtype(x_dtype), dtype(param_dtype), channels_last};
}

AcpPlan make_acp_plan(int batch, int channels, int height, int width, std::vector<int> kernels, int pool_size, bool sum, int x_dtype,
                      int param_dtype, bool channels_last) {
    require(batch > 0 && channels > 0 && height > 0 && width > 0, "every size must be positive");
    require(!kernels.empty(), "there must be a layer");
    for (int k : kernels) require(k > 0 && k % 2 == 1, "kernel sizes must be odd");
    require(pool_size > 0, "pool_size must be positive");
    return {batch, channels, height, width, std::move(kernels), pool_size, sum, dtype(x_dtype), dtype(param_dtype), channels_last};
}

CatPlan make_cat_plan(int batch, int tokens, int channels, int concepts, int x_dtype, int param_dtype) {
    require(batch > 0 && tokens > 0 && channels > 0 && concepts > 0, "every size must be positive");
    return {batch, tokens, channels, concepts, dtype(x_dtype), dtype(param_dtype)};
}

template <class Pointer>
std::vector<Pointer> pointers(const py::sequence& from, int expected) {
    if (static_cast<int>(py::len(from)) != expected)
        throw std::invalid_argument("expected " + std::to_string(expected) + " parameter pointers, got " + std::to_string(py::len(from)));
    std::vector<Pointer> to;
    for (int i = 0; i < expected; ++i) to.push_back(reinterpret_cast<Pointer>(from[i].cast<uintptr_t>()));
    return to;
}

void scsa_forward(const ScsaPlan& plan, uintptr_t x, uintptr_t out, uintptr_t saved, const py::sequence& params, int threads) {
    const auto tensors = pointers<const void*>(params, plan.param_count);
    const fastattn::ScsaForwardArgs args{reinterpret_cast<const void*>(x), reinterpret_cast<void*>(out), reinterpret_cast<float*>(saved),
                                         tensors.data(), threads};
    py::gil_scoped_release release;
    fastattn::scsa_forward(plan, args);
}

void scsa_backward(const ScsaPlan& plan, uintptr_t grad_out, uintptr_t x, uintptr_t saved, const py::sequence& params, uintptr_t grad_x,
                   const py::sequence& grad_params, int threads) {
    const auto tensors = pointers<const void*>(params, plan.param_count);
    const bool need_params = py::len(grad_params) > 0;
    const auto gradients = pointers<void*>(grad_params, need_params ? plan.param_count : 0);
    const fastattn::ScsaBackwardArgs args{reinterpret_cast<const void*>(grad_out), reinterpret_cast<const void*>(x),
                                          reinterpret_cast<const float*>(saved), tensors.data(), reinterpret_cast<void*>(grad_x),
                                          need_params ? gradients.data() : nullptr, threads};
    py::gil_scoped_release release;
    fastattn::scsa_backward(plan, args);
}

void lga_forward(const LgaPlan& plan, uintptr_t x, uintptr_t out, uintptr_t z, const py::sequence& params, int threads) {
    const auto tensors = pointers<const void*>(params, plan.param_count());
    const fastattn::LgaForwardArgs args{reinterpret_cast<const void*>(x), reinterpret_cast<void*>(out), reinterpret_cast<float*>(z),
                                        tensors.data(), threads};
    py::gil_scoped_release release;
    fastattn::lga_forward(plan, args);
}

void lga_backward(const LgaPlan& plan, uintptr_t grad_out, uintptr_t x, uintptr_t z, const py::sequence& params, uintptr_t grad_x,
                  const py::sequence& grad_params, int threads) {
    const auto tensors = pointers<const void*>(params, plan.param_count());
    const bool need_params = py::len(grad_params) > 0;
    const auto gradients = pointers<float*>(grad_params, need_params ? plan.param_count() : 0);
    const fastattn::LgaBackwardArgs args{reinterpret_cast<const void*>(grad_out), reinterpret_cast<const void*>(x),
                                         reinterpret_cast<const float*>(z), tensors.data(), reinterpret_cast<void*>(grad_x),
                                         need_params ? gradients.data() : nullptr, threads};
    py::gil_scoped_release release;
    fastattn::lga_backward(plan, args);
}

void acp_forward(const AcpPlan& plan, uintptr_t x, uintptr_t out, const py::sequence& params, int threads) {
    const auto tensors = pointers<const void*>(params, plan.param_count());
    const fastattn::AcpForwardArgs args{reinterpret_cast<const void*>(x), reinterpret_cast<void*>(out), tensors.data(), threads};
    py::gil_scoped_release release;
    fastattn::acp_forward(plan, args);
}

void acp_backward(const AcpPlan& plan, uintptr_t grad_out, uintptr_t x, const py::sequence& params, uintptr_t grad_x,
                  const py::sequence& grad_params, int threads) {
    const auto tensors = pointers<const void*>(params, plan.param_count());
    const bool need_params = py::len(grad_params) > 0;
    const auto gradients = pointers<float*>(grad_params, need_params ? plan.param_count() : 0);
    const fastattn::AcpBackwardArgs args{reinterpret_cast<const void*>(grad_out), reinterpret_cast<const void*>(x), tensors.data(),
                                         reinterpret_cast<void*>(grad_x), need_params ? gradients.data() : nullptr, threads};
    py::gil_scoped_release release;
    fastattn::acp_backward(plan, args);
}

void cat_forward(const CatPlan& plan, uintptr_t x, uintptr_t out, uintptr_t saved, const py::sequence& params, int threads) {
    const auto tensors = pointers<const void*>(params, CatPlan::param_count);
    const fastattn::CatForwardArgs args{reinterpret_cast<const void*>(x), reinterpret_cast<void*>(out), reinterpret_cast<float*>(saved),
                                        tensors.data(), threads};
    py::gil_scoped_release release;
    fastattn::cat_forward(plan, args);
}

void cat_backward(const CatPlan& plan, uintptr_t grad_out, uintptr_t x, uintptr_t saved, const py::sequence& params, uintptr_t grad_x,
                  const py::sequence& grad_params, int threads) {
    const auto tensors = pointers<const void*>(params, CatPlan::param_count);
    const bool need_params = py::len(grad_params) > 0;
    const auto gradients = pointers<float*>(grad_params, need_params ? CatPlan::param_count : 0);
    const fastattn::CatBackwardArgs args{reinterpret_cast<const void*>(grad_out), reinterpret_cast<const void*>(x),
                                         reinterpret_cast<const float*>(saved), tensors.data(), reinterpret_cast<void*>(grad_x),
                                         need_params ? gradients.data() : nullptr, threads};
    py::gil_scoped_release release;
    fastattn::cat_backward(plan, args);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "fastattn's compiled CPU kernels; use fastattn.functional instead";
    m.def("isa", &fastattn::isa);
    m.def("isa_levels", &fastattn::isa_levels);
    m.def("set_isa", &fastattn::set_isa, py::arg("level"));
    py::class_<ScsaPlan>(m, "ScsaPlan")
        .def(py::init(&make_scsa_plan), py::arg("spatial"), py::arg("channel"), py::arg("batch"), py::arg("channels"), py::arg("height"),
             py::arg("width"), py::arg("kernel_sizes"), py::arg("head_num"), py::arg("window_h"), py::arg("window_w"), py::arg("max_pool"),
             py::arg("softmax_gate"), py::arg("qkv_bias"), py::arg("x_dtype"), py::arg("param_dtype"), py::arg("channels_last"))
        .def_readonly("saved_size", &ScsaPlan::saved_size)
        .def("forward", &scsa_forward, py::arg("x"), py::arg("out"), py::arg("saved"), py::arg("params"), py::arg("threads"))
        .def("backward", &scsa_backward, py::arg("grad_out"), py::arg("x"), py::arg("saved"), py::arg("params"), py::arg("grad_x"),
             py::arg("grad_params"), py::arg("threads"));
    py::class_<LgaPlan>(m, "LgaPlan")
        .def(py::init(&make_lga_plan), py::arg("batch"), py::arg("dim"), py::arg("height"), py::arg("width"), py::arg("num_heads"),
             py::arg("num_scales"), py::arg("branches"), py::arg("encoding_height"), py::arg("encoding_width"), py::arg("released"),
             py::arg("x_dtype"), py::arg("param_dtype"), py::arg("channels_last"))
        .def("forward", &lga_forward, py::arg("x"), py::arg("out"), py::arg("z"), py::arg("params"), py::arg("threads"))
        .def("backward", &lga_backward, py::arg("grad_out"), py::arg("x"), py::arg("z"), py::arg("params"), py::arg("grad_x"),
             py::arg("grad_params"), py::arg("threads"));
    py::class_<AcpPlan>(m, "AcpPlan")
        .def(py::init(&make_acp_plan), py::arg("batch"), py::arg("channels"), py::arg("height"), py::arg("width"), py::arg("kernels"),
             py::arg("pool_size"), py::arg("sum"), py::arg("x_dtype"), py::arg("param_dtype"), py::arg("channels_last"))
        .def("forward", &acp_forward, py::arg("x"), py::arg("out"), py::arg("params"), py::arg("threads"))
        .def("backward", &acp_backward, py::arg("grad_out"), py::arg("x"), py::arg("params"), py::arg("grad_x"), py::arg("grad_params"),
             py::arg("threads"));
    py::class_<CatPlan>(m, "CatPlan")
        .def(py::init(&make_cat_plan), py::arg("batch"), py::arg("tokens"), py::arg("channels"), py::arg("concepts"), py::arg("x_dtype"),
             py::arg("param_dtype"))
        .def_property_readonly("saved_size", &CatPlan::saved_size)
        .def("forward", &cat_forward, py::arg("x"), py::arg("out"), py::arg("saved"), py::arg("params"), py::arg("threads"))
        .def("backward", &cat_backward, py::arg("grad_out"), py::arg("x"), py::arg("saved"), py::arg("params"), py::arg("grad_x"),
             py::arg("grad_params"), py::arg("threads"));
}
