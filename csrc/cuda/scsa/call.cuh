// What a launch is given, and the block's part of a sample. The algebra is derived in fastattn/scsa/reference.py.
#pragma once

#include "team.cuh"
#include "vectors.cuh"

using X = X_TYPE;      // of x and its gradient
using P = PARAM_TYPE;  // of the parameters
using Out = OUT_TYPE;  // of the output and its gradient

constexpr float kEpsilon = 1e-5f;  // of every GroupNorm

enum Axis { kRows, kColumns };  // the gate along H, from the means over W, and that along W

// Packed by fastattn/scsa/cuda.py. Parameters in the operation's order, with room for those that it does not have.
struct Call {
    const X* x;
    const Out* grad_out;
    Out* out;
    X* grad_x;
    float* saved;      // [B][saved_size], see Saved
    float* gradients;  // [B][gradient_size], the parameters' of each sample
    float* boards;
    unsigned* arrivals;
    const P* conv_weights[4];
    const P* conv_biases[4];
    const P *norm_weights[2], *norm_biases[2];  // by axis
    const P *norm_weight, *norm_bias;
    const P* qkv_weights[3];
    const P* qkv_biases[3];
    int batch, channels, height, width;
    int window_h, window_w, pooled_h, pooled_w;
    int heads, kernels[4];
    int per_block, blocks;  // channels of a block but the last, blocks of a team
    int lanes;              // that share a pooled window, a power of two
    int rows;               // of the attention that backward forms at a time
    int saved_size, gradient_size;
};

// The block's channels
struct Slice {
    int first, count, height, width;

    __device__ Slice(const Call& call, int rank)
        : first(rank * call.per_block),
          count(min(call.per_block, call.channels - first)),
          height(call.height),
          width(call.width) {}

    __device__ int pixels() const { return height * width; }
    __device__ int length(int axis) const { return axis == kRows ? height : width; }
    // Of element l of channel c in the vectors of an axis
    __device__ int at(int c, int l, int axis) const { return NHWC ? l * count + c : c * length(axis) + l; }
    __device__ int elements(int axis) const { return count * length(axis); }
    // f(c, l) for the block's vectors of an axis, one thread each
    template <class F>
    __device__ void for_axis(int axis, F f) const {
        const int length = this->length(axis);
        for (int i = threadIdx.x; i < count * length; i += THREADS)
            if (NHWC) f(i % count, i / count);
            else f(i / length, i % length);
    }
};

// What forward leaves for backward of a sample; [C] each, and [N][C]
struct Saved {
    float* axes;    // mean and 1 / standard deviation: [axis][group][2]
    float* pooled;  // mean, what its rounding left, 1 / standard deviation
    float *gate, *value, *top, *rest, *score, *sum;
    float* y;
    int* places;

    __device__ Saved(const Call& call, int sample) {
        axes = call.saved + static_cast<long long>(sample) * call.saved_size;
        pooled = axes + 16;
        float** vectors[] = {&gate, &value, &top, &rest, &score, &sum};
        float* next = axes + 20;
#pragma unroll
        for (float** v : vectors) *v = next, next += call.channels;
        y = next;
        places = reinterpret_cast<int*>(y + call.pooled_h * call.pooled_w * call.channels);
    }
};

// The board of a block: floats of its channels, field after field
enum Field { kMeanH, kSquaresH, kMeanW, kSquaresW, kMean, kRest, kSquares, kOutput, kPooled };

struct Boards {
    const Team& team;
    int per_block;
    unsigned reciprocal;  // 2^32 / per_block, rounded up: exact for all channels that a team has

    __device__ Boards(const Team& team, int per_block)
        : team(team),
          per_block(per_block),
          reciprocal(0xffffffffu / per_block + 1) {}

    __device__ __forceinline__ const float* of(int c) const {
        const int rank = per_block == 1 ? c : static_cast<int>(static_cast<unsigned long long>(c) * reciprocal >> 32);
        return team.board(rank) + (c - rank * per_block);
    }
    __device__ float at(int c, int field) const { return get(of(c), field); }
    __device__ float get(const float* channel, int field) const { return read(channel + field * per_block); }
    // c counts the block's own channels
    __device__ float own(int c, int field) const { return get(team.board(team.rank) + c, field); }
    __device__ void put(int c, int field, float v) const { write(team.board(team.rank) + field * per_block + c, v); }
};

// A block's part of a launch: Pass takes its team's samples, with the pooled map behind so many fields of the board.
template <class Pass, int kFields>
__device__ __forceinline__ void for_samples(const Call& call) {
    Memory memory{static_cast<char*>(dynamic_shared())};
    const int board = (kFields + call.pooled_h * call.pooled_w) * call.per_block;
    Team team(call.blocks, board, memory.take<float>(Team::in_shared(call.blocks) ? board : 0), call.boards,
              call.arrivals);
    Pass pass(call, team, memory);
    team.arrive();
    for (int sample = team.index; sample < call.batch; sample += team.count) pass.sample(sample);
    TEAM_WAIT(team);  // until nobody reads this block's board
}
