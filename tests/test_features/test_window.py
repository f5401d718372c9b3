"""Windows of pyramids against plain slices."""

import pytest
import torch

from dskd_mm.features import Pyramid, Window

SIZES = [(9, 12), (5, 6), (2, 3)]
BATCH = 3


def draw(size: int, seed: int = 0) -> tuple[Window, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    centers = [torch.randint(height * width, (BATCH,), generator=generator) for height, width in SIZES]
    return Window(Pyramid(SIZES), size, centers, generator), centers


@pytest.mark.parametrize('size', [1, 2, 4, 5, 7, 100])
@pytest.mark.parametrize('seed', range(5))
def test_a_window_is_a_slice_around_its_center(size, seed):
    window, centers = draw(size, seed)
    # Up to four windows are taken whole.
    sizes = [(h, w) if h * w <= 4 * size * size else (min(h, size), min(w, size)) for h, w in SIZES]
    assert window.pyramid.sizes == sizes
    # A map of the locations' own coordinates shows what was cut out.
    maps = [torch.arange(height * width).reshape(height, width).expand(BATCH, 1, -1, -1) for height, width in SIZES]
    cut = window.cut(maps)
    assert torch.equal(Pyramid.pack(cut), window.take(Pyramid.pack(maps)))
    for level, part, center in zip(maps, cut, centers, strict=True):
        rows, columns = part.shape[2:]
        for image in range(BATCH):
            top, left = divmod(int(part[image, 0, 0, 0]), level.shape[3])
            assert torch.equal(part[image], level[image, :, top : top + rows, left : left + columns])
            assert center[image] in part[image]


def test_the_place_of_the_center_in_a_window_varies():
    places = set()
    for seed in range(60):
        window = Window(Pyramid([(9, 9)]), 3, [torch.tensor([40])], torch.Generator().manual_seed(seed))
        places.add(window.indices[0][0].tolist().index(40))
    assert places == set(range(9))


def test_predictions_of_anchors_stay_with_their_location():
    window, _ = draw(4)
    packed = torch.randn(BATCH, 5, sum(Pyramid(SIZES).lengths))
    anchors = torch.stack([packed, packed + 10], dim=3).flatten(2)
    taken = window.take(anchors).unflatten(2, (-1, 2))
    torch.testing.assert_close(taken[..., 0], window.take(packed))
    torch.testing.assert_close(taken[..., 1], window.take(packed) + 10)


def test_gradients_reach_what_is_in_the_window_alone():
    window, _ = draw(4)
    packed = torch.randn(BATCH, 2, sum(Pyramid(SIZES).lengths), requires_grad=True)
    window.take(packed).sum().backward()
    places = torch.arange(packed.shape[2]).expand(BATCH, 2, -1)
    expected = torch.zeros_like(packed).scatter_(2, window.take(places), 1.0)
    torch.testing.assert_close(packed.grad, expected)
