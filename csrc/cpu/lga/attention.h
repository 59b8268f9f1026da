// Channel attention of heads from Gram matrices, and its gradient: all d x d, all in double, since a Gram matrix holds the squares of what a
// map holds. The algebra is derived in fastattn/reference/lga.py.
#pragma once

#include <cmath>

#include "gradients.h"
#include "params.h"
#include "products.h"

namespace fastattn::FASTATTN_ISA {

// Which slices of d channels the heads read
struct Slices {
    int d, heads;

    explicit Slices(const LgaPlan& plan) : d(plan.head_dim()), heads(plan.num_heads) {}

    static int query(int head) { return head / 3; }
    int key(int head) const { return (heads + head) / 3; }
    int value(int head) const { return (2 * heads + head) / 3; }
    int queries() const { return query(heads - 1) + 1; }                             // slices that are read as queries
    int first_value() const { return value(0); }
    Range channels(int first, int last) const { return {first * d, (last + 1) * d}; }  // of slices

    // Heads whose queries, keys or values are in a slice, given the slice's number less that of head 0's part
    Range readers(int slice, int offset) const { return {std::max(0, 3 * slice - offset), std::min(heads, 3 * slice - offset + 3)}; }
    Range query_readers(int slice) const { return readers(slice, 0); }
    Range key_readers(int slice) const { return readers(slice, heads); }
    Range value_readers(int slice) const { return readers(slice, 2 * heads); }
};

// The blocks that hold some channels
inline Range blocks_of(Range channels) { return {channels.begin / L, blocks(channels.end)}; }

// out [n][m] += a [n][k] b [k][m]
inline void multiply(int n, int k, int m, const double* a, int64_t a_row, const double* b, int64_t b_row, double* out, int64_t out_row) {
    for (int i = 0; i < n; ++i)
        for (int j = 0; j < k; ++j) {
            const double s = a[i * a_row + j];
            const double* from = b + j * b_row;
            double* to = out + i * out_row;
            for (int c = 0; c < m; ++c) to[c] += s * from[c];
        }
}

inline void transpose(int n, int m, const double* a, int64_t a_row, double* out) {  // [n][m] -> [m][n]
    for (int i = 0; i < n; ++i)
        for (int j = 0; j < m; ++j) out[int64_t{j} * n + i] = a[i * a_row + j];
}

// What the heads of one convolution have; shared by a sample's team
struct HeadState {
    const LgaPlan& plan;
    Slices slices;
    int d;
    int64_t gram_row, square;
    double* grams;    // [query slice][d][gram_row]: with the blocks that hold its heads' keys
    double* sums;     // [dim] of the depthwise output over the pixels
    double* scores;   // [head][d][d], softmax over the last
    double* keyed;    // [head][d][d]: Gram matrix times key weights, and row sums times key bias
    double* values;   // [dim][d]: scores times value weights
    double* offsets;  // [dim]: scores times value bias
    // gradients
    double *grad_gram, *grad_query_sums, *grad_key_sums;  // [head][d][d], [head][d], [head][d]

    HeadState(const LgaPlan& plan, bool backward, Bump& bump)
        : plan(plan), slices(plan), d(slices.d), gram_row(padded(2 * d) + 2 * L), square(int64_t{d} * d) {
        const auto take = [&](int64_t doubles) { return reinterpret_cast<double*>(bump.take(2 * doubles)); };
        grams = take(slices.queries() * d * gram_row);
        sums = take(padded(plan.dim));
        scores = take(slices.heads * square);
        keyed = take(slices.heads * square);
        values = take(slices.heads * square);
        offsets = take(plan.dim);
        grad_gram = grad_query_sums = grad_key_sums = nullptr;
        if (backward) {
            grad_gram = take(slices.heads * square);
            grad_query_sums = take(plan.dim);
            grad_key_sums = take(plan.dim);
        }
    }

    static int64_t scratch_size(const LgaPlan& plan) {
        const int64_t d = plan.head_dim();
        return 2 * (3 * d * d + 2 * d + d * (padded(static_cast<int>(d)) + 2 * L)) + 64;
    }

