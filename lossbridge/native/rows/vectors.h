// Vectors of float or double, as wide as the instruction set's registers.
//
// GCC's and Clang's vector types have + - * / < == ?: themselves; here is what they lack. Nothing here depends on the
// width, and a fused multiply-add is written where it is meant and nowhere else (-ffp-contract=off), so that all
// instruction sets compute the same bits.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define LOSSBRIDGE_INLINE static inline __attribute__((always_inline))
#define LOSSBRIDGE_NOINLINE static __attribute__((noinline))
#define LOSSBRIDGE_METHOD inline __attribute__((always_inline))

namespace lossbridge {
namespace LOSSBRIDGE_NS {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX2__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif

typedef float Floats __attribute__((vector_size(BYTES)));
typedef double Doubles __attribute__((vector_size(BYTES)));
typedef int32_t Int32s __attribute__((vector_size(BYTES)));
typedef int64_t Int64s __attribute__((vector_size(BYTES)));
typedef float HalfFloats __attribute__((vector_size(BYTES / 2)));  // as many as Doubles

// Of a number F: its vector, the vector of integers of its size, and how many a vector holds.
template <class F> struct Of;
template <> struct Of<float> {
  typedef Floats Vector;
  typedef Int32s Integers;
};
template <> struct Of<double> {
  typedef Doubles Vector;
  typedef Int64s Integers;
};
template <class F> using Vector = typename Of<F>::Vector;
template <class F> using Integers = typename Of<F>::Integers;
template <class F> constexpr int WIDTH = BYTES / int(sizeof(F));

// Rows are padded to a multiple of this, and sums have as many lanes, on every instruction set.
constexpr int LANES = 32;

template <class F> constexpr F INF = std::numeric_limits<F>::infinity();
template <class F> constexpr F NOT_A_NUMBER = std::numeric_limits<F>::quiet_NaN();

template <class F> LOSSBRIDGE_INLINE Vector<F> set(F x) { return x - Vector<F>{}; }  // −0 as well
template <class V, class F> LOSSBRIDGE_INLINE V load(const F *p) {
  V x;
  memcpy(&x, p, sizeof(V));
  return x;
}
template <class V, class F> LOSSBRIDGE_INLINE void store(F *p, V x) { memcpy(p, &x, sizeof(V)); }
template <class To, class From> LOSSBRIDGE_INLINE To bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "");
  To y;
  memcpy(&y, &x, sizeof(To));
  return y;
}

// 0, 1, 2, …
template <class F> LOSSBRIDGE_INLINE Integers<F> places() {
  Integers<F> i;
  for (int l = 0; l < WIDTH<F>; l++) i[l] = l;
  return i;
}
// The first `count` numbers at p, the others `fill`; and back. Only those are touched.
#if defined(__AVX512F__)
LOSSBRIDGE_INLINE unsigned first(int64_t count) { return count <= 0 ? 0 : count >= 16 ? 0xffff : (1u << count) - 1; }
LOSSBRIDGE_INLINE Floats load_some(const float *p, int64_t count, Floats fill) {
  return _mm512_mask_loadu_ps(fill, __mmask16(first(count)), p);
}
LOSSBRIDGE_INLINE Doubles load_some(const double *p, int64_t count, Doubles fill) {
  return _mm512_mask_loadu_pd(fill, __mmask8(first(count)), p);
}
LOSSBRIDGE_INLINE void store_some(float *p, int64_t count, Floats x) { _mm512_mask_storeu_ps(p, __mmask16(first(count)), x); }
LOSSBRIDGE_INLINE void store_some(double *p, int64_t count, Doubles x) { _mm512_mask_storeu_pd(p, __mmask8(first(count)), x); }
#else
template <class F, class V> LOSSBRIDGE_INLINE V load_some(const F *p, int64_t count, V fill) {
  for (int64_t l = 0; l < count && l < WIDTH<F>; l++) fill[l] = p[l];
  return fill;
}
template <class F, class V> LOSSBRIDGE_INLINE void store_some(F *p, int64_t count, V x) {
  for (int64_t l = 0; l < count && l < WIDTH<F>; l++) p[l] = x[l];
}
#endif

