// Rows of the divergence family. `f(δ) = δ + e^(−δ) − 1` is that of lossbridge/maths/divergence.py (1).
//
// Of logits z (target) and x, t = softmax(z/T), p = softmax(x/T), with the leading class k of z:
//
// 1. a_j = (z_j − x_j) − (z_k − x_k), each difference with its rounding error, so that a is right to the last bit and a_k
//    is 0. δ_j = log(t_j/p_j) = a_j/T − c, where c = log Σ e^((z − z_k)/T) − log Σ e^((x − x_k)/T).
// 2. c has the rounding errors of two sums of exponentials. Where the divergence is small they would be all that is left.
//    But for any centre b, F(b) = Σ t f(a/T − b) = e^(b − c) − 1 + μ − b with μ = Σ t a/T: a sum of terms ≥ 0. At b = μ,
//    F = e^KL − 1, and its derivative by b is F itself: the rounding of μ does not count. So KL = log1p(F(μ)).
// 3. A term is t f(δ) by the series of f where |δ| < 1, else t δ + (p e^(b − c) − t). Where KL, which is about μ − c, is
//    above 1/4, b = c does as well, KL = F(c), and no exponential overflows.
// 4. gradient = T (p − t). With h = t (f(δ) − δ), or p e^(b − c) − t: p − t = (h − F t) / (1 + F) for b = μ, h for b = c.
//    For the target T t (a/T − μ). KL is multiplied by T².
//
// Of probabilities, in double, t and p clipped to [ε, 1]:
//
// 5. Σ t log(t/p). Where p lies between t/2 and 2 t, δ = −log1p((p − t)/t) and t log(t/p) = t f(δ) + (t − p), whose
//    difference is exact. gradient = −t/p, for the target log(t/p) + 1; 0 where clipped, and where t = 0.
#pragma once
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

static double exp_small(double x) { return exp_of(Unit<double>(0), x) * 0x1p-500; }

// a − b = high + low, exactly.
template <class V> struct Difference {
  V high, low;
};
template <class V> LOSSBRIDGE_INLINE Difference<V> difference(V a, V b) {
  V d = a - b, back = d - a;
  return {d, (a - (d - back)) - (b + back)};
}

// x/T = high + low.
template <class F> struct Temperature {
  double T;
  F inverse, inverse_low;  // 1/T is their sum
  explicit Temperature(double t) : T(t), inverse(F(1 / t)), inverse_low(F(std::fma(-double(inverse), t, 1.0) / t)) {}
  LOSSBRIDGE_METHOD Difference<Vector<F>> operator()(Vector<F> x) const {
    if (T == 1) return {x, Vector<F>{}};
    Vector<F> q = x * set(inverse);
    return {q, fma(x, set(inverse_low), fma(x, set(inverse), Vector<F>{} - q))};
  }
};

// The logarithm of a unit, less z/T, which may cancel.
template <class F> static double less(const Unit<F> &unit, F z, double T) {
  typedef Numbers<double> N;
  const double q = double(z) / T, low = std::fma(-q, T, double(z)) / T;
  return std::fma(unit.exponent, N::LN2_HIGH, double(unit.shift) - q) + std::fma(unit.exponent, N::LN2_LOW, -low);
}

