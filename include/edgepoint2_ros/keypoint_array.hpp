// From a KeypointArray message to matches, in plain C++17: no rclcpp, no OpenCV, nothing to link.
//
//   auto features = edgepoint2_ros::decode(message);        // checked; descriptors are rows of floats
//   auto matches = edgepoint2_ros::match(last, features);   // mutual nearest neighbours
//   cv::Mat rows(int(features.size()), int(features.descriptor_size), CV_32F, features.descriptors.data());
//
// The names and rules are those of the Python modules edgepoint2_ros.messages and edgepoint2_ros.matching.

#ifndef EDGEPOINT2_ROS__KEYPOINT_ARRAY_HPP_
#define EDGEPOINT2_ROS__KEYPOINT_ARRAY_HPP_

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "edgepoint2_ros/msg/keypoint_array.hpp"

namespace edgepoint2_ros
{

/// A message whose fields contradict each other, or features that must not be compared; what() says what is wrong.
class Error : public std::runtime_error
{
public:
  using std::runtime_error::runtime_error;
};

/// The keypoints and descriptors of one image, best score first.
struct Features
{
  std::string model;                // name of the variant, for example "T-32"
  std::string digest;               // identity of the weights
  std::uint32_t image_width = 0;    // pixels
  std::uint32_t image_height = 0;   // pixels
  std::vector<float> x;             // N: pixels to the right; pixel centres are at integers
  std::vector<float> y;             // N: pixels downwards
  std::vector<float> score;         // N: raw detector logits
  std::size_t descriptor_size = 0;  // D
  std::vector<float> descriptors;   // N rows of D numbers, each of unit length

  std::size_t size() const {return x.size();}

