// Rows of the divergence family. `f(δ) = δ + e^(−δ) − 1` is that of lossbridge/maths/divergence.py (1).
//
// Of logits z (target) and x, t = softmax(z/T), p = softmax(x/T), with the leading class k of z:
//
// 1. a_j = (z_j − x_j) − (z_k − x_k), both differences with their rounding errors, so that a is right to the last bit and
//    a_k is 0. δ_j = log(t_j/p_j) = a_j/T − c, where c = log Σ e^((z − z_k)/T) − log Σ e^((x − x_k)/T).
// 2. c has the rounding errors of two sums of exponentials. Where the divergence is small they would be all that is left.
//    But for any centre b, F(b) = Σ t f(a/T − b) = e^(b − c) − 1 + μ − b with μ = Σ t a/T: a sum of terms ≥ 0. At b = μ,
//    F = e^KL − 1, and its derivative by b is F itself: the rounding of μ does not count. So KL = log1p(F(μ)).
// 3. A term is t f(δ) by the series of f where |δ| < 1, else t δ + (p e^(b − c) − t). Where KL, which is about μ − c, is
//    above 1/4, b = c does as well, KL = F(c), and no exponential overflows; but δ has the rounding of c then. Where c is
//    large, or the logits far from 0, it is seen in t (f(δ) − δ), and p e^(b − c) − t is better.
// 4. gradient = T (p − t). With h = t (f(δ) − δ), or p e^(b − c) − t: p − t = (h − F t) / (1 + F) for b = μ, h for b = c.
//    For the target T t (a/T − μ). KL is multiplied by T².
//
// 5. The leading class is computed by itself, in double. Where t_k > 1/2 its p − t would cancel, and is minus the sum of the
//    others.
// 6. Exponentials of logits far from 0 are those of their distances from the maximum, which are exact where they count.
//
// Of probabilities, in double, t and p clipped to [ε, 1]:
//
// 7. Σ t log(t/p). Where p lies between t/2 and 2 t, δ = −log1p((p − t)/t) and t log(t/p) = t f(δ) + (t − p), whose
//    difference is exact. gradient = −t/p, for the target log(t/p) + 1; 0 where clipped, and where t = 0.
//
// Of probabilities in float, all of them in [0, 1], both multiplied with 2^80, so that none is subnormal:
//
// 8. KL = Σ t f(δ) + Σ (t − p) of all entries. The terms of the first sum are ≥ 0, the second is taken in double. With
//    s = (t − p)/(t + p), log(t/p) = 2 artanh s = 2 (s + s³ H(s²)), H(z) = 1/3 + z/5 + z²/7 + …. Where p lies between t/2
//    and 2 t, t − p is exact and t f(δ) = (t − p) s (1 + (1 + s) s H(s²)). Elsewhere s is that of t/2^e, which is near p,
//    δ = e log 2 + 2 artanh s, and t f(δ) = t δ − (t − p), of the same rounded difference as in the other sum.
// 9. Where the sums cancel by more than a quarter, the loss is that of (7). So is the gradient for the target, whose
//    log(t/p) + 1 cancels near t/p = 1/e, and all of a row with a number outside [0, 1].
#pragma once
#include <type_traits>

#include "softmax.h"

