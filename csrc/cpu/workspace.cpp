#include "workspace.h"

#include <memory>
#include <new>

namespace fastattn {
namespace {

constexpr int64_t kKept = 1 << 24;  // floats

constexpr std::align_val_t kLine{64};

struct Free {
    void operator()(float* p) const { ::operator delete(p, kLine); }
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
        memory.floats.reset(static_cast<float*>(::operator new(static_cast<size_t>(floats) * sizeof(float), kLine)));
        memory.size = floats;
    }
    return memory.floats.get();
}

void trim_workspace() {
    if (memory.size > kKept) memory = {};
}

}  // namespace fastattn

#if defined(__GLIBCXX__)
// Containers call it, and libstdc++ has it from GCC 11 on: here, wheels need no newer one than manylinux_2_28 has.
namespace std {
__attribute__((visibility("hidden"))) void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std
#endif
