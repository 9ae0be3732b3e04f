"""What a graph does besides the network: normalisation at its entry, the task's arithmetic at its
exit.
"""

from export.heads.classify import Activation, Serve
from export.heads.detect import Boxes, Detect
from export.heads.entry import Entry
from export.heads.explain import Explain
from export.heads.segment import Merge, Segment

__all__ = ["Activation", "Boxes", "Detect", "Entry", "Explain", "Merge", "Segment", "Serve"]