  /// Row i: D numbers.
  const float * descriptor(std::size_t i) const {return descriptors.data() + i * descriptor_size;}
};

/// Feature `first` of one image and feature `second` of another are each other's nearest neighbour.
struct Match
{
  std::size_t first;
  std::size_t second;
  float cosine;
};

/// Whether the features come from the same weights, so that their descriptors may be compared.
inline bool comparable(const Features & first, const Features & second)
{
  return first.model == second.model && first.digest == second.digest &&
         first.descriptor_size == second.descriptor_size;
}

namespace detail
{

inline std::uint32_t little_endian(const std::uint8_t * bytes, std::size_t count)
{
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < count; ++i) {
    value |= static_cast<std::uint32_t>(bytes[i]) << (8 * i);
  }
  return value;
}

inline float to_float(std::uint32_t bits)
{
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// The bits of a number, without its sign. With -ffast-math, compilers assume that std::isfinite always holds and that
/// no number is NaN; of integers they assume nothing.
inline std::uint64_t magnitude_bits(double number)
{
  std::uint64_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  return bits & 0x7fffffffffffffffu;
}

inline constexpr std::uint64_t infinity_bits = 0x7ff0000000000000u;

inline bool is_finite(double number) {return magnitude_bits(number) < infinity_bits;}

inline bool is_nan(double number) {return magnitude_bits(number) > infinity_bits;}

inline float half_to_float(std::uint32_t half)
{
  const std::uint32_t sign = (half & 0x8000u) << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1fu;
  const std::uint32_t fraction = half & 0x3ffu;
  if (exponent == 0x1fu) {  // infinite, or not a number
    return to_float(sign | 0x7f800000u | fraction << 13);
  }
  if (exponent == 0) {  // zero, or below the normal range
    const float value = std::ldexp(static_cast<float>(fraction), -24);
    return sign ? -value : value;
  }
  return to_float(sign | (exponent + 112) << 23 | fraction << 13);
}

inline void to_unit_length(float * row, std::size_t size)
{
  float sum = 0;
  for (std::size_t d = 0; d < size; ++d) {
    sum += row[d] * row[d];
  }
  const float scale = 1 / std::max(std::sqrt(sum), 1e-30f);  // a row of zeros stays one
  for (std::size_t d = 0; d < size; ++d) {
    row[d] *= scale;
  }
}

/// The best and the second best cosine of one feature with those of the other image, and whose the best is.
struct Nearest
{
  float cosine = std::numeric_limits<float>::lowest();
  float next = std::numeric_limits<float>::lowest();
  std::size_t index = 0;

  void offer(float candidate, std::size_t candidate_index)
  {
    if (!(candidate > next)) {  // nearly always
      return;
    }
    if (candidate > cosine) {
      next = cosine;
      cosine = candidate;
      index = candidate_index;
    } else {
      next = candidate;
    }
  }
};

}  // namespace detail

/// Checks a message and returns what it carries, descriptors as floats.
/**
 * float16 and int8 rows are brought to unit length; float32 rows stay as they are, exact.
 *
 * \throws Error lengths contradict each other, or the descriptor encoding is unknown.
 */
inline Features decode(const msg::KeypointArray & message)
{
  const std::size_t count = message.x.size();
  if (message.y.size() != count || message.score.size() != count) {
    throw Error(
            "x, y and score differ in length: " + std::to_string(count) + ", " + std::to_string(message.y.size()) +
            " and " + std::to_string(message.score.size()) + " numbers");
  }
  std::size_t bytes = 0;  // of one number
  switch (message.descriptor_encoding) {
    case msg::KeypointArray::FLOAT32: bytes = 4; break;
    case msg::KeypointArray::FLOAT16: bytes = 2; break;
    case msg::KeypointArray::INT8: bytes = 1; break;
    default:
      throw Error(
              "descriptor encoding " + std::to_string(message.descriptor_encoding) +
              ": expected 0 (float32), 1 (float16) or 2 (int8)");
  }
  // In 64 bits, where the product of two sizes cannot wrap.
  const std::uint64_t expected = std::uint64_t{count} * message.descriptor_size * bytes;
  if (message.descriptors.size() != expected) {
    throw Error(
            "descriptors have " + std::to_string(message.descriptors.size()) + " bytes: expected " +
            std::to_string(expected) + " for " + std::to_string(count) + " keypoints of " +
            std::to_string(message.descriptor_size) + " numbers of " + std::to_string(bytes) + " bytes");
  }

  Features features;
  features.model = message.model;
  features.digest = message.digest;
  features.image_width = message.image_width;
  features.image_height = message.image_height;
  features.x = message.x;
  features.y = message.y;
  features.score = message.score;
  features.descriptor_size = message.descriptor_size;
  features.descriptors.resize(message.descriptors.size() / bytes);
  for (std::size_t i = 0; i < features.descriptors.size(); ++i) {
    const std::uint8_t * number = message.descriptors.data() + i * bytes;
    if (bytes == 1) {
      features.descriptors[i] = static_cast<float>(*number < 128 ? *number : *number - 256);
    } else {
      const std::uint32_t bits = detail::little_endian(number, bytes);
      features.descriptors[i] = bytes == 2 ? detail::half_to_float(bits) : detail::to_float(bits);
    }
  }
  if (bytes != 4) {  // float32 rows are exact already
    for (std::size_t i = 0; i < count; ++i) {
      detail::to_unit_length(features.descriptors.data() + i * features.descriptor_size, features.descriptor_size);
    }
  }
  return features;
}

namespace detail
{

/// Returns the dot product of two rows, in eight partial sums, so that compilers may vectorise it.
inline float dot(const float * a, const float * b, std::size_t size)
{
  float sums[8] = {};
  std::size_t d = 0;
  for (; d + 8 <= size; d += 8) {
    for (std::size_t k = 0; k < 8; ++k) {
      sums[k] += a[d + k] * b[d + k];
    }
  }
  float sum = ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
  for (; d < size; ++d) {
    sum += a[d] * b[d];
  }
  return sum;
}

inline void check_whole(const Features & features)
{
  const std::size_t count = features.size(), size = features.descriptor_size, numbers = features.descriptors.size();
  const bool fits = count == 0 ? numbers == 0 : numbers / count == size && numbers % count == 0;  // no product wraps
  if (features.y.size() != count || !fits) {
    throw Error(
            "features to match: expected as many y as x and " + std::to_string(size) +
            " numbers of descriptors for each, got " + std::to_string(count) + " x, " +
            std::to_string(features.y.size()) + " y and " + std::to_string(numbers) + " numbers");
  }
}

inline void check_comparable(const Features & first, const Features & second)
{
  if (first.model != second.model || first.digest != second.digest) {
    throw Error(
            "features of " + first.model + " [" + first.digest + "] cannot be matched with features of " +
            second.model + " [" + second.digest + "]: descriptors of different weights cannot be compared");
  }
  if (first.size() > 0 && second.size() > 0 && first.descriptor_size != second.descriptor_size) {
    throw Error(
            "descriptors of " + std::to_string(first.descriptor_size) + " numbers cannot be matched with those of " +
            std::to_string(second.descriptor_size));
  }
  check_whole(first);
  check_whole(second);
}

inline void check_positions(const Features & features)
{
  for (std::size_t i = 0; i < features.size(); ++i) {
    if (!is_finite(features.x[i]) || !is_finite(features.y[i])) {
      throw Error("positions of keypoints to match are not finite");
    }
  }
}

/// Throws unless all rows have a finite length: then all cosines are finite, too.
inline void check_descriptors(const Features & features)
{
  for (std::size_t i = 0; i < features.size(); ++i) {
    const float * row = features.descriptor(i);
    if (!is_finite(dot(row, row, features.descriptor_size))) {
      throw Error("descriptors to be matched hold numbers that are not finite, or too large to multiply");
    }
  }
}

/// Throws unless the limits of a match mean something.
inline void check_limits(float min_cosine, float ratio)
{
  if (is_nan(min_cosine)) {
    throw Error("min_cosine: expected a number, got nan");
  }
  if (!is_finite(ratio) || !(ratio > 0 && ratio <= 1)) {
    throw Error("ratio: expected more than 0 and at most 1, got " + std::to_string(ratio));
  }
}

}  // namespace detail

/// Returns mutual nearest neighbours by the cosine of their descriptors.
/**
 * \param min_cosine matches with a lower cosine are dropped.
 * \param ratio matches are dropped unless their descriptor distance is less than this times the distance to the
 *   second best of `second` (Lowe's ratio test); 1 disables the test.
 * \return matches with `first` ascending.
 * \throws Error the features come from different models or weights, or hold numbers that are not finite; or a limit is
 *   out of range.
 */
inline std::vector<Match> match(
  const Features & first, const Features & second, float min_cosine = -1, float ratio = 1)
{
  detail::check_comparable(first, second);
  detail::check_limits(min_cosine, ratio);
  if (first.size() == 0 || second.size() == 0) {
    return {};
  }
  detail::check_descriptors(first);
  detail::check_descriptors(second);
  const std::size_t size = first.descriptor_size;
  std::vector<detail::Nearest> of_first(first.size()), of_second(second.size());

  // 32 descriptors of `second` at a time, dimension by dimension, so that compilers can vectorise the inner loop
  // without being allowed to reorder a sum. Half as many are three times slower with GCC 12.
  constexpr std::size_t block = 32;
  const std::size_t blocks = (second.size() + block - 1) / block;
  std::vector<float> columns(blocks * size * block);
  for (std::size_t j = 0; j < second.size(); ++j) {
    float * column = columns.data() + j / block * size * block + j % block;
    for (std::size_t d = 0; d < size; ++d) {
      column[d * block] = second.descriptor(j)[d];
    }
  }
  // And as many of `first` as stay in the cache while all of `second` passes by.
  constexpr std::size_t tile = 256;
  for (std::size_t top = 0; top < first.size(); top += tile) {
    const std::size_t bottom = std::min(top + tile, first.size());
    for (std::size_t begin = 0; begin < second.size(); begin += block) {
      const std::size_t width = std::min(block, second.size() - begin);
      const float * part = columns.data() + begin * size;
      for (std::size_t i = top; i < bottom; ++i) {
        float cosine[block] = {};
        const float * row = first.descriptor(i);
        for (std::size_t d = 0; d < size; ++d) {
          for (std::size_t j = 0; j < block; ++j) {
            cosine[j] += row[d] * part[d * block + j];
          }
        }
        for (std::size_t j = 0; j < width; ++j) {
          of_first[i].offer(cosine[j], begin + j);
          of_second[begin + j].offer(cosine[j], i);
        }
      }
    }
  }

  std::vector<Match> matches;
  for (std::size_t i = 0; i < first.size(); ++i) {
    const detail::Nearest & nearest = of_first[i];
    if (of_second[nearest.index].index != i || !(nearest.cosine >= min_cosine)) {
      continue;
    }
    // Unit vectors of cosine c are sqrt(2 - 2 c) apart.
    if (ratio < 1 && !(1 - nearest.cosine < ratio * ratio * (1 - nearest.next))) {
      continue;
    }
    matches.push_back({i, nearest.index, nearest.cosine});
  }
  return matches;
}

/// Returns the cosine from which a match of these features is more likely right than wrong, for `match` and
/// `match_guided`; none if their weights do not ship with the package.
inline std::optional<float> min_cosine(const Features & features)
{
  struct Calibrated
  {
    const char * model;
    const char * digest;
    float value;
  };
  static constexpr Calibrated shipped[] = {  // as on the models' cards
    {"T-32", "3cee0c054e697853", 0.916f},
    {"T-48", "0dcad6953f8d7408", 0.900f},
    {"S-32", "6318d6c6247c37f6", 0.913f},
    {"S-48", "aa4c5910c1cf77e2", 0.887f},
    {"S-64", "a61df17e3d866aab", 0.871f},
    {"M-32", "27d837b6fc326b2d", 0.916f},
    {"M-48", "d875845d7e2c99a9", 0.891f},
    {"M-64", "a4b3520791a27f7e", 0.867f},
    {"L-32", "62f5d794609b9d6f", 0.916f},
    {"L-48", "bb4326ed0a3770ef", 0.887f},
    {"L-64", "a373f5ffcfacb51f", 0.865f},
    {"E-32", "0d7f96390ad4717d", 0.914f},
    {"E-48", "96483a45f6e08095", 0.887f},
    {"E-64", "752523fe87edb411", 0.864f},
  };
  for (const Calibrated & row : shipped) {
    if (features.model == row.model && features.digest == row.digest) {
      return row.value;
    }
  }
  return std::nullopt;
}

/// Where the features of a first image can be in the second one; all constraints given must hold.
struct Guide
{
  /// Predicted position of each feature of the first image, pixels; one that is not finite has no candidates.
  /// Empty: no predictions.
  std::vector<double> predicted_x, predicted_y;
  /// Of the search around these positions, pixels in x and in y: one number for all features, or one for each. Only
  /// with predictions.
  std::vector<double> radius;
  /// The fundamental matrix, row by row, from pixels of the first image to lines in the second.
  std::optional<std::array<double, 9>> fundamental;
  /// Minimum and maximum of x in the first image minus x in the second, in a rectified stereo pair with the first on
  /// the left.
  std::optional<std::array<double, 2>> disparity;
  /// Maximum distance of a feature of the second image from its epipolar line or row, pixels.
  double distance = 2;
};

namespace detail
{

struct Box
{
  double left, top, right, bottom;

