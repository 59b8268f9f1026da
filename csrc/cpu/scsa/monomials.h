// exp(q . k) for short vectors q, k of small product, as a polynomial: with monomials q^a = prod_n q_n^a_n,
// exp(q . k) = sum over exponents a of q^a k^a / a!, cut where the degree's remainder |q . k|^(P + 1) / (P + 1)!
// vanishes. A sum over k of such terms is then a few moments, and attention linear in its channels.
#pragma once

#include "../vector_math.h"

namespace fastattn::FASTATTN_ISA {

constexpr int kMaxMonomials = 160;
constexpr float kRemainder = 1e-8f;

// Each monomial but the first, 1, is an earlier one times one of the vector's components.
struct Monomials {
    int count = 0;
    int16_t parent[kMaxMonomials];
    int16_t axis[kMaxMonomials];
    float weight[kMaxMonomials];  // 1 / a!

    // All monomials in `size` variables that |q . k| <= bound asks for; none where they are too many or bound is NaN.
    Monomials(int size, float bound) {
        int16_t power[kMaxMonomials];  // of the last component
        push(0, 0, 1.0f, power, 0);
        float remainder = bound;
        int begin = 0;
        for (int degree = 1; !(remainder <= kRemainder); ++degree) {
            const int end = count;
            for (int i = begin; i < end; ++i)
                for (int n = axis[i]; n < size; ++n) {
                    if (count == kMaxMonomials) {
                        count = 0;
                        return;
                    }
                    const int p = i > 0 && n == axis[i] ? power[i] + 1 : 1;
                    push(i, n, weight[i] / p, power, p);
                }
            begin = end;
            remainder *= bound / (degree + 1);
        }
    }

    // f(index, value) for the monomials of the vectors whose component n lies at components + n * stride
    template <class M, class F>
    void evaluate(const float* components, int64_t stride, float scale, M m, V* values, F&& f) const {
        values[0] = splat(1.0f);
        f(0, values[0]);
        for (int i = 1; i < count; ++i) {
            values[i] = values[parent[i]] * (load(components + axis[i] * stride, m) * scale);
            f(i, values[i]);
        }
    }

private:
    void push(int from, int n, float w, int16_t* power, int p) {
        parent[count] = static_cast<int16_t>(from);
        axis[count] = static_cast<int16_t>(n);
        power[count] = static_cast<int16_t>(p);
        weight[count++] = w;
    }
};

}  // namespace fastattn::FASTATTN_ISA
