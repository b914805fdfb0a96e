// Rows of the softmax family. The derivations are those of lossbridge/maths/softmax.py; here is what is done for digits
// and speed.
//
// Logits z with the maximum m at class k, e_j = exp(z_j) in the unit of m, R = Σ_{j≠k} e_j, S = R + e_k, weights ω with
// Ω = Σ ω and O = Σ_{j≠k} ω_j:
//
// 1. −log p_k = log1p(R / e_k); −log p_j = m − z_j + log1p(R / e_k). The loss Σ ω_j (−log p_j) has no other terms than
//    positive ones. To leave k out of both sums, z_k becomes −∞ and ω_k 0 beforehand.
// 2. gradient_j = e_j Ω/S − ω_j; of k, whose difference would cancel, (O e_k − ω_k R) / S.
// 3. One label y of weight w: loss = w·(m − z_y + log1p(R / e_k)); gradient_j = w e_j / S, but of y −w R / S if it leads,
//    else w (e_y / S − 1). With label smoothing it is a distribution.
// 4. Focal, in double: φ(ℓ) = q^γ ℓ of ℓ = −log p and q = 1 − p, φ'(ℓ) = q^γ + γ ℓ p q^(γ−1), where q = 0 both are 0.
//    loss = Σ ω_j φ(ℓ_j). With u_j = ω_j φ'(ℓ_j): gradient_j = p_j Σ u − u_j; of k p_k Σ_{j≠k} u_j − u_k q_k.
// 5. Probabilities x, p = x / Σx in [ε, 1 − ε]: −log p_k = log1p(Σ_{j≠k} x_j / x_k) where p_k > 1/2. With the φ of (4)
//    (γ = 0: φ(ℓ) = ℓ) and u_j = ω_j φ'(ℓ_j), 0 where clipped: gradient_j = (Σ u − u_j / p_j) / Σx; of a p_k > 1/2
//    (Σ_{j≠k} u_j − u_k Σ_{j≠k} x_j / x_k) / Σx.
#pragma once
#include "row.h"

