// SCSA, SMSA and PCSA backward: one launch that reads the gradient and x once, and one that sums the parameters'
// gradients over the batch.
#include "scsa/batch_sum.cuh"
#include "scsa/gates_backward.cuh"

struct Backward {
    const Call& call;
    Team& team;
    Slice slice;
    Boards boards;
    int windows;
    X* held_x;
    Out* held_grad;
    AxisVectors rows, columns;
    float *statistics, *norm, *gate;
    Attention all;
    float *group_sums, *pooled_sums;
    PooledGradients pooled;
    int* places;  // of the windows' maxima, as the pooled gradients lie
    Scores scores;
    int *row_windows, *column_windows;  // the first window of a row's, the place in it of a column's; -1 for none

    __device__ Backward(const Call& call, Team& team, Memory memory)
        : call(call),
          team(team),
          slice(call, team.rank),
          boards(team, call.per_block),
          windows(call.pooled_h * call.pooled_w),
          held_x(memory.take<X>(HELD ? call.per_block * slice.pixels() + Pack<X>::kCount : 0)),
          held_grad(memory.take<Out>(HELD ? call.per_block * slice.pixels() + Pack<Out>::kCount : 0)),
          all(memory, CHANNEL ? call.channels : 0) {
        rows = axis_vectors(memory, kRows);
        columns = axis_vectors(memory, kColumns);
        statistics = memory.take<float>(16);
        norm = memory.take<float>(3);
        gate = memory.take<float>(call.per_block);
        group_sums = memory.take<float>(16);
        pooled_sums = memory.take<float>(2);
        pooled.query = memory.take<float>(call.per_block * windows);
        pooled.key = memory.take<float>(call.per_block * windows);
        places = memory.take<int>(MAX ? call.per_block * windows : 0);
        float** tiles[] = {&scores.by_row, &scores.by_column, &scores.by_value};
#pragma unroll
        for (float** v : tiles) *v = memory.take<float>(CHANNEL ? call.rows * (call.channels / call.heads) : 0);
        pooled.value = memory.take<float>(call.per_block);
        row_windows = memory.take<int>(call.height);
        column_windows = memory.take<int>(call.width);
        if (CHANNEL) find_windows();
    }

    __device__ AxisVectors axis_vectors(Memory& memory, int axis) const {
        const int room = SPATIAL ? call.per_block * slice.length(axis) : 0;
        float *mean = memory.take<float>(room), *convolved = memory.take<float>(room);
        float *gate = memory.take<float>(room), *gradient = memory.take<float>(room);
        return {axis, mean, convolved, gate, gradient};
    }

    __device__ __forceinline__ void find_windows() {
        for (int h = threadIdx.x; h < call.height; h += THREADS) {
            const int i = h / call.window_h;
            row_windows[h] = i < call.pooled_h ? i * call.pooled_w : -1;
        }
        for (int w = threadIdx.x; w < call.width; w += THREADS) {
            const int j = w / call.window_w;
            column_windows[w] = j < call.pooled_w ? j : -1;
        }
    }

    __device__ __forceinline__ Gates gates() const { return {rows.gate, columns.gate}; }

    __device__ __forceinline__ void sample(int index) {
        const Saved saved(call, index);
        const GradientPlaces gradients(call, index);
        const Map<X> x = fetch(sample_of(call.x, call, index), call, slice, held_x);
        const Map<Out> grad = fetch(sample_of(call.grad_out, call, index), call, slice, held_grad);
        fetch_vectors(saved);
        copy_wait();
        SYNC();
        if (SPATIAL) {
            axis_means(slice, x, rows, columns);
            SYNC();
            convolve(call, slice, rows);
            convolve(call, slice, columns);
            SYNC();
            make_gate(call, slice, rows, statistics);
            make_gate(call, slice, columns, statistics);
            SYNC();
        }
        TEAM_WAIT(team);  // for the others to have read the last sample's boards
        if (CHANNEL) attention(x, grad, saved, gradients);
        if (SPATIAL) gate_axes(x, grad, gradients);
        if (NEED_X) write_gradient(grad, index);
        SYNC();  // before the next sample takes its place
    }

    __device__ __forceinline__ void fetch_vectors(const Saved& saved) {
        if (SPATIAL && threadIdx.x < 16) statistics[threadIdx.x] = read(saved.axes + threadIdx.x);
        if (!CHANNEL) return;
        if (threadIdx.x < 3) norm[threadIdx.x] = read(saved.pooled + threadIdx.x);
        for (int c = threadIdx.x; c < slice.count; c += THREADS) gate[c] = read(saved.gate + slice.first + c);
        if (!MAX) return;
        for (int i = threadIdx.x; i < slice.count * windows; i += THREADS) {
            const int c = i % slice.count, n = i / slice.count;
            const int* place = saved.places + n * call.channels + slice.first + c;
            touch(place, 4, false);
            places[pooled_at(slice, windows, c, n)] = *place;
        }
    }

