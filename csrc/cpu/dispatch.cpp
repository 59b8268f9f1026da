#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

// F(level, ...) for every level that is compiled, fastest first
#if defined(__x86_64__)
#define FASTATTN_LEVELS(F, ...) F(avx512, __VA_ARGS__) F(avx2, __VA_ARGS__) F(baseline, __VA_ARGS__)
#elif defined(__aarch64__)
#define FASTATTN_LEVELS(F, ...) F(neon, __VA_ARGS__) F(baseline, __VA_ARGS__)
#else
#define FASTATTN_LEVELS(F, ...) F(baseline, __VA_ARGS__)
#endif

namespace fastattn {
namespace {

#define FASTATTN_ENUMERATOR(level, ...) level,
enum class Level { FASTATTN_LEVELS(FASTATTN_ENUMERATOR, ) };

#define FASTATTN_NAME(level, ...) #level,
const char* const kNames[] = {FASTATTN_LEVELS(FASTATTN_NAME, )};

bool runs(Level level) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (level == Level::avx2) return avx2;
    if (level == Level::avx512)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#elif defined(__aarch64__)
    if (level == Level::neon) return true;
#endif
    return level == Level::baseline;
}

const std::vector<Level>& levels() {
    static const std::vector<Level> all = [] {
        std::vector<Level> found;
#define FASTATTN_FIND(level, ...) \
    if (runs(Level::level)) found.push_back(Level::level);
        FASTATTN_LEVELS(FASTATTN_FIND, )
        return found;
    }();
    return all;
}

const char* name_of(Level level) { return kNames[static_cast<int>(level)]; }

const Level* find(const std::string& name) {
    for (const Level& level : levels())
        if (name_of(level) == name) return &level;
    return nullptr;
}

std::atomic<Level>& current() {
    static std::atomic<Level> level = [] {
        const char* wanted = std::getenv("FASTATTN_CPU_ISA");
        const Level* named = wanted ? find(wanted) : nullptr;
        return named ? *named : levels().front();
    }();
    return level;
}

}  // namespace

std::vector<std::string> isa_levels() {
    std::vector<std::string> names;
    for (Level level : levels()) names.emplace_back(name_of(level));
    return names;
}

std::string isa() { return name_of(current()); }

void set_isa(const std::string& name) {
    const Level* level = find(name);
    if (!level) {
        std::string known;
        for (const std::string& n : isa_levels()) known += (known.empty() ? "" : ", ") + n;
        throw std::invalid_argument("this CPU has no instruction-set level '" + name + "'; it has: " + known);
    }
    current() = *level;
}

#define FASTATTN_DECLARE(level, Plan)                \
    namespace level {                                \
    void forward(const Plan&, const ForwardArgs&);   \
    void backward(const Plan&, const BackwardArgs&); \
    }
#define FASTATTN_CASE(level, direction) \
    case Level::level: return level::direction(plan, args);
#define FASTATTN_CALL(direction, Plan, Args)                             \
    void direction(const Plan& plan, const Args& args) {                 \
        switch (current()) { FASTATTN_LEVELS(FASTATTN_CASE, direction) } \
    }
#define FASTATTN_OPERATION(name, Plan)        \
    FASTATTN_LEVELS(FASTATTN_DECLARE, Plan)   \
    FASTATTN_CALL(forward, Plan, ForwardArgs) \
    FASTATTN_CALL(backward, Plan, BackwardArgs)
#include "../operations.inc"

}  // namespace fastattn
