// What one call of conceptual attention computes, apart from its pointers; shared by all instruction-set levels.
#pragma once

#include <cstdint>

#include "../dtype.h"

namespace fastattn {

// Parameters, and their gradients, in this order: score weight; value weight and bias; out weight and bias.
struct CatPlan {
    int batch, tokens, channels, concepts;
    DType dtype, param_dtype;

    // std::invalid_argument where sizes or options do not fit; dtypes by their codes
    static CatPlan make(int batch, int tokens, int channels, int concepts, int x_dtype, int param_dtype);

    static constexpr int param_count() { return 5; }
    int64_t elements() const { return int64_t{batch} * tokens * channels; }
    int64_t padded_concepts() const { return (concepts + 15) / 16 * 16; }  // for every level
    // Floats that forward keeps of a sample: of the softmax over the tokens greatest score and inverse sum of each
    // concept (padded), of that over the concepts those of each token; the tokens' means, concept tokens and what they
    // give back without the bias, [concept][channel] each
    int64_t saved_size() const {
        return 2 * padded_concepts() + 2 * int64_t{tokens} + 3 * int64_t{concepts} * channels;
    }
};

}  // namespace fastattn
