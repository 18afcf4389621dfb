# SPDX-License-Identifier: Apache-2.0
"""What ``egoedit doctor`` looks at in ROS: one function each, none of which raises or hangs."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from egoedit_ros.cli.checks import Check, reason_of, version_of

FASTDDS_PROFILE = "fastdds_large_images.xml"
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
DISCOVERY_RANGES = ("SUBNET", "LOCALHOST", "OFF", "SYSTEM_DEFAULT")
LOOPBACK_IMAGES = 10


def check_ros() -> Check:
    try:
        rclpy = importlib.import_module("rclpy")
        implementation = importlib.import_module(
            "rclpy.utilities"
        ).get_rmw_implementation_identifier
        distro = os.environ.get("ROS_DISTRO", "")
        version = version_of("ros-jazzy-rclpy") or version_of("rclpy")
        found = f"rclpy {version} {distro}".strip() + f" at {Path(rclpy.__file__).parent.parent}"
        return Check("ros", True, f"{found}, {implementation()}")
    except Exception as error:  # loading a middleware fails in many ways
        mend = "source your ROS installation's setup.bash, or use .venv after make setup"
        return Check("ros", False, reason_of(error), mend)


def check_messages() -> Check:
    try:
        messages = importlib.import_module("egoedit_ros.msg")
        kind = messages.EditInstruction.__class__
        kind.__import_type_support__()
        if kind._TYPE_SUPPORT is None:
            raise ImportError("the type support library cannot be loaded")
        return Check("messages", True, str(Path(messages.__file__).resolve().parent))
    except Exception as error:  # as above
        mend = (
            "run make setup, or on a ROS machine colcon build and source install/setup.bash; "
            "a pip-installed egoedit_ros hides the built one: pip uninstall egoedit_ros"
        )
        return Check("messages", False, reason_of(error), mend)


def check_shared_memory(environment: Mapping[str, str] = os.environ) -> Check:
    """Whether large images fit through Fast DDS's shared memory."""
    name = "shared memory"
    if environment.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp") != "rmw_fastrtps_cpp":
        return Check(name, None, f"{environment['RMW_IMPLEMENTATION']} has settings of its own")
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        mend = "mount /dev/shm, in a container with --shm-size=256m or --ipc=host"
        return Check(name, False, "no /dev/shm", mend)
    found = f"{free / 2**20:.0f} MiB free in /dev/shm"
    if free < 64 * 2**20:
        mend = "give it more, in a container with --shm-size=256m; old /dev/shm/fastrtps_* may go"
        return Check(name, False, found, mend)
    profile = next((environment[v] for v in PROFILE_VARIABLES if environment.get(v)), "")
    if profile and not Path(profile).is_file():
        return Check(name, False, f"no profile at {profile}", "correct or unset the variable")
    if profile:
        return Check(name, True, f"{found}, profile {profile}")
    mend = (
        "Fast DDS's segment of 512 kB loses larger best-effort images; in every terminal: export "
        f"{PROFILE_VARIABLES[0]}={profile_path() or FASTDDS_PROFILE}"
    )
    return Check(name, True, f"{found}, no profile for large images", mend)


def profile_path() -> Path | None:
    """The package's Fast DDS profile: in the source tree or in share/."""
    folders = [Path(__file__).resolve().parents[2] / "config"]
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    folders += [Path(prefix) / "share" / "egoedit_ros" / "config" for prefix in prefixes if prefix]
    for folder in folders:
        if (folder / FASTDDS_PROFILE).is_file():
            return folder / FASTDDS_PROFILE
    return None


_LOOPBACK = """
import sys, time
import rclpy
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
role, topic, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
rclpy.init()
node = rclpy.create_node("egoedit_doctor_" + role)
qos = QoSProfile(depth=count)
end = time.monotonic() + 15
if role == "hear":
    delays = []
    def take(message, info):
        delays.append((time.time_ns() - info["source_timestamp"]) / 1e6)
    node.create_subscription(Image, topic, take, qos)
    while len(delays) < count and time.monotonic() < end:
        rclpy.spin_once(node, timeout_sec=0.1)
    print(len(delays), sorted(delays)[len(delays) // 2] if delays else -1)
else:
    publisher = node.create_publisher(Image, topic, qos)
    message = Image(height=480, width=640, encoding="rgb8", step=1920)
    message.data.frombytes(bytes(480 * 1920))
    while not publisher.get_subscription_count() and time.monotonic() < end:
        time.sleep(0.02)
    for _ in range(count):
        publisher.publish(message)
        time.sleep(0.05)
    time.sleep(0.5)
rclpy.shutdown()
"""


