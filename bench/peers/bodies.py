"""A picture as each server wants it, and the classes in what it answers."""

import base64
import json
from dataclasses import dataclass, field
from typing import Any

BOUNDARY = "----a-part-of-the-benchmark"
Best = list[tuple[int, float]]
"""Class and score, best first."""


@dataclass(frozen=True)
class Body:
    """What is sent: the bytes and the headers that belong to them."""

    data: bytes
    headers: dict[str, str] = field(default_factory=dict)


def raw(picture: bytes) -> Body:
    """The file as it is."""
    return Body(picture, {"Content-Type": "image/jpeg"})


def form(picture: bytes) -> Body:
    """A form with one file, ``images``."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="picture.jpg"'
        "\r\nContent-Type: image/jpeg\r\n\r\n"
    )
    data = head.encode() + picture + f"\r\n--{BOUNDARY}--\r\n".encode()
    return Body(data, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})


def open_inference_base64(picture: bytes) -> Body:
    """The Open Inference Protocol in JSON, as MLServer decodes it."""
    tensor = {
        "name": "image",
        "shape": [1, 1],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(picture).decode()],
    }
    data = json.dumps({"inputs": [tensor]}).encode()
    return Body(data, {"Content-Type": "application/json"})


def open_inference_binary(picture: bytes) -> Body:
    """The Open Inference Protocol with the tensor behind the JSON: its length, then its bytes."""
    tensor = len(picture).to_bytes(4, "little") + picture
    head = {
        "inputs": [
            {
                "name": "image",
                "shape": [1, 1],
                "datatype": "BYTES",
                "parameters": {"binary_data_size": len(tensor)},
            }
        ],
        "outputs": [{"name": "top", "parameters": {"binary_data": False}}],
    }
    text = json.dumps(head).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(text)),
    }
    return Body(text + tensor, headers)


def read_top(answer: Any) -> Best:
    """The engine's answer as it is."""
    return [(best["class"], best["score"]) for best in answer["top"]]


def read_first_top(answer: Any) -> Best:
    """The engine's answer as the one item of a batch."""
    return read_top(answer[0])


def read_open_inference(answer: Any) -> Best:
    """The engine's answer as text in a tensor."""
    return read_top(json.loads(answer["outputs"][0]["data"][0]))


def read_predictions(answer: Any) -> Best:
    """Saccade's answer."""
    return [(best["label_id"], best["score"]) for best in answer["predictions"]]


def fault(best: Best) -> str | None:
    """What is wrong with the classes of a network of a thousand; None if nothing is."""
    scores = [score for _, score in best]
    if len(best) != 5 or len({label for label, _ in best}) != 5:
        return f"has not five classes but {best}"
    if not all(0 <= label < 1000 for label, _ in best):
        return f"names a class that there is not: {best}"
    if scores != sorted(scores, reverse=True) or not 0 < sum(scores) <= 1.00001:
        return f"has scores that are no probabilities, best first: {best}"
    return None
