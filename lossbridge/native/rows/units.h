// How a call is cut into units: what a thread takes, and what the sums run over. The cuts depend on the call alone,
// never on the number of threads.
//
// Static, because instruction_set.cpp includes this: of an inline function the linker keeps one copy for all, which could
// be the one with instructions that the processor lacks.
#pragma once
#include <algorithm>

#include "call.h"

namespace lossbridge {

constexpr int64_t TILE = 16;     // the most columns computed together where the class axis is not the last
constexpr int64_t CHUNK = 1024;  // samples of an elementwise unit, whose rows fit the first cache, and of a partial sum

static inline int64_t entries(const Call &c) { return c.outer * c.classes * c.inner; }
static inline int64_t samples(const Call &c) { return c.elementwise ? entries(c) : c.outer * c.inner; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Columns that are computed together: about as many each time, so that none of 17 is left alone, and whole fours.
static inline int64_t tile(const Call &c) {
  return std::min(c.inner, ceil_div(ceil_div(c.inner, std::max<int64_t>(1, ceil_div(c.inner, TILE))), 4) * 4);
}

// Unit u is
//   elementwise: the entries [u·CHUNK, u·CHUNK + CHUNK), the last one shorter;
//   inner == 1: the row u;
//   else: of the outer index u / tiles, the columns of tile u % tiles, where tiles = ceil(inner / tile).
static inline int64_t units(const Call &c) {
  if (c.elementwise) return ceil_div(entries(c), CHUNK);
  return c.outer * (c.inner == 1 ? 1 : ceil_div(c.inner, TILE));
}
static inline int64_t entries_of_unit(const Call &c) {
  return c.elementwise ? CHUNK : c.classes * tile(c);
}

static inline bool result_is_double(const Call &c) { return c.dtype == Dtype::FLOAT64; }
static inline int64_t result_bytes(const Call &c) { return result_is_double(c) ? 8 : 4; }

// Below this many entries a call stays on its thread and keeps Python's lock: waking a thread would take longer.
constexpr int64_t SMALL = 65536;
static inline bool is_small(const Call &c) { return entries(c) < SMALL; }

}  // namespace lossbridge