def check_loopback() -> Check:
    """Send images from one process to another, with the environment as it is."""
    name = "loopback"
    if not importlib.util.find_spec("rclpy"):
        return Check(name, False, "no rclpy", "see ros")
    topic, count = f"egoedit_doctor_{os.getpid()}", LOOPBACK_IMAGES
    command = [sys.executable, "-W", "ignore", "-c", _LOOPBACK]
    hearer = subprocess.Popen(
        [*command, "hear", topic, str(count)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    teller = subprocess.Popen(
        [*command, "tell", topic, str(count)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        words = hearer.communicate(timeout=30)[0].split()
    except subprocess.TimeoutExpired:
        words = []
    finally:
        for process in (hearer, teller):
            process.kill()
            process.wait()
    heard = int(words[0]) if words else 0
    if heard == count:
        return Check(name, True, f"{count} images of 640x480, {float(words[1]):.1f} ms each")
    mend = (
        "two processes here do not hear each other; check ROS_AUTOMATIC_DISCOVERY_RANGE (not OFF), "
        "ROS_DOMAIN_ID, RMW_IMPLEMENTATION, the firewall and the Fast DDS profile"
    )
    return Check(name, False, f"{heard} of {count} images arrived", mend)


def check_environment(environment: Mapping[str, str] = os.environ) -> Check:
    """Variables that decide who hears whom, and those that let in another environment's parts."""
    faults, mends = [], []

    def fault(what: str, mend: str) -> None:
        faults.append(what)
        mends.append(mend)

    domain = environment.get("ROS_DOMAIN_ID", "")
    if domain and not (domain.isdigit() and int(domain) <= 232):
        fault(f"ROS_DOMAIN_ID={domain}", "use a number from 0 to 101")
    elif domain and int(domain) > 101:
        fault(f"ROS_DOMAIN_ID={domain}", "above 101 its ports may be taken; use 0 to 101")
    reach = environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "")
    if reach and reach not in DISCOVERY_RANGES:
        fault(f"ROS_AUTOMATIC_DISCOVERY_RANGE={reach}", f"use {' or '.join(DISCOVERY_RANGES[:2])}")
    if reach == "OFF":
        fault("ROS_AUTOMATIC_DISCOVERY_RANGE=OFF", "no node finds another; use LOCALHOST")
    if environment.get("ROS_LOCALHOST_ONLY", "0") not in ("", "0"):
        fault("ROS_LOCALHOST_ONLY", "deprecated; use ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST")
    prefix_lib = str(Path(sys.prefix) / "lib")
    paths = environment.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    if environment.get("_ROS_WHEELS_BOOTSTRAP_COMPLETE") and prefix_lib not in paths:
        fault(
            "_ROS_WHEELS_BOOTSTRAP_COMPLETE of another environment",
            "unset _ROS_WHEELS_BOOTSTRAP_COMPLETE LD_LIBRARY_PATH",
        )
    own = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for path in environment.get("PYTHONPATH", "").split(os.pathsep):
        other = [part for part in Path(path).parts if part.startswith("python3.") and part != own]
        if other:
            fault(f"PYTHONPATH has {path}", f"that is for {other[0]}; unset PYTHONPATH")
    if faults:
        return Check("environment", False, "; ".join(faults), "; ".join(mends))
    shown = (
        f"domain {domain or '0'}, {environment.get('RMW_IMPLEMENTATION', 'default middleware')}, "
        f"discovery {reach or 'SUBNET'}"
    )
    return Check("environment", True, shown)


ROS_CHECKS: tuple[Callable[[], Check], ...] = (
    check_ros,
    check_messages,
    check_environment,
    check_shared_memory,
    check_loopback,
)
