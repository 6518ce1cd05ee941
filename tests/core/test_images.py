import copy

import pytest
import torch
from PIL import ImageChops

from t2mv_core import images
from t2mv_core.images import contact_sheet, decode_latents, from_comfy, to_comfy


@pytest.fixture
def latents():
    return torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_decoding_is_the_vaes_in_the_right_order(lcm_bundle, latents):
    images = decode_latents(lcm_bundle.vae, latents)
    assert images.shape == (2, 3, 3, 16, 16)
    # The fixture's scaling factor is 0.5; the VAE gives [-1, 1].
    expected = lcm_bundle.vae.decode(latents[1, 2][None] / 0.5).sample / 2 + 0.5
    torch.testing.assert_close(images[1, 2], expected[0].clamp(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_chunks_do_not_change_the_pictures(lcm_bundle, latents, chunk_size):
    expected = decode_latents(lcm_bundle.vae, latents)
    torch.testing.assert_close(
        decode_latents(lcm_bundle.vae, latents, chunk_size), expected, atol=1e-5, rtol=0
    )


def test_pictures_stay_in_range(lcm_bundle, latents):
    images = decode_latents(lcm_bundle.vae, 100.0 * latents)
    assert 0.0 <= float(images.min()) <= float(images.max()) <= 1.0


def test_latents_go_to_the_vae_where_it_is_and_pictures_come_back(latents):
    class Elsewhere:
        device, dtype, config = torch.device("meta"), torch.bfloat16, {"scaling_factor": 0.5}

        def decode(self, unscaled, return_dict):
            assert (unscaled.device, unscaled.dtype) == (self.device, self.dtype)
            return (torch.zeros(len(unscaled), 3, 16, 16, dtype=self.dtype),)

    images = decode_latents(Elsewhere(), latents)
    assert (images.device, images.dtype) == (latents.device, torch.float32)


def test_the_vae_is_copied_once_per_call_and_only_the_overflowing_view_is_decoded_twice(
    make_lcm_bundle, latents, monkeypatch, caplog
):
    vae = make_lcm_bundle().vae.half()
    vae.decoder.conv_in.weight.mul_(1e4)
    latents = latents * 10
    latents[0, :2] = 0.0  # two views that half precision can hold
    copies, evaluations = [], []
    deepcopy = copy.deepcopy
    monkeypatch.setattr(copy, "deepcopy", lambda x: copies.append(x) or deepcopy(x))
    decode = type(vae).decode
    monkeypatch.setattr(type(vae), "decode", lambda *args, **kw: evaluations.append(0) or decode(*args, **kw))
    images = decode_latents(vae, latents, chunk_size=1)
    assert "decoding again" in caplog.text
    assert vae.dtype == torch.float16  # the shared model stays as it was
    assert len(copies) == 1
    assert len(evaluations) == 6 + 1
    expected = decode_latents(deepcopy(vae).float(), latents)
    torch.testing.assert_close(images, expected, atol=2e-3, rtol=0)  # the first two are half precision's


def test_pictures_that_are_finite_nowhere_are_an_error_with_its_cure(make_lcm_bundle, latents):
    vae = make_lcm_bundle().vae
    vae.decoder.conv_out.bias[1] = float("nan")
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(ValueError, match="even in float32: its weights are damaged"):
            decode_latents(vae.to(dtype), latents)


def test_decoding_can_be_cancelled_before_every_chunk(lcm_bundle, latents):
    num_calls = 0

    def cancel_at_the_third():
        nonlocal num_calls
        num_calls += 1
        if num_calls == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_latents(lcm_bundle.vae, latents, chunk_size=1, before_chunk=cancel_at_the_third)
    assert num_calls == 3


def test_comfy_layout_and_back():
    images = torch.rand(2, 3, 4, 5)
    comfy = to_comfy(images)
    assert comfy.shape == (2, 4, 5, 3)
    assert comfy[1, 2, 3, 0] == images[1, 0, 2, 3]
    assert torch.equal(from_comfy(comfy), images)
    assert torch.equal(from_comfy(torch.cat([comfy, torch.ones(2, 4, 5, 1)], dim=-1)), images)


def test_what_is_transparent_is_the_grey_that_models_draw():
    red = torch.tensor([1.0, 0.0, 0.0])
    comfy = torch.cat([red.expand(1, 1, 3, 3), torch.tensor([1.0, 0.0, 0.5]).view(1, 1, 3, 1)], dim=-1)
    shown = from_comfy(comfy)[0, :, 0].T.tolist()
    # opaque: red; transparent: grey, whatever colour hides there; half: (1 + 0.5) / 2 and (0 + 0.5) / 2
    assert shown == [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.75, 0.25, 0.25]]


@pytest.mark.parametrize("shape", [(4, 5, 3), (1, 3, 4, 5), (1, 4, 5, 1)])
def test_other_layouts_are_refused(shape):
    with pytest.raises(ValueError, match=r"Pictures must be \[n, height, width, 3 or 4\]"):
        from_comfy(torch.zeros(shape))


def test_contact_sheet_has_a_row_per_prompt_and_a_column_per_view():
    images = torch.zeros(2, 3, 3, 8, 8)
    images[1, 2, 0] = 1.0  # the last picture is red
    sheet = contact_sheet(images, cell_px=16)
    assert sheet.size == (3 * 16, 2 * 16)
    assert sheet.getpixel((40, 24)) == (255, 0, 0)
    assert sheet.getpixel((24, 24)) == (0, 0, 0)
    assert sheet.getpixel((40, 8)) == (0, 0, 0)


def test_contact_sheet_with_labels_makes_room_for_them():
    sheet = contact_sheet(torch.zeros(2, 3, 3, 8, 8), ["a red mug", "a chair"], ["0", "45", "90"], cell_px=16)
    # 16 px for the column labels, and 16 px above each of the two rows.
    assert sheet.size == (3 * 16, 16 + 2 * (16 + 16))
    assert sheet.getpixel((8, 40)) == (0, 0, 0)  # the first picture begins at 32
    label = sheet.crop((0, 16, 48, 32))
    assert label.getextrema()[0][0] < 255  # something is written there


def test_contact_sheet_takes_labels_in_any_script():
    # The bitmap font of Pillow before 10.1 knows Latin letters only and raises.
    sheet = contact_sheet(torch.zeros(1, 1, 3, 8, 8), ["红色的杯子 ☕"], ["спереди"], cell_px=16)
    for top in (0, 16):  # the column's label, then the row's
        assert sheet.crop((0, top, 16, top + 16)).getextrema()[0][0] < 255


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a red mug, 45° “…”", "a red mug, 45° “…”"),
        ("红杯", "U+7EA2 U+676F"),
        ("a 红 mug", "a U+7EA2 mug"),
        ("Zürich", "Zurich"),
    ],
)
def test_without_system_fonts_a_label_spells_what_the_font_lacks(monkeypatch, text, shown):
    monkeypatch.setattr(images, "_FONT_FILES", ("no such font.ttf",))
    assert images.label_font(text, 12)[0] == shown
    views = torch.zeros(1, 1, 3, 8, 8)
    box, spelled = (contact_sheet(views, [label], (), 160) for label in (text, shown))
    assert ImageChops.difference(box, spelled).getbbox() is None


