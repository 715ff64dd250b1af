// A tensor of values, and the head of an NPY file, which says what values follow.
#pragma once

#include <cctype>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace kd {

// Values in C order, little-endian; the type is numpy's name of it, such as <f4.
struct Tensor {
  std::string name, type;
  std::vector<std::int64_t> shape;
  std::string bytes;
};

inline std::size_t count_of(const std::vector<std::int64_t>& shape) {
  std::size_t count = 1;
  for (std::int64_t side : shape) count *= static_cast<std::size_t>(side);
  return count;
}

// Of an element: the number in the type's name.
inline std::size_t size_of(const std::string& type) { return static_cast<std::size_t>(type[2] - '0'); }

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be opened");
  std::string data{std::istreambuf_iterator<char>(file), {}};
  if (file.bad()) throw std::runtime_error(path + ": cannot be read");
  return data;
}

// The number of so many bytes that stands at a place.
inline std::uint64_t number(const std::string& data, std::size_t at, int bytes) {
  std::uint64_t value = 0;
  for (int i = bytes; i-- > 0;)
    value = 256 * value + static_cast<unsigned char>(data.at(at + static_cast<std::size_t>(i)));
  return value;
}

// The tensor of an NPY file.
inline Tensor from_npy(const std::string& data) {
  const bool is_first = number(data, 6, 1) == 1;
  const std::size_t begin = is_first ? 10 : 12, size = number(data, 8, is_first ? 2 : 4);
  if (data.size() < begin + size) throw std::runtime_error("the NPY file is cut short");
  const std::string head = data.substr(begin, size);
  const std::size_t key = head.find("'descr'"), open = key + 7;
  const std::size_t from = key == std::string::npos ? key : head.find('\'', open);
  const std::size_t to = from == std::string::npos ? from : head.find('\'', from + 1);
  if (to == std::string::npos || head.find("False") == std::string::npos)
    throw std::runtime_error("the NPY file must be in C order, of numbers");
  Tensor made{"", head.substr(from + 1, to - from - 1), {}, data.substr(begin + size)};
  for (std::size_t at = head.find('('); at < head.size() && head[at] != ')'; ++at)
    if (std::isdigit(static_cast<unsigned char>(head[at]))) {
      std::size_t used = 0;
      made.shape.push_back(std::stoll(head.substr(at), &used));
      at += used - 1;
    }
  return made;
}

}  // namespace kd
