#include "fake_torch.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <sstream>
#include <type_traits>

using fastrnn::BoxedKernel;
using fastrnn::LibraryHandle;
using fastrnn::ListHandle;
using fastrnn::StableValue;
using fastrnn::TensorHandle;

struct fastrnn::OpaqueList {
  std::vector<StableValue> values;
};
struct fastrnn::OpaqueLibrary {};

namespace fake {
namespace {

std::atomic<int> in_use{0}, num_threads{1}, calls_to_failure{-1};
std::atomic<const char *> failed{nullptr};
std::map<std::string, BoxedKernel> kernels;  // as in torch, registered before any call
fastrnn::OpaqueLibrary library;

TensorHandle tensor_of(StableValue value) { return reinterpret_cast<TensorHandle>(value); }
ListHandle list_of(StableValue value) { return reinterpret_cast<ListHandle>(value); }
StableValue value_of(const void *handle) { return reinterpret_cast<StableValue>(handle); }

// Whether this call is the one that fails.
bool fails(const char *function) {
  if (calls_to_failure < 0 || calls_to_failure-- > 0) return false;
  failed = function;
  return true;
}
#define FAIL_ON_DEMAND             \
  do {                             \
    if (fails(__func__)) return 1; \
  } while (0)

int64_t offset_of(const fastrnn::OpaqueTensor &t, int64_t element) {
  int64_t offset = 0;
  for (size_t i = t.sizes.size(); i-- > 0; element /= t.sizes[i])
    offset += element % t.sizes[i] * t.strides[i];
  return offset * element_bytes(t.dtype);
}

int64_t elements(const std::vector<int64_t> &sizes) {
  int64_t count = 1;
  for (const int64_t size : sizes) count *= size;
  return count;
}

void copy_elements(fastrnn::OpaqueTensor &to, const fastrnn::OpaqueTensor &from) {
  const int64_t count = elements(to.sizes), size = element_bytes(to.dtype);
  for (int64_t i = 0; i < count; ++i)
    std::memcpy(static_cast<char *>(to.data) + offset_of(to, i),
                static_cast<const char *>(from.data) + offset_of(from, i), size_t(size));
}

Tensor empty_strided(const std::vector<int64_t> &sizes, const std::vector<int64_t> &strides,
                     int32_t dtype) {
  Tensor tensor(new fastrnn::OpaqueTensor);
  tensor->sizes = sizes, tensor->strides = strides, tensor->dtype = dtype;
  const size_t size = size_t(elements(sizes) * element_bytes(dtype));
  if (!size) return tensor;
  const std::align_val_t line{64};
  tensor->memory.reset(static_cast<char *>(::operator new(size, line)),
                       [line](char *data) { ::operator delete(data, line); });
  tensor->data = tensor->memory.get();
  std::memset(tensor->data, 0xff, size);
  return tensor;
}

void delete_list(ListHandle list) {
  delete list;
  --in_use;
}

// --- the functions, each with torch's signature

int32_t aoti_torch_device_type_cpu() { return CPU; }
int32_t aoti_torch_dtype_float32() { return FLOAT32; }
int32_t aoti_torch_dtype_float64() { return FLOAT64; }
int32_t aoti_torch_dtype_bfloat16() { return BFLOAT16; }
int32_t aoti_torch_dtype_int64() { return INT64; }
int32_t aoti_torch_dtype_uint8() { return UINT8; }
int32_t aoti_torch_layout_strided() { return STRIDED; }

#define FAKE_GET(name, type, value)                 \
  int32_t name(TensorHandle tensor, type *result) { \
    FAIL_ON_DEMAND;                                 \
    *result = value;                                \
    return 0;                                       \
  }
FAKE_GET(aoti_torch_is_defined, bool, tensor->defined)
FAKE_GET(aoti_torch_get_dim, int64_t, int64_t(tensor->sizes.size()))
FAKE_GET(aoti_torch_get_sizes, int64_t *, tensor->sizes.data())
FAKE_GET(aoti_torch_get_strides, int64_t *, tensor->strides.data())
FAKE_GET(aoti_torch_get_dtype, int32_t, tensor->dtype)
FAKE_GET(aoti_torch_get_device_type, int32_t, tensor->device)
FAKE_GET(aoti_torch_get_layout, int32_t, tensor->layout)
FAKE_GET(aoti_torch_get_data_ptr, void *, tensor->data)
#undef FAKE_GET

int32_t aoti_torch_empty_strided(int64_t dim, const int64_t *sizes, const int64_t *strides,
                                 int32_t dtype, int32_t device, int32_t, TensorHandle *result) {
  FAIL_ON_DEMAND;
  const std::vector<int64_t> own_sizes(sizes, sizes + dim);
  if (device != CPU || elements(own_sizes) > 1 << 28) return 1;  // as if memory had run out
  *result = empty_strided(own_sizes, {strides, strides + dim}, dtype).release();
  return 0;
}

int32_t aoti_torch_copy_(TensorHandle to, TensorHandle from, int32_t) {
  FAIL_ON_DEMAND;
  if (to->sizes != from->sizes || to->dtype != from->dtype) return 1;
  copy_elements(*to, *from);
  return 0;
}

// What a failing function was to free or to hand over is gone all the same: whoever called cannot
// do anything about it.
int32_t aoti_torch_delete_tensor_object(TensorHandle tensor) {
  delete tensor;
  FAIL_ON_DEMAND;
  return 0;
}
int32_t torch_delete_list(ListHandle list) {
  delete_list(list);
  FAIL_ON_DEMAND;
  return 0;
}
int32_t torch_list_size(ListHandle list, size_t *result) {
  if (fails(__func__)) {
    for (const StableValue value : list->values) delete tensor_of(value);
    list->values.clear();
    return 1;
  }
  *result = list->values.size();
  return 0;
}
int32_t torch_list_get_item(ListHandle list, size_t i, StableValue *result) {
  if (fails(__func__)) {
    delete tensor_of(list->values.at(i));
    return 1;
  }
  *result = list->values.at(i);
  return 0;
}

int32_t torch_new_list_reserve_size(size_t, ListHandle *result) {
  FAIL_ON_DEMAND;
  *result = new fastrnn::OpaqueList;
  ++in_use;
  return 0;
}
int32_t torch_list_push_back(ListHandle list, StableValue value) {
  FAIL_ON_DEMAND;
  list->values.push_back(value);
  return 0;
}

int32_t torch_get_num_threads(uint32_t *result) {
  FAIL_ON_DEMAND;
  *result = uint32_t(num_threads.load());
  return 0;
}

int32_t aoti_torch_library_init_impl(const char *space, const char *key, const char *, uint32_t,
                                     LibraryHandle *result) {
  FAIL_ON_DEMAND;
  if (std::strcmp(space, "fastrnn") || std::strcmp(key, "CompositeExplicitAutograd")) return 1;
  *result = &library;
  return 0;
}
int32_t torch_library_impl(LibraryHandle from, const char *name, BoxedKernel kernel,
                           uint64_t version) {
  FAIL_ON_DEMAND;
  if (from != &library || version != fastrnn::kTorchVersion) return 1;
  kernels[name] = kernel;
  return 0;
}

}  // namespace

int64_t element_bytes(int32_t dtype) {
  switch (dtype) {
    case FLOAT64:
    case INT64:
      return 8;
    case FLOAT32:
    case INT32:
      return 4;
    case UINT8:
      return 1;
    default:
      return 2;
  }
}

Tensor empty(const std::vector<int64_t> &sizes, int32_t dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * sizes[i];
  return empty_strided(sizes, strides, dtype);
}

Tensor in_order(const Tensor &tensor, const std::vector<int> &axes) {
  std::vector<int64_t> strides(axes.size());
  int64_t next = 1;
  for (size_t i = axes.size(); i-- > 0; next *= tensor->sizes[size_t(axes[i])])
    strides[size_t(axes[i])] = next;
  Tensor result = empty_strided(tensor->sizes, strides, tensor->dtype);
  copy_elements(*result, *tensor);
  return result;
}

Tensor copy(const Tensor &tensor) {
  return tensor ? Tensor(new fastrnn::OpaqueTensor(*tensor)) : nullptr;
}

Tensors copy(const Tensors &tensors) {
  Tensors result;
  for (const Tensor &tensor : tensors) result.push_back(copy(tensor));
  return result;
}

std::vector<char> bytes(const Tensor &tensor) {
  const Tensor packed = empty(tensor->sizes, tensor->dtype);
  copy_elements(*packed, *tensor);
  const char *data = static_cast<const char *>(packed->data);
  return {data, data + elements(packed->sizes) * element_bytes(packed->dtype)};
}

std::vector<void *> functions(const std::string &names) {
  std::map<std::string, void *> known;
#define FAKE_ADD(name, result, arguments)                                                         \
  static_assert(std::is_same_v<decltype(&name), decltype(fastrnn::TorchFunctions::name)>, #name); \
  known[#name] = reinterpret_cast<void *>(&name);
  FASTRNN_TORCH_FUNCTIONS(FAKE_ADD)
#undef FAKE_ADD
  std::vector<void *> addresses;
  std::istringstream words(names);
  for (std::string name; words >> name;) {
    if (!known.count(name)) {
      std::printf("FAILED: the fake of torch lacks %s\n", name.c_str());
      std::exit(1);
    }
    addresses.push_back(known[name]);
  }
  return addresses;
}

int handles_in_use() { return in_use; }

void fail_call(int number) {
  failed = nullptr;
  calls_to_failure = number;
}

const char *failed_function() { return failed; }

void set_num_threads(int threads) { num_threads = threads; }

Value::Value(Tensor tensor) : value(value_of(tensor.release())) {}
Value::Value(Tensors tensors) {
  ListHandle list = new fastrnn::OpaqueList;
  ++in_use;
  for (Tensor &tensor : tensors) list->values.push_back(value_of(tensor.release()));
  value = value_of(list);
}
Value::Value(int64_t integer) : value(StableValue(integer)) {}

Outcome call(const std::string &op, const std::vector<Value> &arguments, Tensors *results) {
  results->clear();
  const std::unique_ptr<StableValue[]> stack(new StableValue[arguments.size()]);
  for (size_t i = 0; i < arguments.size(); ++i) stack[i] = arguments[i].value;
  try {
    kernels.at(op)(stack.get(), arguments.size(), 1);
  } catch (const std::bad_alloc &) {
    return THROWN;
  }
  const ListHandle list = list_of(stack[0]);
  for (const StableValue value : list->values) results->emplace_back(tensor_of(value));
  delete_list(list);
  return results->empty() ? DECLINED : DONE;
}

std::vector<std::string> ops() {
  std::vector<std::string> names;
  for (const auto &kernel : kernels) names.push_back(kernel.first);
  return names;
}

}  // namespace fake

fastrnn::OpaqueTensor::OpaqueTensor()
    : dtype(fake::FLOAT32), device(fake::CPU), layout(fake::STRIDED) {
  ++fake::in_use;
}
fastrnn::OpaqueTensor::OpaqueTensor(const OpaqueTensor &other)
    : sizes(other.sizes), strides(other.strides), dtype(other.dtype), device(other.device),
      layout(other.layout), defined(other.defined), memory(other.memory), data(other.data) {
  ++fake::in_use;
}
fastrnn::OpaqueTensor::~OpaqueTensor() { --fake::in_use; }
