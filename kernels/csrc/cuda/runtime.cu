// Implements runtime.h with the CUDA runtime: devices, and launches of the kernels.
#include <mutex>

#include "kernels.h"
#include "runtime.h"

namespace fastrnn::cuda {

extern const Kernels lstm_forward, lstm_backward, gru_forward, gru_backward;

namespace {

int code(cudaError_t error) {
  return error == cudaSuccess ? FASTRNN_OK : FASTRNN_CUDA_ERROR + int(error);
}

const void *kernel_of(const KernelId &id, bool grid) {
  const Kernels &kernels = id.lstm       ? id.backward ? lstm_backward : lstm_forward
                           : id.backward ? gru_backward
                                         : gru_forward;
  switch (id.dtype) {
    case FASTRNN_FLOAT32:
      return (id.tf32 ? kernels.tf32 : kernels.exact)[grid];
    case FASTRNN_BFLOAT16:
      return kernels.bfloat16[grid];
    default:
      return kernels.float16[grid];
  }
}

// The configuration of a launch. It contains a pointer to itself, so it must not be copied.
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
  } queries[] = {{&facts->multiprocessors, cudaDevAttrMultiProcessorCount},
                 {&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin},
                 {&major, cudaDevAttrComputeCapabilityMajor}};
  for (const auto &query : queries) {
    const cudaError_t error = cudaDeviceGetAttribute(query.value, query.attribute, device);
    if (error != cudaSuccess) return error;
  }
  facts->shared_bytes = shared;
  facts->clusters[1] = facts->multiprocessors;
  const void *kernel = kernel_of({true, false, FASTRNN_FLOAT16, false}, false);
  cudaFuncAttributes attributes;  // the query fails if there is no code for the device
  cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess || major < 9) return error;
  error = allow(kernel, shared, true);
  for (int blocks = 2; error == cudaSuccess && blocks <= kMaxBlocks; ++blocks) {
    Configuration configuration(unsigned(blocks), kMaxWarps * kWarp, size_t(shared), nullptr);
    configuration.cluster(unsigned(blocks));
    // The query fails for cluster sizes that the device does not support.
    if (cudaOccupancyMaxActiveClusters(&facts->clusters[blocks], kernel, configuration.get()) !=
        cudaSuccess)
      facts->clusters[blocks] = 0;
  }
  cudaGetLastError();  // clears the error of a failed query
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
  constexpr int kMaxDevices = 64;
  static std::once_flag once[kMaxDevices];
  static Device devices[kMaxDevices];
  static cudaError_t errors[kMaxDevices];
  if (device_ < 0 || device_ >= kMaxDevices) return FASTRNN_ERROR_ARGUMENT;
  std::call_once(once[device_], [&] { errors[device_] = find_facts(device_, &devices[device_]); });
  *facts = devices[device_];
  return code(errors[device_]);
}

int Runtime::clear(void *memory, int64_t bytes, void *stream) const {
  return code(cudaMemsetAsync(memory, 0, size_t(bytes), static_cast<cudaStream_t>(stream)));
}

int Runtime::launch(const KernelId &id, const Layer &layer, void *stream) const {
  const Plan &plan = layer.plan;
  const void *kernel = kernel_of(id, plan.grid);
  const bool cluster = !plan.grid && plan.blocks > 1;
  // Allow the maximum, not what this call needs: another thread could lower the limit of this
  // kernel between here and the launch.
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
  if (error >= FASTRNN_CUDA_ERROR)
    return cudaGetErrorString(cudaError_t(error - FASTRNN_CUDA_ERROR));
  if (error == FASTRNN_ERROR_MEMORY) return "the shared memory of a block is too small";
  return fastrnn::error_text(error);
}