  bool holds(double x, double y) const {return x >= left && x <= right && y >= top && y <= bottom;}
};

/// Returns the search window of each feature, from predicted positions and rows.
inline std::vector<Box> search_boxes(const Features & first, const Guide & guide)
{
  constexpr double everywhere = std::numeric_limits<double>::max();
  const std::size_t count = first.size();
  const bool is_predicted = !guide.predicted_x.empty() || !guide.predicted_y.empty() || !guide.radius.empty();
  if (!is_predicted && !guide.fundamental && !guide.disparity && count > 0) {  // no features have no predictions
    throw Error("no search constraint: expected predicted and radius, fundamental or disparity");
  }
  if (is_nan(guide.distance) || guide.distance <= 0) {
    throw Error("distance: expected a positive number of pixels, got " + std::to_string(guide.distance));
  }
  if (guide.disparity) {
    const auto [least, most] = *guide.disparity;
    if (is_nan(least) || is_nan(most) || least > most) {
      throw Error(
              "disparity: expected minimum and maximum, got " + std::to_string(least) + " and " + std::to_string(most));
    }
  }
  if (is_predicted) {
    if (guide.predicted_x.size() != count || guide.predicted_y.size() != count) {
      throw Error(
              "predicted: expected " + std::to_string(count) + ", one for each feature, got " +
              std::to_string(guide.predicted_x.size()) + " and " + std::to_string(guide.predicted_y.size()));
    }
    const std::string wanted = "radius: expected a number from 0, or " + std::to_string(count) + " of them, got ";
    if (guide.radius.size() != 1 && guide.radius.size() != count) {
      throw Error(wanted + std::to_string(guide.radius.size()));
    }
    for (const double radius : guide.radius) {
      if (is_nan(radius) || radius < 0) {
        throw Error(wanted + std::to_string(radius));
      }
    }
  }
  std::vector<Box> boxes(count, Box{-everywhere, -everywhere, everywhere, everywhere});
  for (std::size_t i = 0; i < count; ++i) {
    Box & box = boxes[i];
    if (is_predicted) {
      const double x = guide.predicted_x[i], y = guide.predicted_y[i];
      const double radius = guide.radius.size() == 1 ? guide.radius[0] : guide.radius[i];
      if (!is_finite(x) || !is_finite(y)) {
        box = {everywhere, everywhere, -everywhere, -everywhere};
        continue;
      }
      box = {x - radius, y - radius, x + radius, y + radius};
    }
    if (guide.disparity) {
      box.left = std::max(box.left, first.x[i] - (*guide.disparity)[1]);
      box.right = std::min(box.right, first.x[i] - (*guide.disparity)[0]);
      box.top = std::max(box.top, first.y[i] - guide.distance);
      box.bottom = std::min(box.bottom, first.y[i] + guide.distance);
    }
  }
  return boxes;
}

/// Features sorted by row, to find those in a range of rows.
struct Rows
{
  std::vector<std::size_t> order;
  std::vector<float> y;  // in that order

