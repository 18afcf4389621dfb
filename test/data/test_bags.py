# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter
from replay_support import START_NS, picture, write_bag
from rosbags.rosbag2 import StoragePlugin, Writer

from egoedit_ros.data import cdr
from egoedit_ros.data.bag_writer import BagWriter, rescue_bag
from egoedit_ros.data.bags import BagReader
from egoedit_ros.data.source import open_source
from egoedit_ros.errors import UserError


def test_stamp_is_read_and_changed_in_place():
    data = cdr.image_cdr(picture(0), START_NS + 5, "camera")
    assert cdr.stamp_ns(data) == START_NS + 5
    moved = cdr.with_stamp(data, 3_000_000_007)
    message = cdr.typestore().deserialize_cdr(moved, cdr.IMAGE)
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (3, 7)
    assert message.header.frame_id == "camera"
    np.testing.assert_array_equal(message.data.reshape(48, 64, 3), picture(0))


def test_own_messages_are_known():
    assert cdr.FRAME_LATENCY in cdr.typestore().fielddefs
    assert cdr.EDIT_INSTRUCTION in cdr.typestore().fielddefs


def test_the_only_image_topic_is_taken(tmp_path):
    write_bag(tmp_path / "a", 3, extra=True)
    with BagReader(tmp_path / "a") as reader:
        assert reader.choose_image_topic().topic == "/camera/image_raw"
        assert reader.choose_image_topic("camera/image_raw").topic == "/camera/image_raw"


def test_two_image_topics_are_named(tmp_path):
    write_bag(tmp_path / "a", 3, more_topics=("/other/image",))
    with BagReader(tmp_path / "a") as reader:
        with pytest.raises(UserError, match="/camera/image_raw, /other/image"):
            reader.choose_image_topic()
        assert reader.choose_image_topic("/other/image").topic == "/other/image"


def test_unknown_topic_and_wrong_type_are_told_apart(tmp_path):
    write_bag(tmp_path / "a", 3, extra=True)
    with BagReader(tmp_path / "a") as reader:
        with pytest.raises(UserError, match="no topic /nothing.*are: /camera/image_raw"):
            reader.choose_image_topic("/nothing")
        with pytest.raises(UserError, match="carries std_msgs/msg/String, not images"):
            reader.choose_image_topic("/note")


def test_a_bag_without_images_says_what_it_has(tmp_path):
    with BagWriter(tmp_path / "a") as writer:
        writer.add_topic("/note", "std_msgs/msg/String")
        text = cdr.typestore().types["std_msgs/msg/String"](data="x")
        writer.write("/note", 1, cdr.serialize(text, "std_msgs/msg/String"))
    with BagReader(tmp_path / "a") as reader, pytest.raises(UserError, match="/note"):
        reader.choose_image_topic()


def test_sqlite3_bags_are_read(tmp_path):
    with Writer(tmp_path / "a", version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connection = writer.add_connection("/image", cdr.IMAGE, typestore=cdr.typestore())
        writer.write(connection, 5, cdr.image_cdr(picture(0), 5, "c"))
    with BagReader(tmp_path / "a") as reader:
        assert reader.choose_image_topic().msgcount == 1
        assert [cdr.stamp_ns(data) for _, _, data in reader.messages()] == [5]


def test_empty_bag(tmp_path):
    with BagWriter(tmp_path / "a") as writer:
        writer.add_topic("/image", cdr.IMAGE)
    with pytest.raises(UserError, match="without messages.*doctor --recover"):
        BagReader(tmp_path / "a")


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.97])
def test_truncated_bag_says_how_to_rescue_it(tmp_path, keep):
    write_bag(tmp_path / "a", 40)
    file = tmp_path / "a" / "a.mcap"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(UserError, match="doctor --recover"):
        BagReader(tmp_path / "a")


def test_truncated_sqlite3_bag(tmp_path):
    with Writer(tmp_path / "a", version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connection = writer.add_connection("/image", cdr.IMAGE, typestore=cdr.typestore())
        for i in range(40):
            writer.write(connection, i, cdr.image_cdr(picture(i), i, "c"))
    file = next((tmp_path / "a").glob("*.db3"))
    file.write_bytes(file.read_bytes()[:50_000])
    with pytest.raises(UserError, match="doctor --recover"):
        list(BagReader(tmp_path / "a").messages())


@pytest.mark.parametrize("name", ["a.bag", "a.txt"])
def test_other_files_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"#ROSBAG V2.0\n")
    with pytest.raises(UserError, match="ROS 1 bag|neither a rosbag2"):
        BagReader(tmp_path / name)


def test_a_folder_that_is_no_bag(tmp_path):
    with pytest.raises(UserError, match="not a rosbag2"):
        BagReader(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        BagReader(tmp_path / "nothing")


def test_what_was_flushed_is_rescued(tmp_path):
    writer = BagWriter(tmp_path / "a")
    writer.add_topic("/image", cdr.IMAGE)
    for i in range(7):
        writer.write("/image", i, cdr.image_cdr(picture(i), i + 1, "c"))
        if i == 4:
            writer.flush()
    before = (tmp_path / "a" / "a.mcap").read_bytes()
    writer.abort()
    (tmp_path / "a" / "a.mcap").write_bytes(before + b"\x06half a chunk")
    with pytest.raises(UserError, match="doctor --recover"):
        BagReader(tmp_path / "a")
    assert rescue_bag(tmp_path / "a") == 5
    with BagReader(tmp_path / "a") as reader:
        assert [cdr.stamp_ns(data) for _, _, data in reader.messages()] == [1, 2, 3, 4, 5]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_writer_does_not_overwrite(tmp_path):
    write_bag(tmp_path / "a", 1)
    with pytest.raises(UserError, match="exists already"):
        BagWriter(tmp_path / "a")


@pytest.mark.parametrize("how", ["lz4", "zstd"])
def test_a_bag_whose_compressed_bytes_are_wrong_is_one_line(tmp_path, how):
    kind = {"lz4": CompressionType.LZ4, "zstd": CompressionType.ZSTD}[how]
    path = tmp_path / "a.mcap"
    with path.open("wb") as file:
        writer = McapWriter(file, compression=kind)
        writer.start(profile="ros2", library="")
        schema = writer.register_schema("std_msgs/msg/String", "ros2msg", b"string data")
        channel = writer.register_channel("/note", "cdr", schema)
        for i in range(50):
            text = cdr.typestore().types["std_msgs/msg/String"](data=f"note {i} of many")
            data = bytes(cdr.serialize(text, "std_msgs/msg/String"))
            writer.add_message(channel, log_time=i, data=data, publish_time=i)
        writer.finish()
    with BagReader(path) as reader:
        assert len(list(reader.messages())) == 50
    damaged = bytearray(path.read_bytes())
    at = damaged.index(how.encode()) + 60  # inside the only chunk
    damaged[at : at + 40] = bytes(40)
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="is damaged or cut off"), BagReader(path) as reader:
        list(reader.messages())


def test_a_picture_too_short_for_its_stamp_is_one_line(tmp_path):
    with BagWriter(tmp_path / "a") as writer:
        writer.add_topic("/c", cdr.IMAGE)
        writer.write("/c", START_NS, b"\x00\x01\x00\x00\x05")
    with pytest.raises(UserError, match="too short for its stamp"):
        open_source(tmp_path / "a").stamps  # noqa: B018 - reads the bag
