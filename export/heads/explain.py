"""The graph that explains: attention maps, apart from the serving graph."""

from torch import Tensor, nn

from export.heads.entry import Entry


class Explain(nn.Module):
    """Pixels and one token per picture to the outputs of the explain graph.

    ``query`` (B,) int64 is the token's place in the sequence. Returns ``attention`` (B, L, h, P),
    that token's row over the patches in every layer, and ``rollout`` (B, P).
    """

    def __init__(self, entry: Entry, model: nn.Module) -> None:
        super().__init__()
        self.entry = entry
        self.model = model

    def forward(self, images: Tensor, query: Tensor) -> dict[str, Tensor]:
        explain = self.model.explain
        named: dict[str, Tensor] = explain(self.entry(images), query)  # type: ignore[operator]
        return {name: named[name] for name in ("attention", "rollout")}
