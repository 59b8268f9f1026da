// The registration of an operation's two operators with torch's dispatcher.
#pragma once

#include "call.h"

namespace fastattn {

class Operators {
public:
    using Boxed = void (*)(StableIValue*, uint64_t, uint64_t);

    Operators();
    // NAME_forward and NAME_backward for the CPU; `options` are the schema's, each behind a comma. std::runtime_error
    // where somebody registered them before
    void add(const std::string& name, const std::string& options, Boxed forward, Boxed backward);

private:
    using Library = torch::stable::detail::StableLibrary;
    Library definitions_, kernels_;
};

#define FASTATTN_OPERATION(name, Plan) void register_##name(Operators& operators);
#include "../operations.inc"

}  // namespace fastattn
