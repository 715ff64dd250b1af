"""Crops against float64: each window resized by itself, recoloured, normalised, then mirrored."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_checks import relative_rms
from tolerances import FORWARD, GRADIENT
from torch.nn.functional import interpolate, pad

from kdcompile.kernels import _tune
from kdcompile.kernels._runtime import using
from kdcompile.kernels.crop_augment import CONFIGS, SPLIT, Column, crop_augment

PHOTOS = [(23, 31), (40, 17), (1, 1), (64, 50)]
# photo, top, left, window height and width, height and width in the crop of 19
CROPS = [
    (0, 0, 0, 19, 19, 19, 19), (0, 4, 12, 19, 19, 19, 19), (1, 7, 3, 13, 13, 19, 19),
    (1, 0, 0, 40, 17, 19, 8), (2, 0, 0, 1, 1, 1, 1), (2, 0, 0, 1, 1, 19, 19),
    (3, 37, 23, 27, 27, 19, 19), (0, 22, 0, 1, 31, 1, 19), (3, 1, 49, 19, 1, 19, 1),
]  # fmt: skip
SIDE = 19
CHOICES = ("triton", "reference")


def _photos(channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, 256, (*size, channels), generator=generator, dtype=torch.uint8)
        for size in PHOTOS
    ]


def _source(photos, device):
    return torch.cat([photo.flatten() for photo in photos]).to(device)


def _table(crops, device, seed=0, before=0):
    """Rows of crops of `PHOTOS`, which begin `before` pixels into the source; two columns more."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.zeros(len(crops), len(Column) + 2)
    starts = [before + sum(h * w for h, w in PHOTOS[:i]) for i in range(len(PHOTOS))]
    for row, (photo, top, left, *sizes) in zip(table, crops, strict=True):
        first = starts[photo] + top * PHOTOS[photo][1] + left
        row[:3] = torch.tensor([first // SPLIT, first % SPLIT, PHOTOS[photo][1]])
        row[3:7] = torch.tensor(sizes)
    table[:, Column.FLIP] = torch.arange(len(crops)) % 2
    table[:, Column.BRIGHTNESS :] = 0.6 + 0.8 * torch.rand(len(crops), 4, generator=generator)
    return table.to(device)


def _norm(channels, device="cpu"):
    return (torch.linspace(*ends, channels, device=device) for ends in ((0.3, 0.5), (0.2, 0.3)))


def _oracle(photos, crops, table, side, colour):
    mean, std = (value.double().view(-1, 1, 1) for value in _norm(photos[0].shape[2]))
    made = []
    for (photo, top, left, tall, wide, height, width), row in zip(crops, table.cpu(), strict=True):
        part = photos[photo][top : top + tall, left : left + wide].permute(2, 0, 1).double() / 255
        part = interpolate(part[None], (height, width), mode="bilinear", align_corners=False)[0]
        if colour:
            part = part * row[Column.BRIGHTNESS].double()
            contrast = row[Column.CONTRAST].double()
            part = (part.mean() + contrast * (part - part.mean())).clamp(0, 1)
        part = pad((part - mean) / std, (0, side - width, 0, side - height))
        made.append(part.flip(-1) if row[Column.FLIP] else part)
    return torch.stack(made)


def _check(crops, channels, device, dtype=torch.float32, colour=True, side=SIDE, seed=0):
    photos = _photos(channels, seed)
    source, table = _source(photos, device), _table(crops, device, seed)
    expected = _oracle(photos, crops, table, side, colour)
    mean, std = _norm(channels, device)
    for choice in CHOICES:
        with using(choice):
            found = crop_augment(source, table, side, mean, std, colour=colour, dtype=dtype)
        assert found.shape == (len(crops), channels, side, side)
        assert found.dtype == dtype
        last = choice == "triton"
        layout = torch.channels_last if last else torch.contiguous_format
        assert found.is_contiguous(memory_format=layout)
        for own, truth in zip(found, expected, strict=True):
            assert relative_rms(own, truth) <= GRADIENT[dtype]  # rounded when stored
        for own, (*_, height, width), row in zip(found.cpu(), crops, table.cpu(), strict=True):
            shown = own.flip(-1) if row[Column.FLIP] else own
            assert not shown[:, height:].any(), "padding is 0, which a pixel may be nearly"
            assert not shown[:, :, width:].any()


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_crops(channels, colour, dtype, device):
    _check(CROPS, channels, device, dtype, colour)


@pytest.mark.parametrize("choice", range(len(CONFIGS)))
def test_every_configuration(choice, device):
    """A side of 48 is several blocks a crop."""
    crops = [(3, 2, 1, 48, 48, 48, 48), (0, 0, 0, 23, 31, 35, 47), (3, 0, 0, 64, 50, 48, 37)]
    with _tune.config(choice):
        _check(crops, 3, device, side=48)
        _check(crops, 1, device, side=48, colour=False)


@st.composite
def _crops(draw):
    side, crops = draw(st.integers(1, 21)), []
    for _ in range(draw(st.integers(1, 4))):
        photo = draw(st.integers(0, len(PHOTOS) - 1))
        sizes = [draw(st.integers(1, extent)) for extent in PHOTOS[photo]]
        corner = [
            draw(st.integers(0, e - part)) for e, part in zip(PHOTOS[photo], sizes, strict=True)
        ]
        shown = [draw(st.integers(1, side)) for _ in range(2)]
        crops.append((photo, *corner, *sizes, *shown))
    return side, crops


@settings(max_examples=25)
@given(drawn=_crops(), channels=st.integers(1, 4), colour=st.booleans(), seed=st.integers(0, 99))
@example(
    drawn=(13, [(0, 8, 14, 14, 1, 13, 1), (0, 0, 0, 1, 1, 1, 1), (0, 0, 0, 1, 1, 1, 1)]),
    channels=2, colour=False, seed=7,
)  # fmt: skip
def test_any_crops(drawn, channels, colour, seed):
    side, crops = drawn
    _check(crops, channels, "cpu", colour=colour, side=side, seed=seed)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_place_beyond_what_a_float_counts(choice, device):
    """Pixels from 2^24 on have no float32 of their own."""
    photos, before, crop = _photos(1), (1 << 24) + 1, CROPS[1:2]
    source = torch.zeros(before + sum(p.numel() for p in photos), dtype=torch.uint8, device=device)
    source[before:] = _source(photos, device)
    table, (mean, std) = _table(crop, device, before=before), _norm(1, device)
    with using(choice):
        found = crop_augment(source, table, SIDE, mean, std)
    assert relative_rms(found, _oracle(photos, crop, table, SIDE, True)) <= FORWARD[torch.float32]


@pytest.mark.parametrize("choice", CHOICES)
def test_twice_and_by_parts(choice, device):
    """The same bits again, and for a crop whatever others are made beside it."""
    source, table = _source(_photos(3), device), _table(CROPS, device)
    mean, std = _norm(3, device)
    with using(choice):
        once, twice = (crop_augment(source, table, SIDE, mean, std) for _ in range(2))
        parts = [crop_augment(source, part, SIDE, mean, std) for part in table.split(2)]
    assert torch.equal(once, twice)
    assert torch.equal(once, torch.cat(parts))


@pytest.mark.parametrize("choice", CHOICES)
def test_no_crops(choice, device):
    mean, std = _norm(3, device)
    with using(choice):
        found = crop_augment(_source(_photos(3), device), _table([], device), SIDE, mean, std)
    assert found.shape == (0, 3, SIDE, SIDE)


def test_bytes_within_the_table(device):
    """Where photos are not on the device a table carries its crops' bytes itself."""
    photos = _photos(3)
    flat, table = _source(photos, device), _table(CROPS, device)
    columns = 16 * 3  # the bytes begin at a whole pixel
    rows = torch.zeros(len(CROPS), columns + -(-flat.numel() // 12) * 3, device=device)
    rows[:, : table.shape[1]] = table
    rows.view(torch.uint8)[:, 4 * columns : 4 * columns + flat.numel()] = flat
    pixels = 4 * rows.shape[1] // 3
    place = table[:, Column.LOW] + pixels * torch.arange(len(CROPS), device=device) + 64
    rows[:, Column.HIGH], rows[:, Column.LOW] = place // SPLIT, place % SPLIT
    mean, std = _norm(3, device)
    for choice in CHOICES:
        with using(choice):
            found = crop_augment(rows.view(torch.uint8).view(-1), rows, SIDE, mean, std)
            assert torch.equal(found, crop_augment(flat, table, SIDE, mean, std))


def test_compiled_and_autocast(device):
    source, table = _source(_photos(3), device), _table(CROPS, device)
    mean, std = _norm(3, device)
    torch._dynamo.reset()
    with using("triton"):
        plain = crop_augment(source, table, SIDE, mean, std)
        traced = torch.compile(crop_augment, backend="aot_eager", fullgraph=True)
        assert torch.equal(plain, traced(source, table, SIDE, mean, std))
    for choice in CHOICES:
        with using(choice), torch.autocast(device.type, torch.bfloat16):
            found = crop_augment(source, table, SIDE, mean, std)
        assert found.dtype == torch.float32
        assert relative_rms(found, plain) <= FORWARD[torch.float32]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_graph_makes_the_crops_of_another_table():
    source, table = _source(_photos(3), "cuda"), _table(CROPS, "cuda")
    mean, std = _norm(3, "cuda")
    with using("triton"):
        crop_augment(source, table, SIDE, mean, std)
        other = _table(CROPS[::-1], "cuda", seed=1)
        expected = crop_augment(source, other, SIDE, mean, std)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = crop_augment(source, table, SIDE, mean, std)
    table.copy_(other)
    graph.replay()
    assert torch.equal(found, expected)


SOURCE = torch.zeros(12, dtype=torch.uint8)
TABLE, ONES = torch.ones(2, len(Column)), torch.ones(3)


@pytest.mark.parametrize(
    ("arguments", "options", "problem"),
    [
        ((SOURCE.float(), TABLE, 4, ONES, ONES), {}, r"source is \(12,\) torch.float32"),
        ((SOURCE.view(3, 4), TABLE, 4, ONES, ONES), {}, r"source is \(3, 4\)"),
        ((SOURCE[::2], TABLE, 4, ONES, ONES), {}, r"source is \(6,\)"),
        ((SOURCE[:11], TABLE, 4, ONES, ONES), {}, "11 bytes are no pixels of 3 channels"),
        ((SOURCE, TABLE, 4, ONES, ONES[:1]), {}, r"\(3,\) and \(1,\)"),
        ((SOURCE, TABLE, 4, ONES[:0], ONES[:0]), {}, r"\(0,\) and \(0,\)"),
        ((SOURCE, TABLE[:, 1:], 4, ONES, ONES), {}, r"table is \(2, 9\)"),
        ((SOURCE, TABLE.T.contiguous().T, 4, ONES, ONES), {}, r"strides \(1, 2\)"),
        ((SOURCE, TABLE.double(), 4, ONES, ONES), {}, "float64, torch.float32 and torch.float32"),
        ((SOURCE, TABLE.to("meta"), 4, ONES, ONES), {}, "source on cpu, table on meta"),
        ((SOURCE, TABLE, 0, ONES, ONES), {}, "side is 0"),
        ((SOURCE, TABLE, 1 << 15, ONES, ONES), {}, "side is 32768"),
        ((SOURCE, TABLE, 4, ONES, ONES), {"dtype": torch.float64}, "crops of torch.float64"),
    ],
)
def test_what_does_not_fit(arguments, options, problem):
    with pytest.raises(ValueError, match=problem):
        crop_augment(*arguments, **options)
