"""Messages between processes: what is packed comes out again, byte for byte."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from service.worker import wire
from service.worker.runtimes.base import Arrays

DTYPES = ["bool", "uint8", "int8", "int16", "uint16", "int32", "int64", "float16", "float32"]


@settings(deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.text(max_size=8),
        st.sampled_from([*DTYPES, "float64"]).flatmap(
            lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, max_dims=4, min_side=0))
        ),
        max_size=3,
    )
)
def test_unpack_is_the_inverse_of_pack(arrays: Arrays) -> None:
    header = {"type": "result", "id": 7, "queue_s": 0.1}
    found, unpacked = wire.unpack(wire.pack(header, arrays))
    assert found == header
    assert list(unpacked) == list(arrays)
    for name, array in arrays.items():
        assert unpacked[name].dtype == array.dtype
        assert unpacked[name].shape == array.shape
        assert unpacked[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3)])
def test_scalars_and_empty_arrays_keep_their_shape(shape: tuple[int, ...]) -> None:
    _, unpacked = wire.unpack(wire.pack({}, {"x": np.ones(shape, np.float32)}))
    assert unpacked["x"].shape == shape


def test_arrays_that_are_not_contiguous_are_sent_by_their_values() -> None:
    pixels = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    for view in (pixels[:, ::2], pixels.T, pixels[::-1], pixels[0, 1, 2]):
        _, unpacked = wire.unpack(wire.pack({}, {"x": view}))
        assert np.array_equal(unpacked["x"], view)


def test_numbers_of_the_other_byte_order_keep_their_values() -> None:
    swapped = np.array([1.5, -2.0], dtype=">f4")
    _, unpacked = wire.unpack(wire.pack({}, {"x": swapped}))
    assert unpacked["x"].tolist() == [1.5, -2.0]


def test_contiguous_arrays_are_not_copied() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    frames = wire.pack({}, {"images": pixels})
    pixels[1, 2, 0] = 9
    assert bytes(frames[1])[(1 * 4 + 2) * 3] == 9


def test_a_header_alone_is_one_frame_and_is_not_changed() -> None:
    header = {"type": "hello"}
    assert len(wire.pack(header)) == 1
    assert header == {"type": "hello"}
    assert wire.unpack(wire.pack(header)) == ({"type": "hello"}, {})
    packed = wire.pack({"type": "x"}, {"a": np.zeros(2), "b": np.zeros(3)})
    assert [type(frame) for frame in packed] == [bytes, memoryview, memoryview, bytes]


def test_a_message_that_ends_too_soon_is_an_error() -> None:
    frames = wire.pack({}, {"a": np.zeros(2), "b": np.zeros(2)})
    with pytest.raises(ValueError, match="too soon"):
        wire.unpack(frames[:-1])


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 40), max_size=4), st.data())
def test_messages_are_put_together_from_pieces_of_any_size(
    lengths: list[int], data: st.DataObject
) -> None:
    sent = [({"id": i}, {"x": np.arange(n, dtype=np.uint8)}) for i, n in enumerate(lengths)]
    stream = b"".join(b"".join(wire.pack(*message)) for message in sent)
    reader, received = wire.Reader(), []
    while stream:
        count = data.draw(st.integers(1, min(len(stream), len(reader.buffer))))
        reader.buffer[:count] = stream[:count]
        stream = stream[count:]
        if (message := reader.filled(count)) is not None:
            received.append(message)
    assert [header for header, _ in received] == [header for header, _ in sent]
    assert [arrays["x"].tolist() for _, arrays in received] == [list(range(n)) for n in lengths]


def test_after_a_message_that_is_none_the_next_is_read() -> None:
    reader = wire.Reader()
    nonsense = b"{" * wire.ALIGNMENT
    for part in (wire.PREFIX.pack(len(nonsense), 0), nonsense[:-1]):
        reader.buffer[: len(part)] = part
        assert reader.filled(len(part)) is None
    reader.buffer[:] = nonsense[-1:]
    with pytest.raises(ValueError, match="key must be a string"):
        reader.filled(1)
    first = b"".join(wire.pack({"type": "hello"}))
    reader.buffer[:] = first[: wire.PREFIX.size]
    reader.filled(wire.PREFIX.size)
    reader.buffer[:] = first[wire.PREFIX.size :]
    assert reader.filled(len(reader.buffer)) == ({"type": "hello"}, {})


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float64"])
def test_arrays_lie_where_processors_like_them(dtype: str) -> None:
    arrays = {"odd": np.zeros(3, np.uint8), "next": np.zeros(5, dtype)}
    _, unpacked = wire.unpack(wire.pack({"type": "x"}, arrays))
    assert unpacked["next"].flags.aligned
