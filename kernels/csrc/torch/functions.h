// The functions of libtorch_cpu that the stack of layers calls, all of them plain C.
//
// They belong to torch's stable ABI, which only grows. We declare them here, so that the build
// needs no torch and one library serves every torch from 2.11 on, and get their addresses at run
// time. Their documentation: torch/csrc/inductor/aoti_torch/c/shim.h (aoti_torch_...) and
// torch/csrc/stable/c/shim.h (torch_...). All but the constants and the ABI version return 0 for
// success.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace fastrnn {

// An argument or a result of an op: an integer as it is, or one of the handles below. Whoever gets
// an array of these owns what the handles refer to.
using StableValue = uint64_t;
using TensorHandle = struct OpaqueTensor *;
using ListHandle = struct OpaqueList *;
using LibraryHandle = struct OpaqueLibrary *;
using BoxedKernel = void (*)(StableValue *stack, uint64_t inputs, uint64_t outputs);

// X(name, result, arguments)
#define FASTRNN_TORCH_FUNCTIONS(X)                                                             \
  X(aoti_torch_device_type_cpu, int32_t, ())                                                   \
  X(aoti_torch_dtype_float32, int32_t, ())                                                     \
  X(aoti_torch_dtype_float64, int32_t, ())                                                     \
  X(aoti_torch_dtype_bfloat16, int32_t, ())                                                    \
  X(aoti_torch_dtype_int64, int32_t, ())                                                       \
  X(aoti_torch_dtype_uint8, int32_t, ())                                                       \
  X(aoti_torch_layout_strided, int32_t, ())                                                    \
  X(aoti_torch_is_defined, int32_t, (TensorHandle, bool *))                                    \
  X(aoti_torch_get_dim, int32_t, (TensorHandle, int64_t *))                                    \
  X(aoti_torch_get_sizes, int32_t, (TensorHandle, int64_t **))                                 \
  X(aoti_torch_get_strides, int32_t, (TensorHandle, int64_t **))                               \
  X(aoti_torch_get_dtype, int32_t, (TensorHandle, int32_t *))                                  \
  X(aoti_torch_get_device_type, int32_t, (TensorHandle, int32_t *))                            \
  X(aoti_torch_get_layout, int32_t, (TensorHandle, int32_t *))                                 \
  X(aoti_torch_get_data_ptr, int32_t, (TensorHandle, void **))                                 \
  X(aoti_torch_empty_strided, int32_t,                                                         \
    (int64_t dim, const int64_t *sizes, const int64_t *strides, int32_t dtype, int32_t device, \
     int32_t device_index, TensorHandle *))                                                    \
  X(aoti_torch_copy_, int32_t, (TensorHandle to, TensorHandle from, int32_t non_blocking))     \
  X(aoti_torch_delete_tensor_object, int32_t, (TensorHandle))                                  \
  X(torch_new_list_reserve_size, int32_t, (size_t, ListHandle *))                              \
  X(torch_list_size, int32_t, (ListHandle, size_t *))                                          \
  X(torch_list_get_item, int32_t, (ListHandle, size_t, StableValue *))                         \
  X(torch_list_push_back, int32_t, (ListHandle, StableValue))                                  \
  X(torch_delete_list, int32_t, (ListHandle))                                                  \
  X(torch_get_num_threads, int32_t, (uint32_t *))                                              \
  X(aoti_torch_library_init_impl, int32_t,                                                     \
    (const char *space, const char *key, const char *file, uint32_t line, LibraryHandle *))    \
  X(torch_library_impl, int32_t, (LibraryHandle, const char *name, BoxedKernel, uint64_t version))

struct TorchFunctions {
#define FASTRNN_DECLARE(name, result, arguments) result(*name) arguments;
  FASTRNN_TORCH_FUNCTIONS(FASTRNN_DECLARE)
#undef FASTRNN_DECLARE
};

// What the calls above are compiled for: torch 2.11, in the encoding of
// torch/csrc/stable/version.h.
constexpr uint64_t kTorchVersion = uint64_t{2} << 56 | uint64_t{11} << 48;

// Set once, before any op can run; see fastrnn_torch_bind.
extern TorchFunctions torch;

}  // namespace fastrnn
