// What the passes over x share in both memory formats.
#pragma once

#include "../work.h"
#include "plan.h"

namespace fastattn::FASTATTN_ISA {

// Gradient sums of one sample, each [...][C]; the window sums are null where no average pooling follows.
struct Gathered {
    float *r_h, *r_w;  // [H][C], [W][C]
    float *s_h, *s_w;  // [H' * window][W'][C], [H'][W][C]
};

// What the last backward pass adds to d * g inside of the gates and to the result: all [...][C], null for zero.
struct InputGradient {
    const float* g;          // [C]
    const float* pooled;     // [N][C], gradient of each pixel of a window
    const float *m_h, *m_w;  // [H][C], [W][C], gradient of each pixel of a row or column
};

// A class of passes has a type Map and `const Map* fetch(const T* x, Range, int slot)`: what its passes read in place
// of x (slot 0) and of the output's gradient (slot 1). It is x itself, or a worker's own copy in a better layout. The
// passes that write a map take a range of channels and one of rows; rows are all rows unless the class has
// kWritesByRows.

constexpr int kMaxVectors = 4;  // of a row that are kept in registers

// f(w0, number of vectors, mask of the last one) for blocks of columns of [0, width).
template <class F>
inline void for_columns(int width, F&& f) {
    for (int w0 = 0; w0 < width; w0 += kMaxVectors * L) {
        const int left = std::min(width - w0, kMaxVectors * L);
        const auto call = [&](auto nv) {
            if (left == nv.value * L) f(w0, nv, Full{});
            else f(w0, nv, Tail(left - (nv.value - 1) * L));
        };
        switch ((left + L - 1) / L) {
            case 1: call(std::integral_constant<int, 1>{}); break;
            case 2: call(std::integral_constant<int, 2>{}); break;
            case 3: call(std::integral_constant<int, 3>{}); break;
            default: call(std::integral_constant<int, 4>{});
        }
    }
}

}  // namespace fastattn::FASTATTN_ISA
