// How a call is split: a unit of work is what one thread computes at a time.
#pragma once
#include "call.h"

namespace lossbridge {

constexpr int64_t TILE = 16;     // columns of an inner axis
constexpr int64_t CHUNK = 4096;  // entries that are samples

inline int64_t samples(const Call &c) { return c.outer * c.inner * (c.elementwise ? c.classes : 1); }

// A row, up to TILE columns beside each other, or up to CHUNK entries.
inline int64_t units(const Call &c) {
  if (c.elementwise) return (samples(c) + CHUNK - 1) / CHUNK;
  return c.outer * ((c.inner + TILE - 1) / TILE);
}

}  // namespace lossbridge
