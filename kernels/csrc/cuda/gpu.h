// The machine that the kernels run on: a GPU. It wraps PTX for which CUDA C++ has no intrinsics,
// and names the rest. The tests emulate a GPU through the same interface.
#pragma once

#include "numbers.h"

namespace fastrnn::cuda {

extern __shared__ __align__(16) char shared_memory[];

class Gpu {
 public:
  FASTRNN_INLINE int thread() const { return int(threadIdx.x); }
  FASTRNN_INLINE int64_t block() const { return int64_t(blockIdx.x); }
  FASTRNN_INLINE char *shared() const { return shared_memory; }
  FASTRNN_INLINE void sync() const { __syncthreads(); }
  FASTRNN_INLINE float shuffle_xor(float value, int mask) const {
    return __shfl_xor_sync(0xffffffffu, value, mask);
  }

  // --- memory

  // Loads data that nothing writes while the kernel runs.
  template <class T>
  FASTRNN_INLINE T load(const T *p) const {
    return cast_load<T, typename WordOf<sizeof(T)>::type>(p);
  }

  // Loads an element as the lower bits of a word: a conversion would wait for the load. The
  // compiler may execute what is not volatile before it knows whether the address is valid.
  FASTRNN_INLINE uint32_t load_element(const float *p) const {
    return load(reinterpret_cast<const uint32_t *>(p));
  }
  template <class S>
  FASTRNN_INLINE uint32_t load_element(const S *p) const {
    uint32_t word;
    asm volatile("ld.global.nc.u16 %0, [%1];" : "=r"(word) : "l"(p));
    return word;
  }

  // Loads a number, if it is needed, without a branch.
  FASTRNN_INLINE void load_if(bool needed, int32_t &number, const int32_t *p) const {
    asm volatile(
        "{.reg .pred needed; setp.ne.s32 needed, %1, 0; @needed ld.global.nc.s32 %0, [%2];}"
        : "+r"(number)
        : "r"(int(needed)), "l"(p));
  }

  // Loads data that other blocks have sent; bypasses the L1 cache.
  FASTRNN_INLINE Words load_sent(const void *p) const {
    const uint4 v = __ldcg(static_cast<const uint4 *>(p));
    return {{v.x, v.y, v.z, v.w}};
  }

  // --- the exchange within a cluster
  //
  // Values go to the shared memory of other blocks asynchronously. An mbarrier there counts their
  // bytes; they are visible to those who have waited for it, without a fence.

  // An address in this block's shared memory; plus peer(rank), the same place in another block's.
  FASTRNN_INLINE uint32_t place(const void *p) const {
    return uint32_t(__cvta_generic_to_shared(p));
  }
  FASTRNN_INLINE uint32_t peer(int rank) const {
    const uint32_t here = place(shared());
    uint32_t there = here;
#if __CUDA_ARCH__ >= 900
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(rank));
#endif
    return there - here;
  }

  // Sends a value to a place in a peer's shared memory, and its size to an mbarrier there.
  template <class T>
  FASTRNN_INLINE void send(uint32_t to, const T &value, uint32_t arrivals) const {
#if __CUDA_ARCH__ >= 900
    const auto word = bits<typename WordOf<sizeof(T)>::type>(value);
    if constexpr (sizeof(T) == 8)
      asm volatile(
          "st.async.shared::cluster.mbarrier::complete_tx::bytes.u64 [%0], %1, [%2];" ::"r"(to),
          "l"(word), "r"(arrivals)
          : "memory");
    else
      asm volatile(
          "st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(to),
          "r"(word), "r"(arrivals)
          : "memory");
#endif
  }

