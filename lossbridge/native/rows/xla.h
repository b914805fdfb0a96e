// The rows as functions that XLA calls.
#pragma once
#include "xla_ffi.h"

namespace lossbridge {

// Handlers of XLA's foreign function interface. Arguments, results and attributes: xla.cpp.
xla::Error *xla_rows(xla::CallFrame *);
xla::Error *xla_ratio(xla::CallFrame *);

}  // namespace lossbridge
