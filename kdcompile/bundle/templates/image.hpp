// Reads a photo (binary PGM or PPM) or a prepared input (NPY), as the network takes it.
#pragma once

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "npy.hpp"
#include "preprocess.hpp"

namespace kd {

constexpr char value_type[] = {in_graph ? '|' : '<', in_graph ? 'u' : 'f', in_graph ? '1' : '4', 0};
using Value = std::conditional_t<in_graph, unsigned char, float>;

// float32 [1, channels, height, width], or uint8 [1, height, width, channels]; the photo is its top
// left seen_height x seen_width
struct Input {
  std::int64_t height = 0, width = 0, seen_height = 0, seen_width = 0;
  std::vector<Value> values;

  std::size_t place(std::int64_t c, std::int64_t y, std::int64_t x) const {
    return static_cast<std::size_t>(in_graph ? (y * width + x) * channels + c
                                             : (c * height + y) * width + x);
  }
};

// A channel of the mean colour, as the input has it: of pixels the nearest one.
inline Value mean_colour(std::int64_t c) {
  if (!in_graph) return Value(0);
  return static_cast<Value>(std::min(255.0f, std::max(0.0f, std::nearbyint(mean[c] * 255.0f))));
}

// How much of a cell, of so many along an axis of the input, lies in the photo.
inline double inside(std::int64_t cell, std::int64_t cells, std::int64_t seen, std::int64_t plane) {
  const double edge = static_cast<double>(seen * cells) / static_cast<double>(plane);
  return std::min(1.0, std::max(0.0, edge - static_cast<double>(cell)));
}

// A place beyond the border of a photo, as one within it that is mirrored.
inline std::int64_t mirror(std::int64_t place, std::int64_t size) {
  const std::int64_t turned = place % (2 * size);
  return turned < size ? turned : 2 * size - 1 - turned;
}

// Padded right and below where the photo is smaller than the least.
inline Input padded(const Input& photo) {
  const std::int64_t h = photo.height, w = photo.width;
  Input input{std::max(h, min_height), std::max(w, min_width), h, w, {}};
  if (input.height == h && input.width == w) return photo;
  input.values.resize(static_cast<std::size_t>(channels * input.height * input.width));
  for (std::int64_t c = 0; c < channels; ++c)
    for (std::int64_t y = 0; y < input.height; ++y)
      for (std::int64_t x = 0; x < input.width; ++x)
        input.values[input.place(c, y, x)] =
            mirrored || (y < h && x < w) ? photo.values[photo.place(c, mirror(y, h), mirror(x, w))]
                                         : mean_colour(c);
  return input;
}

// The next number of a PNM header; comments run from # to the end of the line.
inline std::int64_t pnm_number(const std::string& data, std::size_t& at) {
  while (at < data.size() && (std::isspace(static_cast<unsigned char>(data[at])) || data[at] == '#')) {
    if (data[at] == '#')
      while (at < data.size() && data[at] != '\n') ++at;
    else
      ++at;
  }
  std::int64_t value = 0;
  const std::size_t begin = at;
  while (at < data.size() && std::isdigit(static_cast<unsigned char>(data[at])) && value < (1 << 20))
    value = 10 * value + (data[at++] - '0');
  if (at == begin) throw std::runtime_error("not a PGM or PPM file: a number is missing");
  return value;
}

// The grey of ITU-R 601 in 16-bit fixed point, as Pillow converts RGB to L.
inline int grey(const unsigned char* p) {
  return static_cast<int>((19595u * p[0] + 38470u * p[1] + 7471u * p[2] + 0x8000u) >> 16);
}

// Normalised, where the network does not do it.
inline Input from_pnm(const std::string& data) {
  std::size_t at = 2;
  const int stored = data[1] == '6' ? 3 : 1;
  const std::int64_t width = pnm_number(data, at), height = pnm_number(data, at);
  if (pnm_number(data, at) != 255) throw std::runtime_error("only 8 bits a channel are read");
  ++at;  // one white space ends the header
  const std::size_t pixels = static_cast<std::size_t>(width) * static_cast<std::size_t>(height);
  if (pixels == 0 || data.size() < at || (data.size() - at) / stored < pixels)
    throw std::runtime_error("the file is cut short");
  if (height > max_height || width > max_width) {
    std::ostringstream text;
    text << "the photo is " << width << " x " << height << ", larger than the network's "
         << max_width << " x " << max_height
         << "; scale it down first, or prepare it with infer.py --save-input";
    throw std::runtime_error(text.str());
  }
  Input input{height, width, height, width, {}};
  input.values.resize(static_cast<std::size_t>(channels) * pixels);
  const unsigned char* p = reinterpret_cast<const unsigned char*>(data.data()) + at;
  if (in_graph && stored == channels) {
    std::memcpy(input.values.data(), p, input.values.size());
    return input;
  }
  for (std::int64_t y = 0; y < height; ++y)
    for (std::int64_t x = 0; x < width; ++x, p += stored)
      for (std::int64_t c = 0; c < channels; ++c) {
        const int value = stored == 1 ? p[0] : (channels == 1 ? grey(p) : p[c]);
        const float normal = (static_cast<float>(value) / 255.0f - mean[c]) / std_dev[c];
        input.values[input.place(c, y, x)] = static_cast<Value>(in_graph ? value : normal);
      }
  return input;
}

// What infer.py --save-input writes in C order, a photo that is scaled and not yet padded: normalised
// little-endian float32 [1, channels, H, W], or uint8 [1, H, W, channels].
inline Input from_array(const std::string& data) {
  const Tensor given = from_npy(data);
  const std::vector<std::int64_t>& shape = given.shape;
  if (given.type != value_type)
    throw std::runtime_error(in_graph ? "the NPY file must be uint8"
                                      : "the NPY file must be little-endian float32");
  const std::size_t sides = in_graph ? 1 : 2;
  if (shape.size() != 4 || shape[0] != 1 || shape[in_graph ? 3 : 1] != channels ||
      shape[sides] < 1 || shape[sides] > max_height || shape[sides + 1] < 1 ||
      shape[sides + 1] > max_width)
    throw std::runtime_error(in_graph
                                 ? "the NPY file must hold [1, height, width, channels] in range"
                                 : "the NPY file must hold [1, channels, height, width] in range");
  const std::int64_t high = shape[sides], wide = shape[sides + 1];
  Input input{high, wide, high, wide, {}};
  const std::size_t count = count_of(shape);
  if (given.bytes.size() != count * sizeof(Value))
    throw std::runtime_error("the NPY file does not hold as many values as its shape says");
  input.values.resize(count);
  std::memcpy(input.values.data(), given.bytes.data(), given.bytes.size());
  return input;
}

// An input under its name.
inline Tensor tensor_of(const Input& input, const std::string& name) {
  const char* values = reinterpret_cast<const char*>(input.values.data());
  const std::int64_t h = input.height, w = input.width;
  return {name, value_type,
          in_graph ? std::vector<std::int64_t>{1, h, w, channels}
                   : std::vector<std::int64_t>{1, channels, h, w},
          std::string(values, input.values.size() * sizeof(Value))};
}

inline Input read_input(const std::string& path) {
  const std::string data = read_file(path);
  if (data.size() > 12 && data.compare(0, 6, "\x93NUMPY", 6) == 0) return padded(from_array(data));
  if (data.size() > 8 && data[0] == 'P' && (data[1] == '5' || data[1] == '6'))
    return padded(from_pnm(data));
  throw std::runtime_error(path + ": neither binary PGM/PPM nor NPY");
}

}  // namespace kd
