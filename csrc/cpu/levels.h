// Names for all instruction-set levels.
#pragma once

// `declarations` in the namespace of every level
#define FASTATTN_IN_EVERY_LEVEL(...)     \
    namespace baseline { __VA_ARGS__ }   \
    namespace avx2 { __VA_ARGS__ }       \
    namespace avx512 { __VA_ARGS__ }
