#include "plan.h"

#include <numeric>

#include "../checks.h"

namespace fastattn {
namespace {

int params_of(Step step) {
    switch (step) {
        case Step::linear:
        case Step::group_norm:
        case Step::batch_norm_of_batch: return 2;
        case Step::linear_by_axis:
        case Step::batch_norm: return 4;
        case Step::shuffle: return 6;
        case Step::linear_no_bias:
        case Step::along_channels:
        case Step::along_axes: return 1;
        default: return 0;
    }
}

// The sizes that a stage's parameters must have
std::vector<int64_t> sizes_of(const Stage& s) {
    const int64_t in = s.in, out = s.out, count = s.count, half = s.step == Step::shuffle ? in / (2 * count) : 0;
    switch (s.step) {
        case Step::linear: return {out * in, out};
        case Step::linear_no_bias: return {out * in};
        case Step::linear_by_axis: return {out * in, out, out * in, out};
        case Step::along_channels: return {count};
        case Step::along_axes: return {count * in};
        case Step::group_norm:
        case Step::batch_norm_of_batch: return {in, in};
        case Step::batch_norm: return {in, in, in, in};
        case Step::shuffle: return {half, half, half, half, half, half};
        default: return {};
    }
}

}  // namespace

GatesPlan GatesPlan::make(int batch, int channels, int height, int width, std::vector<int> program,
                          std::vector<double> numbers, std::vector<int64_t> numels, int x_dtype, int param_dtype,
                          bool channels_last) {
    require(batch > 0 && channels > 0 && height > 0 && width > 0, "every size must be positive");
    require(program.size() >= 4 && program.size() % 2 == 0 && numbers.size() == program.size() / 2 - 1,
            "a program is four numbers, and two of each step; numbers are one, and one of each step");
    require(program[0] >= 0 && program[0] <= static_cast<int>(Pool::axes), "unknown pool");
    require(program[1] >= 0 && program[1] <= static_cast<int>(Product::space), "unknown product");
    GatesPlan plan{batch,
                   channels,
                   height,
                   width,
                   static_cast<Pool>(program[0]),
                   static_cast<Product>(program[1]),
                   program[2],
                   program[3] != 0,
                   static_cast<float>(numbers[0]),
                   {},
                   numels,
                   dtype_of(x_dtype),
                   dtype_of(param_dtype),
                   channels_last};
    int next = plan.pool == Pool::weighted, in = channels, columns = plan.columns();
    std::vector<int64_t> expected;
    if (next) expected.push_back(plan.sample());
    const bool axes = plan.pool == Pool::axes;
    for (size_t i = 4; i < program.size(); i += 2) {
        require(program[i] >= 0 && program[i] <= static_cast<int>(Step::energy), "unknown step");
        const Step step = static_cast<Step>(program[i]);
        const int count = program[i + 1];
        require(count > 0, "counts must be positive");
        Stage s{step, in, in, columns, columns, count, static_cast<float>(numbers[i / 2 - 1]), next, params_of(step)};
        const bool linear = step == Step::linear || step == Step::linear_no_bias || step == Step::linear_by_axis;
        if (linear) s.out = count;
        if (step == Step::linear_by_axis || step == Step::along_axes) require(axes, "there are no axes");
        if (step == Step::along_channels) require(columns == 1 && count % 2, "an odd convolution takes one column");
        if (step == Step::along_axes) require(count % 2, "kernel sizes must be odd");
        if (step == Step::group_norm) require(in % count == 0, "the groups must divide the channels");
        if (step == Step::sum) require(plan.pool == Pool::mean_max, "there are no two columns"), s.columns_out = 1;
        if (step == Step::shuffle || step == Step::energy) {
            require(plan.pool == Pool::mean_var && expected.empty(), "there is no mean and variance");
            s.columns_out = 3;
        }
        if (step == Step::shuffle) require(in % (2 * count) == 0, "the groups must divide the halves");
        for (int64_t size : sizes_of(s)) expected.push_back(size);
        next += s.params, in = s.out, columns = s.columns_out;
        plan.stages.push_back(s);
    }
    const bool pixels = plan.product == Product::pixels || plan.product == Product::shuffled;
    require(in == channels &&
                columns == (pixels ? 3
                            : axes ? height + width
                                   : 1) &&
                pixels == (plan.pool == Pool::mean_var) && axes == (plan.product == Product::axes),
            "the steps do not lead to what the product takes");
    if (plan.product == Product::shuffled) require(channels % 2 == 0, "the channels must have halves");
    if (plan.product == Product::space) {
        require(plan.kernel > 0 && plan.kernel % 2, "kernel sizes must be odd");
        expected.push_back(2 * int64_t{plan.kernel} * plan.kernel);
        expected.insert(expected.end(), plan.of_batch ? 2 : 4, 1);
    } else {
        plan.of_batch = false;
    }
    require(expected == numels, "the parameters do not fit the program");
    return plan;
}

int GatesPlan::columns() const {
    switch (pool) {
        case Pool::mean:
        case Pool::weighted: return 1;
        case Pool::mean_var:
        case Pool::mean_max: return 2;
        default: return height + width;
    }
}

bool GatesPlan::joint() const {
    int64_t params = 0;
    for (const Stage& s : stages) {
        if (s.step == Step::batch_norm_of_batch) return true;
        for (int i = 0; i < s.params; ++i) params += numels[s.first + i];
    }
    return of_batch || params > sample();  // else parameters are read anew for each sample
}

int64_t GatesPlan::statistics() const {
    int64_t size = of_batch ? 2 : 0;
    for (const Stage& s : stages)
        if (s.step == Step::batch_norm_of_batch) size += 2 * s.in;
    return size;
}

int64_t GatesPlan::saved_size() const {
    const int64_t maps = product == Product::space ? 2 * pixels() : 0;
    return batch * (columns() * stride() + maps) + statistics();
}

}  // namespace fastattn