  explicit Rows(const Features & features)
  : order(features.size())
  {
    for (std::size_t j = 0; j < order.size(); ++j) {
      order[j] = j;
    }
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
        return features.y[a] < features.y[b] || (features.y[a] == features.y[b] && a < b);
      });
    for (const std::size_t j : order) {
      y.push_back(features.y[j]);
    }
  }
};

/// Fills `found` with the candidates in the second image for feature i of the first.
inline void find_candidates(
  const Features & first, std::size_t i, const Features & second, const Box & box, const Guide & guide,
  const Rows & rows, std::vector<std::size_t> & found)
{
  found.clear();
  double a = 0, b = 0, c = 0;
  if (guide.fundamental) {
    const auto & f = *guide.fundamental;
    a = f[0] * first.x[i] + f[1] * first.y[i] + f[2];
    b = f[3] * first.x[i] + f[4] * first.y[i] + f[5];
    c = f[6] * first.x[i] + f[7] * first.y[i] + f[8];
    const double length = std::max(std::hypot(a, b), 1e-12);
    a /= length;
    b /= length;
    c /= length;
  }
  const auto begin = std::lower_bound(rows.y.begin(), rows.y.end(), box.top);
  for (auto row = begin; row != rows.y.end() && *row <= box.bottom; ++row) {
    const std::size_t j = rows.order[static_cast<std::size_t>(row - rows.y.begin())];
    if (!box.holds(second.x[j], second.y[j])) {
      continue;
    }
    if (guide.fundamental && !(std::abs(a * second.x[j] + b * second.y[j] + c) <= guide.distance)) {
      continue;
    }
    found.push_back(j);
  }
}

}  // namespace detail

