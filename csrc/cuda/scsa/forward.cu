// SCSA, SMSA and PCSA forward in one launch: a team of blocks holds a sample, each a run of its channels.
#include "scsa/attention.cuh"

struct Forward {
    const Call& call;
    Team& team;
    Slice slice;
    Boards boards;
    int windows;
    X* held;
    AxisVectors rows, columns;
    float *statistics, *norm, *gate;
    Keys keys;

    __device__ Forward(const Call& call, Team& team, Memory memory)
        : call(call),
          team(team),
          slice(call, team.rank),
          boards(team, call.per_block),
          windows(call.pooled_h * call.pooled_w) {
        held = memory.take<X>(HELD ? call.per_block * slice.pixels() + Pack<X>::kCount : 0);
        rows = axis_vectors(memory, kRows);
        columns = axis_vectors(memory, kColumns);
        statistics = memory.take<float>(16);
        norm = memory.take<float>(3);
        gate = memory.take<float>(call.per_block);
        float** all[] = {&keys.factor, &keys.offset, &keys.value};
#pragma unroll
        for (float** v : all) *v = memory.take<float>(CHANNEL ? call.channels : 0);
    }

    __device__ AxisVectors axis_vectors(Memory& memory, int axis) const {
        const int room = SPATIAL ? call.per_block * slice.length(axis) : 0;
        float *mean = memory.take<float>(room), *convolved = memory.take<float>(room);
        return {axis, mean, convolved, convolved, nullptr};
    }

    __device__ __forceinline__ void sample(int index) {
        const Saved saved(call, index);
        const Map<X> x = fetch(sample_of(call.x, call, index), call, slice, held);
        copy_wait();
        SYNC();
        if (SPATIAL) gate_axes(x, saved);
        const Gates gates{rows.gate, columns.gate};
        if (CHANNEL) gate_channels(x, gates, saved);
        write_map(sample_of(call.out, call, index), call, slice, [&](int c, int h, int w, int pixel) {
            const float v = x.at(c, pixel) * gates.of(slice, c, h, w);
            return CHANNEL ? v * gate[c] : v;
        });
        SYNC();  // before the next sample takes its place
    }

    __device__ __forceinline__ void gate_axes(const Map<X>& x, const Saved& saved) {
        axis_means(slice, x, rows, columns);
        SYNC();
        convolve(call, slice, rows);
        convolve(call, slice, columns);
        SYNC();
        TEAM_WAIT(team);  // for the others to have read the last sample's boards
        channel_statistics(slice, rows, boards);
        channel_statistics(slice, columns, boards);
        team.arrive();
        TEAM_WAIT(team);
        group_statistics(call, slice, boards, statistics);
        if (!CHANNEL) team.arrive();
        SYNC();
        make_gate(call, slice, rows, statistics);
        make_gate(call, slice, columns, statistics);
        if (SAVE && team.rank == 0 && threadIdx.x < 16) write(saved.axes + threadIdx.x, statistics[threadIdx.x]);
        SYNC();
    }

    __device__ __forceinline__ void gate_channels(const Map<X>& x, const Gates& gates, const Saved& saved) {
        if (!SPATIAL) TEAM_WAIT(team);
        pool(call, slice, x, gates, boards, saved.places);
        SYNC();
        pooled_statistics(slice, windows, boards);
        team.arrive();
        TEAM_WAIT(team);
        if (warp() == 0) {
            const PooledNorm found = pooled_norm(call, windows, boards);
            if (lane() == 0) norm[0] = found.mean, norm[1] = found.rest, norm[2] = found.rstd;
        }
        SYNC();
        const PooledNorm known{norm[0], norm[1], norm[2]};
        project(call, known, boards, keys);
        SYNC();
        attend(call, slice, windows, known, boards, keys, gate, saved);
        if (SOFTMAX) {
            team.arrive();
            TEAM_WAIT(team);
            softmax_gate(call, slice, boards, gate);
        }
        team.arrive();
        SYNC();
        if (SAVE) save(saved);
    }

    __device__ __forceinline__ void save(const Saved& saved) {
        if (team.rank == 0 && threadIdx.x < 3) write(saved.pooled + threadIdx.x, norm[threadIdx.x]);
        for (int c = threadIdx.x; c < slice.count; c += THREADS) write(saved.gate + slice.first + c, gate[c]);
        for (int i = threadIdx.x; i < windows * slice.count; i += THREADS) {
            const int n = i / slice.count, c = slice.first + i % slice.count;
            write(saved.y + n * call.channels + c, boards.at(c, kPooled + n));
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) scsa_forward(const __grid_constant__ Call call) {
    for_samples<Forward, kPooled>(call);
}
EMULATED(scsa_forward, Call)
