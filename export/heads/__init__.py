"""What a graph does besides the network: normalisation at its entry, the task's arithmetic at its
exit.
"""

from export.heads.classify import Activation, Serve
from export.heads.entry import Entry
from export.heads.explain import Explain

__all__ = ["Activation", "Entry", "Explain", "Serve"]
