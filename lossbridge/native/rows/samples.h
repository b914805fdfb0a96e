// What a sample counts: its weight, its share of the ratio, and what its gradient is multiplied with.
//
// Static, as in units.h.
#pragma once
#include "call.h"
#include "units.h"

namespace lossbridge {

// A number of an array of the result's dtype.
static inline double at(const Call &c, const void *p, int64_t i) {
  return result_is_double(c) ? static_cast<const double *>(p)[i] : static_cast<const float *>(p)[i];
}
static inline void put(const Call &c, void *p, int64_t i, double x) {
  if (result_is_double(c))
    static_cast<double *>(p)[i] = x;
  else
    static_cast<float *>(p)[i] = static_cast<float>(x);
}
// Every product is rounded to the result's dtype, as where a framework multiplies: so it does not matter who does.
static inline double rounded(const Call &c, double x) { return result_is_double(c) ? x : static_cast<float>(x); }

static inline double weight_of(const Call &c, int64_t sample) { return c.weight == nullptr ? 1 : at(c, c.weight, sample); }
static inline bool counts(const Call &c, int64_t sample) {
  return (c.counted == nullptr || c.counted[sample]) && (c.weight == nullptr || at(c, c.weight, sample) != 0);
}
// w/D, of a sample that counts, once D is there.
static inline double share_of(const Call &c, int64_t sample) {
  return c.divisor == 0 ? 0 : rounded(c, weight_of(c, sample) / c.divisor);
}
static inline double factor_of(const Call &c, int64_t sample) {
  const double shared = rounded(c, c.upstream * share_of(c, sample));
  return c.upstream_each == nullptr ? shared : rounded(c, shared * at(c, c.upstream_each, sample));
}
static inline double weighted(const Call &c, double loss, int64_t sample) {
  return c.weight == nullptr ? loss : rounded(c, rounded(c, loss) * weight_of(c, sample));
}

}  // namespace lossbridge
