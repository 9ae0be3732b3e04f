"""Bodies of the Open Inference Protocol, whatever the bytes are."""

import base64
import gzip
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.oip.codec import Asked, Tensor, decompress, read_request, write_response
from service.errors import ClientError, InvalidBody, InvalidParameter, TooLarge

MANY = 4


def bytes_tensor(elements: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(one)) + one for one in elements)


def body_of(tensor: bytes, shape: list[int], datatype: str = "BYTES") -> tuple[bytes, str]:
    """A body with one binary input, and its header."""
    sent = {"name": "images", "shape": shape, "datatype": datatype}
    document = json.dumps({"inputs": [sent | {"parameters": {"binary_data_size": len(tensor)}}]})
    return document.encode() + tensor, str(len(document))


def read_json(**changes: Any) -> Asked:
    sent = {"name": "images", "shape": [1], "datatype": "BYTES", "data": ["AAEC"]}
    document = {"inputs": [sent | changes.pop("input", {})]} | changes
    return read_request(json.dumps(document).encode(), None, MANY)


def read_or_refuse(body: bytes, header: str | None) -> Asked | None:
    """None where the client is told what is wrong; any other error is a bug."""
    try:
        return read_request(body, header, MANY)
    except ClientError:
        return None


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=MANY), st.booleans())
def test_pictures_come_out_as_they_went_in(pictures: list[bytes], column: bool) -> None:
    shape = [len(pictures), 1] if column else [len(pictures)]
    body, length = body_of(bytes_tensor(pictures), shape)
    assert read_request(body, length, MANY).pictures == pictures
    encoded = [base64.b64encode(one).decode() for one in pictures]
    data = [[one] for one in encoded] if column else encoded
    asked = read_json(input={"shape": shape, "data": data})
    assert asked.pictures == pictures


def test_pixels_come_as_bytes_or_numbers_flat_or_nested() -> None:
    pixels = np.arange(2 * 2 * 3 * 3, dtype=np.uint8).reshape(2, 2, 3, 3)
    body, length = body_of(pixels.tobytes(), [2, 2, 3, 3], "UINT8")
    shaped = {"shape": [2, 2, 3, 3], "datatype": "UINT8"}
    for asked in (
        read_request(body, length, MANY),
        read_json(input=shaped | {"data": pixels.tolist()}),
        read_json(input=shaped | {"data": pixels.ravel().tolist()}),
    ):
        assert np.array_equal(np.stack(asked.pictures), pixels)
        assert np.stack(asked.pictures).dtype == np.uint8


def test_a_body_without_json_is_one_picture() -> None:
    asked = read_request(b"\xff\xd8 a picture", "0", MANY)
    assert asked.pictures == [b"\xff\xd8 a picture"]
    assert asked.request.outputs is None


@given(st.binary(max_size=300), st.one_of(st.none(), st.text(max_size=12), st.integers(-1, 400)))
def test_any_bytes_are_read_or_refused_as_the_clients_fault(body: bytes, header: Any) -> None:
    asked = read_or_refuse(body, None if header is None else str(header))
    assert asked is None or 1 <= len(asked.pictures) <= MANY


@given(
    st.recursive(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(-(2**70), 2**70),
            st.floats(),
            st.sampled_from(["images", "BYTES", "UINT8", "AAEC", "base64", "", "\ud800"]),
        ),
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.dictionaries(
                st.sampled_from(
                    [
                        *("inputs", "outputs", "parameters", "id", "name", "shape", "datatype"),
                        *("data", "binary_data_size", "timeout", "classification", "\ud800"),
                    ]
                ),
                inner,
                max_size=6,
            ),
        ),
        max_leaves=30,
    )
)
def test_any_json_is_read_or_refused_as_the_clients_fault(document: Any) -> None:
    for asked in (document, {"inputs": document}, {"inputs": [document]}):
        read = read_or_refuse(json.dumps(asked).encode(), None)
        assert read is None or len(read.pictures) == read.request.inputs[0].shape[0]


@given(st.data())
def test_a_body_with_one_byte_changed_or_missing_is_read_or_refused(data: st.DataObject) -> None:
    body, length = body_of(bytes_tensor([b"one", b"picture"]), [2])
    place = data.draw(st.integers(0, len(body) - 1))
    byte = data.draw(st.binary(max_size=1))
    asked = read_or_refuse(body[:place] + byte + body[place + 1 :], length)
    assert asked is None or len(asked.pictures) == asked.request.inputs[0].shape[0]


@pytest.mark.parametrize(
    ("tensor", "shape", "says"),
    [
        (b"\x01\x00", [1], "ends within the length of an element"),
        (struct.pack("<I", 9) + b"short", [1], "announces 9 bytes; 5 are left"),
        (bytes_tensor([b"a", b"b"]), [1], "2 elements; its shape says [1]"),
        (bytes_tensor([b"a"]), [2], "1 elements; its shape says [2]"),
        (b"", [0], "BYTES of shape [0]; this server takes one input"),
        (bytes_tensor([b"a"]), [1, 2], "BYTES of shape [1, 2]"),
    ],
)
def test_a_tensor_that_contradicts_itself_is_refused(
    tensor: bytes, shape: list[int], says: str
) -> None:
    body, length = body_of(tensor, shape)
    with pytest.raises(InvalidBody) as refusal:
        read_request(body, length, MANY)
    assert says in str(refusal.value)


