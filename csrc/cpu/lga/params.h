// The parameters of one call in the arrangements that the passes read, and their gradients.
#pragma once

#include <vector>

#include "../maps.h"
#include "plan.h"

namespace fastattn::FASTATTN_ISA {

// A depthwise convolution: taps and bias, one block of channels after another
struct DepthwiseParams {
    int kernel;
    float* taps;     // [block][kernel * kernel][L]
    float* flipped;  // the same in reverse, for backward; else null
    float* bias;     // [block][L]

    int64_t block() const { return int64_t{kernel} * kernel * L; }
};

// A 1x1 convolution between maps
struct PointwiseParams {
    float* weights;     // [block of outputs][input][L]
    float* transposed;  // [block of inputs][output][L], for backward; else null
    float* bias;        // [block of outputs][L]
};

// The grouped 1x1 convolution behind a depthwise one, for queries, keys and values; double, as all d x d algebra
struct HeadParams {
    double* weights;  // [3 * dim][d]
    double* bias;     // [3 * dim]
};

struct ScaleParams {
    DepthwiseParams depthwise;
    PointwiseParams pointwise;
};

struct ConvParams {
    int branch;
    double share;  // of its result in the output: alpha / kernels of its branch
    DepthwiseParams depthwise;
    HeadParams heads;
};

class LgaParams {
public:
    std::vector<ScaleParams> scales;
    PointwiseParams attention;  // over scales
    float* encoding;            // [block][encoding height * width][L]
    std::vector<ConvParams> convs;
    PointwiseParams out;
    double total = 0;  // of the shares

    LgaParams(const LgaPlan& plan, const void* const* tensors, bool backward, Bump& bump) : plan_(plan), tensors_(tensors) {
        const int dim = plan.dim;
        const auto depthwise = [&](int kernel, bool flip) {
            const int64_t size = int64_t{kernel} * kernel * padded(dim);
            return DepthwiseParams{kernel, bump.take(size), flip ? bump.take(size) : nullptr, bump.take(padded(dim))};
        };
        const auto pointwise = [&](int outputs, bool transposed) {
            float* weights = bump.take(padded(outputs) * dim);
            return PointwiseParams{weights, transposed ? bump.take(padded(dim) * outputs) : nullptr, bump.take(padded(outputs))};
        };
        const auto heads = [&] {
            const int64_t rows = int64_t{3} * dim;
            double* weights = reinterpret_cast<double*>(bump.take(2 * rows * plan.head_dim()));
            return HeadParams{weights, reinterpret_cast<double*>(bump.take(2 * rows))};
        };
        for (int i = 0; i < plan.num_scales; ++i) {
            const DepthwiseParams d = depthwise(3, false);
            scales.push_back({d, pointwise(dim, backward)});
        }
        attention = pointwise(plan.num_scales + 1, backward);
        encoding = bump.take(padded(dim) * plan.encoding_height * plan.encoding_width);
        for (size_t i = 0; i < plan.branches.size(); ++i)
            for (int kernel : plan.branches[i]) {
                const DepthwiseParams d = depthwise(kernel, backward);
                convs.push_back({static_cast<int>(i), 0, d, heads()});
            }
        out = pointwise(dim, backward);
    }

    static int64_t size(const LgaPlan& plan, bool backward) {
        Bump bump = Bump::measure();
        LgaParams(plan, nullptr, backward, bump);
        return bump.taken();
    }

    // alphas; the same for every thread, before `read`
    void read_shares() {
        with_element(plan_.param_dtype, [&](auto element) {
            using T = typename decltype(element)::type;
            int tensor = 4 * plan_.num_scales + 3;
            size_t conv = 0;
            for (const auto& kernels : plan_.branches) {
                tensor += 4 * static_cast<int>(kernels.size());
                const double alpha = load_one(static_cast<const T*>(tensors_[tensor++]));
                total += alpha;
                for (size_t i = 0; i < kernels.size(); ++i) convs[conv++].share = alpha / static_cast<double>(kernels.size());
            }
        });
    }

