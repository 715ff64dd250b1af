// NPZ files of numpy.savez: ZIP archives of NPY files that are stored, not compressed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "npy.hpp"

namespace kd {

inline std::uint32_t crc32(const std::string& data) {
  std::uint32_t value = 0xFFFFFFFFu;
  for (unsigned char byte : data) {
    value ^= byte;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (0xEDB88320u & (0u - (value & 1u)));
  }
  return ~value;
}

// The tensors of an archive by name.
inline std::map<std::string, Tensor> read_npz(const std::string& data) {
  const std::size_t end = data.rfind("PK\5\6");
  if (data.compare(0, 2, "PK") != 0 || end == std::string::npos)
    throw std::runtime_error("not an NPZ file, or cut short");
  std::map<std::string, Tensor> found;
  std::size_t at = number(data, end + 16, 4);
  for (std::uint64_t left = number(data, end + 10, 2); left > 0; --left) {
    if (data.compare(at, 4, "PK\1\2") != 0) throw std::runtime_error("the NPZ file is damaged");
    const std::size_t named = number(data, at + 28, 2), local = number(data, at + 42, 4);
    std::string name = data.substr(at + 46, named);
    if (number(data, at + 10, 2) != 0)
      throw std::runtime_error("the NPZ file is compressed: write it with numpy.savez");
    const std::size_t size = number(data, at + 24, 4);
    const std::size_t begin = local + 30 + number(data, local + 26, 2) + number(data, local + 28, 2);
    if (begin > data.size() || size > data.size() - begin)
      throw std::runtime_error("the NPZ file is cut short");
    const std::string file = data.substr(begin, size);
    if (crc32(file) != number(data, at + 16, 4)) throw std::runtime_error("the NPZ file is damaged");
    if (name.size() > 4 && name.compare(name.size() - 4, 4, ".npy") == 0)
      name.resize(name.size() - 4);
    Tensor tensor = from_npy(file);
    tensor.name = name;
    found[name] = tensor;
    at += 46 + named + number(data, at + 30, 2) + number(data, at + 32, 2);
  }
  return found;
}

inline std::string bytes_of(std::uint64_t value, int bytes) {
  std::string made;
  for (int i = 0; i < bytes; ++i, value /= 256) made += static_cast<char>(value % 256);
  return made;
}

inline std::string npy_of(const Tensor& tensor) {
  std::string head = "{'descr': '" + tensor.type + "', 'fortran_order': False, 'shape': (";
  for (std::int64_t side : tensor.shape) head += std::to_string(side) + ",";
  head += "), }";
  head.append(63 - (head.size() + 10) % 64, ' ');
  head += '\n';
  return std::string("\x93NUMPY\1\0", 8) + bytes_of(head.size(), 2) + head + tensor.bytes;
}

// An archive of some tensors, of less than 4 GB.
inline std::string npz_of(const std::vector<Tensor>& tensors) {
  std::string files, entries;
  for (const Tensor& tensor : tensors) {
    const std::string file = npy_of(tensor), name = tensor.name + ".npy";
    // version 2.0, names in UTF-8, stored, of the first day that the format knows
    const std::string about = bytes_of(20, 2) + bytes_of(0x800, 2) + bytes_of(0, 2) +
                              bytes_of(0, 2) + bytes_of(0x21, 2) + bytes_of(crc32(file), 4) +
                              bytes_of(file.size(), 4) + bytes_of(file.size(), 4) +
                              bytes_of(name.size(), 2) + bytes_of(0, 2);
    entries += "PK\1\2" + bytes_of(20, 2) + about + bytes_of(0, 10) + bytes_of(files.size(), 4) + name;
    files += "PK\3\4" + about + name + file;
  }
  const std::uint64_t most = 0xFFFFFFFFu, count = tensors.size();
  if (files.size() + entries.size() > most) throw std::runtime_error("over 4 GB of outputs");
  return files + entries + "PK\5\6" + bytes_of(0, 4) + bytes_of(count, 2) + bytes_of(count, 2) +
         bytes_of(entries.size(), 4) + bytes_of(files.size(), 4) + bytes_of(0, 2);
}

}  // namespace kd
