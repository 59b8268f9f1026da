// Which instruction-set level serves the calls.
#pragma once

#include <string>
#include <vector>

#include "plan.h"

namespace fastattn {

std::vector<std::string> isa_levels();      // those this CPU can run, fastest first
std::string isa();                          // the one in use
void set_isa(const std::string& level);     // throws std::invalid_argument where it is not one of isa_levels()

void forward(const Plan& plan, const ForwardArgs& args);
void backward(const Plan& plan, const BackwardArgs& args);

}  // namespace fastattn
