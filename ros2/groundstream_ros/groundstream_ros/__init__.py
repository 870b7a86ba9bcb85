"""A ROS 2 node between a camera topic and a Groundstream service."""
