// Channel attention of heads from Gram matrices, and its gradient: all d x d, and in double, since a Gram matrix holds
// the squares of what a map holds. The algebra is derived in fastattn/lga/reference.py, and is applied to centred
// features, E = mean + rest: the biases of queries, keys and values take in what the mean gives to them, the sums of
// the rest over the pixels are zero, and what is left is small and exact.
#pragma once

#include <cmath>

#include "../products.h"
#include "gradients.h"
#include "params.h"

namespace fastattn::FASTATTN_ISA {

// Which slices of d channels the heads read
struct Slices {
    int d, heads;

    explicit Slices(const LgaPlan& plan) : d(plan.head_dim()), heads(plan.num_heads) {}

    static int query(int head) { return head / 3; }
    int key(int head) const { return (heads + head) / 3; }
    int value(int head) const { return (2 * heads + head) / 3; }
    int queries() const { return query(heads - 1) + 1; }  // slices that are read as queries
    int first_value() const { return value(0); }
    Range channels(int first, int last) const { return {first * d, (last + 1) * d}; }  // of slices

    // Heads whose queries, keys or values are in a slice, given the slice's number less that of head 0's part
    Range readers(int slice, int offset) const {
        return {std::max(0, 3 * slice - offset), std::min(heads, 3 * slice - offset + 3)};
    }
    Range query_readers(int slice) const { return readers(slice, 0); }
    Range key_readers(int slice) const { return readers(slice, heads); }
    Range value_readers(int slice) const { return readers(slice, 2 * heads); }
};

// The blocks that hold some channels
inline Range blocks_of(Range channels) { return {channels.begin / L, blocks(channels.end)}; }

// R rows of `multiply`
template <int R, class T>
__attribute__((noinline)) inline void multiply_rows(int k, int m, const T* a, int64_t a_row, const T* b, int64_t b_row,
                                                    T* out, int64_t out_row) {
    using Vector = decltype(load(b));
    constexpr int lanes = sizeof(Vector) / sizeof(T);
    int c = 0;
    for (; c + lanes <= m; c += lanes) {
        Vector sum[R];
        for (int r = 0; r < R; ++r) sum[r] = load(out + r * out_row + c);
        for (int j = 0; j < k; ++j) {
            const Vector v = load(b + j * b_row + c);
            for (int r = 0; r < R; ++r) sum[r] += a[r * a_row + j] * v;
        }
        for (int r = 0; r < R; ++r) store(out + r * out_row + c, sum[r]);
    }
    for (; c < m; ++c)
        for (int r = 0; r < R; ++r)
            for (int j = 0; j < k; ++j) out[r * out_row + c] += a[r * a_row + j] * b[j * b_row + c];
}

// out [n][m] += a [n][k] b [k][m]
template <class T>
inline void multiply(int n, int k, int m, const T* a, int64_t a_row, const T* b, int64_t b_row, T* out,
                     int64_t out_row) {
    constexpr int rows = L == 16 ? 8 : 4;
    int i = 0;
    for (; i + rows <= n; i += rows)
        multiply_rows<rows>(k, m, a + i * a_row, a_row, b, b_row, out + i * out_row, out_row);
    for (; i < n; ++i) multiply_rows<1>(k, m, a + i * a_row, a_row, b, b_row, out + i * out_row, out_row);
}

inline double dot(int n, const double* a, const double* b) {
    constexpr int lanes = L / 2;
    D sum[2] = {};
    int i = 0;
    for (; i + 2 * lanes <= n; i += 2 * lanes)
        for (int k = 0; k < 2; ++k) sum[k] += load(a + i + k * lanes) * load(b + i + k * lanes);
    sum[0] += sum[1];
    double total = 0;
    for (int k = 0; k < lanes; ++k) total += sum[0][k];
    for (; i < n; ++i) total += a[i] * b[i];
    return total;
}

// [n][m] -> [m][n], in squares that stay in the cache
template <class From, class To>
inline void transpose(int n, int m, const From* a, int64_t a_row, To* out) {
    constexpr int side = 8;
    for (int i0 = 0; i0 < n; i0 += side)
        for (int j0 = 0; j0 < m; j0 += side)
            for (int j = j0; j < std::min(m, j0 + side); ++j)
                for (int i = i0; i < std::min(n, i0 + side); ++i)
                    out[int64_t{j} * n + i] = static_cast<To>(a[i * a_row + j]);
}

// rows of m doubles -> [n][m]
inline void narrow(int n, int m, const double* a, int64_t a_row, float* out) {
    for (int i = 0; i < n; ++i)
        for (int j = 0; j < m; ++j) out[int64_t{i} * m + j] = static_cast<float>(a[i * a_row + j]);
}

// What the heads of one convolution have; shared by a sample's team
struct HeadState {
    const LgaPlan& plan;
    Slices slices;
    int d;
    int64_t gram_row, square;
    double pixels;
    double* means;    // [dim] of the depthwise output over the pixels
    double* grams;    // [query slice][d][gram_row]: with the blocks that hold its heads' keys
    double* scores;   // [head][d][d], softmax over the last
    double* keyed;    // [head][d][d]: Gram matrix times key weights
    double* biases;   // [3][dim] of queries, keys and values, with the means' part
    double* values;   // [dim][d]: scores times value weights
    double* offsets;  // [dim]: scores times value biases
    // gradients
    float* grad_gram;                         // [head][d][d]
    double *grad_query_mean, *grad_key_mean;  // [head][d], for each pixel

