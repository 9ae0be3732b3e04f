"""Which classes are things and which stuff: asked for, or known of the published label sets.

Checkpoints do not say it. A thing is counted (two cups are two segments), stuff is not (two patches
of sky are one).
"""

from collections.abc import Collection, Mapping

from service.errors import StartError

_CITYSCAPES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")


def things_of(labels: Mapping[int, str], stuff: Collection[str] | None = None) -> list[bool]:
    """For each label, in order, whether it is a thing.

    ``stuff`` names the classes that are not (an empty collection: every class is a thing). Without
    it the label sets of COCO panoptic (contiguous, or with its own ids as DETR has them), and
    Cityscapes are recognised; every class of another set counts as a thing.

    Raises:
        StartError: ``stuff`` names a class that there is not.
    """
    names = list(labels.values())
    if stuff is not None:
        unknown = sorted(set(stuff) - set(names))
        if unknown:
            raise StartError(
                f"--stuff names {', '.join(unknown)}; the classes are {', '.join(names)}"
            )
        return [name not in stuff for name in names]
    if len(names) == 133 and (names[0], names[79]) == ("person", "toothbrush"):
        return [index < 80 for index in range(133)]
    if len(names) in (201, 250) and names[1] == "person":  # category ids; things end at 90
        return [index <= 90 for index in range(len(names))]
    if len(names) == 19 and set(_CITYSCAPES) <= set(names):
        return [name in _CITYSCAPES for name in names]
    return [True] * len(names)
