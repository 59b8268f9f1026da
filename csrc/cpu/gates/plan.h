// What one call of a gate computes, apart from its pointers; shared by all instruction-set levels.
#pragma once

#include <cstdint>
#include <vector>

#include "../dtype.h"

namespace fastattn {

// Columns of statistics of each channel: mean; sum of the pixels times weights, the first parameter; mean and maximum;
// mean and variance; means of the rows, then of the columns.
enum class Pool { mean, weighted, mean_max, mean_var, axes };

// x times: g of the channel; sigmoid(q d^2 + a d + b), d = x - mean, and the channels' halves interleaved or not; g of
// the channel and row, and of the channel and column; g of the channel, and a sigmoid of the pixel's normalised
// convolution of its mean and maximum over the channels.
enum class Product { channels, pixels, shuffled, axes, space };

// A step from columns of vectors to others, and its parameters
enum class Step {
    linear,               // weight, bias
    linear_no_bias,       // weight
    linear_by_axis,       // weight and bias for the rows, weight and bias for the columns
    along_channels,       // taps of a convolution
    along_axes,           // taps of a convolution for each channel
    group_norm,           // weight, bias
    batch_norm,           // weight, bias, running mean and variance
    batch_norm_of_batch,  // weight, bias
    relu,
    silu,
    hard_swish,
    sigmoid,
    hard_sigmoid,
    sum,      // of the first two columns
    shuffle,  // mean and variance to q, a, b: weight and bias of means, of normal pixels, of the normalisation
    energy,   // mean and variance to q, a, b
};

struct Stage {
    Step step;
    int in, out;                  // channels
    int columns_in, columns_out;  // of a sample
    int count;                    // outputs, groups
    float number;                 // epsilon, lambda
    int first, params;            // its parameters
};

struct GatesPlan {
    int batch, channels, height, width;
    Pool pool;
    Product product;
    int kernel;     // of the convolution over pixels
    bool of_batch;  // it is normalised by the batch's statistics
    float epsilon;
    std::vector<Stage> stages;
    std::vector<int64_t> numels;  // of the parameters: the weights of the pool, the stages', the product's
    DType dtype, param_dtype;
    bool channels_last;

    // std::invalid_argument where sizes or options do not fit; dtypes by their codes
    static GatesPlan make(int batch, int channels, int height, int width, std::vector<int> program,
                          std::vector<double> numbers, std::vector<int64_t> numels, int x_dtype, int param_dtype,
                          bool channels_last);

    int64_t pixels() const { return int64_t{height} * width; }
    int64_t sample() const { return channels * pixels(); }
    int64_t elements() const { return batch * sample(); }
    int param_count() const { return static_cast<int>(numels.size()); }
    int columns() const;  // of a sample's statistics
    int64_t stride() const { return stride(channels); }
    static int64_t stride(int channels) { return (channels + 15) / 16 * 16; }
    int space_param() const { return param_count() - (of_batch ? 3 : 5); }  // the first of the product
    bool joint() const;                                                     // a step takes all samples
    int64_t statistics() const;  // floats: of the normalisations by the batch, mean and variance
    int64_t saved_size() const;  // floats: columns of all samples, maps of pixels, statistics of the batch
};

}  // namespace fastattn