    HeadState(const LgaPlan& plan, bool backward, Bump& bump)
        : plan(plan),
          slices(plan),
          d(slices.d),
          gram_row(padded(2 * d) + 2 * L),
          square(int64_t{d} * d),
          pixels(static_cast<double>(plan.pixels())) {
        const auto take = [&](int64_t doubles) { return reinterpret_cast<double*>(bump.take(2 * doubles)); };
        means = take(padded(plan.dim));
        grams = take(slices.queries() * d * gram_row);
        scores = take(slices.heads * square);
        keyed = take(slices.heads * square);
        biases = take(int64_t{3} * plan.dim);
        values = take(slices.heads * square);
        offsets = take(plan.dim);
        grad_gram = backward ? bump.take(slices.heads * square) : nullptr;
        grad_query_mean = backward ? take(plan.dim) : nullptr;
        grad_key_mean = backward ? take(plan.dim) : nullptr;
    }

    static int64_t scratch_size(const LgaPlan& plan) {
        const int64_t d = plan.head_dim();
        return 2 * (3 * d * d + 2 * padded(static_cast<int>(d))) + 64;
    }

    Range key_blocks(Range heads) const {
        return blocks_of(slices.channels(slices.key(heads.begin), slices.key(heads.end - 1)));
    }

    // the Gram matrix of a head: rows of gram_row
    const double* gram_of(int head) const {
        const int slice = Slices::query(head);
        const int first = key_blocks(slices.query_readers(slice)).begin * L;
        return grams + slice * d * gram_row + (slices.key(head) * d - first);
    }

    // scores, values and offsets of the heads that share a slice of queries
    void attend(int slice, const Map& features, const HeadParams& p, double* scratch) const {
        const Range heads = slices.query_readers(slice);
        if (!plan.released) {
            double* g = grams + slice * d * gram_row;
            std::fill(g, g + d * gram_row, 0.0);
            gram(features, slices.channels(slice, slice), features, key_blocks(heads), g, gram_row);
        }
        for (int head = heads.begin; head < heads.end; ++head) {
            shift_bias(p, 2, head, slices.value(head));
            if (plan.released) sum_values(head, p);
            else attend_head(head, p, scratch);
        }
    }

    // Sum over the pixels of a head's output times its gradient, from what attend_backward takes
    double output_product(int head, const double* grad_values, int64_t row, const double* grad_offsets) const {
        double total = dot(d, grad_offsets, offsets + head * d);
        for (int r = 0; r < d; ++r) total += dot(d, grad_values + r * row, values + head * square + r * d);
        return total;
    }

