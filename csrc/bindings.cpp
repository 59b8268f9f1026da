// The Python module fastattn._native: raw pointers in, nothing of torch. Tensors are checked on the Python side.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>

#include "cpu/dispatch.h"

namespace py = pybind11;
using fastattn::Plan;

namespace {

constexpr size_t kMaxParams = 20;

fastattn::DType dtype(int code) {
    if (code < 0 || code > 2) throw std::invalid_argument("dtype code must be 0 (float32), 1 (bfloat16) or 2 (float16)");
    return static_cast<fastattn::DType>(code);
}

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

Plan make_plan(bool spatial, bool channel, int batch, int channels, int height, int width, std::array<int, 4> kernel_sizes, int head_num,
               int window_h, int window_w, bool max_pool, bool softmax_gate, bool qkv_bias, int x_dtype, int param_dtype, bool channels_last) {
    Plan plan{};
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

template <class Pointer>
void copy_pointers(const py::sequence& from, size_t expected, std::array<Pointer, kMaxParams>& to) {
    if (py::len(from) != expected)
        throw std::invalid_argument("expected " + std::to_string(expected) + " parameter pointers, got " + std::to_string(py::len(from)));
    for (size_t i = 0; i < expected; ++i) to[i] = reinterpret_cast<Pointer>(from[i].cast<uintptr_t>());
}

void forward(const Plan& plan, uintptr_t x, uintptr_t out, uintptr_t saved, const py::sequence& params, int threads) {
    std::array<const void*, kMaxParams> tensors{};
    copy_pointers(params, plan.param_count, tensors);
    const fastattn::ForwardArgs args{reinterpret_cast<const void*>(x), reinterpret_cast<void*>(out), reinterpret_cast<float*>(saved),
                                     tensors.data(), threads};
    py::gil_scoped_release release;
    fastattn::forward(plan, args);
}

void backward(const Plan& plan, uintptr_t grad_out, uintptr_t x, uintptr_t saved, const py::sequence& params, uintptr_t grad_x,
              const py::sequence& grad_params, int threads) {
    std::array<const void*, kMaxParams> tensors{};
    std::array<void*, kMaxParams> gradients{};
    copy_pointers(params, plan.param_count, tensors);
    const bool need_params = py::len(grad_params) > 0;
    if (need_params) copy_pointers(grad_params, plan.param_count, gradients);
    const fastattn::BackwardArgs args{reinterpret_cast<const void*>(grad_out), reinterpret_cast<const void*>(x),
                                      reinterpret_cast<const float*>(saved), tensors.data(), reinterpret_cast<void*>(grad_x),
                                      need_params ? gradients.data() : nullptr, threads};
    py::gil_scoped_release release;
    fastattn::backward(plan, args);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "fastattn's compiled CPU kernels; use fastattn.functional instead";
    m.def("isa", &fastattn::isa);
    m.def("isa_levels", &fastattn::isa_levels);
    m.def("set_isa", &fastattn::set_isa, py::arg("level"));
    py::class_<Plan>(m, "Plan")
        .def(py::init(&make_plan), py::arg("spatial"), py::arg("channel"), py::arg("batch"), py::arg("channels"), py::arg("height"),
             py::arg("width"), py::arg("kernel_sizes"), py::arg("head_num"), py::arg("window_h"), py::arg("window_w"), py::arg("max_pool"),
             py::arg("softmax_gate"), py::arg("qkv_bias"), py::arg("x_dtype"), py::arg("param_dtype"), py::arg("channels_last"))
        .def_readonly("saved_size", &Plan::saved_size)
        .def("forward", &forward, py::arg("x"), py::arg("out"), py::arg("saved"), py::arg("params"), py::arg("threads"))
        .def("backward", &backward, py::arg("grad_out"), py::arg("x"), py::arg("saved"), py::arg("params"), py::arg("grad_x"),
             py::arg("grad_params"), py::arg("threads"));
}