    // The gradient of the channel gate, to the board with what forward saved of the row
    __device__ __forceinline__ void gate_gradient(const Map<X>& x, const Map<Out>& grad, const Saved& saved) {
        const int width = slice.width;
        for (int c = warp(); c < slice.count; c += warps()) {
            float total = 0.0f;
            int h = lane() / width, w = lane() % width;
            for (int pixel = lane(); pixel < slice.pixels(); pixel += kWarp) {
                total += grad.at(c, pixel) * x.at(c, pixel) * gates().of(slice, c, h, w);
                w += kWarp % width, h += kWarp / width;
                if (w >= width) w -= width, ++h;
            }
            total = warp_sum(total);
            if (lane() == 0) publish_row(boards, saved, c, slice.first + c, total);
        }
    }

    __device__ __forceinline__ void attention(const Map<X>& x, const Map<Out>& grad, const Saved& saved,
                                              const GradientPlaces& gradients) {
        const PooledNorm known{norm[0], norm[1], norm[2]};
        gate_gradient(x, grad, saved);
        for (int i = threadIdx.x; i < slice.count * windows; i += THREADS) {
            const int c = i % slice.count, n = i / slice.count;
            boards.put(c, kMap + n, read(saved.y + n * call.channels + slice.first + c));
        }
        team.arrive();
        TEAM_WAIT(team);
        prepare_attention(call, boards, known.rstd, all);
        SYNC();
        for (int c0 = 0; c0 < slice.count; c0 += call.rows) {
            const int count = min(call.rows, slice.count - c0);
            score_gradients(call, slice, windows, known, boards, all, c0, count, scores);
            SYNC();
            score_sums(call, slice, windows, known, boards, all, c0, count, scores, pooled);
            SYNC();
        }
        project_backward(call, slice, windows, known, boards, gradients, pooled);
        team.arrive();
        TEAM_WAIT(team);
        const float elements = static_cast<float>(windows) * call.channels;
        if (warp() == 0) {
            const float sum = warp_sum_of(call.channels, [&](int c) { return boards.at(c, kSum); });
            const float product = warp_sum_of(call.channels, [&](int c) { return boards.at(c, kProduct); });
            if (lane() == 0) pooled_sums[0] = sum / elements, pooled_sums[1] = product / elements;
        }
        if (!SPATIAL) team.arrive();
        SYNC();
        const float share = known.rstd / (MAX ? 1.0f : static_cast<float>(call.window_h * call.window_w));
        for (int i = threadIdx.x; i < slice.count * windows; i += THREADS) {
            const int c = i % slice.count, n = i / slice.count;
            const float score = known.centred(boards.own(c, kMap + n)) * known.rstd;
            float& d = pooled.query[pooled_at(slice, windows, c, n)];
            d = share * (d - pooled_sums[0] - score * pooled_sums[1]);
        }
        SYNC();
    }

    // The gradient of x * a_h * a_w
    __device__ __forceinline__ float product_gradient(const Map<Out>& grad, int c, int h, int w, int pixel) const {
        const float d = grad.at(c, pixel);
        if (!CHANNEL) return d;
        const float through_gate = d * gate[c];
        const int row = row_windows[h], column = column_windows[w];
        if (row < 0 || column < 0) return through_gate;
        const int at = pooled_at(slice, windows, c, row + column);
        return MAX && places[at] != pixel ? through_gate : through_gate + pooled.query[at];
    }

    __device__ __forceinline__ void gate_axes(const Map<X>& x, const Map<Out>& grad, const GradientPlaces& gradients) {
        const int width = slice.width;
        const auto term = [&](int c, int h, int w) {
            const int pixel = h * width + w;
            return x.at(c, pixel) * product_gradient(grad, c, h, w, pixel);
        };
        sum_rows(
            slice, [&](int c, int h, int w) { return term(c, h, w) * columns.gate[slice.at(c, w, kColumns)]; },
            [&](int c, int h, float sum) { rows.gradient[slice.at(c, h, kRows)] = sum; });
        sum_columns(
            slice, [&](int c, int h, int w) { return term(c, h, w) * rows.gate[slice.at(c, h, kRows)]; },
            [&](int c, int w, float sum) { columns.gradient[slice.at(c, w, kColumns)] = sum; });
        SYNC();
        normalisation_sums(call, slice, rows, statistics, boards, gradients);
        normalisation_sums(call, slice, columns, statistics, boards, gradients);
        team.arrive();
        TEAM_WAIT(team);
        group_gradient_sums(call, slice, boards, group_sums);
        team.arrive();
        SYNC();
        normalisation_backward(call, slice, rows, statistics, group_sums);
        normalisation_backward(call, slice, columns, statistics, group_sums);
        SYNC();
        if (NEED_PARAMS) tap_gradients(call, slice, rows, columns, gradients);
        mean_gradient(call, slice, rows);
        mean_gradient(call, slice, columns);
        SYNC();
    }

    __device__ __forceinline__ void write_gradient(const Map<Out>& grad, int index) {
        write_map(sample_of(call.grad_x, call, index), call, slice, [&](int c, int h, int w, int pixel) {
            const float d = product_gradient(grad, c, h, w, pixel);
            if (!SPATIAL) return d;
            return d * gates().of(slice, c, h, w) + rows.convolved[slice.at(c, h, kRows)] +
                   columns.convolved[slice.at(c, w, kColumns)];
        });
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) scsa_backward(const __grid_constant__ Call call) {
    for_samples<Backward, kMap>(call);
}
EMULATED(scsa_backward, Call)
EMULATED(scsa_batch_sum, BatchSum)
