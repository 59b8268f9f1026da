#include "workspace.h"

#include <cstdlib>
#include <memory>
#include <new>

namespace fastattn {

float* workspace(int64_t floats) {
    struct Free {
        void operator()(float* p) const { std::free(p); }
    };
    thread_local std::unique_ptr<float, Free> memory;
    thread_local int64_t size = 0;
    if (floats > size) {
        memory.reset();
        size = 0;
        const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64;
        memory.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
        if (!memory) throw std::bad_alloc();
        size = floats;
    }
    return memory.get();
}

}  // namespace fastattn
