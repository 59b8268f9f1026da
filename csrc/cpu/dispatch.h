// Which instruction-set level serves the calls.
#pragma once

#include <string>
#include <vector>

#include "acp/plan.h"
#include "cat/plan.h"
#include "lga/plan.h"
#include "scsa/plan.h"

namespace fastattn {

std::vector<std::string> isa_levels();      // those this CPU can run, fastest first
std::string isa();                          // the one in use
void set_isa(const std::string& level);     // throws std::invalid_argument where it is not one of isa_levels()

void scsa_forward(const ScsaPlan& plan, const ScsaForwardArgs& args);
void scsa_backward(const ScsaPlan& plan, const ScsaBackwardArgs& args);
void lga_forward(const LgaPlan& plan, const LgaForwardArgs& args);
void lga_backward(const LgaPlan& plan, const LgaBackwardArgs& args);
void acp_forward(const AcpPlan& plan, const AcpForwardArgs& args);
void acp_backward(const AcpPlan& plan, const AcpBackwardArgs& args);
void cat_forward(const CatPlan& plan, const CatForwardArgs& args);
void cat_backward(const CatPlan& plan, const CatBackwardArgs& args);

}  // namespace fastattn
