#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace fastattn {
namespace {

struct Level {
    const char* name;
    void (*scsa_forward)(const ScsaPlan&, const ScsaForwardArgs&);
    void (*scsa_backward)(const ScsaPlan&, const ScsaBackwardArgs&);
    void (*lga_forward)(const LgaPlan&, const LgaForwardArgs&);
    void (*lga_backward)(const LgaPlan&, const LgaBackwardArgs&);
    void (*acp_forward)(const AcpPlan&, const AcpForwardArgs&);
    void (*acp_backward)(const AcpPlan&, const AcpBackwardArgs&);
};

#define FASTATTN_LEVEL(name) \
    {#name, name::scsa_forward, name::scsa_backward, name::lga_forward, name::lga_backward, name::acp_forward, name::acp_backward}

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

void scsa_forward(const ScsaPlan& plan, const ScsaForwardArgs& args) { current().load()->scsa_forward(plan, args); }
void scsa_backward(const ScsaPlan& plan, const ScsaBackwardArgs& args) { current().load()->scsa_backward(plan, args); }
void lga_forward(const LgaPlan& plan, const LgaForwardArgs& args) { current().load()->lga_forward(plan, args); }
void lga_backward(const LgaPlan& plan, const LgaBackwardArgs& args) { current().load()->lga_backward(plan, args); }
void acp_forward(const AcpPlan& plan, const AcpForwardArgs& args) { current().load()->acp_forward(plan, args); }
void acp_backward(const AcpPlan& plan, const AcpBackwardArgs& args) { current().load()->acp_backward(plan, args); }

}  // namespace fastattn
