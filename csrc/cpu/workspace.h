// Memory for the intermediate results of a call.
#pragma once

#include <cstdint>

namespace fastattn {

// At least `floats` floats, 64-byte aligned, owned by the calling thread and reused by its next call.
float* workspace(int64_t floats);

// Gives back what is more than 64 MiB
void trim_workspace();

}  // namespace fastattn
