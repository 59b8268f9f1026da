// The Python module fastattn._native: raw pointers in, nothing of torch. Tensors are checked on the Python side.
#include "bindings.h"

namespace py = pybind11;

namespace fastattn {

#define FASTATTN_OPERATION(name, Plan) void bind_##name(py::module_& m);
#include "operations.inc"

}  // namespace fastattn

PYBIND11_MODULE(_native, m) {
    m.doc() = "fastattn's compiled CPU kernels; use fastattn.functional instead";
    m.def("isa", &fastattn::isa);
    m.def("isa_levels", &fastattn::isa_levels);
    m.def("set_isa", &fastattn::set_isa, py::arg("level"));
#define FASTATTN_OPERATION(name, Plan) fastattn::bind_##name(m);
#include "operations.inc"
}
