// Elementary functions and small data movements on the vector type of simd.h.
#pragma once

#include <algorithm>

#include "simd.h"

namespace fastattn::FASTATTN_ISA {

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

inline V round(V x) {
#if defined(__AVX512F__)
    return _mm512_roundscale_ps(x, 0);
#elif defined(__AVX2__)
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(FASTATTN_NEON)
    return vrndnq_f32(x);
#else
    return (x + 0x1.8p23f) - 0x1.8p23f;
#endif
}

// 2^(whole + f) for an integer |whole| <= 126 and |f| <= 0.5, with relative error below 1e-7; NaN stays NaN.
inline V exp2_parts(V whole, V f) {
    V p = splat(0.00015461444724808513f);
    p = p * f + 0.0013400428177711937f;
    p = p * f + 0.00961805667843204f;
    p = p * f + 0.05550327226669895f;
    p = p * f + 0.24022650922289554f;
    p = p * f + 0.6931472067028329f;
    p = p * f + 1.0f;
#if defined(__AVX512F__)
    return _mm512_scalef_ps(p, whole);
#elif defined(__AVX2__)
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
#elif defined(FASTATTN_NEON)
    const I exponent = vshlq_n_s32(vcvtq_s32_f32(whole), 23);  // 0 for NaN
    return reinterpret_cast<V>(reinterpret_cast<I>(p) + exponent);
#else
    const V finite = whole == whole ? whole : V{};
    const I exponent = __builtin_convertvector(finite, I) << 23;
    return p == p ? reinterpret_cast<V>(reinterpret_cast<I>(p) + exponent) : p;
#endif
}

inline V exp2_bounded(V x) {  // |x| <= 126
    const V whole = round(x);
    return exp2_parts(whole, x - whole);
}

// 2^x, kept within [2^-126, 2^126]
inline V exp2(V x) { return exp2_bounded(min(splat(126.0f), max(splat(-126.0f), x))); }

// e^x, kept within [e^-87, e^87]; the argument is reduced in two parts, so that a large one loses nothing
inline V exp(V x) {
    x = min(splat(87.0f), max(splat(-87.0f), x));
    const V whole = round(x * kLog2e);
    const V f = (x - whole * 0.693145751953125f) - whole * 1.42860677e-6f;
    return exp2_parts(whole, f * kLog2e);
}

// e^x for x <= 0 as a share of a softmax: zero where exp would be kept at e^-87, as what a share multiplies may be
// large
inline V exp_share(V x) { return x < -87.0f ? V{} : exp(x); }

inline V reciprocal(V x) {  // for normal x
#if defined(__AVX512F__)
    const V r = _mm512_rcp14_ps(x);
    return r * (2.0f - x * r);
#else
    return 1.0f / x;
#endif
}

inline V sigmoid(V z) { return reciprocal(1.0f + exp(-z)); }

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// src[r][c], r < rows, c < cols  ->  dst[c][r] * scale. Reads up to L - 1 floats past a row's end.
inline void transpose_out(const float* src, int src_stride, int rows, int cols, float* dst, int64_t dst_stride,
                          float scale) {
    for (int r0 = 0; r0 < rows; r0 += L) {
        const int n = std::min(L, rows - r0);
        for (int c0 = 0; c0 < cols; c0 += L) {
            V block[L];
            for (int i = 0; i < L; ++i)
                block[i] = i < n ? load(src + static_cast<int64_t>(r0 + i) * src_stride + c0) * scale : V{};
            transpose(block);
            const int m = std::min(L, cols - c0);
            float* d = dst + c0 * dst_stride + r0;
            if (n == L) {
                for (int i = 0; i < m; ++i) store(d + i * dst_stride, block[i]);
            } else {
                const Tail tail(n);
                for (int i = 0; i < m; ++i) store(d + i * dst_stride, block[i], tail);
            }
        }
    }
}

// src[r][c], r < rows, c < cols <= L  ->  dst[c][r], dst rows padded to a multiple of L (written in full).
inline void transpose_in(const float* src, int64_t src_stride, int rows, int cols, float* dst, int dst_stride) {
    for (int r0 = 0; r0 < rows; r0 += L) {
        const int n = std::min(L, rows - r0);
        V block[L];
        if (cols == L) {
            for (int i = 0; i < L; ++i) block[i] = i < n ? load(src + (r0 + i) * src_stride) : V{};
        } else {
            const Tail tail(cols);
            for (int i = 0; i < L; ++i) block[i] = i < n ? load(src + (r0 + i) * src_stride, tail) : V{};
        }
        transpose(block);
        for (int i = 0; i < cols; ++i) store(dst + i * dst_stride + r0, block[i]);
    }
}

// Collects row vectors and writes their sums, L at a time; out needs room for L - 1 floats past the last row.
class RowSums {
public:
    RowSums(float* out, bool accumulate) : out_(out), accumulate_(accumulate) {}
    void push(V v) {
        rows_[count_] = v;
        if (++count_ == L) flush();
    }
    void flush() {
        if (count_ == 0) return;
        const V s = sum_rows(rows_);
        store(out_, accumulate_ ? s + load(out_) : s);
        out_ += count_;
        count_ = 0;
    }

private:
    float* out_;
    bool accumulate_;
    int count_ = 0;
    V rows_[L] = {};
};

// dst[i] = scale * sum of src[i * len, (i + 1) * len); dst needs room for L - 1 more floats.
inline void segment_sums(const float* src, int count, int len, float scale, float* dst) {
#if defined(__AVX512F__)
    if (len <= 8) {  // two segments share a vector: 0..7 in the low halves, 8..15 in the high halves
        const __mmask8 mask = static_cast<__mmask8>((1u << len) - 1);
        const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15);
        for (int i = 0; i < count; i += 16) {
            __m512 quad[2];
            for (int q = 0; q < 2; ++q) {
                __m512 pair[4];
                for (int k = 0; k < 4; ++k) {
                    const int low = std::min(i + 4 * q + k, count - 1), high = std::min(i + 8 + 4 * q + k, count - 1);
                    const __m256 a = _mm256_maskz_loadu_ps(mask, src + static_cast<int64_t>(low) * len);
                    const __m256 b = _mm256_maskz_loadu_ps(mask, src + static_cast<int64_t>(high) * len);
                    pair[k] = _mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1);
                }
                const __m512d ab = _mm512_castps_pd(
                    _mm512_add_ps(_mm512_unpacklo_ps(pair[0], pair[1]), _mm512_unpackhi_ps(pair[0], pair[1])));
                const __m512d cd = _mm512_castps_pd(
                    _mm512_add_ps(_mm512_unpacklo_ps(pair[2], pair[3]), _mm512_unpackhi_ps(pair[2], pair[3])));
                quad[q] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
                                        _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
            }
            const __m512 s = _mm512_add_ps(_mm512_shuffle_f32x4(quad[0], quad[1], 0x88),
                                           _mm512_shuffle_f32x4(quad[0], quad[1], 0xdd));
            // 128-bit parts of s: segments 0-3, 8-11, 4-7, 12-15
            store(dst + i, _mm512_permutexvar_ps(order, s) * splat(scale));
        }
        return;
    }
#endif
    for (int i = 0; i < count; i += L) {
        V rows[L];
        for (int k = 0; k < L; ++k) {
            const float* s = src + static_cast<int64_t>(std::min(i + k, count - 1)) * len;
            V v{};
            for_lanes(0, len, [&](int c, auto m) { v += load(s + c, m); });
            rows[k] = v;
        }
        store(dst + i, sum_rows(rows) * scale);
    }
}

}  // namespace fastattn::FASTATTN_ISA
