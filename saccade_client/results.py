"""Answers as typed values that can be looked at, counted, drawn and converted.

Boxes and areas are in pixels of the upright picture.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saccade_client import drawing, masks
from saccade_client.masks import Mask
from saccade_client.pictures import Picture, png_of, upright_of


@dataclass(frozen=True, kw_only=True)
class Result:
    """What every answer has; ``json`` is the document as it came, ``picture`` what was sent."""

    model: str
    version: str
    precision: str
    width: int
    height: int
    json: dict[str, Any] = field(repr=False, compare=False)
    picture: Picture | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, document: dict[str, Any], picture: Picture | None = None) -> Self:
        """The result that a server's JSON document says."""
        return cls(
            model=document["model"],
            version=document["version"],
            precision=document["precision"],
            width=document["image"]["width"],
            height=document["image"]["height"],
            json=document,
            picture=picture,
            **cls._own(document),
        )

    @classmethod
    def _own(cls, document: dict[str, Any]) -> dict[str, Any]:
        return {}

    def draw(self, picture: Picture | None = None) -> Image.Image:
        """The answer on its picture, by default the one that was sent.

        Raises:
            ValueError: there is no such picture, as where the server fetched it.
        """
        chosen = self.picture if picture is None else picture
        if chosen is None:
            raise ValueError("this answer has no picture; give it to draw()")
        return self._draw_on(upright_of(chosen))

    def _draw_on(self, image: Image.Image) -> Image.Image:
        return image

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows; without a picture it shows the text."""
        try:
            return png_of(self.draw())
        except (ValueError, OSError):
            return None


@dataclass(frozen=True)
class Prediction:
    """One class."""

    label: str
    label_id: int
    score: float


@dataclass(frozen=True, kw_only=True)
class Classification(Result):
    """Classes, best first."""

    predictions: tuple[Prediction, ...]

    @classmethod
    def _own(cls, document: dict[str, Any]) -> dict[str, Any]:
        rows = document["predictions"]
        found = (Prediction(row["label"], row["label_id"], row["score"]) for row in rows)
        return {"predictions": tuple(found)}

    def __len__(self) -> int:
        return len(self.predictions)

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.predictions)

    def to_supervision(self) -> Any:
        """``supervision.Classifications``; needs that library."""
        import supervision

        return supervision.Classifications(
            class_id=np.array([one.label_id for one in self], dtype=int),
            confidence=np.array([one.score for one in self], dtype=np.float32),
        )

    def _draw_on(self, image: Image.Image) -> Image.Image:
        return drawing.draw_lines(image, [f"{one.label} {one.score:.2f}" for one in self])


@dataclass(frozen=True)
class Detection:
    """One object; ``box`` is xmin, ymin, xmax, ymax."""

    label: str
    label_id: int
    score: float
    box: tuple[float, float, float, float]
    query: int | None = None


@dataclass(frozen=True, kw_only=True)
class Detections(Result):
    """Objects, best first."""

    predictions: tuple[Detection, ...]

    @classmethod
    def _own(cls, document: dict[str, Any]) -> dict[str, Any]:
        found = [
            Detection(
                row["label"], row["label_id"], row["score"], _edges(row["box"]), row.get("query")
            )
            for row in document["predictions"]
        ]
        return {"predictions": tuple(found)}

    def __len__(self) -> int:
        return len(self.predictions)

    def __iter__(self) -> Iterator[Detection]:
        return iter(self.predictions)

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Rows of COCO's results: ``bbox`` is x, y, width, height."""
        rows = []
        for one in self:
            xmin, ymin, xmax, ymax = one.box
            box = [xmin, ymin, round(xmax - xmin, 6), round(ymax - ymin, 6)]
            row = {"image_id": image_id, "category_id": one.label_id, "bbox": box}
            rows.append(row | {"score": one.score})
        return rows

    def to_supervision(self) -> Any:
        """``supervision.Detections``; needs that library."""
        import supervision

        return supervision.Detections(
            xyxy=np.array([one.box for one in self], dtype=np.float32).reshape(-1, 4),
            confidence=np.array([one.score for one in self], dtype=np.float32),
            class_id=np.array([one.label_id for one in self], dtype=int),
            data={"class_name": np.array([one.label for one in self], dtype=str)},
        )

    def _draw_on(self, image: Image.Image) -> Image.Image:
        shown = ((one.box, f"{one.label} {one.score:.2f}", one.label_id) for one in self)
        return drawing.draw_boxes(image, shown)


@dataclass(frozen=True)
class Segment:
    """One segment; ``bbox`` is x, y, width, height. A class of a semantic map has no score."""

    id: int
    label: str
    label_id: int
    score: float | None
    area: int
    bbox: tuple[int, int, int, int]
    isthing: bool | None
    encoded: Any = field(default=None, repr=False)
    """The mask as ``mask_format`` wrote it, if the answer has it."""