namespace lossbridge {
namespace LOSSBRIDGE_NS {

// f(d)/d² for |d| ≤ 1.
LOSSBRIDGE_INLINE Floats remainder_over_square(Floats d) {
  Floats q = fma(set(-0x1.7416fp-19f), d, set(0x1.a9622ap-16f));
  q = fma(q, d, set(-0x1.a028cap-13f));
  q = fma(q, d, set(0x1.6bffbp-10f));
  q = fma(q, d, set(-0x1.1110ep-7f));
  q = fma(q, d, set(0x1.55557ap-5f));
  q = fma(q, d, set(-0x1.555556p-3f));
  return fma(q, d, set(0.5f));
}
LOSSBRIDGE_INLINE Doubles remainder_over_square(Doubles d) {
  double factorial = 121645100408832000.0;  // 19!
  Doubles q = set(-1 / factorial);
  for (int n = 18; n >= 2; n--) {
    factorial /= n + 1;
    q = fma(q, d, set((n % 2 ? -1 : 1) / factorial));
  }
  return q;
}

static double exp_small(double x) { return exp_of(Unit<double>(), x) * 0x1p-500; }

// a − b = high + low, exactly.
template <class V> struct Difference {
  V high, low;
};
template <class V> LOSSBRIDGE_INLINE Difference<V> difference(V a, V b) {
  V d = a - b, back = d - a;
  return {d, (a - (d - back)) - (b + back)};
}

// The logits of a side; where they lie far from 0, their distances from the maximum, in `room` (6).
template <class F> struct NearZero {
  const F *logits;
  F subtracted;
  NearZero(const F *x, F top, double T, F *room, int64_t n) : logits(x), subtracted(0) {
    if (std::fabs(F(double(top) / T)) < Numbers<F>::FAR) return;
    logits = room, subtracted = top;
    each<F, 1, 1>(n, -1, {{x}, {0}, {room}},
                  [&](auto &in, auto &out, int) __attribute__((always_inline)) { out[0] = in[0] - set(top); });
  }
};

// Division by the temperature.
template <class F> struct Temperature {
  double T;
  F inverse, inverse_low;  // 1/T is their sum
  explicit Temperature(double t) : T(t), inverse(F(1 / t)), inverse_low(F(std::fma(-double(inverse), t, 1.0) / t)) {}
  template <class V> LOSSBRIDGE_METHOD V exponential(const Unit<F> &unit, V z) const {
    if (T == 1) return exp_in(unit, z);
    const V q = z * set(inverse);
    return exp_in(unit, q, fma(z, set(inverse_low), fma(z, set(inverse), V{} - q)));
  }
};

// The logarithm of a row's unit, less z/T, which may cancel.
template <class F> static double less(const Unit<F> &unit, double z, double T) {
  typedef Numbers<double> N;
  const double q = z / T, low = std::fma(-q, T, z) / T;
  return std::fma(unit.exponent, N::LN2_HIGH, -q) + std::fma(unit.exponent, N::LN2_LOW, -low);
}

// z − x less a number in two parts. Infinite or NaN where a logit is −∞.
template <class V> LOSSBRIDGE_INLINE V difference_less(V z, V x, Difference<V> number) {
  const Difference<V> d = difference(z, x);
  return (d.high - number.high) + (d.low - number.low);
}
// The same less the centre, in two parts too.
template <class V> LOSSBRIDGE_INLINE V difference_less(V z, V x, Difference<V> number, Difference<V> centre) {
  const Difference<V> d = difference(z, x), a = difference(d.high, number.high);
  return (a.high - centre.high) + ((a.low + (d.low - number.low)) - centre.low);
}
template <class F> static Difference<Vector<F>> in_parts(double x) {
  const F high = F(x);
  return {set(high), set(F(x - double(high)))};
}

// The leading class, whose a is 0 (5).
struct Leader {
  double t, term, slope;
  bool leads;
  Leader(double t, double p, double d, double slopes_of_others) : t(t), leads(t > .5) {
    const double gap = p - t, of_near = t * (remainder_over_square(set(d))[0] * d * d);
    const bool near = std::fabs(d) < 1 && std::fabs(gap) < t * (2 * std::fabs(d) + .001);
    term = near ? of_near : t * d + gap;
    slope = leads ? -slopes_of_others : near ? of_near - t * d : gap;
  }
};

// (1) to (6)
template <class F> static double divergence_logits(Row<F> &r) {
  typedef Vector<F> V;
  const Temperature<F> over(r.call.temperature);
  const double T = over.T;
  const Peak<F> top_z = peak(r.target, r.n), top_x = peak(r.x, r.n);
  if (!top_z.finite() || !top_x.finite()) return no_loss(r, NOT_A_NUMBER<double>);
  // Where p_k is 0 the divergence is infinite, and any finite number will do for the gradient.
  const int64_t k = top_z.place;
  const F z_k = top_z.value, x_k = r.x[k] == -INF<F> ? z_k : r.x[k];
  F *const of_z = r.spare[0], *const of_x = r.spare[1];
  const NearZero<F> z(r.target, z_k, T, of_z, r.n), x(r.x, top_x.value, T, of_x, r.n);
  const Unit<F> unit_z(F(double(z_k - z.subtracted) / T)), unit_x(F(double(top_x.value - x.subtracted) / T));
  const Difference<F> apart = difference(z_k, x_k);
  const Difference<V> offset{set(apart.high), set(apart.low)};
  const double up = sizeof(F) == 4 ? 0x1p-60 : 0x1p-500;  // of all exponentials: in a difference of logarithms it cancels
  const V none{}, scaled = set(F(up));

  Sum<F> sum_z, sum_x, sum_a;
  each<F, 4, 2>(r.n, -1, {{r.target, r.x, z.logits, x.logits}, {-INF<F>, -INF<F>, -INF<F>, -INF<F>}, {of_z, of_x}},
                [&](auto &in, auto &out, int u) __attribute__((always_inline)) {
                  out[0] = over.exponential(unit_z, in[2]);
                  out[1] = over.exponential(unit_x, in[3]);
                  const V a = out[0] * (difference_less(in[0], in[1], offset) * scaled);
                  sum_z.part[u] += out[0];
                  sum_x.part[u] += out[1];
                  sum_a.part[u] += out[0] == none ? none : in[1] == set(-INF<F>) ? set(INF<F>) : a;
                },
                sum_z, sum_x, sum_a);
  const double total_z = sum_z.total(), total_x = sum_x.total();
  const double mean = sum_a.total() / (total_z * up);  // μ T
  const double log_z = log_of(total_z * up) + less(unit_z, double(z_k) - double(z.subtracted), T);
  const double log_x = log_of(total_x * up) + less(unit_x, double(x_k) - double(x.subtracted), T);
  const double c = log_z - log_x;
  const double rough = mean / T - c;
  const bool small = rough < 0.25;
  const double centre = small ? mean : c * T, grown = small ? exp_small(rough) : 1;

  const V share_z = set(F(1 / total_z)), share_x = set(F(grown / total_x)), inverse = set(over.inverse);
  F *const of_target = r.spare[2];  // until x and z have been read, over which gradients may go
  if (r.target_gradient) {
    const Difference<V> middle = in_parts<F>(mean);
    const V f = set(F(r.factor));
    each<F, 3, 1>(r.n, -1, {{r.target, r.x, of_z}, {0, 0, 0}, {of_target}},
                  [&](auto &in, auto &out, int) __attribute__((always_inline)) {
                    const V turned = in[2] * share_z * difference_less(in[0], in[1], offset, middle) * f;
                    out[0] = in[2] == none ? none : turned;
                  });
  }
  const Difference<V> middle = in_parts<F>(centre);
  const V by = set(F(small ? 1 : r.factor * T));
  const double e_z = of_z[k], leader_p = of_x[k] / total_x * grown;
  Sum<F> terms, slopes;
  const auto of_classes = [&](auto by_series) {
    each<F, 4, 1>(r.n, k, {{r.target, r.x, of_z, of_x}, {0, 0, 0, 0}, {r.gradient}},
                  [&](auto &in, auto &out, int u) __attribute__((always_inline)) {
                    const V t = in[2] * share_z, d = difference_less(in[0], in[1], offset, middle) * inverse;
                    const V p = in[3] * share_x, gap = p - t, first = t * d;
                    const V of_near = remainder_over_square(d) * d * first;
                    // Of logits so large that δ has no digits left, p − t tells that it is wrong.
                    const auto near = (abs(d) < set(F(1))) & (abs(gap) < t * fma(set(F(2)), abs(d), set(F(.001))));
                    terms.part[u] += near ? of_near : t == none ? gap : first + gap;
                    const V slope = by_series ? near ? of_near - first : gap : gap;
                    slopes.part[u] += slope;
                    out[0] = slope * by;
                  },
                  terms, slopes);
  };
  const bool is_far = z.subtracted != 0 || x.subtracted != 0;
  if (small || (!is_far && std::fabs(c) < (sizeof(F) == 4 ? 0x1p24 : 1)))
    of_classes(std::true_type());
  else
    of_classes(std::false_type());
  const Leader leader(e_z / total_z, leader_p, -centre / T, slopes.total());
  const double F_of_centre = terms.total() + leader.term, kl = small ? log1p_of(F_of_centre) : F_of_centre;
  if (r.target_gradient) {
    of_target[k] = F(-leader.t * mean * r.factor);
    memcpy(r.target_gradient, of_target, size_t(r.n) * sizeof(F));
  }
  if (r.gradient && small) {
    const double f = r.factor * T / (1 + F_of_centre);
    scale(r.gradient, f, of_z, -f * F_of_centre / total_z, r.gradient, r.n);
    r.gradient[k] = F(f * (leader.slope + F_of_centre * (leader.leads ? (total_z - e_z) / total_z : -leader.t)));
  } else if (r.gradient) {
    r.gradient[k] = F(r.factor * T * leader.slope);
  }
  return rough < INF<double> ? T * T * kl : rough;
}

// (7)
static double divergence_probabilities(Row<double> &r, double epsilon) {
  typedef Doubles V;
  const V low = set(epsilon), one = set(1.0), none{}, f = set(r.factor);
  const auto in_target = Domain<double>::fractions(r.call, r.call.target_dtype);
  const auto in_pred = Domain<double>::shares(r.call, r.call.dtype);
  Int64s some{};
  Sum<double> terms, gaps;
  each<double, 2, 2>(r.n, -1, {{r.target, r.x}, {0, 0}, {r.target_gradient, r.gradient}},
                     [&](auto &in, auto &out, int u) __attribute__((always_inline)) {
                       const V target = in_target(in[0]), pred = in_pred(in[1]);
                       some |= pred != none;
                       const V t = target < low ? low : target > one ? one : target;
                       const V p = pred < low ? low : pred > one ? one : pred, gap = p - t;
                       const Int64s nothing = t == none, near = (gap > set(-.5) * t) & (gap < t);
                       const V d = none - log1p<double>((near ? gap : none) / (near ? t : one));
                       const V far = log<double>((nothing ? one : t) / (nothing ? one : p)), ratio = near ? d : far;
                       terms.part[u] += nothing ? p - p : t * (near ? remainder_over_square(d) * d * d : far);
                       gaps.part[u] += near ? none - gap : none;
                       const Int64s fixed_t = (target < low) | (target > one) | nothing;
                       const Int64s fixed_p = (pred < low) | (pred > one) | nothing;
                       out[0] = t != t ? t : fixed_t != Int64s{} ? none : (ratio + one) * f;
                       out[1] = p != p ? p : fixed_p != Int64s{} ? none : none - t / p * f;
                     },
                     terms, gaps);
  if (r.call.domain && !any(some)) return no_loss(r, NOT_A_NUMBER<double>);
  return terms.total() + gaps.total();
}

// (9): the loss, and the gradient for the target, if wanted; that for the predictions goes to `gradient`.
static double divergence_in_double(Row<float> &r, double epsilon, float *gradient) {
  double *const x = (double *)r.spare[0], *const target = (double *)r.spare[2];  // two rows of float each
  load_row(r.x, r.n, x);
  load_row(r.target, r.n, target);
  Row<double> wide{r.call, r.n, x, target, gradient ? x : nullptr, r.target_gradient ? target : nullptr, {}, nullptr, 0,
                   r.factor};
  const double loss = divergence_probabilities(wide, epsilon);
  if (gradient) store_row(x, r.n, gradient);
  if (r.target_gradient) store_row(target, r.n, r.target_gradient);
  return loss;
}

// H(z) for z ≤ 1/9, to 2^-28 (8).
LOSSBRIDGE_INLINE Floats artanh_series(Floats z) {
  Floats q = fma(set(0x1.dba266p-4f), z, set(0x1.bc8cf8p-4f));
  q = fma(q, z, set(0x1.24c926p-3f));
  q = fma(q, z, set(0x1.9998d4p-3f));
  return fma(q, z, set(0x1.555556p-2f));
}

// (8)
static double divergence_probabilities(Row<float> &r, double epsilon) {
  typedef Floats V;
  typedef Numbers<float> N;
  constexpr float UP = 0x1p80f;
  const V none{}, up = set(UP), low = set(float(epsilon) * UP), f = set(float(r.factor));
  const Int32s one = bits<Int32s>(set(1.0f));
  const bool zeros = epsilon == 0, wanted = r.gradient;
  float *const gradient = r.gradient == r.x ? r.spare[4] : r.gradient;  // (9) reads x again
  Int32s outside{}, some{};
  Sum<float> terms, gaps;  // of the gaps only what is whole
  each<float, 2, 1>(r.n, -1, {{r.target, r.x}, {0, 0}, {gradient}},
                    [&](auto &in, auto &out, int u) __attribute__((always_inline)) {
                      const Int32s target_bits = bits<Int32s>(in[0]), pred_bits = bits<Int32s>(in[1]);
                      outside |= target_bits | (one - target_bits) | pred_bits | (one - pred_bits);  // by the sign
                      some |= pred_bits;
                      const V pred = in[1] * up, t = max(in[0] * up, low), p = max(pred, low), gap = t - p;
                      const Int32s near = (abs(gap) < t) & (abs(gap) < p);
                      Int32s e = (bits<Int32s>(t) - bits<Int32s>(p) + (1 << (N::MANTISSA - 1))) >> N::MANTISSA;
                      e = near ? Int32s{} : e;
                      const V a = bits<V>(bits<Int32s>(t) - (e << N::MANTISSA)), s = (a - p) / (a + p);
                      const V exponent = __builtin_convertvector(e, V), z = s * s, h = artanh_series(z), first = gap * s;
                      const V rest = fma(exponent, set(N::LN2_LOW), fma((s + s) * z, h, s + s));
                      const V far = fma(t, rest, fma(t, exponent * set(N::LN2_HIGH), none - gap));
                      V term = near ? fma(first, fma(s, s, s) * h, first) : far;
                      if (zeros) term = t == none ? p : p == none ? set(INF<float>) : term;
                      terms.part[u] += term;
                      for (int half = 0; half < 2; half++) gaps.whole[2 * u + half] += half_as_doubles(gap, half);
                      if (!wanted) return;
                      const V slope = none - t * f / p;
                      out[0] = pred < low ? none : slope;
                      if (zeros) out[0] = t == none ? none : slope;
                    },
                    terms);
  const double convex = terms.total(), both = convex + gaps.total();
  const bool in_double = any(outside < Int32s{}) || !any(some != Int32s{}), cancels = std::fabs(both) < .75 * convex;
  const bool overflows = !(std::fabs(r.factor) < 0x1p40 && (std::fabs(r.factor) > 0x1p-40 || r.factor == 0));
  double loss = both / double(UP);
  if (in_double || cancels || overflows || r.target_gradient) {
    const double exactly = divergence_in_double(r, epsilon, in_double || overflows ? r.gradient : nullptr);
    if (in_double || cancels) loss = exactly;
  }
  if (gradient != r.gradient && !in_double && !overflows) memcpy(r.gradient, gradient, size_t(r.n) * sizeof(float));
  return loss;
}

}  // namespace LOSSBRIDGE_NS
}  // namespace lossbridge