def test_a_system_font_draws_what_the_default_one_lacks(monkeypatch):
    from matplotlib import get_data_path  # brings a font that has Cyrillic and no Chinese

    monkeypatch.setattr(images, "_FONT_FILES", ("none.ttf", f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"))
    assert images.label_font("a mug", 12)[1].getname()[0] == "Aileron"  # PIL's own, as before
    shown, font = images.label_font("кружка 红", 12)
    assert (shown, font.getname()[0]) == ("кружка U+7EA2", "DejaVu Sans")


def test_chinese_labels_are_drawn_and_cut_at_characters():
    shown, font = images.label_font("红色的杯子", 12)
    if shown != "红色的杯子":
        pytest.skip("no Chinese font on this machine")
    assert font.getmask("红").getbbox() != font.getmask("\U0010ffff").getbbox()
    views = torch.zeros(1, 1, 3, 8, 8)
    long, short = (contact_sheet(views, ["红色的杯子" * times], (), 96) for times in (50, 1))
    assert long.size == short.size
    assert set(long.crop((94, 0, 96, 16)).getdata()) == {(255, 255, 255)}  # nothing runs out of the picture


def test_contact_sheet_keeps_the_pictures_proportions():
    assert contact_sheet(torch.zeros(1, 2, 3, 10, 20), cell_px=30).size == (120, 30)


@pytest.mark.parametrize("cell_px", [16, 32, 48, 64, 160, 512])
def test_labels_are_readable_and_stay_in_their_column(cell_px):
    """Whatever the cell, something is written over every column, and nothing across its border."""
    labels = ["front 0°", "front-right 45°", "right 90°", "back 180°"]
    sheet = contact_sheet(torch.zeros(1, 4, 3, 8, 8), (), labels, cell_px)
    header = sheet.height - cell_px
    assert header == max(16, cell_px // 12)
    for column in range(4):
        cell = sheet.crop((column * cell_px, 0, (column + 1) * cell_px, header)).convert("L")
        assert cell.getextrema()[0] < 160
    alone = contact_sheet(torch.zeros(1, 4, 3, 8, 8), (), ["", labels[1], " ", " "], cell_px)
    ink = ImageChops.invert(alone.crop((0, 0, alone.width, header)).convert("L")).getbbox()
    assert cell_px <= ink[0]
    assert ink[2] <= 2 * cell_px


def test_a_label_without_room_keeps_its_angle_and_a_row_its_beginning():
    def header(text):
        return contact_sheet(torch.zeros(1, 1, 3, 8, 8), (), [text], cell_px=32)

    assert header("front-right 45°").tobytes() == header("45°").tobytes()
    assert header("front-right 45°").tobytes() != header("55°").tobytes()

    def row(text):
        return contact_sheet(torch.zeros(1, 2, 3, 8, 8), [text], cell_px=32).tobytes()

    assert row("a mug and a very long description of it") == row("a mug and …")


def test_an_empty_column_label_leaves_its_room_to_the_one_before():
    wide = contact_sheet(torch.zeros(1, 3, 3, 8, 8), (), ["front-right 45°", "", ""], cell_px=32)
    ink = ImageChops.invert(wide.crop((0, 0, 96, 16)).convert("L")).getbbox()
    assert ink[2] > 40
