// The CUDA runtime behind api.cpp: devices, and launches of the kernels.
#include <mutex>

#include "kernels.h"
#include "runtime.h"

namespace fastrnn::cuda {

extern const Kernels lstm_forward, lstm_backward, gru_forward, gru_backward;

namespace {

int code(cudaError_t error) {
  return error == cudaSuccess ? FASTRNN_OK : FASTRNN_CUDA_ERROR + int(error);
}

const void *kernel_of(const Choice &choice, bool grid) {
  const Kernels &kernels = choice.lstm ? choice.backward ? lstm_backward : lstm_forward
                                       : choice.backward ? gru_backward : gru_forward;
  switch (choice.dtype) {
    case FASTRNN_FLOAT32:
      return (choice.tf32 ? kernels.tf32 : kernels.exact)[grid];
    case FASTRNN_BFLOAT16:
      return kernels.bfloat16[grid];
    default:
      return kernels.float16[grid];
  }
}

// A launch's shape; it refers to itself, so it stays where it is.
class Configuration {
 public:
  Configuration(unsigned blocks, unsigned threads, size_t shared_bytes, cudaStream_t stream)
      : config_{} {
    config_.gridDim = dim3(blocks);
    config_.blockDim = dim3(threads);
    config_.dynamicSmemBytes = shared_bytes;
    config_.stream = stream;
    config_.attrs = &attribute_;
  }
  Configuration(const Configuration &) = delete;
  Configuration &operator=(const Configuration &) = delete;

  void cluster(unsigned blocks) {
    attribute_.id = cudaLaunchAttributeClusterDimension;
    attribute_.val.clusterDim.x = blocks;
    attribute_.val.clusterDim.y = attribute_.val.clusterDim.z = 1;
    config_.numAttrs = 1;
  }
  void cooperative() {
    attribute_.id = cudaLaunchAttributeCooperative;
    attribute_.val.cooperative = 1;
    config_.numAttrs = 1;
  }
  const cudaLaunchConfig_t *get() const { return &config_; }

 private:
  cudaLaunchConfig_t config_;
  cudaLaunchAttribute attribute_;
};

cudaError_t allow(const void *kernel, int64_t shared_bytes, bool clusters) {
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
  if (error == cudaSuccess && clusters)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return error;
}

cudaError_t find_facts(int device, Device *facts) {
  int major = 0, shared = 0;
  const struct {
    int *value;
    cudaDeviceAttr attribute;
  } wanted[] = {{&facts->multiprocessors, cudaDevAttrMultiProcessorCount},
                {&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin},
                {&major, cudaDevAttrComputeCapabilityMajor}};
  for (const auto &one : wanted) {
    const cudaError_t error = cudaDeviceGetAttribute(one.value, one.attribute, device);
    if (error != cudaSuccess) return error;
  }
  facts->shared_bytes = shared;
  facts->clusters[1] = facts->multiprocessors;
  const void *kernel = kernel_of({true, false, FASTRNN_FLOAT16, false}, false);
  cudaFuncAttributes attributes;  // fails where there is no code for the device
  cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess || major < 9) return error;
  error = allow(kernel, shared, true);
  for (int blocks = 2; error == cudaSuccess && blocks <= kMostBlocks; ++blocks) {
    Configuration configuration(unsigned(blocks), kMostWarps * kWarp, size_t(shared), nullptr);
    configuration.cluster(unsigned(blocks));
    // A size that the device has not is none.
    if (cudaOccupancyMaxActiveClusters(&facts->clusters[blocks], kernel, configuration.get()) !=
        cudaSuccess)
      facts->clusters[blocks] = 0;
  }
  cudaGetLastError();
  return error;
}

}  // namespace

Runtime::Runtime(int device) : device_(device), error_(code(cudaGetDevice(&before_))) {
  if (!error_ && before_ != device) error_ = code(cudaSetDevice(device));
}

Runtime::~Runtime() {
  if (before_ >= 0 && before_ != device_) cudaSetDevice(before_);
}

int Runtime::facts(Device *facts) const {
  constexpr int kMostDevices = 64;
  static std::once_flag once[kMostDevices];
  static Device known[kMostDevices];
  static cudaError_t errors[kMostDevices];
  if (device_ < 0 || device_ >= kMostDevices) return FASTRNN_ERROR_ARGUMENT;
  std::call_once(once[device_], [&] { errors[device_] = find_facts(device_, &known[device_]); });
  *facts = known[device_];
  return code(errors[device_]);
}

int Runtime::clear(void *memory, int64_t bytes, void *stream) const {
  return code(cudaMemsetAsync(memory, 0, size_t(bytes), static_cast<cudaStream_t>(stream)));
}

int Runtime::launch(const Choice &choice, const Layer &layer, void *stream) const {
  const Plan &plan = layer.plan;
  const void *kernel = kernel_of(choice, plan.grid);
  const bool cluster = !plan.grid && plan.blocks > 1;
  // All that a block may have, not what this call needs: between here and the launch another thread
  // may want less of the same kernel.
  Device device;
  if (const int error = facts(&device)) return error;
  if (const cudaError_t error = allow(kernel, device.shared_bytes, cluster)) return code(error);
  Configuration configuration(unsigned(plan.groups * plan.blocks), unsigned(plan.threads),
                              size_t(plan.shared_bytes), static_cast<cudaStream_t>(stream));
  if (cluster) configuration.cluster(unsigned(plan.blocks));
  if (plan.grid && plan.persistent) configuration.cooperative();
  void *arguments[] = {const_cast<Layer *>(&layer)};
  return code(cudaLaunchKernelExC(configuration.get(), kernel, arguments));
}

}  // namespace fastrnn::cuda

using namespace fastrnn::cuda;

const char *fastrnn_cuda_architectures(void) { return FASTRNN_CUDA_ARCHITECTURES; }

const char *fastrnn_cuda_error_string(int error) {
  switch (error) {
    case FASTRNN_OK:
      return "no error";
    case FASTRNN_ERROR_ARGUMENT:
      return "an argument is out of range";
    case FASTRNN_ERROR_MEMORY:
      return "a block's shared memory is too small";
    default:
      return cudaGetErrorString(cudaError_t(error - FASTRNN_CUDA_ERROR));
  }
}
