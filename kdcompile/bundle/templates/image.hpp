// Reads a photo (binary PGM or PPM) or a prepared input (NPY, float32), as the network takes it.
#pragma once

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "npy.hpp"
#include "preprocess.hpp"

namespace kd {

// float32 [1, channels, height, width]; the photo is its top left seen_height x seen_width
struct Input {
  std::int64_t height = 0, width = 0, seen_height = 0, seen_width = 0;
  std::vector<float> values;
};

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
  input.values.assign(static_cast<std::size_t>(channels * input.height * input.width), 0.0f);
  float* to = input.values.data();
  for (std::int64_t c = 0; c < channels; ++c)
    for (std::int64_t y = 0; y < input.height; ++y)
      for (std::int64_t x = 0; x < input.width; ++x, ++to)
        if (mirrored || (y < h && x < w))
          *to = photo.values[static_cast<std::size_t>((c * h + mirror(y, h)) * w + mirror(x, w))];
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

// Normalised.
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
  for (std::int64_t y = 0; y < height; ++y)
    for (std::int64_t x = 0; x < width; ++x, p += stored)
      for (std::int64_t c = 0; c < channels; ++c) {
        const int value = stored == 1 ? p[0] : (channels == 1 ? grey(p) : p[c]);
        const float normal = (static_cast<float>(value) / 255.0f - mean[c]) / std_dev[c];
        input.values[static_cast<std::size_t>((c * input.height + y) * input.width + x)] = normal;
      }
  return input;
}

// Float32, little-endian, C order, [1, channels, H, W]: what infer.py --save-input writes, a photo
// that is scaled and normalised, and not yet padded.
inline Input from_array(const std::string& data) {
  const Tensor given = from_npy(data);
  const std::vector<std::int64_t>& shape = given.shape;
  if (given.type != "<f4") throw std::runtime_error("the NPY file must be little-endian float32");
  if (shape.size() != 4 || shape[0] != 1 || shape[1] != channels || shape[2] < 1 ||
      shape[2] > max_height || shape[3] < 1 || shape[3] > max_width)
    throw std::runtime_error("the NPY file must hold [1, channels, height, width] in range");
  Input input{shape[2], shape[3], shape[2], shape[3], {}};
  const std::size_t count = count_of(shape);
  if (given.bytes.size() != count * sizeof(float))
    throw std::runtime_error("the NPY file does not hold as many values as its shape says");
  input.values.resize(count);
  std::memcpy(input.values.data(), given.bytes.data(), given.bytes.size());
  return input;
}

// An input under its name.
inline Tensor tensor_of(const Input& input, const std::string& name) {
  const char* values = reinterpret_cast<const char*>(input.values.data());
  return {name, "<f4", {1, channels, input.height, input.width},
          std::string(values, input.values.size() * sizeof(float))};
}

inline Input read_input(const std::string& path) {
  const std::string data = read_file(path);
  if (data.size() > 12 && data.compare(0, 6, "\x93NUMPY", 6) == 0) return padded(from_array(data));
  if (data.size() > 8 && data[0] == 'P' && (data[1] == '5' || data[1] == '6'))
    return padded(from_pnm(data));
  throw std::runtime_error(path + ": neither binary PGM/PPM nor NPY");
}

}  // namespace kd
