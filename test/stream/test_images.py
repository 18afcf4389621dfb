# SPDX-License-Identifier: Apache-2.0
"""Pictures are read like OpenCV reads them, whatever their layout; broken ones are refused."""

from array import array
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from egoedit_ros.stream import images
from egoedit_ros.stream.images import ImageError, area_resize, compressed_to_rgb, crop_box, to_rgb

RNG = np.random.default_rng(7)


def message(data, encoding, width, height, step, big=0):
    return SimpleNamespace(
        encoding=encoding,
        width=width,
        height=height,
        step=step,
        is_bigendian=big,
        data=array("B", bytes(data)),
    )


def noise(*shape):
    return RNG.integers(0, 256, shape, np.uint8)


def padded(rows, pad):
    """Rows with garbage behind them, as drivers with aligned rows send them."""
    return np.concatenate([rows, noise(rows.shape[0], pad)], axis=1)


PACKED = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
}


@pytest.mark.parametrize("size", [(64, 48), (7, 5), (1, 1), (1, 9), (3840, 2160)])
@pytest.mark.parametrize("pad", [0, 13])
@pytest.mark.parametrize("encoding", PACKED)
def test_packed_encodings_equal_opencv(encoding, pad, size):
    channels, conversion = PACKED[encoding]
    w, h = size
    pixels = noise(h, w, channels)
    expected = pixels if conversion is None else cv2.cvtColor(pixels, conversion)
    rows = padded(pixels.reshape(h, -1), pad)
    got = to_rgb(message(rows, encoding, w, h, rows.shape[1]))
    assert got.dtype == np.uint8 and np.array_equal(got, expected)


@pytest.mark.parametrize("pad", [0, 6])
@pytest.mark.parametrize(
    "encoding, conversion",
    [("yuv422", cv2.COLOR_YUV2RGB_UYVY), ("yuv422_yuy2", cv2.COLOR_YUV2RGB_YUY2)],
)
def test_yuv422_equals_opencv(encoding, conversion, pad):
    pixels = noise(6, 8, 2)
    rows = padded(pixels.reshape(6, -1), pad)
    got = to_rgb(message(rows, encoding, 8, 6, rows.shape[1]))
    assert np.array_equal(got, cv2.cvtColor(pixels, conversion))


@pytest.mark.parametrize("encoding", ["yuv422", "yuv422_yuy2"])
@pytest.mark.parametrize("width", [1, 7])
def test_yuv422_of_odd_width_keeps_its_last_column(encoding, width):
    pixels = np.full((4, width, 2), 128, np.uint8)
    pixels[:, -1, 1 if encoding == "yuv422" else 0] = 235  # white, the others grey
    got = to_rgb(message(pixels, encoding, width, 4, width * 2))
    assert got.shape == (4, width, 3)
    assert (got[:, -1] > 230).all() and (got[:, :-1] < 150).all()


