// What the sample uses of TensorRT's C++ interface, with an engine that gives its input back, value
// i times 1 + i % 97. For tests only. It takes engines that begin with "echo", and [1, C, H, W].
// One that begins with "pool" sums the input over cells of 8 x 8, the last ones smaller: [1, 1, h, w].
// One that begins with "byte" takes uint8 [1, h, w, C] and gives [1, 1, h, w], for each pixel the sum
// of its channels, channel c times 1 + c, times 1 + i % 97 of pixel i.
// One that begins with "rows" takes signal [1, 2, 24] and ids [1, 5], whole numbers of 32 bits before
// TensorRT 10. It gives as scores [1, 6], for each k, (k + 1) times the sum of ids by 1, 2, ...; and as
// trace [1, 3, 12] the first values of the signal, value i times 1 + i % 97.
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
using Id = std::int64_t;
#else
using Extent = std::int32_t;
using Id = std::int32_t;
#endif

struct Dims {
  std::int32_t nbDims;
  Extent d[8];
};
enum class DataType : std::int32_t {
  kFLOAT = 0, kHALF = 1, kINT8 = 2, kINT32 = 3, kBOOL = 4, kUINT8 = 5,
#if NV_TENSORRT_MAJOR >= 10
  kINT64 = 8,
#endif
};
inline bool is(const char* name, const char* wanted) { return std::string(name) == wanted; }

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
  explicit IExecutionContext(char kind) : kind_(kind), pools_(kind == 'p') {}
  bool setInputShape(const char* name, const Dims& dims) noexcept {
    is_set_up_ = false;
    if (kind_ == 'r' && is(name, "signal"))
      return dims.nbDims == 3 && dims.d[0] == 1 && dims.d[1] == 2 && dims.d[2] == 24;
    if (kind_ == 'r')
      return is(name, "ids") && dims.nbDims == 2 && dims.d[0] == 1 && dims.d[1] == 5;
    shape_ = dims;
    return is(name, "image") && dims.nbDims == 4 && dims.d[0] == 1;
  }
  Dims getTensorShape(const char* name) const noexcept {
    if (kind_ == 'r' && is(name, "scores")) return Dims{2, {1, 6}};
    if (kind_ == 'r' && is(name, "trace")) return Dims{3, {1, 3, 12}};
    if (!is(name, "density")) return Dims{-1, {}};
    if (kind_ == 'b') return Dims{4, {1, 1, shape_.d[1], shape_.d[2]}};
    return pools_ ? Dims{4, {1, 1, (shape_.d[2] + 7) / 8, (shape_.d[3] + 7) / 8}} : shape_;
  }
  bool setTensorAddress(const char* name, void* data) noexcept {
    if (kind_ == 'r' && is(name, "ids")) ids_ = static_cast<Id*>(data);
    if (kind_ == 'r' && is(name, "trace")) trace_ = static_cast<float*>(data);
    if (kind_ == 'r' && (is(name, "ids") || is(name, "trace"))) return true;
    const bool is_input = is(name, kind_ == 'r' ? "signal" : "image");
    (is_input ? from_ : to_) = static_cast<float*>(data);
    return is_input || is(name, kind_ == 'r' ? "scores" : "density");
  }
  // Only what ran plainly since its last size was set can be recorded.
  bool enqueueV3(cudaStream_t stream) noexcept {
    if (stream == nullptr || (stream->recorded != nullptr && !is_set_up_)) return false;
    is_set_up_ = true;
    auto as_now = *this;
    queued(stream, "enqueue", [as_now]() mutable { as_now.run(); });
    return true;
  }

 private:
  char kind_;
  bool pools_, is_set_up_ = false;
  bool run() noexcept {
    if (kind_ == 'r') return rows();
    std::size_t count = 1;
    for (int i = 0; i < 4; ++i) count *= static_cast<std::size_t>(shape_.d[i]);
    if (kind_ == 'b') return bytes(count);
    if (pools_) return pool(count);
    for (std::size_t i = 0; i < count; ++i) to_[i] = from_[i] * static_cast<float>(1 + i % 97);
    return true;
  }
  bool bytes(std::size_t count) noexcept {
    const auto* from = reinterpret_cast<const unsigned char*>(from_);
    const auto channels = static_cast<std::size_t>(shape_.d[3]);
    for (std::size_t i = 0; i < count / channels; ++i) {
      to_[i] = 0.0f;
      for (std::size_t c = 0; c < channels; ++c)
        to_[i] += static_cast<float>((1 + c) * from[i * channels + c] * (1 + i % 97));
    }
    return true;
  }
  bool rows() noexcept {
    Id sum = 0;
    for (Id i = 0; i < 5; ++i) sum += ids_[i] * (i + 1);
    for (Id i = 0; i < 6; ++i) to_[i] = static_cast<float>((i + 1) * sum);
    for (int i = 0; i < 36; ++i) trace_[i] = from_[i] * static_cast<float>(1 + i % 97);
    return true;
  }
  bool pool(std::size_t count) noexcept {
    const auto h = static_cast<std::size_t>(shape_.d[2]), w = static_cast<std::size_t>(shape_.d[3]);
    const std::size_t across = (w + 7) / 8, down = (h + 7) / 8;
    for (std::size_t i = 0; i < across * down; ++i) to_[i] = 0.0f;
    for (std::size_t i = 0; i < count; ++i) to_[i / w % h / 8 * across + i % w / 8] += from_[i];
    return true;
  }
  Dims shape_{};
  float *from_ = nullptr, *to_ = nullptr, *trace_ = nullptr;
  Id* ids_ = nullptr;
};

class ICudaEngine {
 public:
  DataType getTensorDataType(const char* name) const noexcept {
    if (kind_ == 'b' && is(name, "image")) return DataType::kUINT8;
    for (const char* known : {"image", "density", "signal", "scores", "trace"})
      if (is(name, known)) return DataType::kFLOAT;
#if NV_TENSORRT_MAJOR >= 10
    return is(name, "ids") ? DataType::kINT64 : DataType::kHALF;
#else
    return is(name, "ids") ? DataType::kINT32 : DataType::kHALF;
#endif
  }
  explicit ICudaEngine(char kind) : kind_(kind) {}
  IExecutionContext* createExecutionContext() noexcept { return new IExecutionContext(kind_); }

 private:
  char kind_;
};

class IRuntime {
 public:
  explicit IRuntime(ILogger& logger) : logger_(logger) {}
  ICudaEngine* deserializeCudaEngine(const void* blob, std::size_t size) noexcept {
    for (const char* name : {"echo", "pool", "rows", "byte"})
      if (size >= 4 && std::memcmp(blob, name, 4) == 0) return new ICudaEngine(name[0]);
    logger_.log(ILogger::Severity::kERROR, "not an engine");
    return nullptr;
  }

 private:
  ILogger& logger_;
};

inline IRuntime* createInferRuntime(ILogger& logger) noexcept { return new IRuntime(logger); }

}  // namespace nvinfer1
