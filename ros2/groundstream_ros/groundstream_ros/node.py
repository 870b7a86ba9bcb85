"""The node: ROS's names on `bridge.py`.

Takes `image` (sensor_msgs/CompressedImage) and `queries` (std_msgs/String, comma separated), gives
`detections` (vision_msgs/Detection2DArray) with the headers of the pictures they are about, and
once a second `/diagnostics`.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String
from vision_msgs.msg import Detection2D, Detection2DArray, ObjectHypothesisWithPose

from groundstream.errors import AgentError
from groundstream_ros.bridge import Bridge, Parameters, fill, to_diagnostics

_DIAGNOSTICS_S = 1.0
_DETECTIONS = {"detections": Detection2D, "results": ObjectHypothesisWithPose}
_DIAGNOSTICS = {"status": DiagnosticStatus, "values": KeyValue}


def diagnostics(bridge: Bridge, stamp: Any) -> Any:
    """The message that says how the node is."""
    now = {"sec": stamp.sec, "nanosec": stamp.nanosec}
    given = to_diagnostics(bridge.books, bridge.num_replaced, now)
    for status in given["status"]:
        status["level"] = getattr(DiagnosticStatus, status["level"])
    return fill(DiagnosticArray(), given, _DIAGNOSTICS)


async def serve(node: Any) -> None:
    """Bridge until ROS shuts down.

    Raises:
        AgentError: a parameter means nothing, or the service refuses us for good.
    """
    parameters = Parameters.declared(lambda name, value: node.declare_parameter(name, value).value)
    detections = node.create_publisher(Detection2DArray, "detections", 10)
    health = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
    bridge = Bridge(
        parameters, lambda given: detections.publish(fill(Detection2DArray(), given, _DETECTIONS))
    )
    node.create_subscription(CompressedImage, "image", bridge.take_image, qos_profile_sensor_data)
    node.create_subscription(
        String, "queries", lambda message: bridge.take_queries(message.data), 1
    )

    async def tell() -> None:
        while True:
            health.publish(diagnostics(bridge, node.get_clock().now().to_msg()))
            await asyncio.sleep(_DIAGNOSTICS_S)

    spinning = asyncio.ensure_future(asyncio.to_thread(rclpy.spin, node))
    working = [asyncio.ensure_future(bridge.run()), asyncio.ensure_future(tell())]
    try:
        done, _ = await asyncio.wait([spinning, *working], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {spinning}:
            task.result()
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        # The thread that spins ends with ROS alone.
        if rclpy.ok():
            rclpy.shutdown()
        await asyncio.gather(spinning, return_exceptions=True)


def main() -> None:
    """The executable; exit status 1 says that starting again as it is would not help."""
    rclpy.init()
    node = rclpy.create_node("groundstream")
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve(node))
    except AgentError as error:
        node.get_logger().fatal(str(error))
        raise SystemExit(1) from None
    finally:
        node.destroy_node()


if __name__ == "__main__":
    main()