    // The gradients of a head from grad_values [d][row], sum over the pixels of the output's gradient times the slice
    // of values, and grad_offsets [d], its sums, both without the convolution's share. Products are in float here: none
    // of them cancels.
    void attend_backward(int head, const HeadParams& p, double share, const double* grad_values, int64_t row,
                         const double* grad_offsets, const HeadGradients& out, double* scratch) const {
        const int dim = plan.dim;
        const double *query = p.weights + head * square, *key = query + dim * int64_t{d},
                     *value = key + dim * int64_t{d};
        const double *query_bias = biases + head * d, *key_bias = query_bias + dim, *value_bias = key_bias + dim;
        double *grad_query = out.weights + head * square, *grad_key = grad_query + dim * int64_t{d},
               *grad_value = grad_key + dim * int64_t{d};
        double *grad_query_bias = out.bias + head * d, *grad_key_bias = grad_query_bias + dim,
               *grad_value_bias = grad_key_bias + dim;
        const double *query_means = means + Slices::query(head) * d, *key_means = means + slices.key(head) * d;
        const double* value_means = means + slices.value(head) * d;
        const double* a = scores + head * square;
        float *turned = reinterpret_cast<float*>(scratch), *slopes = turned + square, *other = slopes + square,
              *result = other + square;       // [d][d]
        double* line = scratch + 3 * square;  // [d]
        const auto multiply_into = [&](const float* left, const float* right, float* to) {
            std::fill(to, to + square, 0.0f);
            multiply(d, d, d, left, d, right, d, to, d);
        };
        const auto add = [&](const float* from, double* to) {
            for (int64_t i = 0; i < square; ++i) to[i] += from[i];
        };

        // through the softmax: slopes are of query times key
        if (!plan.released) {
            const double scale = 1 / std::sqrt(static_cast<double>(d));
            narrow(d, d, grad_values, row, other);
            transpose(d, d, value, d, turned);
            multiply_into(other, turned, slopes);
            for (int r = 0; r < d; ++r) {
                for (int j = 0; j < d; ++j) line[j] = slopes[r * d + j] + grad_offsets[r] * value_bias[j];
                const double mean = dot(d, line, a + r * d);
                for (int j = 0; j < d; ++j)
                    slopes[r * d + j] = static_cast<float>(share * scale * a[r * d + j] * (line[j] - mean));
            }
        }

        // through the values, whose features are rest + mean
        for (int r = 0; r < d; ++r)
            for (int c = 0; c < d; ++c)
                other[r * d + c] =
                    static_cast<float>(share * (grad_values[r * row + c] + grad_offsets[r] * value_means[c]));
        if (plan.released) {  // all rows of the values are one
            std::fill(line, line + d, 0.0);
            double total = 0;
            for (int r = 0; r < d; ++r) {
                for (int c = 0; c < d; ++c) line[c] += other[r * d + c];
                total += share * grad_offsets[r];
            }
            for (int j = 0; j < d; ++j) {
                for (int c = 0; c < d; ++c) grad_value[j * d + c] += line[c];
                grad_value_bias[j] += total;
            }
            return;
        }
        transpose(d, d, a, d, turned);
        multiply_into(turned, other, result);
        add(result, grad_value);
        for (int r = 0; r < d; ++r)
            for (int j = 0; j < d; ++j) grad_value_bias[j] += share * a[r * d + j] * grad_offsets[r];

        // through query times key = query weights * Gram matrix * key weights^T + pixels * query bias * key bias^T
        transpose(d, d, keyed + head * square, d, turned);
        multiply_into(slopes, turned, result);
        add(result, grad_query);
        transpose(d, d, query, d, turned);
        multiply_into(turned, slopes, result);  // [query channel][key row]
        narrow(d, d, key, d, other);
        multiply_into(result, other, grad_gram + head * square);
        transpose(d, d, result, d, turned);
        narrow(d, d, gram_of(head), gram_row, other);
        multiply_into(turned, other, result);
        add(result, grad_key);
        // `line`: the gradient of a bias, for each pixel
        const auto through_bias = [&](const double* weights, const double* feature_means, double* grad_weights,
                                      double* grad_bias, double* grad_mean) {
            std::fill(grad_mean, grad_mean + d, 0.0);
            for (int j = 0; j < d; ++j) {
                grad_bias[j] += pixels * line[j];
                for (int c = 0; c < d; ++c) {
                    grad_weights[j * d + c] += pixels * line[j] * feature_means[c];
                    grad_mean[c] += line[j] * weights[j * d + c];
                }
            }
        };
        transpose(d, d, slopes, d, turned);
        std::fill(line, line + d, 0.0);
        for (int c = 0; c < d; ++c)
            for (int j = 0; j < d; ++j) line[j] += turned[c * d + j] * key_bias[c];
        through_bias(query, query_means, grad_query, grad_query_bias, grad_query_mean + head * d);
        std::fill(line, line + d, 0.0);
        for (int j = 0; j < d; ++j)
            for (int c = 0; c < d; ++c) line[c] += slopes[j * d + c] * query_bias[j];
        through_bias(key, key_means, grad_key, grad_key_bias, grad_key_mean + head * d);
    }

private:
    // the bias of queries (0), keys (1) or values (2) of a head with the means' part
    void shift_bias(const HeadParams& p, int which, int head, int slice) const {
        const int64_t first = int64_t{which} * plan.dim + head * d;
        for (int j = 0; j < d; ++j)
            biases[first + j] = p.bias[first + j] + dot(d, p.weights + (first + j) * d, means + slice * d);
    }

