// Rows in memory, of any dtype, as rows of float or double in scratch memory, and back. No arithmetic but rounding.
//
// A conversion is plain C++: it is exact or rounds once, and the compiler's vectors give the same bits. So do the
// processor's own instructions for float16, which take a third of the time, but of NaN; and a NaN is stored as one.
#pragma once
#include <algorithm>
#include <type_traits>

#include "units.h"
#include "vectors.h"

namespace lossbridge {
namespace LOSSBRIDGE_NS {

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

LOSSBRIDGE_INLINE float widened(float x) { return x; }
LOSSBRIDGE_INLINE double widened(double x) { return x; }
LOSSBRIDGE_INLINE float widened(Bfloat16 x) { return bits<float>(uint32_t(x.bits) << 16); }
LOSSBRIDGE_INLINE float widened(Float16 x) {
  uint32_t h = x.bits;
  float magnitude = bits<float>((h & 0x7fff) << 13) * 0x1p112f;  // exact, subnormal numbers too
  uint32_t u = bits<uint32_t>(magnitude) | ((h & 0x7c00) == 0x7c00 ? 0x7f800000 : 0);  // ∞ and NaN
  return bits<float>(u | (h & 0x8000) << 16);
}

// To the nearest, ties to even.
LOSSBRIDGE_INLINE void narrow(float x, float *p) { *p = x; }
LOSSBRIDGE_INLINE void narrow(double x, double *p) { *p = x; }
LOSSBRIDGE_INLINE void narrow(double x, float *p) { *p = float(x); }
LOSSBRIDGE_INLINE void narrow(float x, Bfloat16 *p) {
  uint32_t u = bits<uint32_t>(x), rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
  p->bits = uint16_t((u & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}
LOSSBRIDGE_INLINE void narrow(float x, Float16 *p) {
  uint32_t u = bits<uint32_t>(x), a = u & 0x7fffffff;
  uint32_t normal = (a + 0xc8000fff + (a >> 13 & 1)) >> 13;                    // another bias; half a unit
  uint32_t subnormal = bits<uint32_t>(bits<float>(a) + 0.5f) - 0x3f000000;  // the sum rounds as is wanted
  uint32_t h = a < 0x38800000 ? subnormal : normal;
  h = a >= 0x477ff000 ? 0x7c00 : h;
  h = a > 0x7f800000 ? 0x7e00 : h;
  p->bits = uint16_t(h | (u >> 16 & 0x8000));
}
template <class Half> LOSSBRIDGE_INLINE void narrow(double x, Half *p) {  // once, by way of a float rounded to odd
  float f = float(x);
  uint32_t u = bits<uint32_t>(f);
  bool inexact = double(f) != x && x == x && (u & 1) == 0;
  u += !inexact ? 0 : (double(f) < x) == (x > 0) ? 1 : -1;
  narrow(bits<float>(u), p);
}

// How far rows lie apart in scratch memory. Half of LANES more than they need: rows of 1024 numbers would else share the
// first cache's few lines of one address, and be fetched anew four times.
constexpr int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES + LANES / 2; }

// A row. Functions of their own: inlined among other loops, GCC uses no vectors.
template <class T, class F> LOSSBRIDGE_NOINLINE void load_row(const T *__restrict p, int64_t n, F *__restrict x) {
  for (int64_t j = 0; j < n; j++) x[j] = F(widened(p[j]));
}
template <class T, class F> LOSSBRIDGE_NOINLINE void store_row(const F *__restrict x, int64_t n, T *__restrict p) {
  for (int64_t j = 0; j < n; j++) narrow(x[j], &p[j]);
}

#if defined(__F16C__)
LOSSBRIDGE_NOINLINE void load_row(const Float16 *__restrict p, int64_t n, float *__restrict x) {
  int64_t j = 0;
  for (; j + 8 <= n; j += 8) _mm256_storeu_ps(x + j, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + j))));
  for (; j < n; j++) x[j] = widened(p[j]);
}
LOSSBRIDGE_NOINLINE void store_row(const float *__restrict x, int64_t n, Float16 *__restrict p) {
  const __m256 sign = _mm256_set1_ps(-0.0f), quiet = _mm256_set1_ps(NOT_A_NUMBER<float>);
  int64_t j = 0;
  for (; j + 8 <= n; j += 8) {
    const __m256 v = _mm256_loadu_ps(x + j), nan = _mm256_or_ps(_mm256_and_ps(v, sign), quiet);
    const __m256 found = _mm256_blendv_ps(v, nan, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    _mm_storeu_si128((__m128i *)(p + j), _mm256_cvtps_ph(found, _MM_FROUND_TO_NEAREST_INT));
  }
  for (; j < n; j++) narrow(x[j], &p[j]);
}
#endif

// from[i·apart + j] to to[j·further + i], for i < ROWS and j < COLUMNS, both at most 4.
template <int ROWS, int COLUMNS, class F>
LOSSBRIDGE_INLINE void transpose_square(const F *from, int64_t apart, F *to, int64_t further) {
  typedef F Four __attribute__((vector_size(4 * sizeof(F))));
  Four row[4]{};
  for (int i = 0; i < ROWS; i++) {
    const F *p = from + i * apart;
    if (COLUMNS == 4)
      memcpy(&row[i], p, sizeof(Four));
    else  // as one value: numbers written one by one, and read as a vector, would wait for each other
      row[i] = Four{p[0], COLUMNS > 1 ? p[1] : 0, COLUMNS > 2 ? p[2] : 0, 0};
  }
  const Four a = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5), b = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7);
  const Four c = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5), d = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
  row[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5), row[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
  row[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5), row[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
  for (int j = 0; j < COLUMNS; j++)
    if (ROWS == 4)
      memcpy(to + j * further, &row[j], sizeof(Four));
    else
      memcpy(to + j * further, &row[j], ROWS * sizeof(F));
}
// body(i, size), for 0, 4, 8, … below n; `size` is a constant, 4 or what is left.
template <class Body> LOSSBRIDGE_INLINE void in_fours(int64_t n, const Body &body) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) body(i, std::integral_constant<int, 4>{});
  switch (n - i) {
    case 1: return body(i, std::integral_constant<int, 1>{});
    case 2: return body(i, std::integral_constant<int, 2>{});
    case 3: return body(i, std::integral_constant<int, 3>{});
  }
}
// The same, for any number of rows and columns. The longer way is gone once, so that few cache lines are in use.
template <class F>
LOSSBRIDGE_NOINLINE void transpose(const F *from, int64_t apart, int64_t rows, int64_t columns, F *to, int64_t further) {
  auto square = [&](int64_t i, auto height, int64_t j, auto width) __attribute__((always_inline)) {
    transpose_square<height(), width()>(from + i * apart + j, apart, to + j * further + i, further);
  };
  if (rows > columns)
    in_fours(rows, [&](int64_t i, auto height) __attribute__((always_inline)) {
      in_fours(columns, [&](int64_t j, auto width) __attribute__((always_inline)) { square(i, height, j, width); });
    });
  else
    in_fours(columns, [&](int64_t j, auto width) __attribute__((always_inline)) {
      in_fours(rows, [&](int64_t i, auto height) __attribute__((always_inline)) { square(i, height, j, width); });
    });
}

