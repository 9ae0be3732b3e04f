"""Queries and masks merged at the resolution of the picture; numbers of the authors and of
transformers are in tests/export.
"""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.bundle import Mode, Profile, Rule
from service.geometry import Geometry, Resize, Size, place
from service.tasks.competition import by_probability, by_resized_sum, by_sum, by_value, sigmoid
from service.tasks.framing import Frame, Merging
from service.tasks.instances import Instance, merge_instances
from service.tasks.laying import lay, lay_instances, lay_panoptic, lay_semantic
from service.tasks.merging import Segments, merge_panoptic, merge_semantic
from service.tasks.resampling import (
    Taps,
    Tiling,
    bilinear,
    nearest_by_centre,
    nearest_by_edge,
    resized,
)

ALL: list[tuple[Rule, Profile]] = [
    (rule, profile)
    for rule in ("detr", "maskformer", "mask2former")
    for profile in ("reference", "hf")
]
MODES: tuple[Mode, ...] = ("panoptic", "instance", "semantic")
THINGS = (True, True, False, False)
SIDES = st.integers(1, 300)
reproducible = settings(deadline=None, derandomize=True, max_examples=25)


def merging_of(rule: Rule, profile: Profile, fused: frozenset[int] = frozenset()) -> Merging:
    return Merging(rule, profile, MODES, THINGS, fused)


def filled(side: int, picture: tuple[int, int]) -> Frame:
    return Frame((side, side), (side, side), picture)


def sure(*classes: int) -> NDArray[np.float32]:
    """Logits of queries that are all but certain of their class; 4 is "no object"."""
    logits = np.full((len(classes), 5), -10, dtype=np.float32)
    logits[np.arange(len(classes)), classes] = 10
    return logits


def dense(taps: Taps, inputs: int) -> NDArray[np.float64]:
    """The whole resize as a matrix (outputs, inputs)."""
    matrix = np.zeros((len(taps), inputs))
    for output, (indices, weights) in enumerate(zip(taps.indices, taps.weights, strict=True)):
        for index, weight in zip(indices, weights, strict=True):
            matrix[output, index] += weight
    return matrix