@pytest.mark.parametrize("pad", [0, 10])
@pytest.mark.parametrize(
    "encoding, conversion", [("nv21", cv2.COLOR_YUV2RGB_NV21), ("nv12", cv2.COLOR_YUV2RGB_NV12)]
)
def test_yuv420_equals_opencv(encoding, conversion, pad):
    planes = noise(6 * 3 // 2, 8)
    rows = padded(planes, pad)
    got = to_rgb(message(rows, encoding, 8, 6, rows.shape[1]))
    assert np.array_equal(got, cv2.cvtColor(planes, conversion))


def test_yuv420_with_the_colours_counted_into_the_step():
    planes = noise(6 * 3 // 2, 8)
    got = to_rgb(message(planes, "nv21", 8, 6, 12))
    assert np.array_equal(got, cv2.cvtColor(planes, cv2.COLOR_YUV2RGB_NV21))


@pytest.mark.parametrize("size", [(7, 5), (1, 1), (8, 5), (7, 6)])
def test_yuv420_of_odd_size(size):
    w, h = size
    luma = np.full(w * h, 90, np.uint8)
    colour = np.full((w + w % 2) * ((h + 1) // 2), 128, np.uint8)
    got = to_rgb(message(np.concatenate([luma, colour]), "nv12", w, h, w))
    assert got.shape == (h, w, 3) and np.ptp(got) == 0


BAYER = {
    "bayer_rggb8": cv2.COLOR_BayerRGGB2RGB,
    "bayer_bggr8": cv2.COLOR_BayerBGGR2RGB,
    "bayer_gbrg8": cv2.COLOR_BayerGBRG2RGB,
    "bayer_grbg8": cv2.COLOR_BayerGRBG2RGB,
}


@pytest.mark.parametrize("encoding", BAYER)
@pytest.mark.parametrize("size", [(16, 12), (7, 5), (3, 3)])
def test_bayer_equals_opencv(encoding, size):
    w, h = size
    mosaic = noise(h, w)
    got = to_rgb(message(padded(mosaic, 5), encoding, w, h, w + 5))
    assert np.array_equal(got, cv2.cvtColor(mosaic, BAYER[encoding]))


def test_bayer_pattern_is_read_as_ros_names_it():
    """rggb: the top left pixel is red, so a red scene is bright there only."""
    mosaic = np.zeros((8, 8), np.uint8)
    mosaic[::2, ::2] = 200
    red, green, blue = to_rgb(message(mosaic, "bayer_rggb8", 8, 8, 8))[4, 4]
    assert red > 150 and blue < 20 and green < 20


@pytest.mark.parametrize("size", [(2, 2), (2, 6), (6, 2), (1, 1), (1, 8)])
def test_bayer_too_small_for_a_pattern_still_gives_a_picture(size):
    w, h = size
    got = to_rgb(message(np.full((h, w), 77, np.uint8), "bayer_grbg8", w, h, w))
    assert got.shape == (h, w, 3) and (got == 77).all()


@pytest.mark.parametrize("big", [0, 1])
def test_16_bits_follow_is_bigendian(big):
    values = np.array([[0x1234, 0xFF00]], ">u2" if big else "<u2")
    got = to_rgb(message(values.tobytes(), "mono16", 2, 1, 4, big))
    assert got[0].tolist() == [[0x12] * 3, [0xFF] * 3]


def test_last_row_may_come_without_its_padding():
    pixels = noise(4, 6, 3)
    data = padded(pixels.reshape(4, -1), 6).reshape(-1)[:-6]
    assert np.array_equal(to_rgb(message(data, "rgb8", 6, 4, 24)), pixels)


@pytest.mark.parametrize(
    "broken, says",
    [
        (dict(step=17), "step 17 is smaller"),
        (dict(step=0), "step 0 is smaller"),
        (dict(height=5), "bytes of data where"),
        (dict(width=0), "no picture"),
        (dict(encoding="klingon"), "unknown image encoding 'klingon'"),
        (dict(encoding="nv21"), "bytes of data where"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_the_reason(broken, says):
    good = dict(encoding="rgb8", width=6, height=4, step=18)
    with pytest.raises(ImageError, match=says):
        to_rgb(message(noise(4, 18), **(good | broken)))


def test_messages_with_other_kinds_of_data():
    pixels = noise(4, 6, 3)
    for data in (pixels.reshape(-1), pixels.tobytes(), pixels.reshape(-1).tolist()):
        msg = message(b"", "rgb8", 6, 4, 18)
        msg.data = data
        assert np.array_equal(to_rgb(msg), pixels)


def compressed(data, format="jpeg"):
    return SimpleNamespace(format=format, data=array("B", bytes(data)))


def test_jpeg_and_png_round_trip_in_rgb_order():
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[..., 0] = 220  # red
    jpeg = images.encode_jpeg(picture, 95)
    assert np.abs(compressed_to_rgb(compressed(jpeg)).astype(int) - picture).max() < 8
    png = cv2.imencode(".png", picture[..., ::-1])[1]
    assert np.array_equal(compressed_to_rgb(compressed(png, "png")), picture)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.97])
def test_a_cut_jpeg_is_refused(keep):
    jpeg = images.encode_jpeg(noise(64, 64, 3), 90)
    with pytest.raises(ImageError):
        compressed_to_rgb(compressed(jpeg[: int(len(jpeg) * keep)]))


def test_garbage_and_depth_are_refused():
    for msg in (compressed(noise(500)), compressed(noise(50), "16UC1; compressedDepth")):
        with pytest.raises(ImageError):
            compressed_to_rgb(msg)


@pytest.mark.parametrize("initial", [array("B", b"old"), np.zeros(3, np.uint8)])
def test_fill_image_describes_the_picture(initial):
    picture = noise(4, 10, 3)[:, ::2]  # not contiguous
    msg = message(b"", "", 0, 0, 0)
    msg.data = initial
    images.fill_image(msg, picture)
    assert (msg.encoding, msg.width, msg.height, msg.step) == ("rgb8", 5, 4, 15)
    assert np.array_equal(to_rgb(msg), picture)


def test_area_resize_stretches_or_crops_the_centre():
    picture = noise(120, 200, 3)
    assert np.array_equal(
        area_resize(picture, (40, 30)), cv2.resize(picture, (40, 30), interpolation=cv2.INTER_AREA)
    )
    assert crop_box((200, 120), (40, 30), "crop") == (20, 0, 160, 120)
    middle = np.ascontiguousarray(picture[:, 20:180])
    assert np.array_equal(
        area_resize(picture, (40, 30), "crop"),
        cv2.resize(middle, (40, 30), interpolation=cv2.INTER_AREA),
    )
    assert area_resize(picture, (200, 120)) is picture
    assert area_resize(noise(1, 1, 3), (40, 30), "crop").shape == (30, 40, 3)


def test_equals_cv_bridge_where_it_is_installed():
    bridge = pytest.importorskip("cv_bridge").CvBridge()
    sensor_msgs = pytest.importorskip("sensor_msgs.msg")
    for encoding in ("bgr8", "rgba8", "mono8", "bayer_rggb8", "yuv422"):
        msg = sensor_msgs.Image(encoding=encoding, width=8, height=6)
        msg.step = 8 * {"bgr8": 3, "rgba8": 4, "yuv422": 2}.get(encoding, 1)
        images.fill_data(msg, noise(6 * msg.step))
        assert np.array_equal(to_rgb(msg), bridge.imgmsg_to_cv2(msg, "rgb8"))
