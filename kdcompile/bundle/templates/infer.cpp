// Runs this bundle's TensorRT engine on photos: infer ENGINE photo.ppm ...
//
// An input is a binary PGM or PPM photo, or an NPY file that infer.py --save-input wrote. ENGINE is
// model.engine of the bundle, or what kit/build_engine.py made on this device; its ENGINE.json must
// lie beside it. TensorRT 8.5 to 11. Exit 0: printed; 1: an error, said in one line.

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "image.hpp"
#include "preprocess.hpp"
#include "sha256.hpp"

#if NV_TENSORRT_MAJOR < 8 || (NV_TENSORRT_MAJOR == 8 && NV_TENSORRT_MINOR < 5)
#error "TensorRT 8.5 or newer is needed: older ones have no enqueueV3"
#endif

namespace {

using kd::Input;

class Log : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kWARNING) std::cerr << "TensorRT: " << message << '\n';
  }
};

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

void require(bool is_good, const std::string& message) {
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
std::string field(const std::string& json, const std::string& key) {
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
std::string read_engine(const std::string& path) {
  const std::string engine = kd::read_file(path), about = kd::read_file(path + ".json");
  require(kd::Sha256::hex(engine) == field(about, "sha256"),
          path + " is not the file that was built: copy it again, or build it here");
  std::cerr << "engine: TensorRT " << field(about, "tensorrt") << ", compute capability "
            << field(about, "compute_capability") << '\n';
  return engine;
}

// float32 [..., height, width]
struct Output {
  std::int64_t height = 0, width = 0;
  std::vector<float> values;
};

// A loaded engine with one float32 input and one float32 output.
class Network {
 public:
  explicit Network(const std::string& bytes) {
    runtime_.reset(nvinfer1::createInferRuntime(log_));
    require(runtime_ != nullptr, "TensorRT does not start");
    engine_.reset(runtime_->deserializeCudaEngine(bytes.data(), bytes.size()));
    require(engine_ != nullptr,
            "this TensorRT or GPU does not take the engine: build it here with "
            "kit/build_engine.py");
    context_.reset(engine_->createExecutionContext());
    require(context_ != nullptr, "no execution context");
    for (const char* name : {kd::input_name, kd::output_name})
      require(engine_->getTensorDataType(name) == nvinfer1::DataType::kFLOAT,
              std::string("the engine has no float32 tensor ") + name);
  }

  Output operator()(const Input& input) {
    nvinfer1::Dims shape{};
    using Extent = std::remove_reference_t<decltype(shape.d[0])>;  // int32 before TensorRT 10
    shape.nbDims = 4;
    const std::int64_t sizes[] = {1, kd::channels, input.height, input.width};
    for (int i = 0; i < 4; ++i) shape.d[i] = static_cast<Extent>(sizes[i]);
    require(context_->setInputShape(kd::input_name, shape), "the engine refuses this size");
    const nvinfer1::Dims made = context_->getTensorShape(kd::output_name);
    std::size_t count = 1;
    for (int i = 0; i < made.nbDims; ++i) {
      require(made.d[i] > 0, "the output has no size");
      count *= static_cast<std::size_t>(made.d[i]);
    }
    const int last = made.nbDims - 1;
    const std::int64_t width = made.d[last], height = last > 0 ? made.d[last - 1] : 1;
    return {height, width, run(input, count)};
  }

 private:
  Log log_;  // outlives all that logs to it
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  Stream stream_;

  std::vector<float> run(const Input& input, std::size_t count) {
    std::vector<float> output(count);
    const std::size_t in = input.values.size() * sizeof(float), out = count * sizeof(float);
    Buffer from(in), to(out);
    require(context_->setTensorAddress(kd::input_name, from.get()) &&
                context_->setTensorAddress(kd::output_name, to.get()),
            "the engine's tensors have other names");
    check(cudaMemcpyAsync(from.get(), input.values.data(), in, cudaMemcpyHostToDevice,
                          stream_.get()), "copy to the GPU");
    require(context_->enqueueV3(stream_.get()), "the engine does not run");
    check(cudaMemcpyAsync(output.data(), to.get(), out, cudaMemcpyDeviceToHost, stream_.get()),
          "copy from the GPU");
    check(cudaStreamSynchronize(stream_.get()), "running the engine");
    return output;
  }
};

// The density's sum over the cells that lie in the photo; those across its border by their area.
double counted(const Input& input, const Output& made) {
  double sum = 0.0;
  for (std::size_t i = 0; i < made.values.size(); ++i) {
    const std::int64_t cell = static_cast<std::int64_t>(i);
    const std::int64_t x = cell % made.width, y = cell / made.width % made.height;
    const double rows = kd::inside(y, made.height, input.seen_height, input.height);
    const double columns = kd::inside(x, made.width, input.seen_width, input.width);
    sum += made.values[i] * static_cast<float>(rows * columns);
  }
  return sum;
}

// A count; a class and its probability; or a value.
void print(const std::string& path, const Input& input, const Output& made) {
  const std::vector<float>& output = made.values;
  std::cout << path << '\t';
  const std::string task = kd::task;
  if (task == "classification") {
    std::size_t best = 0;
    double sum = 0.0;
    for (std::size_t i = 1; i < output.size(); ++i)
      if (output[i] > output[best]) best = i;
    for (float logit : output) sum += std::exp(double(logit) - double(output[best]));
    if (best < kd::classes.size())
      std::cout << kd::classes[best];
    else
      std::cout << best;
    std::cout << '\t' << 1.0 / sum << '\n';
    return;
  }
  std::cout << (task == "counting" ? counted(input, made) : output[0]) << '\n';
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) {
    std::cerr << "usage: infer ENGINE INPUT.ppm|INPUT.pgm|INPUT.npy ...\n";
    return 2;
  }
  try {
    std::cout.precision(7);
    Network network(read_engine(arguments[1]));
    for (int i = 2; i < count; ++i) {
      const Input input = kd::read_input(arguments[i]);
      print(arguments[i], input, network(input));
    }
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
