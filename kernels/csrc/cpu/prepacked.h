// Weights that are packed once for many calls, and what says to which layer they belong.
#pragma once

#include "levels.h"

namespace fastrnn {

// Stands in front of prepacked weights. Memory that is something else is refused, and so are
// weights of another process.
struct alignas(64) PrepackedHeader {
  static constexpr uint64_t kMagic = 0x3170726e72747366;

  uint64_t magic;
  const Level *level;  // whose kernels read them
  int32_t cell, dtype;
  int64_t input_size, hidden_size;

  PrepackedHeader(const Level &of, const fastrnn_problem &p)
      : magic(kMagic), level(&of), cell(p.cell), dtype(p.dtype), input_size(p.input_size),
        hidden_size(p.hidden_size) {}

  // The level if these are weights of the problem's layer, or null.
  const Level *level_for(const fastrnn_problem &p) const {
    const bool fits = magic == kMagic && cell == p.cell && dtype == p.dtype &&
                      input_size == p.input_size && hidden_size == p.hidden_size;
    for (const LevelEntry &entry : kLevels)
      if (fits && entry.level == level) return level;
    return nullptr;
  }
};

inline size_t prepacked_bytes(const fastrnn_problem &p) {
  return sizeof(PrepackedHeader) +
         current_level().kernel(p.cell, p.dtype).prepack(p, nullptr, nullptr);
}

inline void prepack(const fastrnn_problem &p, const fastrnn_forward_arrays &a, char *to) {
  const Level &level = current_level();
  level.kernel(p.cell, p.dtype).prepack(p, &a, to + sizeof(PrepackedHeader));
  const PrepackedHeader header(level, p);
  memcpy(to, &header, sizeof header);
}

}  // namespace fastrnn
