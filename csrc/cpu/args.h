// The tensors of one call, of any operation; what they hold and their order stand in the operation's plan.h.
#pragma once

namespace fastattn {

struct ForwardArgs {
    const void* x;
    void* out;
    float* saved;  // [sample][saved_size]; null: nothing is kept for backward
    const void* const* params;
    int threads;
};

struct BackwardArgs {
    const void* grad_out;
    const void* x;
    const float* saved;
    const void* const* params;
    void* grad_x;              // null: not needed
    void* const* grad_params;  // null: not needed
    int threads;
};

}  // namespace fastattn
