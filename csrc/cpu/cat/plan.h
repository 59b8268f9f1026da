// What one call of conceptual attention computes, apart from its pointers; shared by all instruction-set levels.
#pragma once

#include "../dtype.h"
#include "../levels.h"

namespace fastattn {

struct CatPlan {
    int batch, tokens, channels, concepts;
    DType dtype, param_dtype;

    static constexpr int param_count = 5;
};

// Parameters, and their gradients, in this order: score weight; value weight and bias; out weight and bias.
struct CatForwardArgs {
    const void* x;
    void* out;
    const void* const* params;
    int threads;
};

struct CatBackwardArgs {
    const void* grad_out;
    const void* x;
    const void* const* params;
    void* grad_x;               // null: not needed
    float* const* grad_params;  // null: not needed
    int threads;
};

FASTATTN_IN_EVERY_LEVEL(void cat_forward(const CatPlan&, const CatForwardArgs&); void cat_backward(const CatPlan&, const CatBackwardArgs&);)

}  // namespace fastattn
