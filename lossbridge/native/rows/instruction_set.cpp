// The rows, compiled once for each instruction set, into a namespace of its own. A unit of work is computed sample by sample
// where it lies; what is of another dtype than the arithmetic, or lies along an inner axis, goes by way of scratch memory.
#include <algorithm>

#include "bernoulli.h"
#include "divergence.h"
#include "mixture.h"
#include "samples.h"
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
    case Rule::DIVERGENCE_LOGITS:
    case Rule::DIVERGENCE_PROBABILITIES: return c.dtype == Dtype::FLOAT64;
    default: return true;  // the others' logarithms and powers would lose digits in float
  }
}
static bool of_labels(const Call &c) { return c.target_dtype == Dtype::INT32 || c.target_dtype == Dtype::INT64; }
static bool bernoulli(const Call &c) {
  return c.rule >= Rule::BERNOULLI_LOGITS && c.rule <= Rule::BERNOULLI_FOCAL_PROBABILITIES;
}
static bool divergence(const Call &c) {
  return c.rule == Rule::DIVERGENCE_LOGITS || c.rule == Rule::DIVERGENCE_PROBABILITIES ||
         c.rule == Rule::JENSEN_SHANNON_LOGITS || c.rule == Rule::TOTAL_VARIATION_LOGITS;
}
static bool is_scaled(const Call &c) {
  const bool softmax = c.rule == Rule::SOFTMAX_LABELS || c.rule == Rule::SOFTMAX_DISTRIBUTIONS;
  return softmax && (c.logit_scale != 1 || c.softcap != 0);
}
static int64_t row_length(const Call &c) { return c.elementwise ? std::min(samples(c), CHUNK) : c.classes; }
static int64_t columns(const Call &c) { return c.elementwise ? 1 : tile(c); }

