// The element types of tensors.
#pragma once

namespace fastattn {

enum class DType { float32, bfloat16, float16 };

}  // namespace fastattn
