// exp(q . k) for short vectors q, k of small product, as a polynomial: with monomials q^a = prod_n q_n^a_n,
// exp(q . k) = sum over exponents a of w_a q^a k^a. A sum over k of such terms is then a few moments, and attention
// linear in its channels.
#pragma once

#include "../vector_math.h"

namespace fastattn::FASTATTN_ISA {

constexpr int kMaxMonomials = 512;
constexpr int kMaxDegree = 16;
constexpr float kRemainder = 3e-8f;       // of exp, relative
constexpr float kSlopeRemainder = 2e-7f;  // where gradients are sought

// e^s = sum over p of coefficient[p] s^p / p! for |s| <= bound: its Chebyshev series, cut where the rest vanishes.
struct ExpPolynomial {
    int degree;  // -1: the bound asks for too many terms, or is NaN
    double coefficient[kMaxDegree + 1];

    // The series is I_0(b) + 2 sum over k of I_k(b) T_k(s / b), and I_k(b) <= (b / 2)^k / k! exp(b^2 / 4 / (k + 1)).
    static int degree_of(float bound, float remainder) {
        const float most = 2.0f * __builtin_expf(bound + 0.125f * bound * bound);  // and e^-b is the least of e^s
        float power = 1.0f;
        for (int p = 0; p < kMaxDegree; ++p)
            if (most * (power *= 0.5f * bound / (p + 1)) <= remainder) return p;
        return -1;
    }

