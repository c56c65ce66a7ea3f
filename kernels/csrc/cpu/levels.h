// The instruction-set levels of this build, and the one in use.
#pragma once

#include <string.h>

#include "job.h"

namespace fastrnn {

namespace baseline {
extern const Level level;
}
namespace avx2 {
extern const Level level;
}
namespace avx512 {
extern const Level level;
}
namespace avx512_bf16 {
extern const Level level;
}

struct LevelEntry {
  const Level *level;
  bool (*supported)();
};

#if defined(FASTRNN_HAVE_AVX512)
inline bool supports_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// Best first.
inline const LevelEntry kLevels[] = {
#if defined(FASTRNN_HAVE_AVX512_BF16)
    {&avx512_bf16::level, [] { return supports_avx512() && __builtin_cpu_supports("avx512bf16"); }},
#endif
#if defined(FASTRNN_HAVE_AVX512)
    {&avx512::level, supports_avx512},
#endif
#if defined(FASTRNN_HAVE_AVX2)
    {&avx2::level, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {&baseline::level, [] { return true; }},
};

// The best supported level with this name, or with any name if it is null; null if there is none.
inline const Level *find_level(const char *name) {
  for (const LevelEntry &entry : kLevels)
    if (entry.supported() && (!name || strcmp(entry.level->name, name) == 0)) return entry.level;
  return nullptr;
}

inline const Level *selected_level = nullptr;  // null: not chosen yet

inline void select_level(const Level *level) {
  __atomic_store_n(&selected_level, level, __ATOMIC_RELAXED);
}

inline const Level &current_level() {
  const Level *level = __atomic_load_n(&selected_level, __ATOMIC_RELAXED);
  if (!level) select_level(level = find_level(nullptr));
  return *level;
}

}  // namespace fastrnn
