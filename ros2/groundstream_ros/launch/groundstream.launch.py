"""The node for one camera:

ros2 launch groundstream_ros groundstream.launch.py image:=/camera/image/compressed
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

PACKAGE = "groundstream_ros"


def generate_launch_description() -> LaunchDescription:
    """The node, its parameters from a file, its topics by argument."""
    config = Path(get_package_share_directory(PACKAGE)) / "config" / "groundstream.yaml"
    arguments = [
        DeclareLaunchArgument("params", default_value=str(config), description="parameter file"),
        DeclareLaunchArgument("namespace", default_value="", description="one for each camera"),
        DeclareLaunchArgument(
            "image",
            default_value="/camera/image/compressed",
            description="sensor_msgs/CompressedImage",
        ),
    ]
    node = Node(
        package=PACKAGE,
        executable="bridge",
        name="groundstream",
        namespace=LaunchConfiguration("namespace"),
        parameters=[LaunchConfiguration("params")],
        remappings=[("image", LaunchConfiguration("image"))],
        # A refused token or a wrong parameter ends it; the service's absence does not.
        respawn=False,
        output="screen",
    )
    return LaunchDescription([*arguments, node])
