// Runs this bundle's TensorRT engine on photos: infer ENGINE photo.ppm ...
//
// An input is a binary PGM or PPM photo, or an NPY file that infer.py --save-input wrote. ENGINE is
// model.engine of the bundle, or what kit/build_engine.py made on this device; its ENGINE.json must
// lie beside it. TensorRT 8.5 to 11. Exit 0: printed; 1: an error, said in one line.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <fstream>
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

// The logits of one class at a place of the photo, by the four cells around it.
float sampled(const Output& made, std::int64_t channel, double y, double x) {
  const auto axis = [](double place, std::int64_t size, std::int64_t& low, std::int64_t& high) {
    const double inside = std::min(std::max(place, 0.0), static_cast<double>(size - 1));
    low = static_cast<std::int64_t>(inside);
    high = std::min(low + 1, size - 1);
    return static_cast<float>(inside - static_cast<double>(low));
  };
  std::int64_t top = 0, bottom = 0, left = 0, right = 0;
  const float down = axis(y, made.height, top, bottom), across = axis(x, made.width, left, right);
  const float* plane = made.values.data() + channel * made.height * made.width;
  const auto row = [&](std::int64_t at) {
    const float* line = plane + at * made.width;
    return line[left] + across * (line[right] - line[left]);
  };
  return row(top) + down * (row(bottom) - row(top));
}

// The colour of a class: PASCAL VOC's, from its second on.
void colour_of(std::size_t index, char* rgb) {
  for (int channel = 0; channel < 3; ++channel) {
    int value = 0;
    for (int bit = 0; bit < 8; ++bit)
      value |= static_cast<int>((index + 1) >> (3 * bit + channel) & 1u) << (7 - bit);
    rgb[channel] = static_cast<char>(value);
  }
}

// The class of each pixel as a picture, photo_classes.ppm, and each class's share of the photo.
void paint(const std::string& path, const Input& input, const Output& made) {
  const std::int64_t cells = made.height * made.width;
  const std::int64_t count = static_cast<std::int64_t>(made.values.size()) / cells;
  std::vector<std::int64_t> pixels(static_cast<std::size_t>(count), 0);
  std::vector<char> picture;
  picture.reserve(static_cast<std::size_t>(3 * input.seen_height * input.seen_width));
  const double down = static_cast<double>(made.height) / static_cast<double>(input.height);
  const double across = static_cast<double>(made.width) / static_cast<double>(input.width);
  for (std::int64_t y = 0; y < input.seen_height; ++y)
    for (std::int64_t x = 0; x < input.seen_width; ++x) {
      const double row = (static_cast<double>(y) + 0.5) * down - 0.5;
      const double column = (static_cast<double>(x) + 0.5) * across - 0.5;
      std::size_t best = 0;
      float most = sampled(made, 0, row, column);
      for (std::int64_t k = 1; k < count; ++k) {
        const float value = sampled(made, k, row, column);
        if (value > most) most = value, best = static_cast<std::size_t>(k);
      }
      ++pixels[best];
      char rgb[3];
      colour_of(best, rgb);
      picture.insert(picture.end(), rgb, rgb + 3);
    }
  const std::size_t slash = path.find_last_of('/'), from = slash == path.npos ? 0 : slash + 1;
  const std::string there = path.substr(from, path.find_last_of('.') - from) + "_classes.ppm";
  std::ofstream file(there, std::ios::binary);
  file << "P6\n" << input.seen_width << ' ' << input.seen_height << "\n255\n";
  file.write(picture.data(), static_cast<std::streamsize>(picture.size()));
  if (!file.flush()) throw std::runtime_error("cannot write " + there);
  for (std::size_t k = 0; k < pixels.size(); ++k) {
    if (!pixels[k]) continue;
    if (k < kd::classes.size())
      std::cout << kd::classes[k];
    else
      std::cout << k;
    std::cout << ' ' << static_cast<double>(pixels[k]) / static_cast<double>(picture.size() / 3)
              << '\t';
  }
  std::cout << there << '\n';
}

// A count; a class and its probability; a value; or the shares of the classes of pixels.
void print(const std::string& path, const Input& input, const Output& made) {
  const std::vector<float>& output = made.values;
  std::cout << path << '\t';
  const std::string task = kd::task;
  if (task == "segmentation") return paint(path, input, made);
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