def test_bytes_that_nobody_announced_are_refused() -> None:
    body, length = body_of(bytes_tensor([b"a"]), [1])
    with pytest.raises(InvalidBody, match="behind the JSON are 6 bytes; the input announces 5"):
        read_request(body + b"!", length, MANY)
    with pytest.raises(InvalidBody, match=f"is 999; the body has {len(body)} bytes"):
        read_request(body, "999", MANY)
    with pytest.raises(InvalidBody, match="must be a number of bytes, found '-1'"):
        read_request(body, "-1", MANY)


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"input": {"name": "image"}}, InvalidBody, "found the inputs 'image'; this server takes"),
        ({"input": {"datatype": "FP32"}}, InvalidBody, "found FP32 of shape [1]"),
        ({"input": {"data": None}}, InvalidBody, "either 'data' or the parameter"),
        ({"input": {"data": "AAEC"}}, InvalidBody, "'data' must be a list"),
        ({"input": {"data": ["%"]}}, InvalidBody, "not base64"),
        ({"input": {"data": [1]}}, InvalidBody, "must be a base64 string, found int"),
        ({"input": {"shape": [-1]}}, InvalidBody, "inputs.0.shape.0"),
        ({"inputs": []}, InvalidBody, "inputs: List should have at least 1 item"),
        ({"extra": 1}, InvalidBody, "extra: is unknown here, found 1"),
        ({"input": {"shape": [5], "data": ["AAEC"] * 5}}, TooLarge, "5 pictures; at most 4"),
        ({"parameters": {"sequence_id": 3}}, InvalidParameter, "sequence_id: is unknown here"),
        ({"parameters": {"timeout": -1}}, InvalidParameter, "greater than or equal to 0"),
        (
            {"input": {"parameters": {"shared_memory_region": "a"}}},
            InvalidParameter,
            "shared_memory_region: is unknown here",
        ),
    ],
)
def test_a_request_that_makes_no_sense_is_told_why(
    changes: dict[str, Any], kind: type[ClientError], says: str
) -> None:
    with pytest.raises(kind) as refusal:
        read_json(**changes)
    assert type(refusal.value) is kind
    assert says in str(refusal.value)


@pytest.mark.parametrize("data", [[[1, 2], [3]], [256] * 3, [-1] * 3, [0.5] * 3, ["a"] * 3, []])
def test_what_is_no_pixel_is_refused(data: list[Any]) -> None:
    with pytest.raises(InvalidBody):
        read_json(input={"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": data})


def test_an_answer_is_json_with_the_binary_tensors_behind_it_in_order() -> None:
    numbers = Tensor("scores", "FP32", [2, 1], np.array([[0.5], [0.25]]))
    files = Tensor("segment_map", "BYTES", [2], [b"png", b""])
    texts = Tensor("names", "BYTES", [1], ["0.5:0:é".encode()], text=True)
    body, length = write_response("m", "1", "id", [(numbers, True), (texts, False), (files, True)])
    assert length is not None
    assert json.loads(body[:length]) == {
        "model_name": "m",
        "model_version": "1",
        "id": "id",
        "outputs": [
            {
                "name": "scores",
                "shape": [2, 1],
                "datatype": "FP32",
                "parameters": {"binary_data_size": 8},
            },
            {"name": "names", "shape": [1], "datatype": "BYTES", "data": ["0.5:0:é"]},
            {
                "name": "segment_map",
                "shape": [2],
                "datatype": "BYTES",
                "parameters": {"binary_data_size": 11},
            },
        ],
    }
    assert body[length:] == struct.pack("<ff", 0.5, 0.25) + b"\x03\0\0\0png\0\0\0\0"
    body, length = write_response("m", "1", None, [(numbers, False), (files, False)])
    assert length is None
    assert [(one["data"], one.get("parameters")) for one in json.loads(body)["outputs"]] == [
        ([0.5, 0.25], None),
        (["cG5n", ""], {"content_type": "base64"}),
    ]


@given(st.binary(max_size=200))
def test_compressed_bodies_come_out_whole(body: bytes) -> None:
    assert decompress(gzip.compress(body), "gzip", 200) == body
    assert decompress(zlib.compress(body), "deflate", 200) == body


@pytest.mark.parametrize(
    ("body", "encoding", "kind"),
    [
        (gzip.compress(bytes(10**7)), "gzip", TooLarge),
        (gzip.compress(b"whole")[:-3], "gzip", InvalidBody),
        (b"plain", "deflate", InvalidBody),
        (b"plain", "br", InvalidBody),
    ],
    ids=["bomb", "cut", "plain", "unknown"],
)
def test_a_compressed_body_that_is_none_or_too_large_is_refused(
    body: bytes, encoding: str, kind: type[ClientError]
) -> None:
    with pytest.raises(kind):
        decompress(body, encoding, 10**6)
