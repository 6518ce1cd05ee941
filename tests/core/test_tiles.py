import pytest
import torch
import torch.nn.functional as F

from t2mv_core.tiles import decode_tiled


def upsample(latents):
    """A decoder without context: every latent pixel becomes 2 x 2 pixels; three channels are kept."""
    return F.interpolate(latents[:, :3], scale_factor=2.0, mode="nearest")


@pytest.mark.parametrize("size", [(40, 40), (33, 70), (8, 100), (16, 16), (17, 16)])
@pytest.mark.parametrize("tile", [8, 16, 32])
def test_tiles_of_a_decoder_without_context_give_the_whole_picture(size, tile):
    latents = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(decode_tiled(upsample, latents, tile), upsample(latents), atol=1e-5, rtol=0)


def test_no_tile_is_larger_than_asked_and_each_is_decoded_once():
    seen = []

    def decode(part):
        seen.append(tuple(part.shape[-2:]))
        return upsample(part)

    decode_tiled(decode, torch.zeros(1, 4, 96, 64), 64)
    # 96 rows: tiles at 0 and 32 (the last ends with the picture); 64 columns fit into one.
    assert seen == [(64, 64), (64, 64)]


def test_seams_are_blended_not_cut():
    levels = iter([0.0, 1.0])  # a decoder that gives every tile another brightness

    def decode(part):
        return torch.full_like(upsample(part), next(levels))

    row = decode_tiled(decode, torch.zeros(1, 4, 32, 48), 32)[0, 0, 0]
    # Tiles at 0..32 and 16..48 overlap in 16 latent pixels: 32 pixels, from the 32nd to the 64th.
    assert torch.all(row[:32] == 0)
    assert torch.all(row[64:] == 1)
    steps = row[31:65].diff()
    assert torch.all(steps >= 0)
    assert float(steps.max()) < 0.05  # a cut would be a step of 1


def test_a_picture_that_fits_is_decoded_at_once():
    latents = torch.randn(1, 4, 8, 8)
    assert torch.equal(decode_tiled(upsample, latents, 8), upsample(latents))


def test_a_tile_without_room_for_an_overlap_is_refused():
    with pytest.raises(ValueError, match="tile_latent_px=1 must be at least 2"):
        decode_tiled(upsample, torch.zeros(1, 4, 8, 8), 1)
