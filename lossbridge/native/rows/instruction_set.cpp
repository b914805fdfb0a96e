// The rows, compiled once for each instruction set, into a namespace of its own: a unit of work after another is loaded
// into scratch memory, computed sample by sample, and its gradients stored.
#include <algorithm>

#include "bernoulli.h"
#include "divergence.h"
#include "softmax.h"
#include "units.h"

namespace lossbridge {
namespace LOSSBRIDGE_NS {

// What of a call the numbers of `F`, in which it is computed, decide.
static bool in_double(const Call &c) {
  switch (c.rule) {
    case Rule::SOFTMAX_LABELS:
    case Rule::SOFTMAX_DISTRIBUTIONS:
    case Rule::BERNOULLI_LOGITS:
    case Rule::DIVERGENCE_LOGITS: return c.dtype == Dtype::FLOAT64;
    default: return true;  // of probabilities and focal: logarithms and powers would lose digits in float
  }
}
static bool of_labels(const Call &c) { return c.target_dtype == Dtype::INT32 || c.target_dtype == Dtype::INT64; }
static bool bernoulli(const Call &c) {
  return c.rule >= Rule::BERNOULLI_LOGITS && c.rule <= Rule::BERNOULLI_FOCAL_PROBABILITIES;
}
static int64_t row_length(const Call &c) { return c.elementwise ? std::min(samples(c), CHUNK) : c.classes; }
static int64_t columns(const Call &c) { return c.elementwise ? 1 : std::min(c.inner, TILE); }

int64_t scratch_bytes(const Call &c) {
  return (2 * columns(c) + 4) * padded(row_length(c)) * int64_t(in_double(c) ? sizeof(double) : sizeof(float));
}

// Arrays of the caller's dtypes.

template <class Body> static void with_type(Dtype dtype, const Body &body) {
  switch (dtype) {
    case Dtype::FLOAT32: return body(float{});
    case Dtype::FLOAT64: return body(double{});
    case Dtype::FLOAT16: return body(Float16{});
    case Dtype::BFLOAT16: return body(Bfloat16{});
    default: return;
  }
}
// A number of an array of the result's dtype.
static double at(const Call &c, const void *p, int64_t i) {
  return c.dtype == Dtype::FLOAT64 ? ((const double *)p)[i] : double(((const float *)p)[i]);
}
static void put(const Call &c, void *p, int64_t i, double x) {
  if (c.dtype == Dtype::FLOAT64)
    ((double *)p)[i] = x;
  else
    ((float *)p)[i] = float(x);
}
static int64_t label_at(const Call &c, int64_t i) {
  return c.target_dtype == Dtype::INT32 ? ((const int32_t *)c.target)[i] : ((const int64_t *)c.target)[i];
}
static double weight_of(const Call &c, int64_t sample) { return c.weight ? at(c, c.weight, sample) : 1; }
static bool counts(const Call &c, int64_t sample) {
  return (!c.counted || c.counted[sample]) && (!c.weight || at(c, c.weight, sample) != 0);
}
static double factor_of(const Call &c, int64_t sample) {
  return c.upstream * weight_of(c, sample) * (c.upstream_each ? at(c, c.upstream_each, sample) : 1);
}

// A unit: `count` rows of n numbers.
struct Block {
  int64_t sample, count, entry, n, stride;
};
static Block block(const Call &c, int64_t unit) {
  if (c.elementwise) {
    int64_t first = unit * CHUNK;
    return {first, 1, first, std::min(CHUNK, samples(c) - first), 1};
  }
  const int64_t tiles = (c.inner + TILE - 1) / TILE, outer = unit / tiles, column = unit % tiles * TILE;
  return {outer * c.inner + column, std::min(TILE, c.inner - column), outer * c.classes * c.inner + column, c.classes,
          c.inner};
}

template <class F> static void load(Dtype dtype, const void *p, const Block &b, F fill, F *x) {
  with_type(dtype, [&](auto type) { load_rows((const decltype(type) *)p + b.entry, b.count, b.n, b.stride, fill, x); });
}
template <class F> static void store(Dtype dtype, void *p, const Block &b, const F *x) {
  with_type(dtype, [&](auto type) { store_rows(x, b.count, b.n, b.stride, (decltype(type) *)p + b.entry); });
}

// The rules: a sample's loss, and its gradients in the row.

static double compute_sample(Row<float> &r) {
  switch (r.call.rule) {
    case Rule::SOFTMAX_LABELS: return softmax_label(r);
    case Rule::SOFTMAX_DISTRIBUTIONS: return softmax_distribution(r);
    case Rule::DIVERGENCE_LOGITS: return divergence_logits(r);
    default: bernoulli_logits(r); return 0;
  }
}
static double compute_sample(Row<double> &r) {
  const Call &c = r.call;
  const bool round = c.dtype != Dtype::FLOAT64;
  const Bounds bounds = round ? Bounds::of<float>(c.epsilon) : Bounds::of<double>(c.epsilon);
  switch (c.rule) {
    case Rule::SOFTMAX_LABELS: return softmax_label(r);
    case Rule::SOFTMAX_DISTRIBUTIONS: return softmax_distribution(r);
    case Rule::SOFTMAX_FOCAL: return softmax_focal(r);
    case Rule::PROBABILITIES_LABELS: return probability_of_label(r, bounds, round);
    case Rule::PROBABILITIES_DISTRIBUTIONS:
    case Rule::PROBABILITIES_FOCAL: return probabilities(r, bounds, round);
    case Rule::DIVERGENCE_LOGITS: return divergence_logits(r);
    case Rule::DIVERGENCE_PROBABILITIES: return divergence_probabilities(r, bounds.low);
    case Rule::BERNOULLI_LOGITS: bernoulli_logits(r); return 0;
    case Rule::BERNOULLI_PROBABILITIES: bernoulli_probabilities(r, bounds); return 0;
    case Rule::BERNOULLI_FOCAL_LOGITS: bernoulli_focal_logits(r); return 0;
    case Rule::BERNOULLI_FOCAL_PROBABILITIES: bernoulli_focal_probabilities(r, bounds); return 0;
    default: return 0;
  }
}

// A row whose target is ready: labels that are smoothed or weighed by focal rules become distributions.
template <class F> static double computed(Row<F> &r, int64_t sample) {
  const Call &c = r.call;
  const bool family = c.rule <= Rule::PROBABILITIES_FOCAL;  // softmax
  if (!of_labels(c)) {
    if (family) weigh(r);
    return compute_sample(r);
  }
  r.label = label_at(c, sample);
  if (r.label < 0 || r.label >= r.n) return no_loss(r, 0);
  if (c.label_smoothing == 0) return compute_sample(r);
  weigh_label(r);
  if constexpr (sizeof(F) == sizeof(double)) {
    if (c.rule == Rule::PROBABILITIES_LABELS) {
      const bool round = c.dtype != Dtype::FLOAT64;
      return probabilities(r, round ? Bounds::of<float>(c.epsilon) : Bounds::of<double>(c.epsilon), round);
    }
  }
  return softmax_distribution(r);
}

// −log of a label's probability reads one entry of the row, and writes one of a gradient of zeros.
static void log_loss(const Call &c, const Block &b) {
  const bool round = c.dtype != Dtype::FLOAT64;
  const Bounds bounds = round ? Bounds::of<float>(c.epsilon) : Bounds::of<double>(c.epsilon);
  with_type(c.dtype, [&](auto type) {
    typedef decltype(type) T;
    const T *pred = (const T *)c.pred + b.entry;
    T *gradient = c.gradient ? (T *)c.gradient + b.entry : nullptr;
    for (int64_t i = 0; i < b.count; i++) {
      const int64_t sample = b.sample + i, y = label_at(c, sample);
      const int64_t along = b.stride == 1 ? i * b.n : i;
      const bool read = counts(c, sample), valid = y >= 0 && y < b.n;
      const double x = read && valid ? double(widened(pred[along + y * b.stride])) : 1;
      const double p = x < bounds.low ? bounds.low : x > bounds.high ? bounds.high : x;
      const double loss = valid ? -log_of(p) : NOT_A_NUMBER<double>;
      if (c.losses) put(c, c.losses, sample, read ? loss * weight_of(c, sample) : 0);
      if (!gradient) continue;
      for (int64_t j = 0; j < b.n; j++) narrow(0.0f, &gradient[along + j * b.stride]);
      if (read && valid && x >= bounds.low && x <= bounds.high)
        narrow(-factor_of(c, sample) / x, &gradient[along + y * b.stride]);
    }
  });
}

// The samples are the row's entries, or, along an axis, their mean is the sample.
template <class F> static void finish_entries(Row<F> &r, const Block &b) {
  const Call &c = r.call;
  if (!c.weight && !c.counted && !c.upstream_each) {
    if (c.losses && c.dtype == Dtype::FLOAT64) store_rows(r.spare[0], 1, b.n, 1, (double *)c.losses + b.sample);
    if (c.losses && c.dtype != Dtype::FLOAT64) store_rows(r.spare[0], 1, b.n, 1, (float *)c.losses + b.sample);
    return;
  }
  for (int64_t j = 0; j < b.n; j++) {
    const int64_t sample = b.sample + j;
    const bool read = counts(c, sample);
    const double by = weight_of(c, sample) * (c.upstream_each ? at(c, c.upstream_each, sample) : 1);
    if (c.losses) put(c, c.losses, sample, read ? double(r.spare[0][j]) * weight_of(c, sample) : 0);
    if (!read || by != 1) {
      r.x[j] = read ? F(double(r.x[j]) * by) : 0;
      r.t[j] = read ? F(double(r.t[j]) * by) : 0;
    }
  }
}
template <class F> static double mean_of_entries(Row<F> &r) {
  for (int64_t j = r.n; j < r.m; j++) r.spare[0][j] = 0;
  return sum(r.spare[0], r.m) / double(r.n);
}

template <class F> static void compute_block(const Call &c, const Block &b, const F *per_class, F *scratch) {
  const int64_t m = padded(b.n);
  F *x = scratch, *t = x + b.count * m, *spare = t + b.count * m;
  const bool dense = !of_labels(c);
  const F none = c.rule == Rule::DIVERGENCE_LOGITS ? -INF<F> : 0;
  load(c.dtype, c.pred, b, -INF<F>, x);
  if (dense) load(c.target_dtype, c.target, b, none, t);
  for (int64_t i = 0; i < b.count; i++) {
    const int64_t sample = b.sample + i;
    Row<F> r{c, b.n, m, x + i * m, t + i * m, {spare, spare + m, spare + 2 * m}, per_class, 0, 0};
    if (c.elementwise) {
      r.factor = c.upstream;
      compute_sample(r);
      finish_entries(r, b);
      continue;
    }
    double loss = 0;
    if (counts(c, sample)) {
      r.factor = bernoulli(c) ? factor_of(c, sample) / double(b.n) : factor_of(c, sample);
      loss = computed(r, sample);
      if (bernoulli(c)) loss = mean_of_entries(r);
      loss *= weight_of(c, sample);
    } else {
      fill(r.x, m, F(0));
      fill(r.t, m, F(0));
    }
    if (c.losses) put(c, c.losses, sample, loss);
  }
  if (c.gradient) store(c.dtype, c.gradient, b, x);
  if (c.target_gradient) store(c.target_dtype, c.target_gradient, b, t);
}

template <class F> static void compute_in(const Call &c, int64_t from, int64_t to, F *scratch) {
  F *per_class = nullptr;
  if (c.per_class && !c.elementwise) {
    per_class = scratch;
    scratch += padded(c.classes);
    for (int64_t j = 0; j < padded(c.classes); j++) per_class[j] = j < c.classes ? F(at(c, c.per_class, j)) : 0;
  }
  for (int64_t unit = from; unit < to; unit++) compute_block(c, block(c, unit), per_class, scratch);
}

void compute(const Call &c, int64_t from, int64_t to, void *scratch) {
  if (c.rule == Rule::LOG_LOSS)
    for (int64_t unit = from; unit < to; unit++) log_loss(c, block(c, unit));
  else if (in_double(c))
    compute_in(c, from, to, (double *)scratch);
  else
    compute_in(c, from, to, (float *)scratch);
}

}  // namespace LOSSBRIDGE_NS
}  // namespace lossbridge
