// The checks that plans make of what they are made of.
#pragma once

#include <stdexcept>
#include <vector>

#include "dtype.h"

namespace fastattn {

inline void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

inline DType dtype_of(int code) {
    require(code >= 0 && code <= 2, "dtype code must be 0 (float32), 1 (bfloat16) or 2 (float16)");
    return static_cast<DType>(code);
}

inline void require_odd(const std::vector<int>& kernels) {
    for (int k : kernels) require(k > 0 && k % 2 == 1, "kernel sizes must be odd");
}

}  // namespace fastattn
