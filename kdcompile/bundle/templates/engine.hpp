// A TensorRT engine with named inputs and outputs. TensorRT 8.5 to 11.
#pragma once

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <iostream>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "npy.hpp"
#include "sha256.hpp"

#if NV_TENSORRT_MAJOR < 8 || (NV_TENSORRT_MAJOR == 8 && NV_TENSORRT_MINOR < 5)
#error "TensorRT 8.5 or newer is needed: older ones have no enqueueV3"
#endif

namespace kd {

class Log : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kWARNING) std::cerr << "TensorRT: " << message << '\n';
  }
};

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

inline void require(bool is_good, const std::string& message) {
  if (!is_good) throw std::runtime_error(message);
}

// Memory of the GPU.
class Buffer {
 public:
  explicit Buffer(std::size_t bytes) { check(cudaMalloc(&data_, bytes), "cudaMalloc"); }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void* get() const { return data_; }

 private:
  void* data_ = nullptr;
};

// A stream, which outlives what is queued on it.
class Stream {
 public:
  Stream() { check(cudaStreamCreate(&stream_), "cudaStreamCreate"); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// The text or number behind "key": in the sidecar, which is flat where these keys stand.
inline std::string field(const std::string& json, const std::string& key) {
  const std::string name = '"' + key + '"';
  std::size_t at = json.find(name);
  require(at != std::string::npos, "the engine's .json has no " + key);
  at = json.find_first_not_of(" \t\r\n:", at + name.size());
  require(at != std::string::npos, "the engine's .json is cut short");
  const std::string ends = json[at] == '"' ? "\"" : " \t\r\n,}";
  const std::size_t begin = json[at] == '"' ? at + 1 : at;
  return json.substr(begin, json.find_first_of(ends, begin) - begin);
}

// The engine's bytes, when they are those that were built.
inline std::string read_engine(const std::string& path) {
  const std::string engine = read_file(path), about = read_file(path + ".json");
  require(Sha256::hex(engine) == field(about, "sha256"),
          path + " is not the file that was built: copy it again, or build it here");
  std::cerr << "engine: TensorRT " << field(about, "tensorrt") << ", compute capability "
            << field(about, "compute_capability") << '\n';
  return engine;
}

// Whether an engine's type is that of numpy's name.
inline bool is_type(nvinfer1::DataType kind, const std::string& type) {
  using nvinfer1::DataType;
#if NV_TENSORRT_MAJOR >= 10
  if (type == "<i8") return kind == DataType::kINT64;
#endif
  return (type == "<f4" && kind == DataType::kFLOAT) || (type == "<f2" && kind == DataType::kHALF) ||
         (type == "<i4" && kind == DataType::kINT32) || (type == "|i1" && kind == DataType::kINT8) ||
         (type == "|u1" && kind == DataType::kUINT8) || (type == "|b1" && kind == DataType::kBOOL);
}

// Whole numbers of 64 bits as 32, which TensorRT before 10 takes in their place.
inline std::string narrowed(const Tensor& given) {
  std::string made(given.bytes.size() / 2, '\0');
  for (std::size_t i = 0; i < given.bytes.size() / 8; ++i) {
    std::int64_t value = 0;
    std::memcpy(&value, given.bytes.data() + 8 * i, 8);
    using Limits = std::numeric_limits<std::int32_t>;
    require(value >= Limits::min() && value <= Limits::max(),
            given.name + " has a value that this TensorRT does not take");
    const std::int32_t fits = static_cast<std::int32_t>(value);
    std::memcpy(&made[4 * i], &fits, 4);
  }
  return made;
}

// A loaded engine with float32 outputs of these names.
class Network {
 public:
  Network(const std::string& bytes, std::vector<std::string> outputs)
      : outputs_(std::move(outputs)) {
    runtime_.reset(nvinfer1::createInferRuntime(log_));
    require(runtime_ != nullptr, "TensorRT does not start");
    engine_.reset(runtime_->deserializeCudaEngine(bytes.data(), bytes.size()));
    require(engine_ != nullptr,
            "this TensorRT or GPU does not take the engine: build it here with "
            "kit/build_engine.py");
    context_.reset(engine_->createExecutionContext());
    require(context_ != nullptr, "no execution context");
    for (const std::string& name : outputs_)
      require(is_type(engine_->getTensorDataType(name.c_str()), "<f4"),
              "the engine has no float32 tensor " + name);
  }

  // The outputs for all of its inputs.
  std::vector<Tensor> operator()(const std::vector<Tensor>& inputs) {
    std::vector<std::unique_ptr<Buffer>> there;
    std::vector<std::string> fed;  // lives until the copies are done
    for (const Tensor& input : inputs) fed.push_back(as_taken(input));
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      set_shape(inputs[i]);
      there.push_back(at_gpu(inputs[i].name, fed[i].size()));
      check(cudaMemcpyAsync(there[i]->get(), fed[i].data(), fed[i].size(), cudaMemcpyHostToDevice,
                            stream_.get()), "copy to the GPU");
    }
    std::vector<Tensor> made;
    for (const std::string& name : outputs_) {
      made.push_back(blank(name));
      there.push_back(at_gpu(name, made.back().bytes.size()));
    }
    require(context_->enqueueV3(stream_.get()), "the engine does not run");
    for (std::size_t i = 0; i < made.size(); ++i)
      check(cudaMemcpyAsync(&made[i].bytes[0], there[inputs.size() + i]->get(),
                            made[i].bytes.size(), cudaMemcpyDeviceToHost, stream_.get()),
            "copy from the GPU");
    check(cudaStreamSynchronize(stream_.get()), "running the engine");
    return made;
  }

 private:
  Log log_;  // outlives all that logs to it
  std::vector<std::string> outputs_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  Stream stream_;

  std::string as_taken(const Tensor& input) const {
    const nvinfer1::DataType kind = engine_->getTensorDataType(input.name.c_str());
    if (input.type == "<i8" && kind == nvinfer1::DataType::kINT32) return narrowed(input);
    require(is_type(kind, input.type), "the engine takes no " + input.type + " as " + input.name);
    return input.bytes;
  }

  void set_shape(const Tensor& input) {
    nvinfer1::Dims shape{};
    using Extent = std::remove_reference_t<decltype(shape.d[0])>;  // int32 before TensorRT 10
    shape.nbDims = static_cast<std::int32_t>(input.shape.size());
    for (std::size_t i = 0; i < input.shape.size(); ++i)
      shape.d[i] = static_cast<Extent>(input.shape[i]);
    require(context_->setInputShape(input.name.c_str(), shape),
            "the engine refuses this size of " + input.name);
  }

  std::unique_ptr<Buffer> at_gpu(const std::string& name, std::size_t bytes) {
    auto buffer = std::make_unique<Buffer>(bytes);
    require(context_->setTensorAddress(name.c_str(), buffer->get()),
            "the engine's tensors have other names than " + name);
    return buffer;
  }

  // An output of the size that the inputs make it.
  Tensor blank(const std::string& name) const {
    const nvinfer1::Dims dims = context_->getTensorShape(name.c_str());
    require(dims.nbDims >= 0, "the engine has no tensor " + name);
    Tensor made{name, "<f4", {}, {}};
    for (std::int32_t i = 0; i < dims.nbDims; ++i) {
      require(dims.d[i] > 0, "the output " + name + " has no size");
      made.shape.push_back(dims.d[i]);
    }
    made.bytes.resize(count_of(made.shape) * sizeof(float));
    return made;
  }
};

}  // namespace kd