// Predictions and target of the columns, and rows for the rule.
constexpr int64_t SPARE = 5;
int64_t scratch_bytes(const Call &c) {
  const int64_t rows = 2 * columns(c) + SPARE + 1 + 1;  // and the weights of a label, and of the classes
  return rows * padded(row_length(c)) * int64_t(in_double(c) ? sizeof(double) : sizeof(float));
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
static int64_t label_at(const Call &c, int64_t i) {
  return c.target_dtype == Dtype::INT32 ? ((const int32_t *)c.target)[i] : ((const int64_t *)c.target)[i];
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
  const int64_t wide = tile(c), tiles = ceil_div(c.inner, wide), outer = unit / tiles, column = unit % tiles * wide;
  return {outer * c.inner + column, std::min(wide, c.inner - column), outer * c.classes * c.inner + column, c.classes,
          c.inner};
}

// An array of a unit as rows of F: where it lies, if `direct`, else in scratch memory.
template <class F> struct Side {
  Dtype dtype;
  bool direct;
  F *scratch;
  bool rounds;  // a float64 target of predictions that are not, which counts as what float32 has
  Side(const Block &b, Dtype dtype, F *scratch, bool rounds = false)
      : dtype(dtype),
        direct(b.stride == 1 && !rounds && dtype == (sizeof(F) == 4 ? Dtype::FLOAT32 : Dtype::FLOAT64)),
        scratch(scratch),
        rounds(rounds) {}
  F *row(const Block &b, const void *p, int64_t i) const {
    if (!p) return nullptr;
    return direct ? (F *)p + b.entry + i * b.n : scratch + i * padded(b.n);
  }
  void load(const Block &b, const void *p) const {
    if (direct) return;
    with_type(dtype, [&](auto type) { load_rows((const decltype(type) *)p + b.entry, b.count, b.n, b.stride, scratch); });
    for (int64_t i = 0; rounds && i < b.count; i++)
      for (int64_t j = 0; j < b.n; j++) scratch[i * padded(b.n) + j] = F(float(scratch[i * padded(b.n) + j]));
  }
  void store(const Block &b, void *p) const {
    if (direct || !p) return;
    with_type(dtype, [&](auto type) { store_rows(scratch, b.count, b.n, b.stride, (decltype(type) *)p + b.entry); });
  }
};

// The rules: a sample's loss. Bernoulli rules write a loss an entry to `losses`.

static Bounds bounds_of(const Call &c) {
  return c.dtype == Dtype::FLOAT64 ? Bounds::of<double>(c.epsilon) : Bounds::of<float>(c.epsilon);
}
static double compute_sample(Row<float> &r, const float *weights, float *losses) {
  switch (r.call.rule) {
    case Rule::SOFTMAX_LABELS: return weights ? softmax_distribution(r, weights) : softmax_label(r);
    case Rule::SOFTMAX_DISTRIBUTIONS: return softmax_distribution(r, weights);
    case Rule::DIVERGENCE_LOGITS: return divergence_logits(r);
    case Rule::DIVERGENCE_PROBABILITIES: return divergence_probabilities(r, bounds_of(r.call).low);
    default: bernoulli_logits(r, losses); return 0;
  }
}
static double compute_sample(Row<double> &r, const double *weights, double *losses) {
  const Call &c = r.call;
  const Bounds bounds = bounds_of(c);
  switch (c.rule) {
    case Rule::SOFTMAX_LABELS: return weights ? softmax_distribution(r, weights) : softmax_label(r);
    case Rule::SOFTMAX_DISTRIBUTIONS: return softmax_distribution(r, weights);
    case Rule::SOFTMAX_FOCAL: return softmax_focal(r, weights);
    case Rule::PROBABILITIES_LABELS:
      return weights ? probabilities(r, weights, bounds) : probability_of_label(r, bounds);
    case Rule::PROBABILITIES_DISTRIBUTIONS:
    case Rule::PROBABILITIES_FOCAL: return probabilities(r, weights, bounds);
    case Rule::DIVERGENCE_LOGITS: return divergence_logits(r);
    case Rule::DIVERGENCE_PROBABILITIES: return divergence_probabilities(r, bounds.low);
    case Rule::JENSEN_SHANNON_LOGITS:
      return c.dtype == Dtype::FLOAT64 ? jensen_shannon<Long>(r) : jensen_shannon<Short>(r);
    case Rule::TOTAL_VARIATION_LOGITS:
      return c.dtype == Dtype::FLOAT64 ? total_variation<Long>(r) : total_variation<Short>(r);
    case Rule::BERNOULLI_LOGITS: bernoulli_logits(r, losses); return 0;
    case Rule::BERNOULLI_PROBABILITIES: bernoulli_probabilities(r, losses, bounds); return 0;
    case Rule::BERNOULLI_FOCAL_LOGITS: bernoulli_focal_logits(r, losses); return 0;
    case Rule::BERNOULLI_FOCAL_PROBABILITIES: bernoulli_focal_probabilities(r, losses, bounds); return 0;
    default: return 0;
  }
}

// Σ_c w_c t_c of the smoothed target.
template <class F> static double mass(Row<F> &r, F *room) {
  fill(r.gradient, r.n, F(0));
  if (!r.target && r.call.label_smoothing == 0) return r.per_class ? double(r.per_class[r.label]) : r.call.per_class_number;
  weigh(r, room);
  return sum(room, r.n, -1);
}

// A sample along an axis. `room`: a row for the weights of the classes, where they differ from the target.
template <class F> static double computed(Row<F> &r, int64_t sample, F *room) {
  const Call &c = r.call;
  if (bernoulli(c)) {
    compute_sample(r, nullptr, r.spare[0]);
    return sum(r.spare[0], r.n, -1) / double(r.n);
  }
  if (divergence(c)) return compute_sample(r, nullptr, nullptr);
  if (of_labels(c)) {
    r.label = label_at(c, sample);
    if (r.label < 0 || r.label >= r.n) return no_loss(r, 0);
  }
  if (c.rule == Rule::MASS_LABELS || c.rule == Rule::MASS_DISTRIBUTIONS) return mass(r, room);
  const bool differ = c.label_smoothing != 0 || (!of_labels(c) && (r.per_class || c.per_class_number != 1));
  if (differ) weigh(r, room);
  if (!is_scaled(c)) return compute_sample(r, differ ? room : r.target, nullptr);
  F *const z = r.spare[2], *const slope = r.spare[3];
  scaled(r, z, slope);
  r.x = z;
  const double loss = compute_sample(r, differ ? room : r.target, nullptr);
  if (r.gradient)
    each<F, 2, 1>(r.n, -1, {{r.gradient, slope}, {0, 0}, {r.gradient}},
                  [&](auto &in, auto &out, int) __attribute__((always_inline)) { out[0] = in[0] * in[1]; });
  return loss;
}

// −log of a label's probability reads one entry of the row, and writes one of a gradient of zeros.
static void log_loss(const Call &c, const Block &b) {
  const Bounds bounds = bounds_of(c);
  const auto domain = Domain<double>::fractions(c, c.dtype);
  with_type(c.dtype, [&](auto type) {
    typedef decltype(type) T;
    const T *pred = (const T *)c.pred + b.entry;
    T *gradient = c.gradient ? (T *)c.gradient + b.entry : nullptr;
    double found[TILE];  // the gradients at the labels: `gradient` may be `pred`
    for (int64_t i = 0; i < b.count; i++) {
      const int64_t sample = b.sample + i, y = label_at(c, sample);
      const bool read = counts(c, sample), valid = y >= 0 && y < b.n;
      const double x = read && valid ? double(widened(pred[i + y * b.stride])) : 1;
      const bool outside = x < domain.low || x > domain.high;
      const double p = x < bounds.low ? bounds.low : x > bounds.high ? bounds.high : x;
      const double loss = valid && !outside ? -log_of(p) : NOT_A_NUMBER<double>;
      if (c.losses) put(c, c.losses, sample, read ? weighted(c, loss, sample) : 0);
      const bool passes = read && valid && x >= bounds.low && x <= bounds.high;
      found[i] = outside ? NOT_A_NUMBER<double> : passes ? -factor_of(c, sample) / x : 0;
    }
    if (!gradient) return;
    const int64_t pieces = b.stride == b.count ? 1 : b.n, length = b.n * b.count / pieces;
    for (int64_t j = 0; j < pieces; j++)
      for (int64_t k = 0; k < length; k++) narrow(0.0f, &gradient[j * b.stride + k]);
    for (int64_t i = 0; i < b.count; i++)
      if (found[i] != 0) narrow(found[i], &gradient[i + label_at(c, b.sample + i) * b.stride]);
  });
}

// Entries that are samples, whose losses lie in `losses`: with their weights, and without those that do not count.
template <class F> static void finish_entries(Row<F> &r, const Block &b, F *losses) {
  const Call &c = r.call;
  for (int64_t j = 0; j < b.n; j++) {
    const int64_t sample = b.sample + j;
    const bool read = counts(c, sample);
    const double by = read ? factor_of(c, sample) : 0;
    losses[j] = read ? F(weighted(c, double(losses[j]), sample)) : 0;
    if (r.gradient) r.gradient[j] = read ? F(double(r.gradient[j]) * by) : 0;
    if (r.target_gradient) r.target_gradient[j] = read ? F(double(r.target_gradient[j]) * by) : 0;
  }
}

// A unit. Its rows of the call's arrays, then what the rules need, lie in `scratch`.
template <class F> static void compute_block(const Call &c, const Block &b, const F *per_class, F *scratch) {
  const int64_t m = padded(b.n);
  const bool rounds = c.target_dtype == Dtype::FLOAT64 && c.dtype != Dtype::FLOAT64;
  const Side<F> pred(b, c.dtype, scratch), target(b, c.target_dtype, scratch + b.count * m, rounds);
  F *const spare = scratch + 2 * b.count * m, *const room = spare + SPARE * m;
  const bool dense = !of_labels(c);
  auto row = [&](int64_t i) {
    return Row<F>{c, b.n, pred.row(b, c.pred, i), dense ? target.row(b, c.target, i) : nullptr,
                  pred.row(b, c.gradient, i), dense ? target.row(b, c.target_gradient, i) : nullptr,
                  {spare, spare + m, spare + 2 * m, spare + 3 * m, spare + 4 * m}, per_class, 0, 0};
  };
  if (b.count > 1 || c.elementwise || counts(c, b.sample)) {
    pred.load(b, c.pred);
    if (dense) target.load(b, c.target);
  }
  if (c.elementwise) {
    Row<F> r = row(0);
    const bool plain = !c.weight && !c.counted && !c.upstream_each;
    r.factor = plain ? factor_of(c, 0) : 1;
    const Side<F> found(b, c.dtype == Dtype::FLOAT64 ? Dtype::FLOAT64 : Dtype::FLOAT32, spare);
    F *const losses = c.losses ? found.row(b, c.losses, 0) : spare;
    compute_sample(r, nullptr, losses);
    if (!plain) finish_entries(r, b, losses);
    found.store(b, c.losses);
  } else {
    for (int64_t i = 0; i < b.count; i++) {
      Row<F> r = row(i);
      const int64_t sample = b.sample + i;
      double loss = 0;
      if (counts(c, sample)) {
        r.factor = factor_of(c, sample) / (bernoulli(c) ? double(b.n) : 1);
        loss = weighted(c, computed(r, sample, room), sample);
      } else {
        fill(r.gradient, r.n, F(0));
        fill(r.target_gradient, r.n, F(0));
      }
      if (c.losses) put(c, c.losses, sample, loss);
    }
  }
  pred.store(b, c.gradient);
  target.store(b, c.target_gradient);
}

template <class F> static void compute_in(const Call &c, int64_t from, int64_t to, F *scratch) {
  F *per_class = nullptr;
  if (c.per_class && !c.elementwise) {
    per_class = scratch;
    scratch += padded(c.classes);
    for (int64_t j = 0; j < c.classes; j++) per_class[j] = F(at(c, c.per_class, j));
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
