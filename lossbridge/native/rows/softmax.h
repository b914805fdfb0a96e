// Rows of the softmax family. The derivations are those of lossbridge/maths/softmax.py; here is what is done for digits
// and speed.
//
// Logits z with the maximum m at class k, e_j = exp(z_j) in the unit of m, R = Σ_{j≠k} e_j, S = R + e_k, weights ω with
// Ω = Σ ω and O = Σ_{j≠k} ω_j:
//
// 1. −log p_k = log1p(R / e_k); −log p_j = m − z_j + log1p(R / e_k). The loss Σ ω_j (−log p_j) has no other terms than
//    positive ones, and k is in neither sum.
// 2. gradient_j = e_j Ω/S − ω_j; of k, whose difference would cancel, (O e_k − ω_k R) / S.
// 3. One label y of weight w: loss = w·(m − z_y + log1p(R / e_k)); gradient_j = w e_j / S, but of y −w R / S if it leads,
//    else w (e_y / S − 1). With label smoothing it is a distribution.
// 4. Focal, in double: φ(ℓ) = q^γ ℓ of ℓ = −log p and q = 1 − p, φ'(ℓ) = q^γ + γ ℓ p q^(γ−1), where q = 0 both are 0.
//    loss = Σ ω_j φ(ℓ_j). With u_j = ω_j φ'(ℓ_j): gradient_j = p_j Σ u − u_j; of k p_k Σ_{j≠k} u_j − u_k q_k.
// 5. Probabilities x, p = x / Σx in [ε, 1 − ε]: −log p_k = log1p(Σ_{j≠k} x_j / x_k) where p_k > 1/2. With the φ of (4)
//    (γ = 0: φ(ℓ) = ℓ) and u_j = ω_j φ'(ℓ_j), 0 where clipped: gradient_j = (Σ u − u_j / p_j) / Σx; of a p_k > 1/2
//    (Σ_{j≠k} u_j − u_k Σ_{j≠k} x_j / x_k) / Σx.
// 6. z-loss, of (1) to (3): loss + ζ lse², lse = m + log1p(R / e_k); gradient_j + 2 ζ lse p_j.
// 7. Scaled and capped logits, of (1) to (3), x → z = a x, or c tanh(a x / c). With w = −2 |a x| / c and u = e^w,
//    |z| = c (1 − u) / (1 + u), dz/dx = a·4u / (1 + u)².
#pragma once
#include "row.h"

