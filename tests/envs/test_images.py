"""Every kind of image file is read as documented, or refused by name."""

import os
import socket
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from srgym.envs.folders import LRFolder
from srgym.envs.images import MAX_PIXELS, BadImage, ImageCache, image_files, image_size, read_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def pixel(image, row=0, column=0):
    return tuple(int(v) for v in image[:, row, column])


def corners(image):
    return [pixel(image, row, column) for row in (0, -1) for column in (0, -1)]


def oriented(folder, orientation, suffix="png"):
    """2 rows of 3 pixels: red, green / blue, white in the corners, with an EXIF orientation."""
    stored = np.zeros((2, 3, 3), np.uint8)
    stored[0, 0], stored[0, 2], stored[1, 0], stored[1, 2] = RED, GREEN, BLUE, WHITE
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = folder / f"{orientation}.{suffix}"
    Image.fromarray(stored).save(path, exif=exif)
    return path


# The corners as they are to be seen: top left, top right, bottom left, bottom right (EXIF 2.32, table of tag 0x0112).
SEEN = {
    1: [RED, GREEN, BLUE, WHITE],
    2: [GREEN, RED, WHITE, BLUE],
    3: [WHITE, BLUE, GREEN, RED],
    4: [BLUE, WHITE, RED, GREEN],
    5: [RED, BLUE, GREEN, WHITE],
    6: [BLUE, RED, WHITE, GREEN],
    7: [WHITE, GREEN, BLUE, RED],
    8: [GREEN, WHITE, RED, BLUE],
}


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("orientation", SEEN)
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    path = oriented(tmp_path, orientation, suffix)
    image = read_image(path)
    assert corners(image) == SEEN[orientation]
    assert tuple(image.shape[1:]) == image_size(path) == ((2, 3) if orientation < 5 else (3, 2))


def test_a_plain_image_is_its_own_pixels(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == torch.uint8 and image.is_contiguous()
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), values)


def test_alpha_is_composited_on_white(tmp_path):
    values = np.zeros((1, 3, 4), np.uint8)
    values[0, :, 0] = 200
    values[0, :, 3] = 0, 128, 255
    Image.fromarray(values).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert pixel(image, 0, 0) == WHITE
    assert pixel(image, 0, 2) == (200, 0, 0)
    half = 128 / 255
    expected = [200 * half + 255 * (1 - half), 255 * (1 - half), 255 * (1 - half)]
    assert np.abs(np.array(pixel(image, 0, 1)) - expected).max() <= 1


def test_grey_with_alpha(tmp_path):
    Image.merge("LA", [Image.new("L", (2, 2), 40), Image.new("L", (2, 2), 0)]).save(tmp_path / "a.png")
    assert pixel(read_image(tmp_path / "a.png")) == WHITE


@pytest.mark.parametrize("mode, value, expected", [("L", 77, (77, 77, 77)), ("1", 1, WHITE)])
def test_grey_becomes_three_equal_channels(tmp_path, mode, value, expected):
    Image.new(mode, (4, 3), value).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (3, 3, 4) and pixel(image) == expected


def test_a_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([*GREEN, *BLUE])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=1)
    opaque, clear = read_image(tmp_path / "opaque.png"), read_image(tmp_path / "clear.png")
    assert [pixel(opaque, 0, i) for i in (0, 1)] == [GREEN, BLUE]
    assert [pixel(clear, 0, i) for i in (0, 1)] == [GREEN, WHITE]


@pytest.mark.parametrize("suffix", ["tiff", "jpg"])
def test_cmyk_becomes_rgb(tmp_path, suffix):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / f"a.{suffix}", quality=100)
    image = read_image(tmp_path / f"a.{suffix}")
    assert np.abs(np.array(pixel(image, 8, 8)) - RED).max() <= 2  # JPEG's own loss


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    values = np.array([[0, 257 * 100, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    assert [pixel(image, 0, i)[0] for i in range(3)] == [0, 100, 255]


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_16_bit_rgb(tmp_path):
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    data = zlib.compress(b"\0" + struct.pack(">HHH", 65535, 0x8000, 0))
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    )
    assert pixel(read_image(path)) == (255, 128, 0)


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), BLUE).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (3, 1, 1)


def test_the_first_frame_of_several(tmp_path):
    frames = [Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), BLUE)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixel(read_image(tmp_path / "a.gif")) == RED


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_file_is_refused_by_name(tmp_path, draw, suffix):
    path = draw(tmp_path / f"cut.{suffix}", 64, 64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadImage, match=rf"cut\.{suffix}: expected a whole image file, got one that is cut off"):
        read_image(path)
    assert image_size(path) == (64, 64)


