"""Which of the measured set-ups serves best.

What counts are the pictures per second that a whole server reaches on this machine, whose cores
also decode and format (see ``served_per_s``); what differs by GAIN is as good. A larger batch that
is not quick (pictures wait for each other in it) must bring more than that. And a lone picture must
not pay: it may take half a millisecond or a tenth more than in the set-up that answers it fastest,
or else it gets that set-up beside the other. A network of more than TWICE_PARAMETERS is not held
twice, and has to do with a prompt set-up.
"""

from collections.abc import Sequence

from service.tuning import REST_CPU_S, Layout, Point

GAIN = 0.03
SLOWER_S = 0.0005
SLOWER = 1.1
TWICE_PARAMETERS = 150_000_000
QUICK_S = 0.02
"""Nobody notices a wait for others this long, and every batch has a cost of its own outside."""


def served_per_s(point: Point, cores: int) -> float:
    """Pictures per second of a server: what its streams run, or what its cores have time for."""
    return min(point.images_per_s, cores / (point.cpu_s + REST_CPU_S))


def pick_layout(canvases: Sequence[Sequence[Layout]], cores: int, prompt: bool = True) -> int:
    """Index of the layout to use on every canvas; all canvases have the same layouts, the simplest
    first.

    Of the ``prompt`` ones the simplest is taken. Of all it is one whose threads share no batch,
    else that with the most streams: threads that share a batch wait for the one whose core decodes
    a picture meanwhile, which no measurement of the model alone shows (at 32 clients 5% for
    ViT-B/16, 10% for ViT-Tiny on two cores). Of those that share none it is the one with the fewest
    streams, which take no work from each other (6% for a network of next to no arithmetic).
    """
    able = list(range(len(canvases[0])))
    if not prompt:
        best = max(_score(canvases, index, cores) for index in able)
        good = [i for i in able if _score(canvases, i, cores) >= best * (1 - GAIN)]
        alone = [i for i in good if canvases[0][i].streams == canvases[0][i].threads]
        return min(alone) if alone else max(good)
    able = [index for index in able if _is_prompt(canvases, index)] or [_promptest(canvases)]
    chosen = able[0]
    for index in able[1:]:
        if _score(canvases, index, cores) > _score(canvases, chosen, cores) * (1 + GAIN):
            chosen = index
    return chosen


def pick_lone_threads(canvases: Sequence[Sequence[Layout]], chosen: int) -> int:
    """Threads for a lone picture's own runtime; 0 where the chosen layout is prompt."""
    if _is_prompt(canvases, chosen):
        return 0
    return canvases[0][_promptest(canvases)].threads


def pick_batch(layout: Layout, cores: int) -> Point:
    """Of the batches with which a server is within GAIN of the best, the largest that is quick; the
    smallest where none is.
    """
    enough = _best(layout, cores) * (1 - GAIN)
    able = [point for point in layout.points if served_per_s(point, cores) >= enough]
    quick = [point for point in able if point.seconds <= QUICK_S]
    return quick[-1] if quick else able[0]


def _is_prompt(canvases: Sequence[Sequence[Layout]], index: int) -> bool:
    for layouts in canvases:
        fastest_s = min(layout.latency_s for layout in layouts)
        if layouts[index].latency_s > max(fastest_s + SLOWER_S, fastest_s * SLOWER):
            return False
    return True


def _promptest(canvases: Sequence[Sequence[Layout]]) -> int:
    return min(
        range(len(canvases[0])),
        key=lambda index: sum(layouts[index].latency_s for layouts in canvases),
    )


def _score(canvases: Sequence[Sequence[Layout]], index: int, cores: int) -> float:
    """Relative to the best of each canvas, in the mean."""
    shares = [
        _best(layouts[index], cores) / max(_best(layout, cores) for layout in layouts)
        for layouts in canvases
    ]
    return sum(shares) / len(shares)


def _best(layout: Layout, cores: int) -> float:
    return max(served_per_s(point, cores) for point in layout.points)
