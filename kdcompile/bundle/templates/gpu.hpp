// Memory, streams and graphs of CUDA, which end with what holds them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <stdexcept>
#include <string>

namespace kd {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

inline void require(bool is_good, const std::string& message) {
  if (!is_good) throw std::runtime_error(message);
}

// A block on the GPU, or of the host's memory that the GPU copies from and to without a detour.
class Buffer {
 public:
  explicit Buffer(bool is_pinned) : is_pinned_(is_pinned) {}
  ~Buffer() { release(); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  // Make it at least so large; what was in it is lost then.
  void hold(std::size_t bytes) {
    if (bytes <= size_) return;
    release();
    if (is_pinned_)
      check(cudaHostAlloc(&data_, bytes, cudaHostAllocDefault), "cudaHostAlloc");
    else
      check(cudaMalloc(&data_, bytes), "cudaMalloc");
    size_ = bytes;
  }
  void* get() const { return data_; }

 private:
  bool is_pinned_;
  void* data_ = nullptr;
  std::size_t size_ = 0;

  void release() {
    if (data_ != nullptr) is_pinned_ ? cudaFreeHost(data_) : cudaFree(data_);
    data_ = nullptr;
    size_ = 0;
  }
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

// What a stream was told, to be told again by one call.
class Graph {
 public:
  Graph() = default;
  ~Graph() { clear(); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  bool has() const { return exec_ != nullptr; }
  void clear() {
    if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
    exec_ = nullptr;
  }
  void launch(cudaStream_t stream) { check(cudaGraphLaunch(exec_, stream), "running the engine"); }
  // Records what `queue` queues, without running it; false where that cannot be recorded.
  template <class Queue>
  bool record(cudaStream_t stream, Queue queue) {
    cudaGraph_t graph = nullptr;
    if (cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess)
      return failed();
    const bool is_queued = queue();
    if (cudaStreamEndCapture(stream, &graph) != cudaSuccess || !is_queued || graph == nullptr) {
      if (graph != nullptr) cudaGraphDestroy(graph);
      return failed();
    }
    const cudaError_t made = cudaGraphInstantiateWithFlags(&exec_, graph, 0);
    cudaGraphDestroy(graph);
    return made == cudaSuccess || failed();
  }

 private:
  cudaGraphExec_t exec_ = nullptr;

  bool failed() {
    exec_ = nullptr;
    cudaGetLastError();  // which would be the next call's
    return false;
  }
};

}  // namespace kd
