// Passes over the block's channels of a map: they are held in shared memory, or read where they lie.
#pragma once

#include "scsa/call.cuh"

template <class T>
struct Map {
    const T* values;
    int by_channel, by_pixel;

    __device__ float at(int c, int pixel) const {
        const T* v = values + c * by_channel + pixel * by_pixel;
        return HELD ? to_float(*v) : read(v);
    }
};

template <class T>
__device__ T* sample_of(T* maps, const Call& call, int sample) {
    return maps + static_cast<long long>(sample) * call.channels * call.height * call.width;
}

// The slice of a sample; `shared` has room for it and 16 bytes more. copy_wait and SYNC must follow.
template <class T>
__device__ Map<T> fetch(const T* sample, const Call& call, const Slice& slice, T* shared) {
    const int count = slice.count, pixels = slice.pixels();
    if (NHWC) {
        const T* begin = sample + slice.first;
        if (!HELD) return {begin, 1, call.channels};
        constexpr int kCount = Pack<T>::kCount;
        if (WIDE) {
            for (int i = threadIdx.x; i < pixels * count / kCount; i += THREADS) {
                const int pixel = i / (count / kCount), c = i % (count / kCount) * kCount;
                copy_async(shared + i * kCount, begin + pixel * call.channels + c);
            }
        } else {
            for (int i = threadIdx.x; i < pixels * count; i += THREADS) {
                const T* v = begin + i / count * call.channels + i % count;
                touch(v, sizeof(T), false);
                shared[i] = *v;
            }
        }
        return {shared, 1, count};
    }
    const T* begin = sample + slice.first * pixels;
    if (!HELD) return {begin, pixels, 1};
    T* to = shared + reinterpret_cast<unsigned long long>(begin) % 16 / sizeof(T);  // aligned alike
    for_run(
        begin, count * pixels, [&](int i) { copy_async(to + i, begin + i); },
        [&](int i) {
            touch(begin + i, sizeof(T), false);
            to[i] = begin[i];
        });
    return {to, pixels, 1};
}

// store(c, h, sum over w of term(c, h, w)); a contiguous row begins at another column than the rows beside it, so that
// they lie in other banks
template <class Term, class Store>
__device__ __forceinline__ void sum_rows(const Slice& slice, Term term, Store store) {
    slice.for_axis(kRows, [&](int c, int h) {
        const int start = NHWC ? 0 : h % slice.width;
        float total = 0.0f;
#pragma unroll 4
        for (int w = start; w < slice.width; ++w) total += term(c, h, w);
#pragma unroll 4
        for (int w = 0; w < start; ++w) total += term(c, h, w);
        store(c, h, total);
    });
}

// store(c, w, sum over h of term(c, h, w))
template <class Term, class Store>
__device__ __forceinline__ void sum_columns(const Slice& slice, Term term, Store store) {
    slice.for_axis(kColumns, [&](int c, int w) {
        float total = 0.0f;
#pragma unroll 4
        for (int h = 0; h < slice.height; ++h) total += term(c, h, w);
        store(c, w, total);
    });
}

// Write value(c, h, w, pixel) to the slice of a sample
template <class T, class Value>
__device__ __forceinline__ void write_map(T* sample, const Call& call, const Slice& slice, Value value) {
    constexpr int kCount = Pack<T>::kCount;
    const int count = slice.count, pixels = slice.pixels(), width = slice.width;
    if (NHWC) {
        T* begin = sample + slice.first;
        const int step = WIDE ? kCount : 1;
        for (int i = threadIdx.x; i < pixels * count / step; i += THREADS) {
            const int pixel = i / (count / step), c = i % (count / step) * step;
            const int h = pixel / width, w = pixel - h * width;
            T* to = begin + pixel * call.channels + c;
            if (WIDE) {
                Pack<T> pack;
#pragma unroll
                for (int k = 0; k < kCount; ++k) from_float(value(c + k, h, w, pixel), pack.part[k]);
                write_pack(to, pack);
            } else write(to, value(c, h, w, pixel));
        }
        return;
    }
    T* begin = sample + slice.first * pixels;
    for_run(
        begin, count * pixels,
        [&](int i) {
            Pack<T> pack;
            int c = i / pixels, pixel = i - c * pixels, h = pixel / width, w = pixel - h * width;
#pragma unroll
            for (int k = 0; k < kCount; ++k) {
                from_float(value(c, h, w, pixel), pack.part[k]);
                ++pixel;
                if (++w == width) w = 0, ++h;
                if (pixel == pixels) ++c, h = 0, pixel = 0;
            }
            write_pack(begin + i, pack);
        },
        [&](int i) {
            const int c = i / pixels, pixel = i - c * pixels, h = pixel / width;
            write(begin + i, value(c, h, pixel - h * width, pixel));
        });
}
