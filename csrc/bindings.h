// What the bindings of all operations share: a plan made from Python, and its two calls.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/dispatch.h"

namespace fastattn {

namespace py = pybind11;

template <class T>
T* pointer(py::handle address) {
    void* p = PyLong_AsVoidPtr(address.ptr());
    if (!p && PyErr_Occurred()) throw py::error_already_set();
    return static_cast<T*>(p);
}

template <class T>
std::vector<T*> pointers(const py::list& from, int expected) {
    if (static_cast<int>(from.size()) != expected)
        throw std::invalid_argument("expected " + std::to_string(expected) + " parameter pointers, got " +
                                    std::to_string(from.size()));
    std::vector<T*> to;
    to.reserve(from.size());
    for (py::handle address : from) to.push_back(pointer<T>(address));
    return to;
}

template <class Plan>
void call_forward(const Plan& plan, py::handle x, py::handle out, py::handle saved, const py::list& params,
                  int threads) {
    const auto tensors = pointers<const void>(params, plan.param_count());
    const ForwardArgs args{pointer<const void>(x), pointer<void>(out), pointer<float>(saved), tensors.data(), threads};
    py::gil_scoped_release release;
    forward(plan, args);
}

template <class Plan>
void call_backward(const Plan& plan, py::handle grad_out, py::handle x, py::handle saved, const py::list& params,
                   py::handle grad_x, const py::list& grad_params, int threads) {
    const auto tensors = pointers<const void>(params, plan.param_count());
    const bool need_params = !grad_params.empty();
    const auto gradients = pointers<void>(grad_params, need_params ? plan.param_count() : 0);
    const BackwardArgs args{pointer<const void>(grad_out),
                            pointer<const void>(x),
                            pointer<const float>(saved),
                            tensors.data(),
                            pointer<void>(grad_x),
                            need_params ? gradients.data() : nullptr,
                            threads};
    py::gil_scoped_release release;
    backward(plan, args);
}

// The Python class of a plan, made by `make`, whose arguments have these names
template <class Plan, class... Options, class... Names>
void bind_plan(py::module_& m, const char* name, Plan (*make)(Options...), Names... names) {
    static_assert(sizeof...(Options) == sizeof...(Names));
    py::class_<Plan>(m, name)
        .def(py::init(make), py::arg(names)...)
        .def_property_readonly("saved_size", &Plan::saved_size)
        .def("forward", &call_forward<Plan>, py::arg("x"), py::arg("out"), py::arg("saved"), py::arg("params"),
             py::arg("threads"))
        .def("backward", &call_backward<Plan>, py::arg("grad_out"), py::arg("x"), py::arg("saved"), py::arg("params"),
             py::arg("grad_x"), py::arg("grad_params"), py::arg("threads"));
}

}  // namespace fastattn