    void sum_values(int head, const HeadParams& p) const {
        const double *value = p.weights + (2 * int64_t{plan.dim} + head * d) * d,
                     *bias = biases + 2 * plan.dim + head * d;
        double* total = values + head * square;
        std::fill(total, total + d, 0.0);
        offsets[head * d] = 0;
        for (int j = 0; j < d; ++j) {
            for (int c = 0; c < d; ++c) total[c] += value[j * d + c];
            offsets[head * d] += bias[j];
        }
        for (int r = 1; r < d; ++r) {
            std::copy(total, total + d, total + r * d);
            offsets[head * d + r] = offsets[head * d];
        }
    }

    void attend_head(int head, const HeadParams& p, double* scratch) const {
        const int dim = plan.dim;
        shift_bias(p, 0, head, Slices::query(head));
        shift_bias(p, 1, head, slices.key(head));
        const double *query = p.weights + head * square, *key = query + dim * int64_t{d},
                     *value = key + dim * int64_t{d};
        const double *query_bias = biases + head * d, *key_bias = query_bias + dim, *value_bias = key_bias + dim;
        double *a = scores + head * square, *u = keyed + head * square, *v = values + head * square;
        transpose(d, d, key, d, scratch);
        std::fill(u, u + square, 0.0);
        multiply(d, d, d, gram_of(head), gram_row, scratch, d, u, d);
        for (int r = 0; r < d; ++r)
            for (int j = 0; j < d; ++j) a[r * d + j] = pixels * query_bias[r] * key_bias[j];
        multiply(d, d, d, query, d, u, d, a, d);
        const double scale = 1 / std::sqrt(static_cast<double>(d));
        float* powers = reinterpret_cast<float*>(scratch);  // [padded d]
        double* ones = scratch + padded(d);                 // [d]
        std::fill(ones, ones + d, 1.0);
        for (int r = 0; r < d; ++r) {
            double* row = a + r * d;
            const double top = *std::max_element(row, row + d);
            for (int j = 0; j < d; ++j) powers[j] = static_cast<float>(scale * (row[j] - top));
            for_lanes(0, d, [&](int j, auto m) { store(powers + j, exp_share(load(powers + j, m)), m); });
            for (int j = 0; j < d; ++j) row[j] = powers[j];
            const double share = 1 / dot(d, row, ones);
            for (int j = 0; j < d; ++j) row[j] *= share;
            offsets[head * d + r] = dot(d, row, value_bias);
        }
        std::fill(v, v + square, 0.0);
        multiply(d, d, d, a, d, value, d, v, d);
    }
};

}  // namespace fastattn::FASTATTN_ISA