@pytest.mark.parametrize("content", [b"", b"hello, I am a text", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused_by_name(tmp_path, content):
    path = tmp_path / "no.png"
    path.write_bytes(content)
    for look in (read_image, image_size):
        with pytest.raises(BadImage, match=r"no\.png: expected an image file, got one that can't be read"):
            look(path)


def bomb(path, side):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"") * 2)
    return path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_500, 14_000, 60_000])  # above our limit, Pillow's warning, Pillow's error
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch, side):
    path = bomb(tmp_path / "bomb.png", side)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for look in (read_image, image_size):
        with pytest.raises(BadImage, match=rf"bomb\.png: expected at most {MAX_PIXELS:,} pixels, got"):
            look(path)


def test_a_bomb_is_refused_too_where_warnings_are_errors(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadImage, match="expected at most"):
            read_image(bomb(tmp_path / "bomb.png", 9_500))


def test_values_without_a_known_white_are_refused(tmp_path):
    Image.fromarray(np.full((2, 2), 0.5, np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray(np.array([[70_000, 0]], np.int32)).save(tmp_path / "wide.tiff")
    with pytest.raises(BadImage, match=r"float\.tiff.*got Pillow's mode 'F'"):
        read_image(tmp_path / "float.tiff")
    with pytest.raises(BadImage, match=r"wide\.tiff.*got values from 0 to 70000"):
        read_image(tmp_path / "wide.tiff")


def test_missing_files_and_folders(tmp_path, draw):
    with pytest.raises(FileNotFoundError, match=r"expected an image file at .*none.png, got nothing"):
        read_image(tmp_path / "none.png")
    with pytest.raises(BadImage, match="got a folder"):
        read_image(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected a folder of images, got .*none, which doesn't exist"):
        image_files(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="which is a file"):
        image_files(draw(tmp_path / "a.png"))


def test_an_empty_folder_gets_a_sentence(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"expected images \(\.bmp, .*\) under .*, got none"):
        image_files(tmp_path)


def test_files_are_found_below_and_behind_links_once(tmp_path, draw):
    kept = [draw(tmp_path / "in" / name) for name in ("b.PNG", "a.png", "deep/er/c.jpg")]
    draw(tmp_path / "in/.hidden.png")
    draw(tmp_path / "in/.trash/x.png")
    draw(tmp_path / "else/d.png")
    (tmp_path / "in/link").symlink_to(tmp_path / "else")
    (tmp_path / "else/loop").symlink_to(tmp_path / "in")
    found = image_files(tmp_path / "in")
    assert found == sorted([*kept, tmp_path / "in/link/d.png"])


def test_the_cache_forgets_the_least_recently_used(tmp_path, draw, monkeypatch):
    paths = [draw(tmp_path / f"{i}.png", 100, 100, i) for i in range(3)]
    cache = ImageCache(megabytes=2 * 30_000 / 2**20)
    first = cache.read(paths[0])
    cache.read(paths[1])
    assert cache.read(paths[0]) is first
    cache.read(paths[2])  # drops 1, which was used longest ago
    monkeypatch.setattr("srgym.envs.images.read_image", lambda path: pytest.fail(f"read {path} again"))
    assert cache.read(paths[0]) is first
    with pytest.raises(pytest.fail.Exception, match=r"1\.png"):
        cache.read(paths[1])


def test_what_only_bears_an_images_name_is_named_and_skipped(tmp_path, draw):
    """A pipe would be waited for for ever, and a link that leads nowhere isn't there for who opens it."""
    folder = tmp_path / "set"
    for name in ("a.png", "b.png"):
        draw(folder / name)
    odd = {"link.png": "a link to nothing", "pipe.png": "a pipe", "socket.png": "a socket", "empty.png": "no image",
           "device.png": "a device", "text.png": "no image"}  # fmt: skip
    (folder / "link.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "device.png").symlink_to("/dev/null")
    os.mkfifo(folder / "pipe.png")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.relpath(folder / "socket.png"))  # a socket's path is short
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no image")
    draw(folder / "folder.png" / "c.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    with pytest.warns(UserWarning, match="7 of 10 images skipped"):
        source = LRFolder(folder, scale=4, on_bad_image="skip")
    assert source.images == ["a", "b", "folder.png/c"] and set(source.skipped) == {*(n[:-4] for n in odd), "loop"}
    for name, what in odd.items():
        assert what in source.skipped[name[:-4]] or what == "no image"
    with pytest.raises(ValueError, match="got 7 of 10 that can't"):
        LRFolder(folder, scale=4)
    listener.close()


def test_a_file_that_may_not_be_read_is_named(tmp_path, draw, monkeypatch):
    """Root, who runs some tests, may read everything."""
    path, denied = draw(tmp_path / "a.png"), PermissionError(13, "Permission denied")

    def forbid(*_, **__):
        raise denied

    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", forbid)
        with pytest.raises(BadImage, match=r"a.png.*Permission denied"):
            read_image(path)
    with monkeypatch.context() as patched:
        patched.setattr(type(path), "stat", forbid)
        with pytest.raises(BadImage, match=r"a.png, got nothing that can be seen \(Permission denied\)"):
            read_image(path)
