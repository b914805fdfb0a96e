// The rows as a function that XLA calls.
#pragma once
#include "xla_ffi.h"

namespace lossbridge {

// A handler of XLA's foreign function interface. Arguments, results and attributes: xla.cpp.
xla::Error *xla_handler(xla::CallFrame *);

}  // namespace lossbridge
