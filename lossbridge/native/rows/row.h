// A row in scratch memory, with what its rule needs, and what all rules do with it. No loss.
#pragma once
#include "call.h"
#include "elementary.h"
#include "memory.h"

namespace lossbridge {
namespace LOSSBRIDGE_NS {

// A rule computes one sample: it returns the loss, and writes the gradients it is asked for, times `factor`, over `x`
// and `t`. All rows have m numbers, of which the last m − n are padding and may be anything afterwards.
template <class F> struct Row {
  const Call &call;
  int64_t n, m;        // classes, and with padding
  F *x, *t;            // predictions (padding: −∞), and a dense target (0)
  F *spare[3];         // rows for the rule
  const F *per_class;  // (0), or null
  int64_t label;
  double factor;

  bool gradient() const { return call.gradient != nullptr; }
  bool target_gradient() const { return call.target_gradient != nullptr; }
};

template <class F> static void fill(F *x, int64_t m, F value) {
  for (int64_t j = 0; j < m; j++) x[j] = value;
}

// A row without a loss: NaN, and gradients of this value.
template <class F> static double no_loss(Row<F> &r, double gradients) {
  fill(r.x, r.m, F(gradients));
  fill(r.t, r.m, F(gradients));
  return NOT_A_NUMBER<double>;
}

// The largest number and its place; NaN if one is.
template <class F> struct Peak {
  F value;
  int64_t place;
};
template <class F> static Peak<F> peak(const F *x, int64_t m) {
  constexpr int PARTS = LANES / WIDTH<F>, W = WIDTH<F>;
  typedef Vector<F> V;
  V top[PARTS];
  Integers<F> bad{};
  for (int u = 0; u < PARTS; u++) top[u] = set(-INF<F>);
  for (int64_t j = 0; j < m; j += LANES)
    for (int u = 0; u < PARTS; u++) {
      V v = load<V>(x + j + u * W);
      top[u] = max(v, top[u]);
      bad |= bits<Integers<F>>(v != v);
    }
  F value = -INF<F>;
  for (int u = 0; u < PARTS; u++)
    for (int i = 0; i < W; i++) value = top[u][i] > value ? top[u][i] : value;
  if (any(bad)) return {NOT_A_NUMBER<F>, 0};
  int64_t j = 0;
  while (j < m && !any(load<V>(x + j) == set(value))) j += W;
  while (j < m && x[j] != value) j++;
  return {value, j};
}

// x·factor + y·other, of all m numbers. A factor that is subnormal in F is split between the two multiplications.
template <class F> static void scale(F *x, int64_t m, double factor, const F *y = nullptr, double other = 0) {
  typedef Vector<F> V;
  const F up = F(sizeof(F) == 4 ? 0x1p-60 : 0x1p-500);
  if (factor != 0 && std::fabs(factor) < double(std::numeric_limits<F>::min()) / double(up)) {
    for (int64_t j = 0; j < m; j++) x[j] *= up;
    factor /= up;
  }
  const V a = set(F(factor)), b = set(F(other));
  if (y)
    for (int64_t j = 0; j < m; j += WIDTH<F>) store(x + j, fma(load<V>(y + j), b, load<V>(x + j) * a));
  else
    for (int64_t j = 0; j < m; j += WIDTH<F>) store(x + j, load<V>(x + j) * a);
}

// q^γ of q in (0, 1], 0 for q = 0: by multiplications where γ is a small integer, else e^(γ log q). The logarithm needs
// more digits than a double: what it lacks is (q − e^log q)/e^log q.
struct Power {
  double gamma;
  int times;  // −1: γ is no small integer
  explicit Power(double gamma) : gamma(gamma), times(gamma <= 16 && gamma == int(gamma) ? int(gamma) : -1) {}
  LOSSBRIDGE_METHOD Doubles operator()(Doubles q) const {
    Doubles y = set(1.0);
    for (int i = 0; i < times; i++) y = y * q;
    if (times >= 0) return y;
    const Doubles none{}, log_q = log<double>(q), back = exp_negative<double>(log_q);
    const Doubles low = back == none ? none : (q - back) / back, high = set(gamma) * log_q;
    y = exp_negative<double>(high, fma(set(gamma), log_q, none - high) + set(gamma) * low);
    return q == none ? none : y;
  }
};

// The weights ω of the classes, over the target: t·(1−s) + s/C, times the class's weight. −0 becomes 0.
template <class F> static void weigh(Row<F> &r) {
  typedef Vector<F> V;
  const double s = r.call.label_smoothing;
  if (s != 0) {
    const V keep = set(F(1 - s)), add = set(F(s / double(r.n)));
    for (int64_t j = 0; j < r.m; j += WIDTH<F>) store(r.t + j, fma(load<V>(r.t + j), keep, add));
    for (int64_t j = r.n; j < r.m; j++) r.t[j] = 0;
  }
  if (r.per_class)
    for (int64_t j = 0; j < r.m; j += WIDTH<F>) store(r.t + j, load<V>(r.t + j) * load<V>(r.per_class + j));
  else if (r.call.per_class_number != 1)
    for (int64_t j = 0; j < r.m; j += WIDTH<F>) store(r.t + j, load<V>(r.t + j) * set(F(r.call.per_class_number)));
}
// The same of a label, which must be in range.
template <class F> static void weigh_label(Row<F> &r) {
  fill(r.t, r.m, F(0));
  r.t[r.label] = 1;
  weigh(r);
}

}  // namespace LOSSBRIDGE_NS
}  // namespace lossbridge
