import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from t2mv_core.reference_picture import frame_picture, read_picture

GREY = 0.5


def cut_out(size=(40, 60), corner=(5, 10), object_size=(20, 10), value=0.8):
    """A picture whose object is a rectangle of one colour; what is transparent is red."""
    picture = torch.zeros(4, *size)
    picture[0] = 1.0
    rows = slice(corner[0], corner[0] + object_size[0])
    columns = slice(corner[1], corner[1] + object_size[1])
    picture[:3, rows, columns] = value
    picture[3, rows, columns] = 1.0
    return picture


def to_pil(picture):
    return Image.fromarray((picture * 255).round().byte().movedim(0, -1).numpy())


def save(path, picture, **options):
    to_pil(picture).save(path, **options)
    return path


def write_png(path, width, height, depth, colour_type, rows=b""):
    """A PNG by hand: Pillow writes no 16-bit colours and no header without pixels."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_the_object_fills_nine_tenths_of_the_frame_in_its_middle():
    # 20 x 10 at 100 px: the longer side becomes 90, the other 45, at (100 - 90)/2 = 5 and (100 - 45)/2 = 27.
    expected = torch.full((3, 100, 100), GREY)
    expected[:, 5:95, 27:72] = 0.8
    torch.testing.assert_close(frame_picture(cut_out(), 100), expected, atol=1e-5, rtol=0)  # no red fringe


@pytest.mark.parametrize("object_size", [(10, 20), (1, 30), (30, 30), (3, 2)])
@pytest.mark.parametrize("image_px", [64, 31])
def test_any_shape_and_size_fits(object_size, image_px):
    framed = frame_picture(cut_out(object_size=object_size), image_px)
    assert framed.shape == (3, image_px, image_px)
    is_object = (framed - 0.8).abs().amax(dim=0) < 1e-4
    longer = round(0.9 * image_px)
    for dim, own, other in ((1, *object_size), (0, *object_size[::-1])):
        places = is_object.any(dim=dim).nonzero().flatten()
        before, behind = int(places[0]), image_px - 1 - int(places[-1])
        assert abs(before - behind) <= 1
        expected = longer if own >= other else max(1, 0.9 * image_px * own / other)
        assert abs(len(places) - expected) <= 0.5


def test_half_transparent_pixels_are_mixed_with_grey_and_belong_to_the_object():
    picture = torch.zeros(4, 20, 20)
    picture[:, 5:15, 5:15] = 1.0
    picture[3, 5:15, 10:15] = 0.4
    framed = frame_picture(picture, 20)  # 10 px become 18, from 1 to 19
    torch.testing.assert_close(framed[:, 10, 2], torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(framed[:, 10, 17], torch.full((3,), 0.4 + 0.6 * GREY), atol=1e-4, rtol=0)


def test_reducing_averages_pixels():
    picture = cut_out((400, 400), (0, 0), (360, 360))
    picture[:3, :360, :360] = (torch.arange(360) % 2).float()  # stripes of one pixel; 10 become 1
    framed = frame_picture(picture, 40)
    torch.testing.assert_close(framed[:, 10:30, 10:30], torch.full((3, 20, 20), 0.5), atol=2e-2, rtol=0)


def test_pictures_without_an_object_are_refused_in_words():
    with pytest.raises(ValueError, match="transparent everywhere: there is no object"):
        frame_picture(torch.zeros(4, 8, 8), 16)
    with pytest.raises(ValueError, match=r"Nothing in the picture is transparent.* Remove the background"):
        frame_picture(torch.ones(4, 8, 8), 16)
    with pytest.raises(ValueError, match=r"must be \[4, height, width\], not \(3, 8, 8\)\. Remove the"):
        frame_picture(torch.ones(3, 8, 8), 16)


@pytest.mark.parametrize(("name", "options"), [("a.png", {}), ("a.webp", {"lossless": True, "exact": True})])
def test_files_come_back_to_the_last_bit(tmp_path, name, options):
    picture = torch.rand(4, 7, 9, generator=torch.Generator().manual_seed(0))
    read = read_picture(save(tmp_path / name, picture, **options))
    assert torch.equal((read * 255).round(), (picture * 255).round())


def test_transparency_of_greys_palettes_and_one_colour_is_read(tmp_path):
    rgba = to_pil(cut_out())
    rgba.convert("LA").save(tmp_path / "grey.png")
    rgba.quantize(4).save(tmp_path / "palette.png")
    rgba.convert("RGB").save(tmp_path / "colour.png", transparency=(255, 0, 0))
    for name in ("grey", "palette", "colour"):
        assert torch.equal(read_picture(tmp_path / f"{name}.png")[3], cut_out()[3]), name


def test_a_picture_lying_on_its_side_is_set_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise by a quarter
    read = read_picture(save(tmp_path / "a.png", cut_out(), exif=exif))
    assert torch.equal(read[3], torch.rot90(cut_out()[3], -1))


def test_files_that_are_no_cut_out_picture_are_refused_in_words(tmp_path):
    rgb = Image.new("RGB", (8, 8))
    rgb.save(tmp_path / "rgb.png")
    rgb.save(tmp_path / "photo.jpg")
    (tmp_path / "text.png").write_text("hello")
    whole = save(tmp_path / "whole.png", torch.rand(4, 64, 64)).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    for name, words in {
        "rgb.png": "has no transparency: .* Remove the background",
        "photo.jpg": "is a JPEG file; only PNG and WEBP are read",
        "text.png": "is no picture, or it is damaged",
        "half.png": r"is damaged \(.*\); save it again",
    }.items():
        with pytest.raises(ValueError, match=f"{name} {words}"):
            read_picture(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no picture at .*nowhere.png"):
        read_picture(tmp_path / "nowhere.png")


@pytest.mark.parametrize("name", ["a.webp", "a.png"])
def test_animations_are_refused_in_words(tmp_path, name):
    frames = [Image.new("RGBA", (8, 8), (shade, 0, 0, 128)) for shade in (0, 200)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=50)
    with pytest.raises(ValueError, match=f"{name} is animated; save one of its pictures by itself"):
        read_picture(tmp_path / name)


@pytest.mark.parametrize(("colour_type", "channels"), [(6, 4), (4, 2), (2, 3), (0, 1)])
def test_sixteen_bits_per_channel_are_refused_not_cut(tmp_path, colour_type, channels):
    row = b"\x00" + np.arange(8 * channels, dtype=">u2").tobytes()
    path = write_png(tmp_path / "deep.png", 8, 8, 16, colour_type, 8 * row)
    with Image.open(path) as picture:
        picture.load()  # Pillow itself takes the file
    with pytest.raises(ValueError, match=r"deep.png has 16 bits per channel; save it with 8"):
        read_picture(path)


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (20_000, 10), (10, 8193), (10_000, 10_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path, width, height):
    path = write_png(tmp_path / "huge.png", width, height, 8, 6)
    with pytest.raises(ValueError, match=r"huge.png has more than 8192 px a side; scale it down"):
        read_picture(path)
