// One vector type per instruction-set level, chosen by the compiler flags of the including file:
// 16 floats with AVX-512, 8 with AVX2 + FMA + F16C, 4 everywhere else: with NEON (FASTATTN_NEON), or in the compiler's
// own vectors alone.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(FASTATTN_NEON)
#include <arm_neon.h>
#endif

// On a function whose body is loops over lambdas: all of them are inlined, so that what they capture stays in
// registers.
#define INLINE_BODY __attribute__((flatten))

namespace fastattn::FASTATTN_ISA {

#if defined(__AVX512F__)
constexpr int L = 16;  // lanes
#elif defined(__AVX2__)
constexpr int L = 8;
#else
constexpr int L = 4;
#endif

typedef float V __attribute__((vector_size(4 * L)));
typedef int32_t I __attribute__((vector_size(4 * L)));
typedef uint32_t U __attribute__((vector_size(4 * L)));

struct bf16 {
    uint16_t bits;
};
struct fp16 {
    uint16_t bits;
};

// Lanes taking part in a load or store: all of them, or the first n (1 <= n <= L).
struct Full {};
struct Tail {
    int n;
#if defined(__AVX512F__)
    __mmask16 mask;
    explicit Tail(int n) : n(n), mask(static_cast<__mmask16>((1u << n) - 1)) {}
#elif defined(__AVX2__)
    __m256i mask;
    explicit Tail(int n)
        : n(n),
          mask(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))) {}
#else
    explicit Tail(int n) : n(n) {}
#endif
};

inline V splat(float s) { return s - V{}; }
inline V max(V a, V b) { return a > b ? a : b; }  // b where a is NaN
inline V min(V a, V b) { return a < b ? a : b; }

// ---- float
inline V load(const float* p, Full = {}) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, V v, Full = {}) { std::memcpy(p, &v, sizeof v); }

#if defined(__AVX512F__)
inline V load(const float* p, Tail t) { return _mm512_maskz_loadu_ps(t.mask, p); }
inline void store(float* p, V v, Tail t) { _mm512_mask_storeu_ps(p, t.mask, v); }
inline V keep(V v, Tail t) { return _mm512_maskz_mov_ps(t.mask, v); }
#elif defined(__AVX2__)
inline V load(const float* p, Tail t) { return _mm256_maskload_ps(p, t.mask); }
inline void store(float* p, V v, Tail t) { _mm256_maskstore_ps(p, t.mask, v); }
inline V keep(V v, Tail t) { return _mm256_and_ps(v, _mm256_castsi256_ps(t.mask)); }
#elif defined(FASTATTN_NEON)
inline V load(const float* p, Tail t) {
    V v = vld1q_lane_f32(p, V{}, 0);
    if (t.n > 1) v = vld1q_lane_f32(p + 1, v, 1);
    if (t.n > 2) v = vld1q_lane_f32(p + 2, v, 2);
    if (t.n > 3) v = vld1q_lane_f32(p + 3, v, 3);
    return v;
}
inline void store(float* p, V v, Tail t) {
    vst1q_lane_f32(p, v, 0);
    if (t.n > 1) vst1q_lane_f32(p + 1, v, 1);
    if (t.n > 2) vst1q_lane_f32(p + 2, v, 2);
    if (t.n > 3) vst1q_lane_f32(p + 3, v, 3);
}
inline V keep(V v, Tail t) { return I{0, 1, 2, 3} < t.n ? v : V{}; }
#else
inline V load(const float* p, Tail t) {
    V v{};
    std::memcpy(&v, p, 4 * t.n);
    return v;
}
inline void store(float* p, V v, Tail t) { std::memcpy(p, &v, 4 * t.n); }
inline V keep(V v, Tail t) {
    V k{};
    std::memcpy(&k, &v, 4 * t.n);
    return k;
}
#endif
// a * b + c with one rounding where the instruction set has it, as the compiler contracts some such sums, and not
// others
inline V fused(V a, V b, V c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#elif defined(FASTATTN_NEON)
    return vfmaq_f32(c, a, b);
#else
    return a * b + c;
#endif
}
inline V keep(V v, Full) { return v; }  // keep: zero outside the lanes that take part
inline int lanes(Full) { return L; }
inline int lanes(Tail t) { return t.n; }

