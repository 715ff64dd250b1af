// A TensorRT engine with named inputs and outputs. TensorRT 8.5 to 11.
#pragma once

#include <NvInfer.h>

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

#include "gpu.hpp"
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

// One inference under way, with memory of its own that stays for the next one.
//
// The first of a size is queued plainly, which lets TensorRT set itself up for it; the second is
// recorded as a CUDA graph, which is what later ones launch. An engine that cannot be recorded goes
// on as at first.
class Slot {
 public:
  Slot(nvinfer1::ICudaEngine& engine, const std::vector<std::string>& outputs)
      : engine_(engine), outputs_(outputs), context_(engine.createExecutionContext()) {
    require(context_ != nullptr, "no execution context");
  }

  // Queue an inference; it runs while the caller goes on.
  void start(const std::vector<Tensor>& inputs) {
    std::vector<std::string> fed;
    for (const Tensor& input : inputs) fed.push_back(as_taken(input));
    const bool is_new = set_sizes(inputs, fed);
    for (std::size_t i = 0; i < fed.size(); ++i)
      std::memcpy(blocks_[i]->here.get(), fed[i].data(), fed[i].size());
    if (!is_new && !graph_.has() && can_record_)
      can_record_ = graph_.record(stream_.get(), [this] { return queue(); });
    if (graph_.has())
      graph_.launch(stream_.get());
    else
      require(queue(), "the engine does not run");
  }

  // Wait for it; its outputs.
  std::vector<Tensor> finish() {
    check(cudaStreamSynchronize(stream_.get()), "running the engine");
    std::vector<Tensor> made = made_;
    const std::size_t first = blocks_.size() - made.size();
    for (std::size_t i = 0; i < made.size(); ++i)
      std::memcpy(&made[i].bytes[0], blocks_[first + i]->here.get(), made[i].bytes.size());
    return made;
  }

 private:
  // A tensor on both sides.
  struct Block {
    Buffer here{true}, there{false};
    std::size_t bytes = 0;
  };

  nvinfer1::ICudaEngine& engine_;
  const std::vector<std::string>& outputs_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  std::vector<std::vector<std::int64_t>> shapes_;  // of the inputs
  std::vector<std::unique_ptr<Block>> blocks_;     // of the inputs, then of the outputs
  std::vector<Tensor> made_;                       // the outputs, blank
  bool can_record_ = true;
  Stream stream_;
  Graph graph_;

  std::string as_taken(const Tensor& input) const {
    const nvinfer1::DataType kind = engine_.getTensorDataType(input.name.c_str());
    if (input.type == "<i8" && kind == nvinfer1::DataType::kINT32) return narrowed(input);
    require(is_type(kind, input.type), "the engine takes no " + input.type + " as " + input.name);
    return input.bytes;
  }

  // Copies in, the engine, copies out; false where it does not run.
  bool queue() {
    const std::size_t inputs = shapes_.size();
    for (std::size_t i = 0; i < inputs; ++i)
      if (cudaMemcpyAsync(blocks_[i]->there.get(), blocks_[i]->here.get(), blocks_[i]->bytes,
                          cudaMemcpyHostToDevice, stream_.get()) != cudaSuccess)
        return false;
    if (!context_->enqueueV3(stream_.get())) return false;
    for (std::size_t i = inputs; i < blocks_.size(); ++i)
      if (cudaMemcpyAsync(blocks_[i]->here.get(), blocks_[i]->there.get(), blocks_[i]->bytes,
                          cudaMemcpyDeviceToHost, stream_.get()) != cudaSuccess)
        return false;
    return true;
  }

  // Make room for inputs of these sizes and what they give; false where that is as before.
  bool set_sizes(const std::vector<Tensor>& inputs, const std::vector<std::string>& fed) {
    std::vector<std::vector<std::int64_t>> shapes;
    for (const Tensor& input : inputs) shapes.push_back(input.shape);
    if (shapes == shapes_) return false;
    shapes_.clear();  // should the engine refuse one of them
    graph_.clear();
    can_record_ = true;
    for (const Tensor& input : inputs) set_shape(input);
    made_.clear();
    for (const std::string& name : outputs_) made_.push_back(blank(name));
    while (blocks_.size() < inputs.size() + made_.size())
      blocks_.push_back(std::make_unique<Block>());
    for (std::size_t i = 0; i < inputs.size(); ++i) hold(i, inputs[i].name, fed[i].size());
    for (std::size_t i = 0; i < made_.size(); ++i)
      hold(inputs.size() + i, made_[i].name, made_[i].bytes.size());
    shapes_ = shapes;
    return true;
  }

  void hold(std::size_t place, const std::string& name, std::size_t bytes) {
    Block& block = *blocks_[place];
    block.here.hold(bytes);
    block.there.hold(bytes);
    block.bytes = bytes;
    require(context_->setTensorAddress(name.c_str(), block.there.get()),
            "the engine's tensors have other names than " + name);
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

// A loaded engine with float32 outputs of these names; it runs two inferences at once, so that the
// next input is read, and copied, while one is under way.
class Network {
 public:
  static constexpr std::size_t at_once = 2;

  Network(const std::string& bytes, std::vector<std::string> outputs)
      : outputs_(std::move(outputs)) {
    runtime_.reset(nvinfer1::createInferRuntime(log_));
    require(runtime_ != nullptr, "TensorRT does not start");
    engine_.reset(runtime_->deserializeCudaEngine(bytes.data(), bytes.size()));
    require(engine_ != nullptr,
            "this TensorRT or GPU does not take the engine: build it here with "
            "kit/build_engine.py");
    for (const std::string& name : outputs_)
      require(is_type(engine_->getTensorDataType(name.c_str()), "<f4"),
              "the engine has no float32 tensor " + name);
  }

  // How many were started and not finished.
  std::size_t running() const { return running_; }

  // Start on all of its inputs; at most `at_once` may be running.
  void start(const std::vector<Tensor>& inputs) {
    require(running_ < at_once, "two inferences are running already");
    const std::size_t place = (oldest_ + running_) % at_once;
    if (slots_[place] == nullptr) slots_[place] = std::make_unique<Slot>(*engine_, outputs_);
    slots_[place]->start(inputs);
    ++running_;
  }

  // The outputs of the one that was started first.
  std::vector<Tensor> finish() {
    require(running_ > 0, "no inference is running");
    const std::size_t place = oldest_;
    oldest_ = (oldest_ + 1) % at_once;
    --running_;
    return slots_[place]->finish();
  }

  // The outputs for all of its inputs.
  std::vector<Tensor> operator()(const std::vector<Tensor>& inputs) {
    start(inputs);
    return finish();
  }

 private:
  Log log_;  // outlives all that logs to it
  std::vector<std::string> outputs_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<Slot> slots_[at_once];
  std::size_t oldest_ = 0, running_ = 0;
};

}  // namespace kd