    ExpPolynomial(float bound, float remainder) : degree(degree_of(bound, remainder)) {
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

    // What has this as its derivative: as exact, and so a sum of e^s and its slopes are one polynomial's.
    ExpPolynomial integral() const {
        ExpPolynomial found = *this;
        if (degree < 0) return found;
        std::copy(coefficient, coefficient + degree + 1, found.coefficient + 1);
        found.coefficient[0] = 1.0;
        ++found.degree;
        return found;
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

// Two vectors: while one waits for its last product, the other goes on
struct Twin {
    V a, b;
};
struct Both {};  // the lanes of both

inline Twin operator+(Twin s, Twin t) { return {s.a + t.a, s.b + t.b}; }
inline Twin operator-(Twin s, Twin t) { return {s.a - t.a, s.b - t.b}; }
inline Twin operator*(Twin s, Twin t) { return {s.a * t.a, s.b * t.b}; }
inline Twin operator+(Twin s, float t) { return {s.a + t, s.b + t}; }
inline Twin operator-(Twin s, float t) { return {s.a - t, s.b - t}; }
inline Twin operator*(Twin s, float t) { return {s.a * t, s.b * t}; }
inline Twin load(const float* p, Both) { return {load(p), load(p + L)}; }
inline void store(float* p, Twin t, Both) { store(p, t.a), store(p + L, t.b); }
inline Twin keep(Twin t, Both) { return t; }
inline Twin exp2(Twin t) { return {exp2(t.a), exp2(t.b)}; }
inline Twin reciprocal_of(Twin t) { return {1.0f / t.a, 1.0f / t.b}; }
inline V reciprocal_of(V v) { return 1.0f / v; }
inline V add_product(V sum, Twin s, Twin t) { return sum + s.a * t.a + s.b * t.b; }
inline V add_product(V sum, V s, V t) { return sum + s * t; }

template <class M>
using Lanes = decltype(load(static_cast<const float*>(nullptr), std::declval<M>()));

// f(c, lanes) for vectors, by twos as far as they go
template <class F>
inline void for_twins(int begin, int end, F&& f) {
    for (; begin + 2 * L <= end; begin += 2 * L) f(begin, Both{});
    for_lanes(begin, end, f);
}

// All monomials of a vector's components up to a degree, in runs: a head, of all components but the last, and its
// products with the powers of the last. Each head but the first, 1, is an earlier one times one of the components.
struct Monomials {
    int count = 0, runs = 0, size;
    int16_t parent[kMaxMonomials];
    int16_t axis[kMaxMonomials];
    int16_t length[kMaxMonomials];
    float weight[kMaxMonomials];  // w_a

    // All that `size` components ask for; none where they are too many.
    Monomials(int size, const ExpPolynomial& exp) : size(size) {
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

    // How many they are, of exp's integral with `slopes`; 0 where that is too many
    static int number(int size, float bound, bool slopes = false) {
        const int found = ExpPolynomial::degree_of(bound, slopes ? kSlopeRemainder : kRemainder);
        const int degree = found < 0 ? found : found + slopes;
        int64_t number = degree >= 0;
        for (int p = 1; p <= degree && number <= kMaxMonomials; ++p) number = number * (size + p) / p;
        return number <= kMaxMonomials ? static_cast<int>(number) : 0;
    }

    // The coefficients [count][2] of two sums over vectors, each with weights(i, lanes, first, second); component n of
    // the vectors lies at components + n * stride, and counts `scale` times
    template <class F>
    void moments(const float* components, int64_t stride, float scale, int vectors, float* coefficients,
                 F&& weights) const {
        V first[kMaxMonomials], second[kMaxMonomials];
        std::fill(first, first + count, V{});
        std::fill(second, second + count, V{});
        for_twins(0, vectors, [&](int i, auto m) {
            Lanes<decltype(m)> heads[kMaxMonomials], one, other;
            const auto last = load(components + (size - 1) * stride + i, m) * scale;
            weights(i, m, one, other);
            for (int run = 0, a = 0; run < runs; ++run) {
                auto value = heads[run] = head(run, components + i, stride, scale, m, heads);
                for (int p = 0; p < length[run]; ++p, ++a, value = value * last) {
                    first[a] = add_product(first[a], value, one);
                    second[a] = add_product(second[a], value, other);
                }
            }
        });
        for (int a = 0; a < count; ++a) {
            coefficients[2 * a] = sum(first[a]) * weight[a];
            coefficients[2 * a + 1] = sum(second[a]) * weight[a];
        }
    }

    // The two sums for such vectors
    template <class M, class T = Lanes<M>>
    void sums(const float* components, int64_t stride, float scale, M m, const float* coefficients, T& first,
              T& second) const {
        const T last = load(components + (size - 1) * stride, m) * scale;
        T heads[kMaxMonomials];
        first = second = T{};
        const float* c = coefficients;
        for (int run = 0; run < runs; ++run, c += 2 * length[run - 1]) {
            heads[run] = head(run, components, stride, scale, m, heads);
            const float* from = c + 2 * (length[run] - 1);
            T a = T{} + from[0], b = T{} + from[1];
            for (from -= 2; from >= c; from -= 2) a = a * last + from[0], b = b * last + from[1];
            first = first + heads[run] * a;
            second = second + heads[run] * b;
        }
    }

    // The slopes [size] in the components of the sum whose coefficients are combine(first, second); returns the first
    // sum
    template <class M, class F, class T = Lanes<M>>
    T slopes(const float* components, int64_t stride, float scale, M m, const float* coefficients, F&& combine,
             T* slopes) const {
        const T last = load(components + (size - 1) * stride, m) * scale;
        T heads[kMaxMonomials], adjoints[kMaxMonomials], sum{};
        std::fill(slopes, slopes + size, T{});
        const float* c = coefficients;
        for (int run = 0; run < runs; ++run, c += 2 * length[run - 1]) {
            heads[run] = head(run, components, stride, scale, m, heads);
            const float* from = c + 2 * (length[run] - 1);
            T a = T{} + from[0], b = T{} + from[1], slope_a{}, slope_b{};
            for (from -= 2; from >= c; from -= 2) {
                slope_a = slope_a * last + a, slope_b = slope_b * last + b;
                a = a * last + from[0], b = b * last + from[1];
            }
            sum = sum + heads[run] * a;
            slopes[size - 1] = slopes[size - 1] + heads[run] * combine(slope_a, slope_b);
            adjoints[run] = combine(a, b);
        }
        for (int run = runs - 1; run > 0; --run) {
            const T component = load(components + axis[run] * stride, m) * scale;
            adjoints[parent[run]] = adjoints[parent[run]] + adjoints[run] * component;
            slopes[axis[run]] = slopes[axis[run]] + adjoints[run] * heads[parent[run]];
        }
        return sum;
    }

private:
    template <class M, class T>
    T head(int run, const float* components, int64_t stride, float scale, M m, const T* heads) const {
        if (run == 0) return keep(T{} + 1.0f, m);
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