def hilly(seed: int, count: int, grid: tuple[int, int]) -> NDArray[np.float32]:
    """Random masks, smooth enough that many lose everywhere in a tile."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, 3, 3)).astype(np.float32) * 8
    return resized(coarse, bilinear(3, grid[0]), bilinear(3, grid[1]))


@given(source=SIDES, target=SIDES)
@reproducible
def test_a_bilinear_resize_mixes_neighbours_about_the_same_centre(source: int, target: int) -> None:
    matrix = dense(bilinear(source, target), source)
    centres = (np.arange(target) + 0.5) * source / target - 0.5
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    assert (matrix >= 0).all()
    expected = np.clip(centres, 0, source - 1)
    np.testing.assert_allclose(matrix @ np.arange(source), expected, atol=1e-9)


@given(side=SIDES)
@reproducible
def test_a_resize_to_the_same_size_changes_nothing(side: int) -> None:
    for resize in (bilinear, nearest_by_centre, nearest_by_edge):
        np.testing.assert_allclose(dense(resize(side, side), side), np.eye(side), atol=1e-12)


@given(first=SIDES, second=SIDES, third=SIDES)
@reproducible
def test_two_resizes_in_one_are_the_product_of_their_matrices(
    first: int, second: int, third: int
) -> None:
    inner, outer = bilinear(first, second), nearest_by_centre(second, third)
    np.testing.assert_allclose(
        dense(outer.after(inner), first), dense(outer, second) @ dense(inner, first), atol=1e-12
    )


@given(source=st.tuples(SIDES, SIDES), target=st.tuples(SIDES, SIDES))
@reproducible
def test_tiles_make_up_the_whole(source: tuple[int, int], target: tuple[int, int]) -> None:
    maps = np.random.default_rng(0).normal(size=(2, *source)).astype(np.float32)
    down, across = (bilinear(*pair) for pair in zip(source, target, strict=True))
    expected = dense(down, source[0]) @ maps @ dense(across, source[1]).T
    np.testing.assert_allclose(resized(maps, down, across), expected, atol=1e-4)


@given(source=st.tuples(SIDES, SIDES), target=st.tuples(SIDES, SIDES))
@reproducible
def test_no_value_leaves_the_bounds_of_its_tile(
    source: tuple[int, int], target: tuple[int, int]
) -> None:
    maps = np.random.default_rng(1).normal(size=(3, *source)).astype(np.float32)
    tiling = Tiling.of(*(bilinear(*pair) for pair in zip(source, target, strict=True)))
    sizes = []
    for tile, low, high in zip(tiling, *tiling.bounds(maps), strict=True):
        values = tile.values(maps)
        assert (values >= low[:, None, None] - 1e-5).all()
        assert (values <= high[:, None, None] + 1e-5).all()
        sizes.append(values[0].size)
    assert tiling.areas.tolist() == sizes
    assert sum(sizes) == target[0] * target[1]


@given(seed=st.integers(0, 10**6), weighted=st.booleans())
@reproducible
def test_leaving_out_who_cannot_win_changes_no_pixel(seed: int, weighted: bool) -> None:
    rng = np.random.default_rng(seed)
    maps = hilly(seed, 9, (14, 17))
    scores = rng.uniform(0.1, 1, size=9).astype(np.float32)
    down, across = bilinear(14, 150), bilinear(17, 530)
    full = resized(maps, down, across)
    contest = by_probability(maps, scores, down, across, are_logits=True, weighted=weighted)
    products = sigmoid(full) * scores[:, None, None]
    half = (products if weighted else sigmoid(full)) >= 0.5
    winners = products.argmax(axis=0)
    assert (contest.winners != winners).mean() < 1e-4
    strong = np.take_along_axis(half, winners[None], axis=0)[0]
    assert (contest.strong != strong).mean() < 1e-4
    np.testing.assert_allclose(contest.own_areas, half.sum(axis=(1, 2)), atol=3)
    assert contest.areas.sum() == winners.size
    assert (by_value(maps, down, across) != full.argmax(axis=0)).mean() < 1e-4


@given(seed=st.integers(0, 10**6))
@reproducible
def test_sums_are_compared_as_if_none_were_left_out(seed: int) -> None:
    maps = hilly(seed, 9, (14, 17))
    weights = np.random.default_rng(seed).dirichlet(np.full(5, 0.3), size=9).T.astype(np.float32)
    inner = bilinear(14, 56).first(50), bilinear(17, 68).first(61)
    outer = bilinear(50, 90), bilinear(61, 400)
    down, across = (late.after(early) for late, early in zip(outer, inner, strict=True))
    sums = np.tensordot(weights, sigmoid(resized(maps, down, across)), axes=1)
    assert (by_sum(maps, weights, down, across) != sums.argmax(axis=0)).mean() < 1e-3
    sums = resized(np.tensordot(weights, sigmoid(resized(maps, *inner)), axes=1), *outer)
    found = by_resized_sum(maps, weights, inner, outer)
    assert (found != sums.argmax(axis=0)).mean() < 1e-3


@pytest.mark.parametrize(("rule", "profile"), ALL)
@pytest.mark.parametrize("threshold", [0.999999, 0.3])
def test_ids_count_from_one_and_every_row_has_pixels(
    rule: Rule, profile: Profile, threshold: float
) -> None:
    masks = hilly(1, 12, (20, 25))
    logits = np.random.default_rng(1).normal(size=(12, 5)).astype(np.float32) * 4
    frame = Frame((80, 100), (71, 98), (150, 210))
    found = merge_panoptic(merging_of(rule, profile), frame, logits, masks, threshold, 0.2)
    assert [row.id for row in found.rows] == list(range(1, len(found.rows) + 1))
    assert set(np.unique(found.ids)) - {0} == {row.id for row in found.rows}
    assert found.ids.shape == (150, 210)
    assert len(found.rows) > 1 if threshold < 0.9 else not found.rows


@pytest.mark.parametrize(("rule", "profile"), ALL)
def test_of_two_equal_masks_the_first_has_the_pixels(rule: Rule, profile: Profile) -> None:
    masks = np.repeat(hilly(3, 1, (9, 9)) + 9, 2, axis=0)
    found = merge_panoptic(
        merging_of(rule, profile), filled(36, (70, 300)), sure(1, 1), masks, 0.5, 0.5
    )
    assert [(row.query, row.class_index) for row in found.rows] == [(0, 1)]


def test_a_segment_of_a_fused_class_is_one_row_and_the_next_id_is_fresh() -> None:
    # Stuff, a thing, the same stuff, a thing: here transformers' counter goes back to 1 for the
    # third and gives the fourth the id 2 again.
    masks = np.full((4, 8, 8), -9, dtype=np.float32)
    for query in range(4):
        masks[query, :, 2 * query : 2 * query + 2] = 9
    frame = filled(32, (8, 8))
    merging = merging_of("maskformer", "hf", fused=frozenset({2}))
    found = merge_panoptic(merging, frame, sure(2, 0, 2, 1), masks, 0.5, 0.5)
    assert [(row.id, row.class_index, row.query) for row in found.rows] == [
        (1, 2, 0),
        (2, 0, 1),
        (3, 1, 3),
    ]
    assert found.ids[4].tolist() == [1, 1, 2, 2, 1, 1, 3, 3]
    alone = merge_panoptic(merging_of("maskformer", "hf"), frame, sure(2, 0, 2, 1), masks, 0.5, 0.5)
    assert [row.class_index for row in alone.rows] == [2, 0, 2, 1]
    reference = merge_panoptic(
        merging_of("maskformer", "reference"), frame, sure(2, 0, 2, 1), masks, 0.5, 0.5
    )
    assert [row.class_index for row in reference.rows] == [2, 0, 1]


def test_a_share_of_exactly_the_threshold_passes_the_reference_alone() -> None:
    # The second mask is four cells, of which the first takes one: a share of 3/4.
    masks = np.full((2, 4, 4), -9, dtype=np.float32)
    masks[0, 0, 0], masks[1, 0] = 12, 9
    logits, frame = sure(0, 1), filled(4, (4, 4))
    for profile, rows in (("reference", [0, 1]), ("hf", [0])):
        merging = merging_of("maskformer", profile)  # type: ignore[arg-type]
        found = merge_panoptic(merging, frame, logits, masks, 0.5, 0.75)
        # "hf" demands more than that of the second, and leaves its cells void.
        assert [row.class_index for row in found.rows] == rows
        assert found.ids[0].tolist() == ([1, 2, 2, 2] if len(rows) == 2 else [1, 0, 0, 0])


def test_what_lies_beyond_a_padded_picture_has_no_say_in_detr() -> None:
    masks = hilly(5, 6, (12, 16))
    loud = masks.copy()
    loud[:, 8:], loud[:, :, 11:] = 50, 50
    frame = Frame((48, 64), (30, 43), (90, 120))  # 8 x 11 cells
    for profile in ("reference", "hf"):
        merging = merging_of("detr", profile)
        quiet = merge_panoptic(merging, frame, sure(0, 1, 2, 3, 2, 0), masks, 0.5, 0.1)
        found = merge_panoptic(merging, frame, sure(0, 1, 2, 3, 2, 0), loud, 0.5, 0.1)
        assert np.array_equal(quiet.ids, found.ids)
        assert quiet.rows == found.rows


@given(height=st.integers(1, 40), width=st.integers(1, 40))
@reproducible
def test_a_mask_survives_being_kept_as_bits(height: int, width: int) -> None:
    mask = np.random.default_rng(height * width).random((height, width)) > 0.5
    kept = Instance(0, 1.0, 0, np.packbits(mask, axis=1), width)
    assert np.array_equal(kept.mask, mask)


def test_an_instance_is_weighed_by_the_mean_probability_in_its_mask() -> None:
    masks = np.array([[[2, -3], [2, -3]], [[-5, -5], [-5, -5]]], dtype=np.float32)
    logits = np.log(np.array([[0.6, 0.3, 0.05, 0.03, 0.02]] * 2, dtype=np.float32))
    frame = filled(2, (2, 2))
    found = merge_instances(merging_of("mask2former", "reference"), frame, logits, masks, 0.2, 0)
    probability = 1 / (1 + np.exp(-2))
    # Both classes of the one query with a mask; stuff is left to the panoptic mode.
    assert [(row.query, row.class_index) for row in found] == [(0, 0), (0, 1)]
    assert [row.score for row in found] == pytest.approx(
        [0.6 * probability, 0.3 * probability], abs=1e-5
    )
    assert found[0].mask.tolist() == [[True, False], [True, False]]
    detr = merge_instances(merging_of("detr", "reference"), frame, logits, masks, 0.6, 0)
    assert [(row.query, row.class_index) for row in detr] == [(0, 0)]
    assert detr[0].score == pytest.approx(0.6)


def test_transformers_draws_later_instances_over_earlier_ones() -> None:
    masks = np.full((2, 4, 4), -9, dtype=np.float32)
    masks[0, :2], masks[1, 1:] = 9, 9
    logits = sure(0, 1)
    logits[1, 1] = -8  # two in three, so later
    found = merge_instances(
        merging_of("maskformer", "hf"), filled(4, (4, 4)), logits, masks, 0.5, 0.5
    )
    assert [row.mask.sum(axis=1).tolist() for row in found] == [[4, 0, 0, 0], [0, 4, 4, 4]]


def test_a_model_of_classes_alone_resizes_sums_and_others_resize_masks() -> None:
    masks = hilly(8, 5, (10, 10))
    logits = sure(0, 1, 2, 3, 1) / 4
    frame = Frame((40, 40), (33, 40), (90, 100))
    alone = Merging("mask2former", "reference", ("semantic",), THINGS)
    maps = [
        merge_semantic(merging, frame, logits, masks)
        for merging in (alone, merging_of("mask2former", "reference"))
    ]
    assert maps[0].shape == maps[1].shape == (90, 100)
    assert 0 < (maps[0] != maps[1]).mean() < 0.1


def test_memory_does_not_grow_with_the_picture_times_the_queries() -> None:
    masks = np.random.default_rng(0).normal(size=(40, 30, 40)).astype(np.float32)
    tracemalloc.start()
    found = merge_panoptic(
        merging_of("mask2former", "reference"),
        Frame((120, 160), (120, 160), (1200, 1600)),
        sure(*[query % 4 for query in range(40)]),
        masks,
        0.5,
        0.0,
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.rows) > 10
    assert peak < 60e6  # all masks at once would be 307 MB


def test_a_frame_is_what_a_placement_says() -> None:
    geometry = Geometry(
        nominal=Size(height=64, width=96),
        resize=Resize(mode="shortest_edge", shortest_edge=40, longest_edge=90),
        placement="pad",
    )
    placement = place(geometry, Size(height=20, width=30), Size(height=64, width=96))
    frame = Frame.of(placement)
    assert frame == Frame((64, 96), (40, 60), (20, 30))
    assert frame.cells((16, 24)) == (10, 15)
    assert Frame((64, 96), (41, 57), (20, 30)).cells((16, 24)) == (11, 15)


@given(cells=st.integers(1, 40), valid=st.integers(1, 160), picture=st.integers(1, 300))
@reproducible
def test_a_pixel_gets_the_cell_under_its_centre(cells: int, valid: int, picture: int) -> None:
    canvas = 4 * cells
    valid = min(valid, canvas)
    frame = Frame((canvas, 1), (valid, 1), (picture, 1))
    found = lay(frame, np.arange(cells)[:, None])[:, 0]
    centres = (np.arange(picture) + 0.5) * valid / picture / 4
    assert (np.abs(found + 0.5 - centres) <= 0.5 + 1e-9).all()
    assert found.max() < frame.cells((cells, 1))[0]


def test_maps_of_the_graph_are_laid_on_the_picture() -> None:
    frame = Frame((8, 8), (4, 8), (2, 8))  # a grid of 4 x 4, of which two rows are seen
    drawn = np.array([[0, 3, 3, 1], [1, 1, 1, 1], [2, 2, 2, 2], [2, 2, 2, 2]], dtype=np.int32)
    scores = np.array([0.9, 0.8, 0.7], dtype=np.float32)
    found = lay_panoptic(frame, drawn, np.array([5, 6, 7], dtype=np.int32), scores)
    assert isinstance(found, Segments)
    assert found.ids.tolist() == [[0, 0, 2, 2, 2, 2, 1, 1], [1] * 8]
    assert [(row.id, row.class_index, row.query) for row in found.rows] == [(1, 5, 0), (2, 7, 2)]
    assert lay_semantic(frame, drawn).tolist() == [[0, 0, 3, 3, 3, 3, 1, 1], [1] * 8]
    masks = np.stack([drawn == 1, drawn == 2, drawn == 3]).astype(np.uint8)
    classes: NDArray[Any] = np.array([-1, 6, 7], dtype=np.int32)
    rows = lay_instances(frame, masks, classes, scores, np.array([4, 5, 6], dtype=np.int32))
    assert [(row.class_index, row.query) for row in rows] == [(7, 6)]
    assert rows[0].mask.tolist() == [[False] * 2 + [True] * 4 + [False] * 2, [False] * 8]
