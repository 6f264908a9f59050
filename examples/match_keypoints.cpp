// Subscribes to keypoints and matches each message with the one before: ros2 run edgepoint2_ros match_keypoints

#include <memory>
#include <utility>

#include "edgepoint2_ros/keypoint_array.hpp"
#include "rclcpp/rclcpp.hpp"

class MatchKeypoints : public rclcpp::Node
{
public:
  MatchKeypoints()
  : Node("match_keypoints")
  {
    using Message = edgepoint2_ros::msg::KeypointArray;
    subscription_ = create_subscription<Message>(
      "keypoints", 10, [this](Message::ConstSharedPtr message) {take(*message);});
  }

private:
  void take(const edgepoint2_ros::msg::KeypointArray & message)
  {
    try {
      edgepoint2_ros::Features features = edgepoint2_ros::decode(message);
      if (!edgepoint2_ros::comparable(last_, features)) {  // the first message, or another model from now on
        RCLCPP_INFO(get_logger(), "keypoints of %s [%s]", features.model.c_str(), features.digest.c_str());
      } else {
        const auto matches = edgepoint2_ros::match(last_, features);
        RCLCPP_INFO(get_logger(), "%zu keypoints, %zu match the last image", features.size(), matches.size());
        if (!matches.empty()) {
          const auto [i, j, cosine] = matches.front();
          RCLCPP_DEBUG(
            get_logger(), "the first moved from (%.1f, %.1f) to (%.1f, %.1f), cosine %.3f",
            last_.x[i], last_.y[i], features.x[j], features.y[j], cosine);
        }
      }
      last_ = std::move(features);
    } catch (const edgepoint2_ros::Error & error) {
      RCLCPP_WARN(get_logger(), "message dropped: %s", error.what());
    }
  }

  edgepoint2_ros::Features last_;
  rclcpp::Subscription<edgepoint2_ros::msg::KeypointArray>::SharedPtr subscription_;
};

int main(int argc, char ** argv)
{
  rclcpp::init(argc, argv);
  rclcpp::spin(std::make_shared<MatchKeypoints>());
  rclcpp::shutdown();
  return 0;
}