@dataclass(frozen=True, kw_only=True)
class Segmentation(Result):
    """Segments, best first; of a semantic map the largest first."""

    mode: str
    segments: tuple[Segment, ...]

    @classmethod
    def _own(cls, document: dict[str, Any]) -> dict[str, Any]:
        found = [
            Segment(
                id=row["id"],
                label=row["label"],
                label_id=row["label_id"],
                score=row.get("score"),
                area=row["area"],
                bbox=tuple(row["bbox"]),
                isthing=row.get("isthing"),
                encoded=row.get("mask"),
            )
            for row in document["segments"]
        ]
        return {"mode": document["mode"], "segments": tuple(found)}

    def __len__(self) -> int:
        return len(self.segments)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)

    @cached_property
    def ids(self) -> NDArray[np.uint32] | None:  # (H, W)
        """The id of the segment that each pixel belongs to, 0 for none; None where masks overlap or
        no map was asked for.
        """
        encoded = self.json.get("segment_map")
        return None if encoded is None else masks.read_id_map(encoded)

    def mask(self, segment: Segment) -> Mask:  # (H, W)
        """Where a segment is.

        Raises:
            ValueError: the answer holds no masks.
        """
        if segment.encoded is not None:
            return masks.read_mask(segment.encoded, self.height, self.width)
        if self.ids is None:
            raise ValueError("this answer holds no masks; ask with segment_map or a mask_format")
        return np.asarray(self.ids == segment.id)

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Rows of COCO's results with masks as run lengths."""
        rows = []
        for one in self:
            row = {
                "image_id": image_id,
                "category_id": one.label_id,
                "bbox": list(one.bbox),
                "segmentation": masks.run_lengths(self.mask(one)),
            }
            rows.append(row if one.score is None else row | {"score": one.score})
        return rows

    def to_coco_panoptic(self, image_id: int, file_name: str) -> dict[str, Any]:
        """This picture's row in COCO's panoptic format; ``file_name`` is that of its PNG."""
        segments = []
        for one in self:
            segment = {"id": one.id, "category_id": one.label_id, "area": one.area}
            segments.append(segment | {"bbox": list(one.bbox), "iscrowd": 0})
        return {"image_id": image_id, "file_name": file_name, "segments_info": segments}

    def to_supervision(self) -> Any:
        """``supervision.Detections`` with masks; needs that library."""
        import supervision

        corners = [(x, y, x + width, y + height) for x, y, width, height in (s.bbox for s in self)]
        drawn = [self.mask(one) for one in self]
        scores = [1.0 if one.score is None else one.score for one in self]
        return supervision.Detections(
            xyxy=np.array(corners, dtype=np.float32).reshape(-1, 4),
            mask=np.array(drawn, dtype=bool).reshape(-1, self.height, self.width),
            confidence=np.array(scores, dtype=np.float32),
            class_id=np.array([one.label_id for one in self], dtype=int),
            data={"class_name": np.array([one.label for one in self], dtype=str)},
        )

    def _draw_on(self, image: Image.Image) -> Image.Image:
        shown = ((self.mask(one), _name(one), one.label_id) for one in self)
        return drawing.draw_masks(image, shown)


@dataclass(frozen=True, kw_only=True)
class Embedding(Result):
    """A vector (D,) for the picture."""

    vector: NDArray[np.float64] = field(repr=False, compare=False)

    @classmethod
    def _own(cls, document: dict[str, Any]) -> dict[str, Any]:
        return {"vector": np.array(document["embedding"], dtype=np.float64)}

    def __len__(self) -> int:
        return len(self.vector)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.vector, dtype=dtype, copy=copy)


@dataclass(frozen=True)
class AttentionMap:
    """Values (h, w) over ``region`` of the picture, xmin, ymin, xmax, ymax."""

    kind: str
    layer: int | None
    head: int | str | None
    query: str
    region: tuple[float, float, float, float]
    values: NDArray[np.float64] = field(repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Attention(Result):
    """Maps of what the model looked at."""

    maps: tuple[AttentionMap, ...]

    @classmethod
    def _own(cls, document: dict[str, Any]) -> dict[str, Any]:
        region = document["transform"]["region"]
        found = [
            AttentionMap(
                row["kind"],
                row.get("layer"),
                row.get("head"),
                row["query"],
                _edges(row.get("region", region)),
                np.array(row["values"], dtype=np.float64),
            )
            for row in document["maps"]
        ]
        return {"maps": tuple(found)}

    def __len__(self) -> int:
        return len(self.maps)

    def __iter__(self) -> Iterator[AttentionMap]:
        return iter(self.maps)

    def _draw_on(self, image: Image.Image) -> Image.Image:
        """The mean of the maps, if they are of one grid, else the first."""
        same = all(one.values.shape == self.maps[0].values.shape for one in self)
        values = [one.values for one in self] if same else [self.maps[0].values]
        return drawing.draw_heat(image, np.mean(values, axis=0), self.maps[0].region)


def _edges(box: dict[str, float]) -> tuple[float, float, float, float]:
    return box["xmin"], box["ymin"], box["xmax"], box["ymax"]


def _name(segment: Segment) -> str:
    return segment.label if segment.score is None else f"{segment.label} {segment.score:.2f}"
