// Runs this bundle's TensorRT engine on samples, and writes its outputs into this folder.
//
//   infer ENGINE sample.npz ...       an array for each input (numpy.savez), to sample_outputs.npz
//   infer ENGINE NAME=values.bin ...  one sample: the raw values of each input, to output_0.bin, ...
//   infer ENGINE photo.ppm ...        where the network takes a photo: binary PGM or PPM, or an NPY
//                                     file that infer.py --save-input wrote
//
// ENGINE is model.engine of the bundle, or what kit/build_engine.py made on this device; its
// ENGINE.json must lie beside it. Exit 0: written; 1: an error, said in one line.

#include <cstdint>
#include <fstream>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine.hpp"
#include "npz.hpp"
#include "preprocess.hpp"
#if KD_PHOTOS
#include "image.hpp"
#endif

namespace {

using kd::Tensor;

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

std::string shown(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// A tensor as the network takes it; a first axis of 1 may be missing.
Tensor fitted(Tensor given, const kd::Port& port) {
  kd::require(given.type == port.type,
              port.name + " is " + given.type + ", the network takes " + port.type);
  std::vector<std::int64_t> whole = given.shape;
  if (whole.size() + 1 == port.shape.size()) whole.insert(whole.begin(), 1);
  kd::require(whole == port.shape,
              port.name + " is " + shown(given.shape) + ", the network takes " + shown(port.shape));
  kd::require(given.bytes.size() == kd::count_of(port.shape) * kd::size_of(port.type),
              port.name + " has not as many values as its shape says");
  given.shape = port.shape;
  return given;
}

std::vector<Tensor> of_archive(const std::string& path) {
  const std::map<std::string, Tensor> arrays = kd::read_npz(kd::read_file(path));
  std::vector<Tensor> inputs;
  for (const kd::Port& port : kd::inputs) {
    const auto found = arrays.find(port.name);
    kd::require(found != arrays.end(), path + " has no array " + port.name);
    inputs.push_back(fitted(found->second, port));
  }
  return inputs;
}

// Of NAME=FILE for each input.
std::vector<Tensor> of_values(const std::vector<std::string>& given) {
  std::map<std::string, std::string> files;
  for (const std::string& pair : given)
    files[pair.substr(0, pair.find('='))] = pair.substr(pair.find('=') + 1);
  std::vector<Tensor> inputs;
  for (const kd::Port& port : kd::inputs) {
    kd::require(files.count(port.name) == 1, "there is no " + port.name + "=FILE");
    inputs.push_back(
        fitted({port.name, port.type, port.shape, kd::read_file(files[port.name])}, port));
  }
  kd::require(files.size() == inputs.size() && files.size() == given.size(),
              "give each input once as NAME=FILE, and nothing else");
  return inputs;
}

void write(const std::string& path, const std::string& content) {
  std::ofstream file(path, std::ios::binary);
  file << content;
  file.close();
  kd::require(file.good(), path + ": cannot be written");
}

std::string told(const std::vector<Tensor>& made) {
  std::string text;
  for (const Tensor& one : made) text += (text.empty() ? "" : ", ") + one.name + " " + shown(one.shape);
  return text;
}

// The name of a file without its folder and ending.
std::string stem(const std::string& path) {
  const std::string name = path.substr(path.find_last_of('/') + 1);
  return name.substr(0, name.find_last_of('.'));
}

std::vector<Tensor> inputs_of(const std::string& path) {
  if (ends_with(path, ".npz")) return of_archive(path);
#if KD_PHOTOS
  return {kd::tensor_of(kd::read_input(path), kd::inputs[0].name)};
#else
  throw std::runtime_error(path + ": neither an .npz file nor NAME=FILE of an input");
#endif
}

// Whether an argument is NAME=FILE of an input.
bool is_value(const std::string& given) {
  for (const kd::Port& port : kd::inputs)
    if (given.compare(0, port.name.size() + 1, port.name + "=") == 0) return true;
  return false;
}

void run(kd::Network& network, const std::vector<std::string>& given) {
  if (is_value(given[0])) {
    const std::vector<Tensor> made = network(of_values(given));
    for (std::size_t i = 0; i < made.size(); ++i) {
      const std::string path = "output_" + std::to_string(i) + ".bin";
      write(path, made[i].bytes);
      std::cout << told({made[i]}) << '\t' << path << '\n';
    }
    return;
  }
  for (const std::string& path : given) {
    const std::vector<Tensor> made = network(inputs_of(path));
    const std::string there = stem(path) + "_outputs.npz";
    write(there, kd::npz_of(made));
    std::cout << path << '\t' << told(made) << '\t' << there << '\n';
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) {
    std::cerr << "usage: infer ENGINE SAMPLE.npz|NAME=FILE" << (KD_PHOTOS ? "|INPUT.ppm" : "")
              << " ...\n";
    return 2;
  }
  try {
    kd::Network network(kd::read_engine(arguments[1]), kd::outputs);
    run(network, {arguments + 2, arguments + count});
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
