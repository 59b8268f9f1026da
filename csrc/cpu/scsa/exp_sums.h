// Sums of exponentials of products, sum_j w_j exp(a_j b_i), by piecewise Taylor expansion in b: with one pooled pixel
// the channel attention is such a sum, and this makes it linear in the number of channels.
#pragma once

#include "../vector_math.h"

namespace fastattn::FASTATTN_ISA {

constexpr int kDegree = 8;          // remainder below 0.5^9 / 9! = 6e-9 of a term (derivative: 1e-7)
constexpr float kCellReach = 0.5f;  // largest |a (b - centre of the cell)|
constexpr int kMaxCells = 16;

struct Span {
    float low, high;
    float middle() const { return 0.5f * (low + high); }
    float reach() const { return 0.5f * (high - low); }
    Span operator-(float shift) const { return {low - shift, high - shift}; }
    Span operator*(float factor) const { return {low * factor, high * factor}; }  // that is positive
};

inline Span span(const float* v, int n) {
    V low = splat(v[0]), high = low;
    int i = 0;
    for (; i + L <= n; i += L) low = min(low, load(v + i)), high = max(high, load(v + i));
    Span s{-largest(-low), largest(high)};
    for (; i < n; ++i) s.low = std::min(s.low, v[i]), s.high = std::max(s.high, v[i]);
    return s;
}

// Cells that the span of b has to be cut into, 0 where the expansion does not pay or its bound does not hold (NaN
// included). `reach` is the largest |a|; exp(a b) must stay within fp32.
inline int taylor_cells(float reach, Span b) {
    const float cells = reach * b.reach() / kCellReach;
    const float exponent = reach * std::max(-b.low, b.high);
    if (!(cells <= kMaxCells && exponent <= 60.0f)) return 0;
    return std::max(1, static_cast<int>(__builtin_ceilf(cells)));
}

// value[k][i] = sum_j w[k][j] exp(a[j] b[i]) and slope[k][i], its derivative in b[i], for k = 0, 1. A NaN in b stays
// one.
INLINE_BODY inline void exp_sums(const float* a, const float* const w[2], int count, const float* b, Span span_b,
                                 int cells, int queries, float* const value[2], float* const slope[2]) {
    const float width = 2.0f * span_b.reach() / cells;
    for (int cell = 0; cell < cells; ++cell) {
        const float center = span_b.low + (cell + 0.5f) * width;
        V moment[2][kDegree + 1] = {};
        for_lanes(0, count, [&](int j, auto m) {
            const V aj = load(a + j, m), e = exp2(aj * (center * kLog2e));
            V t0 = keep(load(w[0] + j, m) * e, m), t1 = keep(load(w[1] + j, m) * e, m);
            for (int p = 0; p <= kDegree; ++p) {
                moment[0][p] += t0;
                moment[1][p] += t1;
                t0 *= aj;
                t1 *= aj;
            }
        });
        float coefficient[2][kDegree + 1];
        float factorial = 1.0f;
        for (int p = 0; p <= kDegree; ++p) {
            if (p) factorial *= p;
            coefficient[0][p] = sum(moment[0][p]) / factorial;
            coefficient[1][p] = sum(moment[1][p]) / factorial;
        }
        const V low = splat(cell == 0 ? -__builtin_inff() : span_b.low + cell * width);  // of this cell
        for_lanes(0, queries, [&](int i, auto m) {
            const V bi = load(b + i, m), z = bi - center;
            for (int k = 0; k < 2; ++k) {
                V s = splat(coefficient[k][kDegree]), d = V{};
                for (int p = kDegree - 1; p >= 0; --p) {
                    d = d * z + s;
                    s = s * z + coefficient[k][p];
                }
                store(value[k] + i, bi < low ? load(value[k] + i, m) : s, m);
                if (slope[k]) store(slope[k] + i, bi < low ? load(slope[k] + i, m) : d, m);
            }
        });
    }
}

}  // namespace fastattn::FASTATTN_ISA