// ---- double, in half as many lanes
typedef double D __attribute__((vector_size(4 * L)));
inline D load(const double* p) {
    D v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(double* p, D v) { std::memcpy(p, &v, sizeof v); }
inline D load_wide(const float* p) {  // L / 2 of them
#if defined(__AVX512F__)
    return _mm512_cvtps_pd(_mm256_loadu_ps(p));
#elif defined(__AVX2__)
    return _mm256_cvtps_pd(_mm_loadu_ps(p));
#elif defined(FASTATTN_NEON)
    return vcvt_f64_f32(vld1_f32(p));
#else
    float v __attribute__((vector_size(2 * L)));
    std::memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, D);
#endif
}

// ---- 16-bit lanes, held in the low half of a vector
#if defined(__AVX512F__)
typedef __m256i Half;
inline Half load_half(const void* p, Full) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline Half load_half(const void* p, Tail t) { return _mm256_maskz_loadu_epi16(t.mask, p); }
inline void store_half(void* p, Half v, Full) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
inline void store_half(void* p, Half v, Tail t) { _mm256_mask_storeu_epi16(p, t.mask, v); }
inline U widen(Half v) { return reinterpret_cast<U>(_mm512_cvtepu16_epi32(v)); }
inline Half narrow(U v) { return _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(v)); }
inline V from_fp16(Half v) { return _mm512_cvtph_ps(v); }
inline Half to_fp16(V v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(__AVX2__)
typedef __m128i Half;
inline Half load_half(const void* p, Full) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline Half load_half(const void* p, Tail t) {
    const uint16_t* s = static_cast<const uint16_t*>(p);
    uint64_t low = 0, high = 0;
    if (t.n >= 4) {  // the last four lanes overlap the first four
        std::memcpy(&low, s, 8);
        std::memcpy(&high, s + t.n - 4, 8);
        high = t.n == 4 ? 0 : high >> (16 * (8 - t.n));
    } else {
        for (int i = 0; i < t.n; ++i) low |= static_cast<uint64_t>(s[i]) << (16 * i);
    }
    return _mm_set_epi64x(static_cast<long long>(high), static_cast<long long>(low));
}
inline void store_half(void* p, Half v, Full) { _mm_storeu_si128(static_cast<__m128i*>(p), v); }
inline void store_half(void* p, Half v, Tail t) {
    uint16_t lanes[8];
    std::memcpy(lanes, &v, sizeof lanes);
    uint16_t* d = static_cast<uint16_t*>(p);
    if (t.n >= 4) {
        std::memcpy(d, lanes, 8);
        std::memcpy(d + t.n - 4, lanes + t.n - 4, 8);
    } else {
        for (int i = 0; i < t.n; ++i) d[i] = lanes[i];
    }
}
inline U widen(Half v) { return reinterpret_cast<U>(_mm256_cvtepu16_epi32(v)); }
inline Half narrow(U v) {
    __m256i packed = _mm256_packus_epi32(reinterpret_cast<__m256i>(v), reinterpret_cast<__m256i>(v));
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}
inline V from_fp16(Half v) { return _mm256_cvtph_ps(v); }
inline Half to_fp16(V v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(FASTATTN_NEON)
typedef uint16_t Half __attribute__((vector_size(2 * L)));
inline Half load_half(const void* p, Full) { return vld1_u16(static_cast<const uint16_t*>(p)); }
inline Half load_half(const void* p, Tail t) {
    const uint16_t* s = static_cast<const uint16_t*>(p);
    Half v = vld1_lane_u16(s, Half{}, 0);
    if (t.n > 1) v = vld1_lane_u16(s + 1, v, 1);
    if (t.n > 2) v = vld1_lane_u16(s + 2, v, 2);
    if (t.n > 3) v = vld1_lane_u16(s + 3, v, 3);
    return v;
}
inline void store_half(void* p, Half v, Full) { vst1_u16(static_cast<uint16_t*>(p), v); }
inline void store_half(void* p, Half v, Tail t) {
    uint16_t* d = static_cast<uint16_t*>(p);
    vst1_lane_u16(d, v, 0);
    if (t.n > 1) vst1_lane_u16(d + 1, v, 1);
    if (t.n > 2) vst1_lane_u16(d + 2, v, 2);
    if (t.n > 3) vst1_lane_u16(d + 3, v, 3);
}
inline U widen(Half v) { return vmovl_u16(v); }
inline Half narrow(U v) { return vmovn_u32(v); }
inline V from_fp16(Half v) { return vcvt_f32_f16(vreinterpret_f16_u16(v)); }
inline Half to_fp16(V v) { return vreinterpret_u16_f16(vcvt_f16_f32(v)); }
#else
typedef uint16_t Half __attribute__((vector_size(2 * L)));
inline Half load_half(const void* p, Full) {
    Half v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline Half load_half(const void* p, Tail t) {
    Half v{};
    std::memcpy(&v, p, 2 * t.n);
    return v;
}
inline void store_half(void* p, Half v, Full) { std::memcpy(p, &v, sizeof v); }
inline void store_half(void* p, Half v, Tail t) { std::memcpy(p, &v, 2 * t.n); }
inline U widen(Half v) { return __builtin_convertvector(v, U); }
inline Half narrow(U v) { return __builtin_convertvector(v, Half); }
inline V from_fp16(Half v) {
    const U h = widen(v), sign = (h & 0x8000u) << 16, magnitude = h & 0x7fffu;
    const V normal = reinterpret_cast<V>((magnitude << 13) + (112u << 23));
    const V special = reinterpret_cast<V>((magnitude << 13) | 0x7f800000u);
    const V subnormal = __builtin_convertvector(reinterpret_cast<I>(magnitude), V) * 0x1p-24f;
    const V r = magnitude >= 0x7c00u ? special : magnitude < 0x400u ? subnormal : normal;
    return reinterpret_cast<V>(reinterpret_cast<U>(r) | sign);
}
inline Half to_fp16(V v) {
    const U bits = reinterpret_cast<U>(v), sign = (bits >> 16) & 0x8000u, a = bits & 0x7fffffffu;
    const U normal = (a - (112u << 23) + 0xfffu + ((a >> 13) & 1u)) >> 13;
    // adding 0.5 aligns a value below 2^-14 so that its last kept bit is 2^-24, rounded by the adder
    const U subnormal = reinterpret_cast<U>(reinterpret_cast<V>(a) + 0.5f) - 0x3f000000u;
    U r = a < (113u << 23) ? subnormal : normal;
    r = a >= 0x477ff000u ? U{} + 0x7c00u : r;  // rounds to infinity
    r = a > 0x7f800000u ? U{} + 0x7e00u : r;   // NaN
    return narrow(r | sign);
}
#endif

template <class M>
inline V load(const bf16* p, M m) {
    return reinterpret_cast<V>(widen(load_half(p, m)) << 16);
}
template <class M>
inline V load(const fp16* p, M m) {
    return from_fp16(load_half(p, m));
}
template <class M>
inline void store(bf16* p, V v, M m) {
    const U bits = reinterpret_cast<U>(v);
    const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
    store_half(p, narrow(v == v ? rounded : U{} + 0x7fc0u), m);
}
template <class M>
inline void store(fp16* p, V v, M m) {
    store_half(p, to_fp16(v), m);
}

template <class T>
inline float load_one(const T* p) {
    return load(p, Tail(1))[0];
}
template <class T>
inline void store_one(T* p, float s) {
    store(p, splat(s), Tail(1));
}

// f(c, Full{}) for every whole vector of [begin, end), then f(c, Tail) for what is left.
template <class F>
inline void for_lanes(int begin, int end, F&& f) {
    int c = begin;
    for (; c + L <= end; c += L) f(c, Full{});
    if (c < end) f(c, Tail(end - c));
}

inline float sum(V v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(v);
#elif defined(FASTATTN_NEON)
    return vaddvq_f32(v);
#else
    float s = 0;
    for (int i = 0; i < L; ++i) s += v[i];
    return s;
#endif
}
inline float largest(V v, int count = L) {
#if defined(__AVX512F__)
    if (count == L) return _mm512_reduce_max_ps(v);
#elif defined(FASTATTN_NEON)
    if (count == L) return vmaxvq_f32(v);
#endif
    float m = v[0];
    for (int i = 1; i < count; ++i) m = m > v[i] ? m : v[i];
    return m;
}

// table[index[i]] for tables of at most L entries
inline V lookup(V table, I index) {
#if defined(__AVX512F__)
    return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(index), table);
#elif defined(__AVX2__)
    return _mm256_permutevar8x32_ps(table, reinterpret_cast<__m256i>(index));
#elif defined(FASTATTN_NEON)
    const U bytes = reinterpret_cast<U>(index) * 0x04040404u + 0x03020100u;
    return vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(table), vreinterpretq_u8_u32(bytes)));
#else
    V found;
    for (int i = 0; i < L; ++i) found[i] = table[index[i]];
    return found;
#endif
}

