// The Python module fastattn._native: raw pointers in, nothing of torch. Tensors are checked on the Python side.
#include "bindings.h"

#include "cpu/acp/plan.h"
#include "cpu/cat/plan.h"
#include "cpu/gates/plan.h"
#include "cpu/lga/plan.h"
#include "cpu/scsa/plan.h"

namespace {

using namespace fastattn;

void bind_plans(py::module_& m) {
    bind_plan(m, "ScsaPlan", &ScsaPlan::make, "spatial", "channel", "batch", "channels", "height", "width",
              "kernel_sizes", "head_num", "window_h", "window_w", "max_pool", "softmax_gate", "qkv_bias", "x_dtype",
              "param_dtype", "channels_last");
    bind_plan(m, "LgaPlan", &LgaPlan::make, "batch", "dim", "height", "width", "num_heads", "num_scales", "branches",
              "encoding_height", "encoding_width", "released", "x_dtype", "param_dtype", "channels_last");
    bind_plan(m, "AcpPlan", &AcpPlan::make, "batch", "channels", "height", "width", "kernels", "pool_size", "sum",
              "x_dtype", "param_dtype", "channels_last");
    bind_plan(m, "CatPlan", &CatPlan::make, "batch", "tokens", "channels", "concepts", "x_dtype", "param_dtype");
    bind_plan(m, "GatesPlan", &GatesPlan::make, "batch", "channels", "height", "width", "program", "numbers", "numels",
              "x_dtype", "param_dtype", "channels_last");
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "fastattn's compiled CPU kernels; use fastattn.functional instead";
    m.def("isa", &isa);
    m.def("isa_levels", &isa_levels);
    m.def("set_isa", &set_isa, pybind11::arg("level"));
    bind_plans(m);
}