    Range key_blocks(Range heads) const { return blocks_of(slices.channels(slices.key(heads.begin), slices.key(heads.end - 1))); }

    // the Gram matrix of a head: rows of gram_row
    const double* gram_of(int head) const {
        const int slice = Slices::query(head);
        const int first = key_blocks(slices.query_readers(slice)).begin * L;
        return grams + slice * d * gram_row + (slices.key(head) * d - first);
    }

    // scores, values and offsets of the heads that share a slice of queries
    void attend(int slice, const Map& features, const HeadParams& p, double* scratch) const {
        const Range heads = slices.query_readers(slice);
        if (plan.released) {
            for (int head = heads.begin; head < heads.end; ++head) sum_values(head, p);
            return;
        }
        double* g = grams + slice * d * gram_row;
        std::fill(g, g + d * gram_row, 0.0);
        gram(features, slices.channels(slice, slice), features, key_blocks(heads), g, gram_row);
        for (int head = heads.begin; head < heads.end; ++head) attend_head(head, p, scratch);
    }

    // The gradients of a head from grad_values [d][row], sum over the pixels of the output's gradient times the slice of values, and
    // grad_offsets [d], its sums, both without the convolution's share
    void attend_backward(int head, const HeadParams& p, double share, const double* grad_values, int64_t row, const double* grad_offsets,
                         const HeadGradients& out, double* scratch) const {
        const int dim = plan.dim;
        const double *query = p.weights + head * square, *key = query + dim * int64_t{d}, *value = key + dim * int64_t{d};
        const double *query_bias = p.bias + head * d, *key_bias = query_bias + dim, *value_bias = key_bias + dim;
        double *grad_query = out.weights + head * square, *grad_key = grad_query + dim * int64_t{d}, *grad_value = grad_key + dim * int64_t{d};
        double *grad_query_bias = out.bias + head * d, *grad_key_bias = grad_query_bias + dim, *grad_value_bias = grad_key_bias + dim;
        if (plan.released) {  // all rows of the values are one
            double *total = scratch, total_offset = 0;
            std::fill(total, total + d, 0.0);
            for (int r = 0; r < d; ++r) {
                for (int c = 0; c < d; ++c) total[c] += share * grad_values[r * row + c];
                total_offset += share * grad_offsets[r];
            }
            for (int j = 0; j < d; ++j) {
                for (int c = 0; c < d; ++c) grad_value[j * d + c] += total[c];
                grad_value_bias[j] += total_offset;
            }
            return;
        }
        const double *a = scores + head * square, *u = keyed + head * square, *g = gram_of(head);
        const double *query_sums = sums + Slices::query(head) * d, *key_sums = sums + slices.key(head) * d;
        double *turned = scratch, *slopes = turned + square, *grad_keyed = slopes + square;  // [d][d]
        double *key_total = grad_keyed + square, *grad_key_total = key_total + d;            // [d]

        // through the values
        transpose(d, d, value, d, turned);
        std::fill(slopes, slopes + square, 0.0);
        multiply(d, d, d, grad_values, row, turned, d, slopes, d);
        transpose(d, d, a, d, turned);
        std::fill(grad_keyed, grad_keyed + square, 0.0);  // not yet in use
        multiply(d, d, d, turned, d, grad_values, row, grad_keyed, d);
        for (int64_t i = 0; i < square; ++i) grad_value[i] += share * grad_keyed[i];
        for (int r = 0; r < d; ++r)
            for (int j = 0; j < d; ++j) grad_value_bias[j] += share * a[r * d + j] * grad_offsets[r];

        // through the softmax: slopes are of query times key
        const double scale = 1 / std::sqrt(static_cast<double>(d));
        for (int r = 0; r < d; ++r) {
            double mean = 0;
            for (int j = 0; j < d; ++j) {
                slopes[r * d + j] = share * (slopes[r * d + j] + grad_offsets[r] * value_bias[j]);
                mean += slopes[r * d + j] * a[r * d + j];
            }
            for (int j = 0; j < d; ++j) slopes[r * d + j] = scale * a[r * d + j] * (slopes[r * d + j] - mean);
        }

        // through the queries: query times key = query weights * keyed + query bias * key_total
        const double pixels = static_cast<double>(plan.pixels());
        for (int j = 0; j < d; ++j) {
            key_total[j] = pixels * key_bias[j];
            for (int c = 0; c < d; ++c) key_total[j] += key[j * d + c] * key_sums[c];
        }
        transpose(d, d, u, d, turned);
        multiply(d, d, d, slopes, d, turned, d, grad_query, d);
        std::fill(grad_key_total, grad_key_total + d, 0.0);
        for (int r = 0; r < d; ++r)
            for (int j = 0; j < d; ++j) {
                grad_query_bias[r] += slopes[r * d + j] * key_total[j];
                grad_key_total[j] += slopes[r * d + j] * query_bias[r];
            }
        transpose(d, d, query, d, turned);
        std::fill(grad_keyed, grad_keyed + square, 0.0);
        multiply(d, d, d, turned, d, slopes, d, grad_keyed, d);

        // through the keys: keyed = Gram matrix * key weights^T + query sums * key bias^T
        double* grad_g = grad_gram + head * square;
        std::fill(grad_g, grad_g + square, 0.0);
        multiply(d, d, d, grad_keyed, d, key, d, grad_g, d);
        transpose(d, d, grad_keyed, d, turned);
        multiply(d, d, d, turned, d, g, gram_row, grad_key, d);
        double *grad_query_sum = grad_query_sums + head * d, *grad_key_sum = grad_key_sums + head * d;
        std::fill(grad_query_sum, grad_query_sum + d, 0.0);
        std::fill(grad_key_sum, grad_key_sum + d, 0.0);
        for (int j = 0; j < d; ++j) {
            for (int c = 0; c < d; ++c) {
                grad_key[j * d + c] += grad_key_total[j] * key_sums[c];
                grad_key_sum[c] += grad_key_total[j] * key[j * d + c];
                grad_query_sum[c] += grad_keyed[c * d + j] * key_bias[j];
                grad_key_bias[j] += grad_keyed[c * d + j] * query_sums[c];
            }
            grad_key_bias[j] += pixels * grad_key_total[j];
        }
    }

private:
    void sum_values(int head, const HeadParams& p) const {
        const double* value = p.weights + (2 * int64_t{plan.dim} + head * d) * d;
        const double* bias = p.bias + 2 * plan.dim + head * d;
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
        const double *query = p.weights + head * square, *key = query + dim * int64_t{d}, *value = key + dim * int64_t{d};
        const double *query_bias = p.bias + head * d, *key_bias = query_bias + dim, *value_bias = key_bias + dim;
        const double *query_sums = sums + Slices::query(head) * d, *key_sums = sums + slices.key(head) * d;
        double *a = scores + head * square, *u = keyed + head * square, *v = values + head * square;
        transpose(d, d, key, d, scratch);
        for (int r = 0; r < d; ++r)
            for (int j = 0; j < d; ++j) u[r * d + j] = query_sums[r] * key_bias[j];
        multiply(d, d, d, gram_of(head), gram_row, scratch, d, u, d);
        double* key_total = scratch + square;
        for (int j = 0; j < d; ++j) {
            key_total[j] = static_cast<double>(plan.pixels()) * key_bias[j];
            for (int c = 0; c < d; ++c) key_total[j] += key[j * d + c] * key_sums[c];
        }
        for (int r = 0; r < d; ++r)
            for (int j = 0; j < d; ++j) a[r * d + j] = query_bias[r] * key_total[j];
        multiply(d, d, d, query, d, u, d, a, d);
        const double scale = 1 / std::sqrt(static_cast<double>(d));
        for (int r = 0; r < d; ++r) {
            double *row = a + r * d, total = 0;
            const double top = *std::max_element(row, row + d);
            for (int j = 0; j < d; ++j) total += row[j] = std::exp(scale * (row[j] - top));
            offsets[head * d + r] = 0;
            for (int j = 0; j < d; ++j) {
                row[j] /= total;
                offsets[head * d + r] += row[j] * value_bias[j];
            }
        }
        std::fill(v, v + square, 0.0);
        multiply(d, d, d, a, d, value, d, v, d);
    }
};

}  // namespace fastattn
