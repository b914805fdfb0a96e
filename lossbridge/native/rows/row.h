// A row, with what its rule needs, and what several rules do with it. No loss.
#pragma once
#include "call.h"
#include "elementary.h"
#include "memory.h"

namespace lossbridge {
namespace LOSSBRIDGE_NS {

// A rule computes one sample: it returns the loss, and writes the gradients that are wanted, times `factor`. `gradient`
// may be `x` and `target_gradient` may be `target`.
template <class F> struct Row {
  const Call &call;
  int64_t n;
  const F *x, *target;  // predictions; a dense target
  F *gradient;          // null: not wanted
  F *target_gradient;
  F *spare[5];         // rows for the rule, one behind the other
  const F *per_class;  // or null
  int64_t label;
  double factor;
};

// Where numbers may lie: fractions in [0, 1], shares at 0 or above and not all 0. Beyond it by more than rounding does, a
// number counts as NaN. Nothing is outside where a call does not ask.
template <class F> struct Domain {
  F low = -INF<F>, high = INF<F>;
  static Domain shares(const Call &c, Dtype dtype) {
    if (!c.domain) return {};
    return {F(dtype == Dtype::BFLOAT16 ? -0x1p-5 : dtype == Dtype::FLOAT16 ? -0x1p-8 : -0x1p-12), INF<F>};
  }
  static Domain fractions(const Call &c, Dtype dtype) {
    const Domain d = shares(c, dtype);
    return c.domain ? Domain{d.low, 1 - d.low} : d;
  }
  LOSSBRIDGE_METHOD Vector<F> operator()(Vector<F> x) const {
    return (x < set(low)) | (x > set(high)) ? set(NOT_A_NUMBER<F>) : x;
  }
  F operator()(F x) const { return x < low || x > high ? NOT_A_NUMBER<F> : x; }
  double sum(const F *x, int64_t n, int64_t without) const {
    Sum<F> s;
    each<F, 1, 1>(n, without, {{x}, {0}, {nullptr}}, [&](auto &in, auto &, int u) __attribute__((always_inline)) {
      s.part[u] += (*this)(in[0]);
    }, s);
    return s.total();
  }
};

template <class F> static void fill(F *x, int64_t n, F value) {
  if (x)
    for (int64_t j = 0; j < n; j++) x[j] = value;
}

// A row without a loss: NaN, and gradients of this value.
template <class F> static double no_loss(Row<F> &r, double gradients) {
  fill(r.gradient, r.n, F(gradients));
  fill(r.target_gradient, r.n, F(gradients));
  return NOT_A_NUMBER<double>;
}

// The largest number and its place; NaN if one is.
template <class F> struct Peak {
  F value;
  int64_t place;
  bool finite() const { return std::fabs(value) < INF<F>; }
};
template <class F> static Peak<F> peak(const F *x, int64_t n) {
  constexpr int PARTS = LANES / WIDTH<F>, W = WIDTH<F>;
  typedef Vector<F> V;
  V top[PARTS];
  Integers<F> bad{};
  for (int u = 0; u < PARTS; u++) top[u] = set(-INF<F>);
  each<F, 1, 1>(n, -1, {{x}, {-INF<F>}, {nullptr}}, [&](auto &in, auto &, int u) __attribute__((always_inline)) {
    top[u] = max(in[0], top[u]);
    bad |= bits<Integers<F>>(in[0] != in[0]);
  });
  if (any(bad)) return {NOT_A_NUMBER<F>, 0};
  for (int u = 1; u < PARTS; u++) top[0] = max(top[0], top[u]);
  F value = top[0][0];
  for (int i = 1; i < W; i++) value = top[0][i] > value ? top[0][i] : value;
  const V v = set(value);
  int64_t j = 0;
  while (j + 4 * W <= n && !any((load<V>(x + j) == v) | (load<V>(x + j + W) == v) | (load<V>(x + j + 2 * W) == v) |
                                (load<V>(x + j + 3 * W) == v)))
    j += 4 * W;
  while (j < n && x[j] != value) j++;
  return {value, j};
}

// to = x·factor + y·other. A factor that is subnormal in F is split between two multiplications.
template <class F>
static void scale(const F *x, double factor, const F *y, double other, F *to, int64_t n) {
  const F up = F(sizeof(F) == 4 ? 0x1p-60 : 0x1p-500);
  const bool split = factor != 0 && std::fabs(factor) < double(std::numeric_limits<F>::min()) / double(up);
  const auto a = set(F(split ? factor / double(up) : factor)), b = set(F(other)), first = set(up);
  if (split)
    each<F, 2, 1>(n, -1, {{x, y}, {0, 0}, {to}}, [&](auto &in, auto &out, int) __attribute__((always_inline)) {
      out[0] = fma(in[1], b, in[0] * first * a);
    });
  else if (y)
    each<F, 2, 1>(n, -1, {{x, y}, {0, 0}, {to}}, [&](auto &in, auto &out, int) __attribute__((always_inline)) {
      out[0] = fma(in[1], b, in[0] * a);
    });
  else
    each<F, 1, 1>(n, -1, {{x}, {0}, {to}}, [&](auto &in, auto &out, int) __attribute__((always_inline)) {
      out[0] = in[0] * a;
    });
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

// The weights ω of the classes into `weights`: the target smoothed, t·(1−s) + s/C, times the class's weight, or what is
// the weight of all. A label is the target that is 1 there (`target` null).
template <class F> static void weigh(const Row<F> &r, F *weights) {
  const double s = r.call.label_smoothing;
  const F of_all = F(r.call.per_class_number);
  const auto domain = Domain<F>::fractions(r.call, r.call.target_dtype);
  const auto keep = set(F(1 - s)), add = set(F(s / double(r.n)));
  each<F, 2, 1>(r.n, -1, {{r.target, r.per_class}, {0, of_all}, {weights}},
                [&](auto &in, auto &out, int) __attribute__((always_inline)) { out[0] = fma(domain(in[0]), keep, add) * in[1]; });
  if (!r.target) weights[r.label] = F((1 - s) + s / double(r.n)) * (r.per_class ? r.per_class[r.label] : of_all);
}

}  // namespace LOSSBRIDGE_NS
}  // namespace lossbridge
