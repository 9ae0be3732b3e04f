"""Which of the measured set-ups serves best.

Throughput decides, within two limits. A lone picture must not pay for it: at most a millisecond or
a tenth more than in the set-up that answers it fastest. And what is noise on a busy machine must
not: more streams, or a larger batch (in which pictures wait for each other), must bring more than
GAIN.
"""

from collections.abc import Sequence

from service.tuning import Layout, Point

GAIN = 0.03
SLOWER_S = 0.001
SLOWER = 1.1


def pick_layout(canvases: Sequence[Sequence[Layout]]) -> int:
    """Index of the layout to use on every canvas; all canvases have the same layouts, fewest
    streams first.
    """
    count = range(len(canvases[0]))
    able = [index for index in count if all(_is_prompt(layouts, index) for layouts in canvases)]
    able = able or [min(count, key=lambda index: sum(c[index].latency_s for c in canvases))]
    chosen = able[0]
    for index in able[1:]:
        if _score(canvases, index) > _score(canvases, chosen) * (1 + GAIN):
            chosen = index
    return chosen


def pick_batch(layout: Layout) -> Point:
    """The smallest batch whose throughput is within GAIN of the best."""
    enough = _best(layout) * (1 - GAIN)
    return min(
        (point for point in layout.points if point.images_per_s >= enough),
        key=lambda point: point.batch,
    )


def _is_prompt(layouts: Sequence[Layout], index: int) -> bool:
    fastest_s = min(layout.latency_s for layout in layouts)
    return layouts[index].latency_s <= max(fastest_s + SLOWER_S, fastest_s * SLOWER)


def _score(canvases: Sequence[Sequence[Layout]], index: int) -> float:
    """Throughput relative to the best of each canvas, in the mean."""
    shares = [
        _best(layouts[index]) / max(_best(layout) for layout in layouts) for layouts in canvases
    ]
    return sum(shares) / len(shares)


def _best(layout: Layout) -> float:
    return max(point.images_per_s for point in layout.points)
