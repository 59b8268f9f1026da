// Which instruction-set level serves the calls.
#pragma once

#include <string>
#include <vector>

#include "args.h"

namespace fastattn {

std::vector<std::string> isa_levels();   // those this CPU can run, fastest first
std::string isa();                       // the one in use
void set_isa(const std::string& level);  // throws std::invalid_argument where it is not one of isa_levels()

#define FASTATTN_OPERATION(name, Plan)             \
    struct Plan;                                   \
    void forward(const Plan&, const ForwardArgs&); \
    void backward(const Plan&, const BackwardArgs&);
#include "../operations.inc"

}  // namespace fastattn
