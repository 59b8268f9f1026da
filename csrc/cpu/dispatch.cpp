#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace fastattn {
namespace {

#define FASTATTN_OPERATIONS(F) \
    F(scsa_forward, ScsaPlan, ScsaForwardArgs) F(scsa_backward, ScsaPlan, ScsaBackwardArgs) \
    F(lga_forward, LgaPlan, LgaForwardArgs) F(lga_backward, LgaPlan, LgaBackwardArgs)       \
    F(acp_forward, AcpPlan, AcpForwardArgs) F(acp_backward, AcpPlan, AcpBackwardArgs)       \
    F(cat_forward, CatPlan, CatForwardArgs) F(cat_backward, CatPlan, CatBackwardArgs)

struct Level {
    const char* name;
#define FASTATTN_POINTER(operation, Plan, Args) void (*operation)(const Plan&, const Args&);
    FASTATTN_OPERATIONS(FASTATTN_POINTER)
#undef FASTATTN_POINTER
};

#define FASTATTN_LEVEL(level)                                                                                                   \
    {#level, level::scsa_forward, level::scsa_backward, level::lga_forward, level::lga_backward, level::acp_forward, level::acp_backward, \
     level::cat_forward, level::cat_backward}

const std::vector<Level>& levels() {
    static const std::vector<Level> all = [] {
        std::vector<Level> found;
#if defined(__x86_64__)
        __builtin_cpu_init();
        const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
        const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
        if (avx512) found.push_back(FASTATTN_LEVEL(avx512));
        if (avx2) found.push_back(FASTATTN_LEVEL(avx2));
#endif
        found.push_back(FASTATTN_LEVEL(baseline));
        return found;
    }();
    return all;
}

const Level* find(const std::string& name) {
    for (const Level& level : levels())
        if (level.name == name) return &level;
    return nullptr;
}

std::atomic<const Level*>& current() {
    static std::atomic<const Level*> level = [] {
        const char* wanted = std::getenv("FASTATTN_CPU_ISA");
        const Level* named = wanted ? find(wanted) : nullptr;
        return named ? named : &levels().front();
    }();
    return level;
}

}  // namespace

std::vector<std::string> isa_levels() {
    std::vector<std::string> names;
    for (const Level& level : levels()) names.emplace_back(level.name);
    return names;
}

std::string isa() { return current().load()->name; }

void set_isa(const std::string& name) {
    const Level* level = find(name);
    if (!level) {
        std::string known;
        for (const std::string& n : isa_levels()) known += (known.empty() ? "" : ", ") + n;
        throw std::invalid_argument("this CPU has no instruction-set level '" + name + "'; it has: " + known);
    }
    current().store(level);
}

#define FASTATTN_CALL(operation, Plan, Args) \
    void operation(const Plan& plan, const Args& args) { current().load()->operation(plan, args); }
FASTATTN_OPERATIONS(FASTATTN_CALL)

}  // namespace fastattn
