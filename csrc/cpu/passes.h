// What the passes over x share in both memory formats.
#pragma once

#include <type_traits>

#include "plan.h"
#include "vector_math.h"

namespace fastattn::FASTATTN_ISA {

template <class T>
struct Type {
    using type = T;
};

// f(Type<T>) for the element type of a dtype
template <class F>
inline void with_element(DType dtype, F&& f) {
    switch (dtype) {
        case DType::float32: return f(Type<float>{});
        case DType::bfloat16: return f(Type<bf16>{});
        case DType::float16: return f(Type<fp16>{});
    }
}

struct Range {  // of channels or rows
    int begin, end;
};

// Hands out 64-byte aligned pieces of one buffer.
class Bump {
public:
    explicit Bump(float* memory) : next_(memory) {}
    float* take(int64_t floats) {
        float* p = next_;
        next_ += (floats + 15) / 16 * 16;
        return p;
    }

private:
    float* next_;
};

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

// A class of passes has a type Map and `const Map* fetch(const T* x, Range, int slot)`: what its passes read in place of x
// (slot 0) and of the output's gradient (slot 1). It is x itself, or a worker's own copy in a better layout. The passes that write
// a map take a range of channels and one of rows; rows are all rows unless the class has kWritesByRows.

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

// f(v, lanes) for v < NV, unrolled.
template <int NV, class M, class F>
inline __attribute__((always_inline)) void each(M last, F&& f) {
    if constexpr (NV > 1) f(0, Full{});
    if constexpr (NV > 2) f(1, Full{});
    if constexpr (NV > 3) f(2, Full{});
    f(NV - 1, last);
}

}  // namespace fastattn
