// The kernels' definitions, constants to NVRTC, are variables of the emulator: one build serves them all. Types stay
// constants.
#pragma once

#include <cstring>

#define FASTATTN_DEFINITIONS(X) \
    X(NHWC)                     \
    X(SPATIAL)                  \
    X(CHANNEL) X(MAX) X(SOFTMAX) X(BIAS) X(HELD) X(WIDE) X(CLUSTER) X(SAVE) X(NEED_X) X(NEED_PARAMS) X(WITHOUT)

namespace emulator {

#define DEFINE(name) inline int defined_##name;
FASTATTN_DEFINITIONS(DEFINE)
#undef DEFINE

// False for what is none
inline bool define(const char* name, int value) {
#define SET(known) \
    if (!std::strcmp(name, #known)) return defined_##known = value, true;
    FASTATTN_DEFINITIONS(SET)
#undef SET
    return false;
}

}  // namespace emulator

#define NHWC emulator::defined_NHWC
#define SPATIAL emulator::defined_SPATIAL
#define CHANNEL emulator::defined_CHANNEL
#define MAX emulator::defined_MAX
#define SOFTMAX emulator::defined_SOFTMAX
#define BIAS emulator::defined_BIAS
#define HELD emulator::defined_HELD
#define WIDE emulator::defined_WIDE
#define CLUSTER emulator::defined_CLUSTER
#define SAVE emulator::defined_SAVE
#define NEED_X emulator::defined_NEED_X
#define NEED_PARAMS emulator::defined_NEED_PARAMS
#define WITHOUT emulator::defined_WITHOUT