namespace lossbridge {
namespace LOSSBRIDGE_NS {

// (6) of a row with this lse.
template <class F> struct ZLoss {
  double loss, slope;  // slope: what p_j is multiplied by, times the row's factor
  ZLoss(const Row<F> &r, double lse) : loss(r.call.z_loss * lse * lse), slope(2 * r.call.z_loss * lse * r.factor) {}
};

// (3)
template <class F> static double softmax_label(Row<F> &r) {
  const Peak<F> p = peak(r.x, r.n);
  if (!p.finite()) return no_loss(r, NOT_A_NUMBER<double>);
  const int64_t k = p.place, y = r.label;
  const Unit<F> unit(p.value);
  const double w = r.per_class ? double(r.per_class[y]) : 1, z = r.x[y];
  Sum<F> s;
  each<F, 1, 1>(r.n, k, {{r.x}, {-INF<F>}, {r.gradient}}, [&](auto &in, auto &out, int u) __attribute__((always_inline)) {
    out[0] = exp_in(unit, in[0]);
    s.part[u] += out[0];
  }, s);
  const double leader = exp_of(unit, p.value), others = s.total(), total = others + leader;
  const double log_S = log1p_of(others / leader), loss = log_S + (y == k ? 0 : double(p.value) - z);
  const ZLoss<F> more(r, double(p.value) + log_S);
  if (r.gradient) {
    const double f = r.factor * w, p_k = leader / total, p_y = y == k ? p_k : double(r.gradient[y]) / total;
    const double of_label = y == k ? -others / total : p_y - 1;
    scale<F>(r.gradient, (f + more.slope) / total, nullptr, 0, r.gradient, r.n);
    r.gradient[k] = F(p_k * (f + more.slope));
    r.gradient[y] = F(of_label * f + p_y * more.slope);
  }
  return (w == 0 ? 0 : w * loss) + more.loss;
}

// Of weights that are the target itself. Of others `weigh` has seen to it.
template <class F> static Domain<F> domain_of_weights(const Row<F> &r, const F *weights) {
  return weights == r.target ? Domain<F>::fractions(r.call, r.call.target_dtype) : Domain<F>{};
}

// (1, 2), of the weights of the classes.
template <class F> static double softmax_distribution(Row<F> &r, const F *weights) {
  const Peak<F> p = peak(r.x, r.n);
  if (!p.finite()) return no_loss(r, NOT_A_NUMBER<double>);
  const int64_t k = p.place;
  const Unit<F> unit(p.value);
  const auto domain = domain_of_weights(r, weights);
  const double of_leader = domain(weights[k]);
  const auto top = set(p.value);
  F *const e = r.target_gradient ? r.spare[0] : r.gradient;
  Sum<F> exps, costs, masses;
  each<F, 2, 1>(r.n, k, {{r.x, weights}, {-INF<F>, 0}, {e}}, [&](auto &in, auto &out, int u) __attribute__((always_inline)) {
    const auto none = Vector<F>{}, weight = domain(in[1]), cost = weight * (top - in[0]);
    out[0] = exp_in(unit, in[0]);
    exps.part[u] += out[0];
    costs.part[u] += weight == none ? none : cost;
    masses.part[u] += weight;
  }, exps, costs, masses);
  const double leader = exp_of(unit, p.value), R = exps.total(), S = R + leader;
  const double O = masses.total(), mass = O + of_leader, log_S = log1p_of(R / leader);
  const ZLoss<F> more(r, double(p.value) + log_S);
  const double at_leader = (O * leader - of_leader * R) / S * r.factor + leader / S * more.slope;
  const double of_all = (r.factor * mass + more.slope) / S;
  if (r.target_gradient) {  // −log p_j, times ω's derivative by the target. Before the gradient, which may be over x.
    const auto rest = set(F(log_S)), keep = set(F(r.factor * (1 - r.call.label_smoothing))), infinite = set(INF<F>);
    if (r.gradient) scale(e, of_all, weights, -r.factor, r.spare[1], r.n);
    each<F, 3, 1>(r.n, k, {{r.x, weights, r.per_class}, {p.value, 0, 1}, {r.target_gradient}},
                  [&](auto &in, auto &out, int) __attribute__((always_inline)) {
                    auto cost = (top - in[0]) + rest;
                    cost = in[1] == Vector<F>{} && cost == infinite ? Vector<F>{} : cost;
                    out[0] = in[2] * (cost * keep);
                  });
    r.target_gradient[k] = F((r.per_class ? double(r.per_class[k]) : 1) * (log_S * double(keep[0])));
    if (r.gradient) memcpy(r.gradient, r.spare[1], size_t(r.n) * sizeof(F));
  } else if (r.gradient) {
    scale(e, of_all, weights, -r.factor, r.gradient, r.n);
  }
  if (r.gradient) r.gradient[k] = F(at_leader);
  return costs.total() + (mass == 0 ? 0 : mass * log_S) + more.loss;
}

// (7) of a vector: z, and dz/dx.
LOSSBRIDGE_INLINE void capped(Doubles x, double scale, double cap, Doubles &z, Doubles &slope) {
  Doubles u, rest;
  exp_and_complement(abs(x) * set(-2 * scale / cap), u, rest);
  const Doubles none{}, share = set(1.0) / (set(1.0) + u), size = rest * share * set(cap);
  z = x < none ? none - size : size;
  slope = set(4 * scale) * u * (share * share);
}

// (7) of a row: z and dz/dx in spare memory of the row.
template <class F> static void scaled(const Row<F> &r, F *z, F *slope) {
  const double a = r.call.logit_scale, cap = r.call.softcap;
  if (cap == 0) {
    each<F, 1, 1>(r.n, -1, {{r.x}, {0}, {z}}, [&](auto &in, auto &out, int) __attribute__((always_inline)) { out[0] = in[0] * set(F(a)); });
    return fill(slope, r.n, F(a));
  }
  each<F, 1, 2>(r.n, -1, {{r.x}, {0}, {z, slope}}, [&](auto &in, auto &out, int) __attribute__((always_inline)) {
    Doubles found[2], turn[2];
    constexpr int halves = sizeof(double) / sizeof(F);
    for (int h = 0; h < halves; h++) capped(as_doubles(in[0], h), a, cap, found[h], turn[h]);
    from_doubles(found, out[0]);
    from_doubles(turn, out[1]);
  });
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

// (4), of the weights of the classes.
static double softmax_focal(Row<double> &r, const double *weights) {
  const Peak<double> p = peak(r.x, r.n);
  if (!p.finite()) return no_loss(r, NOT_A_NUMBER<double>);
  const Focal focal(r.call.gamma);
  const int64_t k = p.place;
  const Unit<double> unit(p.value);
  const auto domain = domain_of_weights(r, weights);
  const double weight_k = domain(weights[k]);
  double *const shares = r.spare[0], *const turns = r.spare[1];
  Sum<double> exps, values, slopes;
  each<double, 1, 1>(r.n, k, {{r.x}, {-INF<double>}, {shares}}, [&](auto &in, auto &out, int u) __attribute__((always_inline)) {
    out[0] = exp_in(unit, in[0]);
    exps.part[u] += out[0];
  }, exps);
  const double leader = exp_of(unit, p.value), others = exps.total(), total = others + leader;
  const double log_S = log1p_of(others / leader), p_k = leader / total, q_k = others / total;
  each<double, 3, 2>(r.n, k, {{r.x, shares, weights}, {p.value, 0, 0}, {shares, turns}},
                     [&](auto &in, auto &out, int u) __attribute__((always_inline)) {
                       const Doubles none{}, share = in[1] / set(total), w = domain(in[2]);
                       Doubles value, derivative;
                       focal((set(p.value) - in[0]) + set(log_S), share, set(1.0) - share, value, derivative);
                       values.part[u] += w == none ? none : w * value;
                       out[0] = share;
                       out[1] = w == none ? none : w * derivative;
                       slopes.part[u] += out[1];
                     },
                     values, slopes);
  double value, derivative;
  focal(log_S, p_k, q_k, value, derivative);
  const double U = slopes.total(), u_k = weight_k * derivative;
  if (r.gradient) {
    scale(shares, (U + u_k) * r.factor, turns, -r.factor, r.gradient, r.n);
    r.gradient[k] = (p_k * U - u_k * q_k) * r.factor;
  }
  return values.total() + (weight_k == 0 ? 0 : weight_k * value);
}

// The bounds of probabilities, as the dtype of the result has them.
struct Bounds {
  double low, high;
  template <class F> static Bounds of(double epsilon) { return {double(F(epsilon)), double(F(F(1) - F(epsilon)))}; }
};

// −log p of one probability between bounds, where p = x / (x + others); and whether it is inside.
static double clipped(double x, double others, double total, const Bounds &b, double &p, bool &inside) {
  p = x / total;
  inside = p >= b.low && p <= b.high;
  if (inside) return p > .5 ? log1p_of(others / x) : -log_of(p);
  p = p < b.low ? b.low : p > b.high ? b.high : NOT_A_NUMBER<double>;
  return -log_of(p);
}

// (5) of one label.
static double probability_of_label(Row<double> &r, const Bounds &bounds) {
  const auto shares = Domain<double>::shares(r.call, r.call.dtype);
  const int64_t y = r.label;
  const double w = r.per_class ? r.per_class[y] : 1, x = shares(r.x[y]), others = shares.sum(r.x, r.n, y), total = others + x;
  double p;
  bool inside;
  const double loss = clipped(x, others, total, bounds, p, inside);
  if (r.gradient) {
    const bool moves = inside && w != 0;
    fill(r.gradient, r.n, p != p ? p : moves ? w * r.factor / total : 0);
    r.gradient[y] = p != p ? p : moves ? -(others / x) / total * w * r.factor : 0;
  }
  return w == 0 && loss == INF<double> ? 0 : w * loss;
}

// (5), of the weights of the classes.
static double probabilities(Row<double> &r, const double *weights, const Bounds &bounds) {
  const Focal focal(r.call.rule == Rule::PROBABILITIES_FOCAL ? r.call.gamma : 0);
  const Peak<double> peaked = peak(r.x, r.n);
  if (peaked.value != peaked.value) return no_loss(r, peaked.value);
  const int64_t k = peaked.place;
  const auto domain = domain_of_weights(r, weights);
  const auto shares = Domain<double>::shares(r.call, r.call.dtype);
  const double x_k = shares(r.x[k]), weight_k = domain(weights[k]), others = shares.sum(r.x, r.n, k), total = others + x_k;
  if (total != total || (r.call.domain && total == 0)) return no_loss(r, NOT_A_NUMBER<double>);
  const Doubles low = set(bounds.low), high = set(bounds.high), none{};
  double *const turns = r.spare[0];
  Sum<double> values, slopes;
  each<double, 2, 1>(r.n, k, {{r.x, weights}, {0, 0}, {turns}}, [&](auto &in, auto &out, int u) __attribute__((always_inline)) {
    const Doubles w = domain(in[1]), p = in[0] / set(total);
    const Int64s below = p < low, above = p > high, ignored = w == none;
    Doubles q = below ? low : above ? high : p, value, derivative;
    q = ignored ? set(1.0) : q;
    focal(none - log<double>(q), q, set(1.0) - q, value, derivative);
    values.part[u] += ignored ? none : w * value;
    const Doubles slope = (ignored | below | above) != Int64s{} ? none : w * derivative;
    slopes.part[u] += slope;
    out[0] = slope == none ? none : slope / p;
  }, values, slopes);
  double p, value, derivative;
  bool inside;
  const double loss = clipped(x_k, others, total, bounds, p, inside);
  const bool confident = inside && p > .5;
  focal(loss, p, confident ? others / total : 1 - p, value, derivative);
  const double U = slopes.total(), u_k = inside && weight_k != 0 ? weight_k * derivative : 0;
  if (r.gradient) {
    const double f = r.factor / total, of_k = u_k == 0 ? 0 : confident ? u_k * (others / x_k) : u_k / p - u_k;
    const Doubles all = set(U + u_k), by = set(f);
    each<double, 1, 1>(r.n, -1, {{turns}, {0}, {r.gradient}}, [&](auto &in, auto &out, int) __attribute__((always_inline)) {
      out[0] = (all - in[0]) * by;
    });
    r.gradient[k] = (U - of_k) * f;
  }
  return values.total() + (weight_k == 0 ? 0 : weight_k * value);
}

}  // namespace LOSSBRIDGE_NS
}  // namespace lossbridge