// rows[i] -> lane i of the result holds the sum over rows[i]
inline V sum_rows(const V* rows) {
#if defined(__AVX512F__)
    __m512 quad[4];  // lane i of a 128-bit part: partial sum of row 4q + i
    for (int q = 0; q < 4; ++q) {
        const __m512 a = rows[4 * q], b = rows[4 * q + 1], c = rows[4 * q + 2], d = rows[4 * q + 3];
        const __m512d ab = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
        const __m512d cd = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
        quad[q] =
            _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
    }
    const __m512 x =
        _mm512_add_ps(_mm512_shuffle_f32x4(quad[0], quad[1], 0x88), _mm512_shuffle_f32x4(quad[0], quad[1], 0xdd));
    const __m512 y =
        _mm512_add_ps(_mm512_shuffle_f32x4(quad[2], quad[3], 0x88), _mm512_shuffle_f32x4(quad[2], quad[3], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
#elif defined(__AVX2__)
    __m256 quad[2];
    for (int q = 0; q < 2; ++q) {
        const __m256 a = rows[4 * q], b = rows[4 * q + 1], c = rows[4 * q + 2], d = rows[4 * q + 3];
        quad[q] = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    }
    return _mm256_add_ps(_mm256_permute2f128_ps(quad[0], quad[1], 0x20),
                         _mm256_permute2f128_ps(quad[0], quad[1], 0x31));
#elif defined(FASTATTN_NEON)
    return vpaddq_f32(vpaddq_f32(rows[0], rows[1]), vpaddq_f32(rows[2], rows[3]));
#else
    V s;
    for (int i = 0; i < L; ++i) s[i] = sum(rows[i]);
    return s;
#endif
}

inline void transpose(V* r) {  // L x L, in place
#if defined(__AVX512F__)
    __m512 t[16];
    for (int i = 0; i < 16; i += 4) {
        const __m512 lo0 = _mm512_unpacklo_ps(r[i], r[i + 1]), hi0 = _mm512_unpackhi_ps(r[i], r[i + 1]);
        const __m512 lo1 = _mm512_unpacklo_ps(r[i + 2], r[i + 3]), hi1 = _mm512_unpackhi_ps(r[i + 2], r[i + 3]);
        t[i] = _mm512_shuffle_ps(lo0, lo1, 0x44);
        t[i + 1] = _mm512_shuffle_ps(lo0, lo1, 0xee);
        t[i + 2] = _mm512_shuffle_ps(hi0, hi1, 0x44);
        t[i + 3] = _mm512_shuffle_ps(hi0, hi1, 0xee);
    }
    for (int i = 0; i < 4; ++i) {  // 4 x 4 transpose of the 128-bit parts
        const __m512 a = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88), b = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd);
        const __m512 c = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x88),
                     d = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xdd);
        r[i] = _mm512_shuffle_f32x4(a, c, 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
        r[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
        r[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
#elif defined(__AVX2__)
    __m256 t[8];
    for (int i = 0; i < 8; i += 4) {
        const __m256 lo0 = _mm256_unpacklo_ps(r[i], r[i + 1]), hi0 = _mm256_unpackhi_ps(r[i], r[i + 1]);
        const __m256 lo1 = _mm256_unpacklo_ps(r[i + 2], r[i + 3]), hi1 = _mm256_unpackhi_ps(r[i + 2], r[i + 3]);
        t[i] = _mm256_shuffle_ps(lo0, lo1, 0x44);
        t[i + 1] = _mm256_shuffle_ps(lo0, lo1, 0xee);
        t[i + 2] = _mm256_shuffle_ps(hi0, hi1, 0x44);
        t[i + 3] = _mm256_shuffle_ps(hi0, hi1, 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
    }
#elif defined(FASTATTN_NEON)
    const D even_01 = reinterpret_cast<D>(vtrn1q_f32(r[0], r[1])), odd_01 = reinterpret_cast<D>(vtrn2q_f32(r[0], r[1]));
    const D even_23 = reinterpret_cast<D>(vtrn1q_f32(r[2], r[3])), odd_23 = reinterpret_cast<D>(vtrn2q_f32(r[2], r[3]));
    r[0] = reinterpret_cast<V>(vtrn1q_f64(even_01, even_23));
    r[1] = reinterpret_cast<V>(vtrn1q_f64(odd_01, odd_23));
    r[2] = reinterpret_cast<V>(vtrn2q_f64(even_01, even_23));
    r[3] = reinterpret_cast<V>(vtrn2q_f64(odd_01, odd_23));
#else
    V t[L];
    for (int i = 0; i < L; ++i)
        for (int j = 0; j < L; ++j) t[i][j] = r[j][i];
    for (int i = 0; i < L; ++i) r[i] = t[i];
#endif
}

}  // namespace fastattn::FASTATTN_ISA