  // Makes an mbarrier that completes a phase for each expect(). One thread; sync_cluster() follows.
  FASTRNN_INLINE void begin_counting(uint64_t *arrivals) const {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(place(arrivals)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
  // Says how many bytes arrive in this phase. One thread; some may have come already.
  FASTRNN_INLINE void expect(uint64_t *arrivals, uint32_t bytes) const {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(place(arrivals)),
                 "r"(bytes)
                 : "memory");
#endif
  }
  // Waits until the phase of this parity is complete.
  FASTRNN_INLINE void wait_for_expected(const uint64_t *arrivals, uint32_t parity) const {
#if __CUDA_ARCH__ >= 900
    uint32_t complete;
    do {
      asm volatile(
          "{.reg .pred complete;\n"
          "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 complete, [%1], %2;\n"
          "selp.u32 %0, 1, 0, complete;}"
          : "=r"(complete)
          : "r"(place(arrivals)), "r"(parity)
          : "memory");
    } while (!complete);
#endif
  }
  FASTRNN_INLINE void sync_cluster() const {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
  }

  // --- the barrier of a grid's group

  FASTRNN_INLINE void arrive(uint32_t *arrivals) const {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrivals) : "memory");
  }
  FASTRNN_INLINE void wait(const uint32_t *arrivals, uint32_t expected) const {
    uint32_t found;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(found) : "l"(arrivals) : "memory");
    } while (int32_t(found - expected) < 0);
  }

  // --- numbers

  template <class To, class From>
  FASTRNN_INLINE static To bits(const From &from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
  }
  FASTRNN_INLINE float as_float(uint32_t word) const { return __uint_as_float(word); }

  FASTRNN_INLINE float widen(float v) const { return v; }
  FASTRNN_INLINE float widen(bfloat16 v) const { return __uint_as_float(uint32_t(v.bits) << 16); }
  FASTRNN_INLINE float widen(float16 v) const {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits));
    return wide;
  }

  template <class S>
  FASTRNN_INLINE S narrow(float v) const {
    if constexpr (sizeof(S) == 4)
      return v;
    else
      return {narrow_bits(v, S{})};
  }
  FASTRNN_INLINE uint32_t round_to_tf32(uint32_t word) const {
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(word)));
    return rounded;
  }
  // Rounds a value as the product requires it.
  template <class S, bool kTensor>
  FASTRNN_INLINE S operand(float v) const {
    if constexpr (kTensor && sizeof(S) == 4)
      return __uint_as_float(round_to_tf32(__float_as_uint(v)));
    else
      return narrow<S>(v);
  }

  // --- the tensor cores' product

  // sums [16, 8] += a [16, chunk] b [chunk, 8], in two halves of the chunk. a0 and a1 belong to
  // rows lane / 4 and lane / 4 + 8, b to column lane / 4.
  template <class S>
  FASTRNN_INLINE void mma(float (&sums)[4], const Words &a0, const Words &a1,
                          const Words &b) const {
    half_of_mma(sums, a0.v[0], a1.v[0], a0.v[1], a1.v[1], b.v[0], b.v[1], S{});
    half_of_mma(sums, a0.v[2], a1.v[2], a0.v[3], a1.v[3], b.v[2], b.v[3], S{});
  }

 private:
  template <int kBytes>
  struct WordOf;

  template <class T, class Word>
  FASTRNN_INLINE static T cast_load(const T *p) {
    return bits<T>(__ldg(reinterpret_cast<const Word *>(p)));
  }

  FASTRNN_INLINE static uint16_t narrow_bits(float v, bfloat16) {
    uint16_t narrow;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow) : "f"(v));
    return narrow;
  }
  FASTRNN_INLINE static uint16_t narrow_bits(float v, float16) {
    uint16_t narrow;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow) : "f"(v));
    return narrow;
  }

// The instruction's name contains the operand type, which asm accepts only as a literal.
#define FASTRNN_HALF_OF_MMA(Storage, instruction)                                              \
  FASTRNN_INLINE static void half_of_mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, \
                                         uint32_t a3, uint32_t b0, uint32_t b1, Storage) {     \
    asm(instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"         \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                       \
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));                               \
  }
  FASTRNN_HALF_OF_MMA(bfloat16, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32")
  FASTRNN_HALF_OF_MMA(float16, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")
  FASTRNN_HALF_OF_MMA(float, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32")
#undef FASTRNN_HALF_OF_MMA
};

template <>
struct Gpu::WordOf<2> {
  using type = unsigned short;
};
template <>
struct Gpu::WordOf<4> {
  using type = unsigned int;
};
template <>
struct Gpu::WordOf<8> {
  using type = unsigned long long;
};
template <>
struct Gpu::WordOf<16> {
  using type = uint4;
};

// --- approximations: see numbers.h

FASTRNN_INLINE float exp2_approximate(float v) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(v));
  return power;
}
FASTRNN_INLINE float reciprocal_approximate(float v) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(v));
  return inverse;
}
FASTRNN_INLINE float tanh_approximate(float v) {
  float t;
  asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(v));
  return t;
}

}  // namespace fastrnn::cuda
