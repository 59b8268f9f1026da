// The library of operators: what loads it can call fastattn's operators, and run what was exported with them.
#include "operators.h"

#include <cstdio>

namespace fastattn {

Operators::Operators()
    : definitions_(Library::Kind::FRAGMENT, "fastattn", nullptr, __FILE__, __LINE__),
      kernels_(Library::Kind::IMPL, "fastattn", "CPU", __FILE__, __LINE__) {}

void Operators::add(const std::string& name, const std::string& options, Boxed forward, Boxed backward) {
    const std::string forward_name = name + "_forward", backward_name = name + "_backward";
    const std::string known = "Tensor[] params" + options;
    definitions_.def((forward_name + "(Tensor x, " + known + ", bool save) -> (Tensor out, Tensor saved)").c_str());
    definitions_.def((backward_name + "(Tensor grad_out, Tensor x, Tensor saved, " + known +
                      ", bool need_x, bool need_params) -> (Tensor grad_x, Tensor grad_params)")
                         .c_str());
    kernels_.impl(forward_name.c_str(), forward);
    kernels_.impl(backward_name.c_str(), backward);
}

namespace {

Operators& register_all() {
    static Operators operators;
    try {
#define FASTATTN_OPERATION(name, Plan) register_##name(operators);
#include "../operations.inc"
    } catch (const std::exception&) {  // an exception would end the process while it loads this library
        std::fprintf(stderr, "fastattn: this process has fastattn's operators already, which serve on\n");
    }
    return operators;
}

[[maybe_unused]] const Operators& registered = register_all();

}  // namespace
}  // namespace fastattn