// (1) to (4)
template <class F> static double divergence_logits(Row<F> &r) {
  typedef Vector<F> V;
  const Temperature<F> over(r.call.temperature);
  const double T = over.T;
  const Peak<F> top_z = peak(r.t, r.m), top_x = peak(r.x, r.m);
  if (!(std::fabs(top_z.value) < INF<F>) || !(std::fabs(top_x.value) < INF<F>))
    return no_loss(r, NOT_A_NUMBER<double>);
  const Unit<F> unit_z(F(double(top_z.value) / T)), unit_x(F(double(top_x.value) / T));
  const F z_k = top_z.value, x_k = r.x[top_z.place];
  const Difference<F> offset = x_k == -INF<F> ? Difference<F>{0, 0} : difference(z_k, x_k);
  const V offset_high = set(offset.high), offset_low = set(offset.low), none{};
  // a less a centre (1). Infinite or NaN where a logit is −∞.
  auto differences = [&](int64_t j, V high, V low) __attribute__((always_inline)) {
    Difference<V> d = difference(load<V>(r.t + j), load<V>(r.x + j)), a = difference(d.high, offset_high);
    Difference<V> b = difference(a.high, high);
    return b.high + (b.low + (a.low + ((d.low - offset_low) - low)));
  };

  F *const e_z = r.spare[0], *const e_x = r.spare[1];
  Sum<F> sum_z, sum_x, sum_a;
  each<F>(r.m, [&](int64_t j, int u) __attribute__((always_inline)) {
    Difference<V> z = over(load<V>(r.t + j)), x = over(load<V>(r.x + j));
    V of_z = exp_in(unit_z, z.high, z.low), of_x = exp_in(unit_x, x.high, x.low);
    V a = of_z * differences(j, none, none);
    sum_z.part[u] += of_z;
    sum_x.part[u] += of_x;
    sum_a.part[u] += of_z == none ? none : a;
    store(e_z + j, of_z);
    store(e_x + j, of_x);
  }, sum_z, sum_x, sum_a);
  const double total_z = sum_z.total(), total_x = sum_x.total();
  const double mean = sum_a.total() / total_z;  // μ T
  const double up = sizeof(F) == 4 ? 0x1p-60 : 0x1p-500;  // of all exponentials: it would cancel
  const double c = (log_of(total_z * up) + less(unit_z, z_k, T)) - (log_of(total_x * up) + less(unit_x, x_k, T)), rough = mean / T - c;
  const bool small = rough < 0.25, finite = rough < INF<double>;
  const double centre = small ? mean : c * T, grown = small ? exp_small(rough) : 1;

  const V high = set(F(centre)), low = set(F(centre - double(F(centre))));
  const V share_z = set(F(1 / total_z)), share_x = set(F(grown / total_x)), inverse = set(over.inverse);
  Sum<F> terms;
  each<F>(r.m, [&](int64_t j, int u) __attribute__((always_inline)) {
    V t = load<V>(e_z + j) * share_z, p = load<V>(e_x + j) * share_x;
    V d = differences(j, high, low) * inverse, first = t * d;
    auto near = (abs(d) < set(F(1))) & (t > none);
    V of_near = remainder_over_square(d) * d * first, gap = p - t;
    terms.part[u] += near ? of_near : t == none ? gap : first + gap;
    store(e_z + j, t);
    store(e_x + j, near ? of_near - first : gap);
  }, terms);
  const double F_of_centre = terms.total(), kl = small ? log1p_of(F_of_centre) : F_of_centre;
  if (r.target_gradient()) {
    const V middle = set(F(mean)), rest = set(F(mean - double(F(mean)))), f = set(F(r.factor));
    for (int64_t j = 0; j < r.m; j += WIDTH<F>) {
      V t = load<V>(e_z + j);
      store(r.t + j, t == none ? none : t * differences(j, middle, rest) * f);
    }
  }
  if (r.gradient()) {
    const double f = r.factor * T, by = small ? f / (1 + F_of_centre) : f;
    memcpy(r.x, e_x, size_t(r.m) * sizeof(F));
    scale(r.x, r.m, by, e_z, small ? -by * F_of_centre : 0);
  }
  return finite ? T * T * kl : rough;
}

// (5)
static double divergence_probabilities(Row<double> &r, double epsilon) {
  typedef Doubles V;
  const V low = set(epsilon), one = set(1.0), none{}, f = set(r.factor);
  for (int64_t j = r.n; j < r.m; j++) r.x[j] = r.t[j] = 1;  // log(1/1) = 0
  Sum<double> terms, gaps;
  each<double>(r.m, [&](int64_t j, int u) __attribute__((always_inline)) {
    V target = load<V>(r.t + j), pred = load<V>(r.x + j);
    V t = target < low ? low : target > one ? one : target, p = pred < low ? low : pred > one ? one : pred;
    V gap = p - t;
    Int64s nothing = t == none, near = (gap > set(-.5) * t) & (gap < t);
    V d = none - log1p<double>((near ? gap : none) / (near ? t : one));
    V far = log<double>((nothing ? one : t) / (nothing ? one : p));
    V ratio = near ? d : far;
    terms.part[u] += nothing ? none : t * (near ? remainder_over_square(d) * d * d : far);
    gaps.part[u] += near ? none - gap : none;
    Int64s stays_p = (pred < low) | (pred > one) | nothing, stays_t = (target < low) | (target > one) | nothing;
    store(r.x + j, p != p ? p : stays_p != Int64s{} ? none : none - t / p * f);
    store(r.t + j, t != t ? t : stays_t != Int64s{} ? none : (ratio + one) * f);
  }, terms, gaps);
  return terms.total() + gaps.total();
}

}  // namespace LOSSBRIDGE_NS
}  // namespace lossbridge