/// Returns mutual nearest neighbours among the candidates that a guide allows.
/**
 * \param guide where the features of `first` can be in the second image.
 * \param min_cosine, ratio as for match; the ratio is to the second best candidate.
 * \return matches with `first` ascending; ties go to the first.
 * \throws Error no constraint is given, or numbers are invalid; or the features come from different models or
 *   weights, or hold numbers that are not finite.
 */
inline std::vector<Match> match_guided(
  const Features & first, const Features & second, const Guide & guide, float min_cosine = -1, float ratio = 1)
{
  constexpr float lowest = std::numeric_limits<float>::lowest();
  detail::check_comparable(first, second);
  detail::check_limits(min_cosine, ratio);
  const std::vector<detail::Box> boxes = detail::search_boxes(first, guide);
  if (first.size() == 0 || second.size() == 0) {
    return {};
  }
  detail::check_descriptors(first);
  detail::check_descriptors(second);
  detail::check_positions(second);
  if (guide.fundamental || guide.disparity) {
    detail::check_positions(first);
  }
  const detail::Rows rows(second);
  std::vector<detail::Nearest> of_first(first.size());
  std::vector<float> highest(second.size(), lowest);  // highest cosine of a feature of `second` with any candidate
  std::vector<std::size_t> candidates;
  for (std::size_t i = 0; i < first.size(); ++i) {
    detail::find_candidates(first, i, second, boxes[i], guide, rows, candidates);
    std::sort(candidates.begin(), candidates.end());  // ties: the first is offered first
    for (const std::size_t j : candidates) {
      const float cosine = detail::dot(first.descriptor(i), second.descriptor(j), first.descriptor_size);
      of_first[i].offer(cosine, j);
      highest[j] = std::max(highest[j], cosine);
    }
  }
  std::vector<Match> matches;
  std::vector<bool> taken(second.size());
  for (std::size_t i = 0; i < first.size(); ++i) {
    const detail::Nearest & nearest = of_first[i];
    if (nearest.cosine == lowest || nearest.cosine < highest[nearest.index] || taken[nearest.index]) {
      continue;
    }
    if (!(nearest.cosine >= min_cosine)) {
      continue;
    }
    if (ratio < 1 && !(1 - nearest.cosine < ratio * ratio * (1 - nearest.next))) {
      continue;
    }
    taken[nearest.index] = true;
    matches.push_back({i, nearest.index, nearest.cosine});
  }
  return matches;
}

}  // namespace edgepoint2_ros

#endif  // EDGEPOINT2_ROS__KEYPOINT_ARRAY_HPP_