    // This thread's part of all other parameters
    void read(int thread, int threads) const {
        with_element(plan_.param_dtype, [&](auto element) { Reader<typename decltype(element)::type>{plan_, tensors_, thread, threads}.read(*this); });
    }

private:
    template <class T>
    struct Reader {
        const LgaPlan& plan;
        const void* const* tensors;
        int thread, threads;
        int item = 0;

        bool mine() { return item++ % threads == thread; }
        const T* next() { return static_cast<const T*>(*tensors++); }

        void read(const LgaParams& p) {
            for (const ScaleParams& scale : p.scales) {
                depthwise(scale.depthwise);
                pointwise(scale.pointwise, plan.dim);
            }
            pointwise(p.attention, plan.num_scales + 1);
            by_lanes(next(), plan.encoding_height * plan.encoding_width, p.encoding, nullptr);
            size_t conv = 0;
            for (const auto& kernels : plan.branches) {
                for (size_t i = 0; i < kernels.size(); ++i, ++conv) {
                    depthwise(p.convs[conv].depthwise);
                    doubles(next(), int64_t{3} * plan.dim * plan.head_dim(), p.convs[conv].heads.weights);
                    doubles(next(), int64_t{3} * plan.dim, p.convs[conv].heads.bias);
                }
                next();  // alpha
            }
            pointwise(p.out, plan.dim);
        }

        // [channel][count] -> [block][count][L], and in reverse
        void by_lanes(const T* from, int count, float* to, float* reversed) {
            for (int b = 0; b < blocks(plan.dim); ++b) {
                if (!mine()) continue;
                for (int i = 0; i < L; ++i)
                    for (int t = 0; t < count; ++t) {
                        const int c = b * L + i;
                        const float value = c < plan.dim ? load_one(from + int64_t{c} * count + t) : 0.0f;
                        to[(int64_t{b} * count + t) * L + i] = value;
                        if (reversed) reversed[(int64_t{b} * count + count - 1 - t) * L + i] = value;
                    }
            }
        }

        void vector(const T* from, int channels, float* to) {
            if (mine())
                for (int c = 0; c < padded(channels); ++c) to[c] = c < channels ? load_one(from + c) : 0.0f;
        }

        void doubles(const T* from, int64_t count, double* to) {
            if (mine())
                for (int64_t i = 0; i < count; ++i) to[i] = load_one(from + i);
        }

        void depthwise(const DepthwiseParams& p) {
            by_lanes(next(), p.kernel * p.kernel, p.taps, p.flipped);
            vector(next(), plan.dim, p.bias);
        }

        void pointwise(const PointwiseParams& p, int outputs) {
            const T* from = next();  // [output][input]
            const int inputs = plan.dim;
            for (int b = 0; b < blocks(outputs); ++b) {
                if (!mine()) continue;
                const int n = std::min(L, outputs - b * L);
                for (int c = 0; c < inputs; c += L) {
                    const int count = std::min(L, inputs - c);
                    V r[L] = {};
                    for (int i = 0; i < n; ++i) {
                        const T* row = from + int64_t{b * L + i} * inputs + c;
                        r[i] = count == L ? load(row, Full{}) : load(row, Tail(count));
                    }
                    transpose(r);
                    for (int i = 0; i < count; ++i) store(p.weights + (int64_t{b} * inputs + c + i) * L, r[i]);
                }
            }
            if (p.transposed)
                for (int b = 0; b < blocks(inputs); ++b) {
                    if (!mine()) continue;
                    const int n = std::min(L, inputs - b * L);
                    for (int o = 0; o < outputs; ++o) {
                        const T* row = from + int64_t{o} * inputs + b * L;
                        store(p.transposed + (int64_t{b} * outputs + o) * L, n == L ? load(row, Full{}) : load(row, Tail(n)));
                    }
                }
            vector(next(), outputs, p.bias);
        }
    };

    const LgaPlan& plan_;
    const void* const* tensors_;
};

}  // namespace fastattn
