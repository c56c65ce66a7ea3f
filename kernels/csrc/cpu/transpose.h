// Transposes a square block of a matrix in registers: one vector per row.
#pragma once

#include <utility>

#include "vector.h"

namespace fastrnn::FASTRNN_LEVEL {

// Element j of the result is element I[j] of a and b, one behind the other.
template <class V, int... I>
FASTRNN_INLINE V shuffle(V a, V b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  using Mask = std::conditional_t<sizeof(a[0]) == sizeof(double), VecL, VecI>;
  return __builtin_shuffle(a, b, Mask{I...});
#endif
}

// A step that exchanges elements of the rows i and i + kDistance. Together the two results have all
// elements of both rows. Elements move within 16 bytes while kDistance is below that, as the
// instructions of every level do fastest, and then in blocks of 16 bytes.
template <class C, int kDistance, bool kSecond>
constexpr int exchanged(int j) {
  constexpr int group = 16 / int(sizeof(C)), lanes = kLanes<C>;
  if (kDistance < group) {  // interleaves units of kDistance elements of one half of each group
    const int begin = j / group * group + (kSecond ? group / 2 : 0), unit = j % group / kDistance;
    return begin + unit / 2 * kDistance + j % kDistance + (unit % 2 ? lanes : 0);
  }
  const bool upper = j & kDistance;
  return upper == kSecond ? j + (upper ? lanes : 0)
         : kSecond        ? j + kDistance
                          : j + lanes - kDistance;
}

template <class C, int kDistance, bool kSecond, int... J>
FASTRNN_INLINE Vec<C> exchange(Vec<C> a, Vec<C> b, std::integer_sequence<int, J...>) {
  return shuffle(a, b, std::integer_sequence<int, exchanged<C, kDistance, kSecond>(J)...>{});
}

// Transposes the block with row i in row[i]. Column column_in<C>(i) is then in row[i].
template <class C, int kDistance = 1>
FASTRNN_INLINE void transpose(Vec<C> (&row)[kLanes<C>]) {
  if constexpr (kDistance < kLanes<C>) {
    using All = std::make_integer_sequence<int, kLanes<C>>;
    for (int i = 0; i < kLanes<C>; ++i) {
      if (i & kDistance) continue;
      const Vec<C> a = row[i], b = row[i + kDistance];
      row[i] = exchange<C, kDistance, false>(a, b, All{});
      row[i + kDistance] = exchange<C, kDistance, true>(a, b, All{});
    }
    transpose<C, 2 * kDistance>(row);
  }
}
template <class C>
constexpr int column_in(int i) {  // reverses the bits of i that count within 16 bytes
  constexpr int group = 16 / int(sizeof(C));
  int column = i / group * group;
  for (int bit = 1, mirror = group / 2; bit < group; bit *= 2, mirror /= 2)
    if (i & bit) column += mirror;
  return column;
}

}  // namespace fastrnn::FASTRNN_LEVEL
