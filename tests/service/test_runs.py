"""Maps as runs, held against the same said pixel by pixel."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from service.tasks.runs import Runs

Map = NDArray[np.uint16]
COUNT = 6

reproducible = settings(deadline=None, derandomize=True, max_examples=100)
any_map = arrays(
    np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, COUNT - 1)
)


def naive_box(mask: NDArray[np.bool_]) -> list[int]:
    rows, columns = np.nonzero(mask)
    left, top = int(columns.min()), int(rows.min())
    return [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]


@reproducible
@given(drawn=any_map)
def test_a_map_is_drawn_again_from_its_runs(drawn: Map) -> None:
    runs = Runs.of(drawn)
    again = runs.drawn()
    assert np.array_equal(again, drawn)
    assert again.dtype == np.uint16
    assert (
        runs.starts // drawn.shape[1] == (runs.starts + runs.lengths - 1) // drawn.shape[1]
    ).all()


@reproducible
@given(drawn=any_map)
def test_areas_and_boxes_are_those_of_the_masks(drawn: Map) -> None:
    runs = Runs.of(drawn)
    areas, boxes = runs.areas(COUNT), runs.boxes(COUNT)
    assert areas.tolist() == [int((drawn == value).sum()) for value in range(COUNT)]
    for value in np.flatnonzero(areas):
        assert boxes[value].tolist() == naive_box(drawn == value)


@reproducible
@given(drawn=any_map, table=arrays(np.uint16, COUNT))
def test_renumbering_runs_renumbers_pixels(drawn: Map, table: Map) -> None:
    assert np.array_equal(Runs.of(drawn).renumbered(table).drawn(), table[drawn])


def test_runs_of_a_flat_map_are_few() -> None:
    drawn = np.zeros((40, 50), dtype=np.uint16)
    drawn[10:20, 5:30] = 3
    runs = Runs.of(drawn)
    assert len(runs.values) == 40 + 2 * 10
    assert runs.areas(4).tolist() == [1750, 0, 0, 250]
    assert runs.boxes(4)[3].tolist() == [5, 10, 25, 10]
