// Runs this bundle's TensorRT engine on photos: infer ENGINE photo.ppm ...
//
// An input is a binary PGM or PPM photo, or an NPY file that infer.py --save-input wrote. ENGINE is
// model.engine of the bundle, or what kit/build_engine.py made on this device; its ENGINE.json must
// lie beside it. TensorRT 8.5 to 11. Exit 0: printed; 1: an error, said in one line.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <iostream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "image.hpp"
#include "preprocess.hpp"

namespace {

using kd::Input;

// float32 [..., height, width]
struct Output {
  std::int64_t height = 0, width = 0;
  std::vector<float> values;
};

// What the network gave, as rows of a map.
Output output_of(const kd::Tensor& made) {
  const std::vector<std::int64_t>& shape = made.shape;
  const std::size_t axes = shape.size();
  Output output{axes > 1 ? shape[axes - 2] : 1, axes > 0 ? shape[axes - 1] : 1, {}};
  output.values.resize(made.bytes.size() / sizeof(float));
  std::memcpy(output.values.data(), made.bytes.data(), made.bytes.size());
  return output;
}

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

// Each photo is read while the network runs on the one before it.
void run(kd::Network& network, const std::vector<std::string>& paths) {
  std::deque<std::pair<std::string, Input>> running;
  const auto finish = [&] {
    print(running.front().first, running.front().second, output_of(network.finish()[0]));
    running.pop_front();
  };
  try {
    for (const std::string& path : paths) {
      const Input input = kd::read_input(path);
      if (network.running() == kd::Network::at_once) finish();
      network.start({kd::tensor_of(input, kd::input_name)});
      running.emplace_back(path, input);
    }
  } catch (const std::exception&) {
    while (!running.empty()) finish();  // those before the one that fails
    throw;
  }
  while (!running.empty()) finish();
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) {
    std::cerr << "usage: infer ENGINE INPUT.ppm|INPUT.pgm|INPUT.npy ...\n";
    return 2;
  }
  try {
    std::cout.precision(7);
    kd::Network network(kd::read_engine(arguments[1]), {kd::output_name});
    run(network, {arguments + 2, arguments + count});
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
