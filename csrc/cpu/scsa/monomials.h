// exp(q . k) for short vectors q, k of small product, as a polynomial: with monomials q^a = prod_n q_n^a_n,
// exp(q . k) = sum over exponents a of w_a q^a k^a. A sum over k of such terms is then a few moments, and attention
// linear in its channels.
#pragma once

#include "../vector_math.h"

namespace fastattn::FASTATTN_ISA {

constexpr int kMaxMonomials = 512;
constexpr int kMaxDegree = 16;
constexpr float kRemainder = 3e-8f;  // of exp, relative

// e^s = sum over p of coefficient[p] s^p / p! for |s| <= bound: its Chebyshev series, cut where the rest vanishes.
struct ExpPolynomial {
    int degree;  // -1: the bound asks for too many terms, or is NaN
    double coefficient[kMaxDegree + 1];

    // The series is I_0(b) + 2 sum over k of I_k(b) T_k(s / b), and I_k(b) <= (b / 2)^k / k! exp(b^2 / 4 / (k + 1)).
    static int degree_of(float bound) {
        const float most = 2.0f * __builtin_expf(bound + 0.125f * bound * bound);  // and e^-b is the least of e^s
        float power = 1.0f;
        for (int p = 0; p < kMaxDegree; ++p)
            if (most * (power *= 0.5f * bound / (p + 1)) <= kRemainder) return p;
        return -1;
    }

    explicit ExpPolynomial(float bound) : degree(degree_of(bound)) {
        if (degree < 0) return;
        double before[kMaxDegree + 2] = {}, now[kMaxDegree + 2] = {}, next[kMaxDegree + 2];
        before[0] = now[1] = 1.0;  // T_0, T_1; T_k = 2 (s / b) T_(k-1) - T_(k-2)
        std::fill(coefficient, coefficient + degree + 1, 0.0);
        coefficient[0] = bessel(0, bound);
        for (int k = 1; k <= degree; ++k) {
            const double factor = 2.0 * bessel(k, bound);
            for (int p = 0; p <= k; ++p) coefficient[p] += factor * now[p];
            for (int p = 0; p <= k + 1; ++p) next[p] = (p ? 2.0 * now[p - 1] : 0.0) - before[p];
            std::copy(now, now + k + 2, before);
            std::copy(next, next + k + 2, now);
        }
        double scale = 1.0;  // p! / b^p
        for (int p = 1; p <= degree; ++p) coefficient[p] *= scale *= p / bound;
    }

private:
    static double bessel(int k, double bound) {  // I_k
        const double square = 0.25 * bound * bound;
        double term = 1.0, sum = 0.0;
        for (int i = 1; i <= k; ++i) term *= 0.5 * bound / i;
        for (int m = 1; m <= 12; ++m) sum += term, term *= square / (m * (m + k));
        return sum;
    }
};

// All monomials of a vector's components up to a degree, in runs: a head, of all components but the last, and its
// products with the powers of the last. Each head but the first, 1, is an earlier one times one of the components.
struct Monomials {
    int count = 0, runs = 0, size;
    int16_t parent[kMaxMonomials];
    int16_t axis[kMaxMonomials];
    int16_t length[kMaxMonomials];
    float weight[kMaxMonomials];  // w_a

    // All that `size` components and |q . k| <= bound ask for; none where they are too many or bound is NaN.
    Monomials(int size, float bound) : size(size) {
        const ExpPolynomial exp(bound);
        if (exp.degree < 0) return;
        int16_t power[kMaxMonomials];   // of a head's last component
        double inverse[kMaxMonomials];  // 1 / a! of a head
        push(0, 0, 1, 1.0, exp, 0, power, inverse);
        for (int degree = 1, begin = 0; degree <= exp.degree; ++degree) {
            const int end = runs;
            for (int i = begin; i < end; ++i)
                for (int n = axis[i]; n < size - 1; ++n) {
                    const int p = i > 0 && n == axis[i] ? power[i] + 1 : 1;
                    if (!push(i, n, p, inverse[i] / p, exp, degree, power, inverse)) return;
                }
            begin = end;
        }
    }

    // How many they are, 0 where that is too many
    static int number(int size, float bound) {
        const int degree = ExpPolynomial::degree_of(bound);
        int64_t number = degree >= 0;
        for (int p = 1; p <= degree && number <= kMaxMonomials; ++p) number = number * (size + p) / p;
        return number <= kMaxMonomials ? static_cast<int>(number) : 0;
    }

    // f(index, value) for the monomials of the vectors whose component n lies at components + n * stride; zero in lanes
    // that are none
    template <class M, class F>
    void evaluate(const float* components, int64_t stride, M m, V* heads, F&& f) const {
        const V last = load(components + (size - 1) * stride, m);
        for (int run = 0, i = 0; run < runs; ++run) {
            V value = heads[run] = head(run, components, stride, 1.0f, m, heads);
            f(i++, value);
            for (int p = 1; p < length[run]; ++p) f(i++, value *= last);
        }
    }

    // Two sums over all monomials of such vectors, times `scale`, each with a coefficient: [count][2]
    template <class M>
    void sums(const float* components, int64_t stride, float scale, M m, V* heads, const float* coefficients, V& first,
              V& second) const {
        const V last = load(components + (size - 1) * stride, m) * scale;
        first = second = V{};
        const float* c = coefficients;
        for (int run = 0; run < runs; ++run, c += 2 * length[run - 1]) {
            heads[run] = head(run, components, stride, scale, m, heads);
            const float* from = c + 2 * (length[run] - 1);
            V a = splat(from[0]), b = splat(from[1]);
            for (from -= 2; from >= c; from -= 2) a = a * last + from[0], b = b * last + from[1];
            first += heads[run] * a;
            second += heads[run] * b;
        }
    }

private:
    template <class M>
    V head(int run, const float* components, int64_t stride, float scale, M m, const V* heads) const {
        if (run == 0) return keep(splat(1.0f), m);
        return heads[parent[run]] * (load(components + axis[run] * stride, m) * scale);
    }

    // False where the monomials are too many: there are none then
    bool push(int from, int n, int p, double inverse_factorial, const ExpPolynomial& exp, int degree, int16_t* power,
              double* inverse) {
        const int powers = exp.degree - degree + 1;
        if (count + powers > kMaxMonomials) {
            count = runs = 0;
            return false;
        }
        parent[runs] = static_cast<int16_t>(from);
        axis[runs] = static_cast<int16_t>(n);
        length[runs] = static_cast<int16_t>(powers);
        power[runs] = static_cast<int16_t>(p);
        inverse[runs++] = inverse_factorial;
        for (int last = 0; last < powers; ++last) {
            weight[count++] = static_cast<float>(inverse_factorial * exp.coefficient[degree + last]);
            inverse_factorial /= last + 1;
        }
        return true;
    }
};

}  // namespace fastattn::FASTATTN_ISA