// `count` rows of n numbers. In memory neighbours in a row lie `stride` apart, and rows 1, or n where the stride is 1. Row
// i lies at x + i·padded(n). Numbers of another type are converted along memory, BLOCK of each row at a time.
constexpr int64_t BLOCK = 16;
template <class T, class F> static void load_rows(const T *p, int64_t count, int64_t n, int64_t stride, F *x) {
  const int64_t m = padded(n);
  if (stride == 1) {
    for (int64_t i = 0; i < count; i++) load_row(p + i * n, n, x + i * m);
  } else if constexpr (std::is_same<T, F>::value) {
    transpose(p, stride, n, count, x, m);
  } else {
    F block[BLOCK * TILE];
    for (int64_t j = 0; j < n; j += BLOCK) {
      const int64_t length = std::min(BLOCK, n - j);
      if (count == stride)  // all that lies there
        load_row(p + j * stride, length * count, block);
      else
        for (int64_t k = 0; k < length; k++) load_row(p + (j + k) * stride, count, block + k * count);
      transpose(block, count, length, count, x + j, m);
    }
  }
}
template <class T, class F> static void store_rows(const F *x, int64_t count, int64_t n, int64_t stride, T *p) {
  const int64_t m = padded(n);
  if (stride == 1) {
    for (int64_t i = 0; i < count; i++) store_row(x + i * m, n, p + i * n);
  } else if constexpr (std::is_same<T, F>::value) {
    transpose(x, m, count, n, p, stride);
  } else {
    F block[BLOCK * TILE];
    for (int64_t j = 0; j < n; j += BLOCK) {
      const int64_t length = std::min(BLOCK, n - j);
      transpose(x + j, m, count, length, block, count);
      if (count == stride)
        store_row(block, length * count, p + j * stride);
      else
        for (int64_t k = 0; k < length; k++) store_row(block + k * count, count, p + (j + k) * stride);
    }
  }
}

}  // namespace LOSSBRIDGE_NS
}  // namespace lossbridge
