// A team: blocks that are resident together and share a sample. Each has a board, which the others read: in its shared
// memory where the team is a cluster, else in global memory.
#pragma once

#include "device.cuh"

struct Team {
    int size, rank, index, count;  // blocks, this one among them; this team among all
    float* boards;                 // this block's in shared memory, or the team's in global memory
    int board_size;
    unsigned* arrivals;  // of a team that is no cluster
    unsigned awaited;

    __device__ Team(int size, int board_size, float* shared_board, float* global_boards, unsigned* all_arrivals)
        : size(size),
          rank(blockIdx.x % size),
          index(blockIdx.x / size),
          count(gridDim.x / size),
          boards(in_shared(size) ? shared_board : global_boards + static_cast<long long>(index) * size * board_size),
          board_size(board_size),
          arrivals(all_arrivals + index),
          awaited(0) {}

    __device__ static bool in_shared(int size) { return CLUSTER || size == 1; }

    __device__ float* board(int of) const {
        if (size == 1) return boards;
        if (CLUSTER) return static_cast<float*>(shared_of(boards, of));
        return boards + of * board_size;
    }

    // What the team's blocks wrote until they arrived, all see who waited.
    __device__ void arrive() {
        if (CLUSTER) return cluster_arrive();
        if (size == 1) return;
        __syncthreads();
        awaited += size;
        if (threadIdx.x == 0) add_release(arrivals);
    }
    // Every arrival is followed by one wait, by all threads.
    __device__ void wait() {
        if (CLUSTER) return cluster_wait();
        if (size > 1 && threadIdx.x == 0)
            while (load_acquire(arrivals) < awaited) pause();
        __syncthreads();
    }
};
