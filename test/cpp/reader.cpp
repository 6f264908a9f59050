// Reads serialised KeypointArray messages and prints what test_cpp.py compares with Python's own answer.
//
//   reader decode FILE                        one line a keypoint: x y score and the descriptor
//   reader min_cosine FILE                    of the features' weights, or `none`
//   reader match FILE FILE [COSINE [RATIO]]   one line a match: first second cosine
//   reader guided FILE FILE GUIDE [COSINE [RATIO]]   the same; a line of GUIDE is `name number number ...`
//   reader time FILE FILE                     milliseconds of CPU for one match, the median of 21
//
// An error of the header is printed on stderr, with exit code 1.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "edgepoint2_ros/keypoint_array.hpp"
#ifndef WITHOUT_MIDDLEWARE
#include "rcutils/allocator.h"
#include "rmw/rmw.h"
#include "rosidl_typesupport_cpp/message_type_support.hpp"
#endif

using edgepoint2_ros::msg::KeypointArray;

std::vector<char> read_bytes(const std::string & path)
{
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

#ifdef WITHOUT_MIDDLEWARE  // for other processors: what a middleware does, by hand

// Reads little-endian CDR: each number at a multiple of its size after the four bytes that name the representation.
class Cdr
{
public:
  explicit Cdr(const std::string & path) : bytes_(read_bytes(path)) {}

  template<typename Number>
  void take(Number & number)
  {
    using Bits = std::conditional_t<
      sizeof(Number) == 4, std::uint32_t, std::conditional_t<sizeof(Number) == 2, std::uint16_t, std::uint8_t>>;
    static_assert(sizeof(Bits) == sizeof(Number));
    next_ = (next_ + sizeof(Bits) - 1) / sizeof(Bits) * sizeof(Bits);
    Bits bits = 0;
    for (std::size_t i = 0; i < sizeof(Bits); ++i) {
      bits = static_cast<Bits>(bits | static_cast<Bits>(static_cast<unsigned char>(bytes_.at(4 + next_ + i))) << 8 * i);
    }
    std::memcpy(&number, &bits, sizeof(bits));
    next_ += sizeof(Bits);
  }

  template<typename Number>
  void take(std::vector<Number> & numbers)
  {
    std::uint32_t size = 0;
    take(size);
    numbers.resize(size);
    for (auto & number : numbers) {
      take(number);
    }
  }

  void take(std::string & text)
  {
    std::vector<char> letters;  // with a 0 at the end
    take(letters);
    text.assign(letters.begin(), letters.end() - 1);
  }

private:
  std::vector<char> bytes_;
  std::size_t next_ = 0;
};

KeypointArray read(const std::string & path)
{
  Cdr cdr(path);
  KeypointArray message;
  cdr.take(message.header.stamp.sec);
  cdr.take(message.header.stamp.nanosec);
  cdr.take(message.header.frame_id);
  cdr.take(message.model);
  cdr.take(message.digest);
  cdr.take(message.image_width);
  cdr.take(message.image_height);
  cdr.take(message.x);
  cdr.take(message.y);
  cdr.take(message.score);
  cdr.take(message.descriptor_size);
  cdr.take(message.descriptor_encoding);
  cdr.take(message.descriptors);
  return message;
}

#else

KeypointArray read(const std::string & path)
{
  auto bytes = read_bytes(path);
  rmw_serialized_message_t serialised = rmw_get_zero_initialized_serialized_message();
  serialised.buffer = reinterpret_cast<std::uint8_t *>(bytes.data());
  serialised.buffer_length = serialised.buffer_capacity = bytes.size();
  serialised.allocator = rcutils_get_default_allocator();
  KeypointArray message;
  const auto * type = rosidl_typesupport_cpp::get_message_type_support_handle<KeypointArray>();
  if (rmw_deserialize(&serialised, type, &message) != RMW_RET_OK) {
    throw std::runtime_error(path + " is not a serialised KeypointArray");
  }
  return message;
}

#endif

edgepoint2_ros::Guide read_guide(const std::string & path)
{
  edgepoint2_ros::Guide guide;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name, word;
    words >> name;
    std::vector<double> numbers;
    while (words >> word) {
      numbers.push_back(std::stod(word));  // which knows nan, as >> does not
    }
    if (name == "x") {
      guide.predicted_x = numbers;
    } else if (name == "y") {
      guide.predicted_y = numbers;
    } else if (name == "radius") {
      guide.radius = numbers;
    } else if (name == "fundamental") {
      guide.fundamental.emplace();
      std::copy_n(numbers.begin(), 9, guide.fundamental->begin());
    } else if (name == "disparity") {
      guide.disparity = {numbers.at(0), numbers.at(1)};
    } else if (name == "distance") {
      guide.distance = numbers.at(0);
    }
  }
  return guide;
}

int main(int count, char ** arguments)
{
  const std::vector<std::string> words(arguments + 1, arguments + count);
  try {
    const auto first = edgepoint2_ros::decode(read(words.at(1)));
    if (words.at(0) == "decode") {
      for (std::size_t i = 0; i < first.size(); ++i) {
        std::printf("%.9g %.9g %.9g", first.x[i], first.y[i], first.score[i]);
        for (std::size_t d = 0; d < first.descriptor_size; ++d) {
          std::printf(" %.9g", first.descriptor(i)[d]);
        }
        std::printf("\n");
      }
      return 0;
    }
    if (words[0] == "min_cosine") {
      const auto found = edgepoint2_ros::min_cosine(first);
      std::printf("%s\n", found ? std::to_string(*found).c_str() : "none");
      return 0;
    }
    const auto second = edgepoint2_ros::decode(read(words.at(2)));
    if (words[0] == "match") {
      const float cosine = words.size() > 3 ? std::stof(words[3]) : -1;
      const float ratio = words.size() > 4 ? std::stof(words[4]) : 1;
      for (const auto & match : edgepoint2_ros::match(first, second, cosine, ratio)) {
        std::printf("%zu %zu %.9g\n", match.first, match.second, match.cosine);
      }
      return 0;
    }
    if (words[0] == "guided") {
      const float cosine = words.size() > 4 ? std::stof(words[4]) : -1;
      const float ratio = words.size() > 5 ? std::stof(words[5]) : 1;
      for (const auto & match : edgepoint2_ros::match_guided(first, second, read_guide(words.at(3)), cosine, ratio)) {
        std::printf("%zu %zu %.9g\n", match.first, match.second, match.cosine);
      }
      return 0;
    }
    std::vector<double> times;
    std::size_t matches = 0;
    for (int i = 0; i < 21; ++i) {
      const std::clock_t begin = std::clock();
      matches = edgepoint2_ros::match(first, second).size();
      times.push_back(1e3 * static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC);
    }
    std::sort(times.begin(), times.end());
    std::printf("%zu x %zu: %zu matches, %.2f ms\n", first.size(), second.size(), matches, times[10]);
  } catch (const std::exception & error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
  return 0;
}