namespace lossbridge {
namespace LOSSBRIDGE_NS {

// Exponentials of a row over z, but of the class k that leads, whose place holds 0; and their sum.
template <class F> struct Exponentials {
  F m;
  int64_t k;
  double leader, others, total;
};
template <class F> static Exponentials<F> exponentials(F *z, int64_t m, const Peak<F> &p) {
  typedef Vector<F> V;
  const Unit<F> unit(p.value);
  z[p.place] = -INF<F>;
  Sum<F> s;
  each<F>(m, [&](int64_t j, int u) __attribute__((always_inline)) {
    V e = exp_in(unit, load<V>(z + j));
    store(z + j, e);
    s.part[u] += e;
  }, s);
  double leader = exp_of(unit, p.value), others = s.total();
  return {p.value, p.place, leader, others, others + leader};
}

// (3)
template <class F> static double softmax_label(Row<F> &r) {
  const int64_t y = r.label;
  const double w = r.per_class ? double(r.per_class[y]) : 1;
  const Peak<F> p = peak(r.x, r.m);
  if (!(std::fabs(p.value) < INF<F>)) return no_loss(r, NOT_A_NUMBER<double>);
  const F z = r.x[y];
  const Exponentials<F> e = exponentials(r.x, r.m, p);
  const bool leads = y == e.k;
  const double loss = log1p_of(e.others / e.leader) + (leads ? 0 : double(e.m) - double(z));
  if (r.gradient()) {
    const double f = r.factor * w, of_label = leads ? -e.others / e.total : double(r.x[y]) / e.total - 1;
    scale(r.x, r.m, f / e.total);
    r.x[e.k] = F(e.leader / e.total * f);
    r.x[y] = F(of_label * f);
  }
  return w == 0 ? 0 : w * loss;
}

// (1, 2), of a target that has been weighed.
template <class F> static double softmax_distribution(Row<F> &r) {
  typedef Vector<F> V;
  const Peak<F> p = peak(r.x, r.m);
  if (!(std::fabs(p.value) < INF<F>)) return no_loss(r, NOT_A_NUMBER<double>);
  const int64_t k = p.place;
  const Unit<F> unit(p.value);
  const double of_leader = r.t[k], leader = exp_of(unit, p.value);
  F *e = r.target_gradient() ? r.spare[0] : r.x;
  r.x[k] = -INF<F>;
  r.t[k] = 0;
  Sum<F> exps, costs, weights;
  each<F>(r.m, [&](int64_t j, int u) __attribute__((always_inline)) {
    V z = load<V>(r.x + j), w = load<V>(r.t + j), x = exp_in(unit, z);
    V cost = w * (set(p.value) - z);
    exps.part[u] += x;
    costs.part[u] += w == V{} ? w : cost;
    weights.part[u] += w;
    store(e + j, x);
  }, exps, costs, weights);
  const double R = exps.total(), S = R + leader, O = weights.total(), mass = O + of_leader;
  const double log_S = log1p_of(R / leader);
  const double loss = costs.total() + (mass == 0 ? 0 : mass * log_S);
  if (r.target_gradient()) {  // −log p_j, times what the class's weight ω is per target
    const double keep = r.factor * (1 - r.call.label_smoothing);
    const V top = set(p.value), rest = set(F(log_S));
    if (r.gradient()) scale(e, r.m, r.factor * mass / S, r.t, -r.factor);
    for (int64_t j = 0; j < r.m; j += WIDTH<F>) {
      V w = load<V>(r.t + j), cost = (top - load<V>(r.x + j)) + rest;
      cost = (w == V{} && cost == set(INF<F>)) ? V{} : cost;
      V per_class = r.per_class ? load<V>(r.per_class + j) : set(F(1));
      store(r.t + j, per_class * (cost * set(F(keep))));
    }
    r.t[k] = F((r.per_class ? double(r.per_class[k]) : 1) * (log_S * keep));
    if (r.gradient()) memcpy(r.x, e, size_t(r.m) * sizeof(F));
  } else if (r.gradient()) {
    scale(r.x, r.m, r.factor * mass / S, r.t, -r.factor);
  }
  if (r.gradient()) r.x[k] = F((O * leader - of_leader * R) / S * r.factor);
  return loss;
}

// φ(ℓ) and φ'(ℓ) of p and q = 1 − p (4).
struct Focal {
  Power power;
  explicit Focal(double gamma) : power(gamma) {}
  LOSSBRIDGE_METHOD void operator()(Doubles loss, Doubles p, Doubles q, Doubles &value, Doubles &derivative) const {
    value = loss;
    derivative = set(1.0);
    if (power.gamma == 0) return;
    const Doubles none{}, raised = power(q);
    Int64s certain = q == none;
    value = certain ? none : raised * loss;
    Doubles turn = set(power.gamma) * (raised / q) * (p == none ? none : p * loss);
    derivative = certain ? none : raised + turn;
  }
  void operator()(double loss, double p, double q, double &value, double &derivative) const {
    Doubles v, d;
    (*this)(set(loss), set(p), set(q), v, d);
    value = v[0];
    derivative = d[0];
  }
};

// (4), of a target that has been weighed.
static double softmax_focal(Row<double> &r) {
  const Peak<double> p = peak(r.x, r.m);
  if (!(std::fabs(p.value) < INF<double>)) return no_loss(r, NOT_A_NUMBER<double>);
  const Focal focal(r.call.gamma);
  const int64_t k = p.place;
  const double weight_k = r.t[k];
  memcpy(r.spare[0], r.x, size_t(r.m) * sizeof(double));
  const Exponentials<double> e = exponentials(r.x, r.m, p);
  const double log_S = log1p_of(e.others / e.leader), p_k = e.leader / e.total, q_k = e.others / e.total;
  r.t[k] = 0;
  Sum<double> values, slopes;
  each<double>(r.m, [&](int64_t j, int u) __attribute__((always_inline)) {
    Doubles w = load<Doubles>(r.t + j), share = load<Doubles>(r.x + j) / set(e.total), value, derivative;
    focal(set(p.value) - load<Doubles>(r.spare[0] + j) + set(log_S), share, set(1.0) - share, value, derivative);
    Doubles slope = w == Doubles{} ? w : w * derivative;
    values.part[u] += w == Doubles{} ? w : w * value;
    slopes.part[u] += slope;
    store(r.x + j, share);
    store(r.t + j, slope);
  }, values, slopes);
  double value, derivative;
  focal(log_S, p_k, q_k, value, derivative);
  const double U = slopes.total(), u_k = weight_k * derivative;
  if (r.gradient()) {
    scale(r.x, r.m, (U + u_k) * r.factor, r.t, -r.factor);
    r.x[k] = (p_k * U - u_k * q_k) * r.factor;
  }
  return values.total() + (weight_k == 0 ? 0 : weight_k * value);
}

// The bounds of probabilities, as the dtype of the result has them.
struct Bounds {
  double low, high;
  template <class F> static Bounds of(double epsilon) { return {double(F(epsilon)), double(F(F(1) - F(epsilon)))}; }
};

// −log p of one probability between bounds, where p = x / (x + others); and whether it is inside.
static double clipped(double x, double others, double total, const Bounds &b, bool round, double &p, bool &inside) {
  p = x / total;
  const double seen = round ? double(float(p)) : p;
  inside = seen >= b.low && seen <= b.high;
  if (inside) return p > .5 ? log1p_of(others / x) : -log_of(p);
  p = seen < b.low ? b.low : seen > b.high ? b.high : NOT_A_NUMBER<double>;
  return -log_of(p);
}

// (5) of one label.
static double probability_of_label(Row<double> &r, const Bounds &bounds, bool round) {
  const int64_t y = r.label;
  const double w = r.per_class ? r.per_class[y] : 1, x = r.x[y];
  for (int64_t j = r.n; j < r.m; j++) r.x[j] = 0;
  r.x[y] = 0;
  const double others = sum(r.x, r.m), total = others + x;
  double p;
  bool inside;
  const double loss = clipped(x, others, total, bounds, round, p, inside);
  if (r.gradient()) {
    const bool moves = inside && w != 0;
    fill(r.x, r.m, p != p ? p : moves ? w * r.factor / total : 0);
    r.x[y] = p != p ? p : moves ? -(others / x) / total * w * r.factor : 0;
  }
  return w == 0 && loss == INF<double> ? 0 : w * loss;
}

// (5), of a target that has been weighed.
static double probabilities(Row<double> &r, const Bounds &bounds, bool round) {
  const Focal focal(r.call.rule == Rule::PROBABILITIES_FOCAL ? r.call.gamma : 0);
  for (int64_t j = r.n; j < r.m; j++) r.x[j] = 0;
  const Peak<double> peaked = peak(r.x, r.m);
  if (peaked.value != peaked.value) return no_loss(r, peaked.value);
  const int64_t k = peaked.place;
  const double x_k = r.x[k], weight_k = r.t[k];
  r.x[k] = 0;
  r.t[k] = 0;
  const double others = sum(r.x, r.m), total = others + x_k;
  const Doubles low = set(bounds.low), high = set(bounds.high), none{};
  Sum<double> values, slopes;
  each<double>(r.m, [&](int64_t j, int u) __attribute__((always_inline)) {
    Doubles w = load<Doubles>(r.t + j), p = load<Doubles>(r.x + j) / set(total), seen = p;
    if (round) seen = rounded_to_float(p);
    Int64s below = seen < low, above = seen > high, ignored = w == none;
    Doubles q = below ? low : above ? high : p, value, derivative;
    q = ignored ? set(1.0) : q;
    focal(none - log<double>(q), q, set(1.0) - q, value, derivative);
    values.part[u] += ignored ? none : w * value;
    Doubles slope = (ignored | below | above) != Int64s{} ? none : w * derivative;
    slopes.part[u] += slope;
    store(r.x + j, slope == none ? none : slope / p);
  }, values, slopes);
  double p, value, derivative;
  bool inside;
  const double loss = clipped(x_k, others, total, bounds, round, p, inside);
  const bool confident = inside && p > .5;
  focal(loss, p, confident ? others / total : 1 - p, value, derivative);
  const double U = slopes.total(), u_k = inside && weight_k != 0 ? weight_k * derivative : 0;
  if (r.gradient()) {
    const double f = r.factor / total;
    for (int64_t j = 0; j < r.m; j++) r.x[j] = ((U + u_k) - r.x[j]) * f;
    r.x[k] = (U - (u_k == 0 ? 0 : confident ? u_k * (others / x_k) : u_k / p - u_k)) * f;
  }
  return values.total() + (weight_k == 0 ? 0 : weight_k * value);
}

}  // namespace LOSSBRIDGE_NS
}  // namespace lossbridge
