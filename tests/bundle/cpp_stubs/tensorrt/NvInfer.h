// What the sample uses of TensorRT's C++ interface, with an engine that gives its input back, value
// i times 1 + i % 97. For tests only. It takes engines that begin with "echo", and [1, C, H, W].
// One that begins with "pool" sums the input over cells of 8 x 8, the last ones smaller: [1, 1, h, w].
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#ifndef NV_TENSORRT_MAJOR
#define NV_TENSORRT_MAJOR 10
#define NV_TENSORRT_MINOR 3
#endif

namespace nvinfer1 {

#if NV_TENSORRT_MAJOR >= 10
using Extent = std::int64_t;
#else
using Extent = std::int32_t;
#endif

struct Dims {
  std::int32_t nbDims;
  Extent d[8];
};
enum class DataType : std::int32_t { kFLOAT = 0, kHALF = 1 };

class ILogger {
 public:
  enum class Severity : std::int32_t {
    kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4
  };
  virtual void log(Severity severity, const char* message) noexcept = 0;
  virtual ~ILogger() = default;
};

class IExecutionContext {
 public:
  explicit IExecutionContext(bool pools) : pools_(pools) {}
  bool setInputShape(const char* name, const Dims& dims) noexcept {
    shape_ = dims;
    return is(name, "image") && dims.nbDims == 4 && dims.d[0] == 1;
  }
  Dims getTensorShape(const char* name) const noexcept {
    if (!is(name, "density")) return Dims{-1, {}};
    return pools_ ? Dims{4, {1, 1, (shape_.d[2] + 7) / 8, (shape_.d[3] + 7) / 8}} : shape_;
  }
  bool setTensorAddress(const char* name, void* data) noexcept {
    (is(name, "image") ? from_ : to_) = static_cast<float*>(data);
    return is(name, "image") || is(name, "density");
  }
  bool enqueueV3(cudaStream_t stream) noexcept {
    std::size_t count = 1;
    for (int i = 0; i < 4; ++i) count *= static_cast<std::size_t>(shape_.d[i]);
    if (pools_) return pool(count) && stream != nullptr;
    for (std::size_t i = 0; i < count; ++i) to_[i] = from_[i] * static_cast<float>(1 + i % 97);
    return stream != nullptr;
  }

 private:
  bool pools_;
  bool pool(std::size_t count) noexcept {
    const auto h = static_cast<std::size_t>(shape_.d[2]), w = static_cast<std::size_t>(shape_.d[3]);
    const std::size_t across = (w + 7) / 8, down = (h + 7) / 8;
    for (std::size_t i = 0; i < across * down; ++i) to_[i] = 0.0f;
    for (std::size_t i = 0; i < count; ++i) to_[i / w % h / 8 * across + i % w / 8] += from_[i];
    return true;
  }
  Dims shape_{};
  float *from_ = nullptr, *to_ = nullptr;
  static bool is(const char* name, const char* wanted) { return std::string(name) == wanted; }
};

class ICudaEngine {
 public:
  DataType getTensorDataType(const char* name) const noexcept {
    const std::string text = name;
    return text == "image" || text == "density" ? DataType::kFLOAT : DataType::kHALF;
  }
  explicit ICudaEngine(bool pools) : pools_(pools) {}
  IExecutionContext* createExecutionContext() noexcept { return new IExecutionContext(pools_); }

 private:
  bool pools_;
};

class IRuntime {
 public:
  explicit IRuntime(ILogger& logger) : logger_(logger) {}
  ICudaEngine* deserializeCudaEngine(const void* blob, std::size_t size) noexcept {
    for (const char* name : {"echo", "pool"})
      if (size >= 4 && std::memcmp(blob, name, 4) == 0) return new ICudaEngine(name[0] == 'p');
    logger_.log(ILogger::Severity::kERROR, "not an engine");
    return nullptr;
  }

 private:
  ILogger& logger_;
};

inline IRuntime* createInferRuntime(ILogger& logger) noexcept { return new IRuntime(logger); }

}  // namespace nvinfer1
