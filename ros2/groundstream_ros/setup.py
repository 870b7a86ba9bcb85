"""Built by colcon; what the package is called and needs, package.xml says as well."""

from setuptools import setup

NAME = "groundstream_ros"

setup(
    name=NAME,
    version="0.2.0",
    packages=[NAME],
    python_requires=">=3.10",
    install_requires=["setuptools", "groundstream-client==0.2.0"],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", ["launch/groundstream.launch.py"]),
        (f"share/{NAME}/config", ["config/groundstream.yaml"]),
    ],
    zip_safe=True,
    maintainer="Groundstream maintainers",
    maintainer_email="maintainers@groundstream.example",
    description="Asks a Groundstream service what is in a camera's pictures",
    license="Apache-2.0",
    entry_points={"console_scripts": [f"bridge = {NAME}.node:main"]},
)
