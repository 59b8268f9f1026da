#include "workspace.h"

#include <cstdlib>
#include <memory>
#include <new>

namespace fastattn {
namespace {

constexpr int64_t kKept = 1 << 24;  // floats

struct Free {
    void operator()(float* p) const { std::free(p); }
};
struct Memory {
    std::unique_ptr<float, Free> floats;
    int64_t size = 0;
};
thread_local Memory memory;

}  // namespace

float* workspace(int64_t floats) {
    if (floats > memory.size) {
        memory = {};
        const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64;
        memory.floats.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
        if (!memory.floats) throw std::bad_alloc();
        memory.size = floats;
    }
    return memory.floats.get();
}

void trim_workspace() {
    if (memory.size > kKept) memory = {};
}

}  // namespace fastattn
