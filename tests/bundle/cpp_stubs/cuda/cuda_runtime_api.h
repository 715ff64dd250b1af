// What the sample uses of the CUDA runtime, played on the CPU. For tests only.
//
// A stream that records keeps what it is told and runs nothing of it. The names of the calls go to
// the file that KD_CALLS names, one a line; KD_NO_GRAPHS makes every recording fail at its end.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

enum cudaError_t {
  cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorStreamCaptureUnsupported = 900
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
constexpr unsigned cudaHostAllocDefault = 0;

struct CUgraph_st {
  std::vector<std::function<void()>> steps;
};
using cudaGraph_t = CUgraph_st*;
using cudaGraphExec_t = CUgraph_st*;
struct CUstream_st {
  cudaGraph_t recorded = nullptr;
};
using cudaStream_t = CUstream_st*;

inline void played(const std::string& call) {
  if (const char* path = std::getenv("KD_CALLS")) std::ofstream(path, std::ios::app) << call << '\n';
}

// Do it now, or when the graph is launched that the stream records.
inline void queued(cudaStream_t stream, const std::string& name, std::function<void()> step) {
  played(stream->recorded ? "record " + name : name);
  if (stream->recorded)
    stream->recorded->steps.push_back(step);
  else
    step();
}

inline const char* cudaGetErrorString(cudaError_t) { return "out of memory"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
  played("malloc");
  *pointer = std::malloc(bytes);
  return *pointer ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFree(void* pointer) {
  std::free(pointer);
  return cudaSuccess;
}
inline cudaError_t cudaHostAlloc(void** pointer, std::size_t bytes, unsigned) {
  played("pin");
  *pointer = std::malloc(bytes);
  return *pointer ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFreeHost(void* pointer) { return cudaFree(pointer); }
inline cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = new CUstream_st;
  return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  played("wait");
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                                   cudaStream_t stream) {
  queued(stream, "copy", [=] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  stream->recorded = new CUgraph_st;
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const bool fails = std::getenv("KD_NO_GRAPHS") != nullptr;
  if (fails) delete stream->recorded;
  *graph = fails ? nullptr : stream->recorded;
  stream->recorded = nullptr;
  return fails ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
inline cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph,
                                                 unsigned long long) {
  *exec = new CUgraph_st(*graph);
  return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return cudaGraphDestroy(exec); }
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
  played("launch");
  for (const auto& step : exec->steps) step();
  return cudaSuccess;
}