// Fused multiply-add a·b + c, rounded once.

#if defined(__AVX512F__)
LOSSBRIDGE_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
LOSSBRIDGE_INLINE Doubles fma(Doubles a, Doubles b, Doubles c) { return _mm512_fmadd_pd(a, b, c); }
#elif defined(__FMA__)
LOSSBRIDGE_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
LOSSBRIDGE_INLINE Doubles fma(Doubles a, Doubles b, Doubles c) { return _mm256_fmadd_pd(a, b, c); }
#elif defined(__aarch64__)
LOSSBRIDGE_INLINE Floats fma(Floats a, Floats b, Floats c) {
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
LOSSBRIDGE_INLINE Doubles fma(Doubles a, Doubles b, Doubles c) {
  return (Doubles)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
#else
// The product of two floats is exact in double. Their sum with c is rounded to odd, so that the second rounding, to
// float, is right: where the sum is inexact and its last bit 0, the neighbour towards the exact sum has a last bit 1.
LOSSBRIDGE_INLINE double sum_rounded_to_odd(double a, double b) {
  double s = a + b, v = s - a, error = (a - (s - v)) + (b - v);
  int64_t i = bits<int64_t>(s);
  if (error != 0 && (i & 1) == 0) i += (error > 0) == (s > 0) ? 1 : -1;
  return error == error ? bits<double>(i) : s;  // infinite or NaN
}
LOSSBRIDGE_INLINE Floats fma(Floats a, Floats b, Floats c) {
  for (int i = 0; i < WIDTH<float>; i++) c[i] = float(sum_rounded_to_odd(double(a[i]) * b[i], c[i]));
  return c;
}
LOSSBRIDGE_INLINE Doubles fma(Doubles a, Doubles b, Doubles c) {
  for (int i = 0; i < WIDTH<double>; i++) c[i] = std::fma(a[i], b[i], c[i]);
  return c;
}
#endif

template <class V> LOSSBRIDGE_INLINE V max(V a, V b) { return a > b ? a : b; }
LOSSBRIDGE_INLINE Floats abs(Floats x) { return bits<Floats>(bits<Int32s>(x) & INT32_MAX); }
LOSSBRIDGE_INLINE Doubles abs(Doubles x) { return bits<Doubles>(bits<Int64s>(x) & INT64_MAX); }
// The first half of the numbers as doubles, and the second.
LOSSBRIDGE_INLINE Doubles half_as_doubles(Floats x, int half) {
  HalfFloats halves[2];
  memcpy(halves, &x, BYTES);
#if defined(__AVX512F__)
  return _mm512_maskz_cvtps_pd(0xff, halves[half]);  // GCC 12 warns of the plain one
#else
  return __builtin_convertvector(halves[half], Doubles);
#endif
}
// Numbers of either kind as doubles, in one or two vectors, and back.
LOSSBRIDGE_INLINE Doubles as_doubles(Floats x, int half) { return half_as_doubles(x, half); }
LOSSBRIDGE_INLINE Doubles as_doubles(Doubles x, int) { return x; }
LOSSBRIDGE_INLINE void from_doubles(const Doubles *x, Doubles &to) { to = x[0]; }
LOSSBRIDGE_INLINE void from_doubles(const Doubles *x, Floats &to) {
  const HalfFloats halves[2] = {__builtin_convertvector(x[0], HalfFloats), __builtin_convertvector(x[1], HalfFloats)};
  memcpy(&to, halves, BYTES);
}
// Whether a comparison is true anywhere.
template <class M> LOSSBRIDGE_INLINE bool any(M mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi64_mask(bits<__m512i>(mask), bits<__m512i>(mask)) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256(bits<__m256i>(mask), bits<__m256i>(mask));
#elif defined(__x86_64__)
  return _mm_movemask_epi8(bits<__m128i>(mask)) != 0;
#else
  const Int64s words = bits<Int64s>(mask);
  return (words[0] | words[1]) != 0;
#endif
}

}  // namespace LOSSBRIDGE_NS
}  // namespace lossbridge
