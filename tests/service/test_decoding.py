"""Decoder processes: what goes to them, and what a crash, a hang or a bomb costs."""

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

import service.pictures
from service.bundle import Manifest, load_repository
from service.decoding import pool as pool_module
from service.decoding.pool import Bounds, DecoderPool, Isolation
from service.errors import (
    BadImage,
    ClientError,
    DeadlineExceeded,
    DecoderLost,
    NotReady,
    TooLarge,
    UnsupportedFormat,
)
from service.geometry import Size
from service.images import ImageLimits, decode, is_ordinary
from service.pictures import prepare
from service.settings import DEMO_REPOSITORY, foreign_environment

ROOT = Path(__file__).parents[2]
LIMITS = ImageLimits()
MEMORY_BYTES = 512 * 2**20
NO_DECODER = ("false",)
PATIENCE_S = 30.0


def drawn(mode: str = "RGB", side: int = 48) -> Image.Image:
    rng = np.random.default_rng(0)
    bands = rng.integers(0, 256, (len(Image.new(mode, (1, 1)).getbands()), side, side), np.uint8)
    return Image.merge(mode, [Image.fromarray(band) for band in bands])


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PNG = encoded(drawn(), "PNG")
JPEG = encoded(drawn(), "JPEG")


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return load_repository(DEMO_REPOSITORY)[0].manifest


Open = Callable[..., DecoderPool]


@pytest.fixture
def open_pool() -> Iterator[Open]:
    """Pools that end with the test; ``lost`` of each lists the reasons."""

    def opened(
        isolation: Isolation = "auto",
        timeout_s: float = PATIENCE_S,
        memory_bytes: int = MEMORY_BYTES,
        idle_s: float = 60.0,
        lost: list[str] | None = None,
        command: tuple[str, ...] = pool_module.COMMAND,
    ) -> DecoderPool:
        bounds = Bounds(timeout_s, memory_bytes, idle_s)
        reasons = [] if lost is None else lost
        return stack.enter_context(
            closing(
                DecoderPool(
                    LIMITS, isolation, bounds, foreign_environment(), reasons.append, command
                )
            )
        )

    with ExitStack() as stack:
        yield opened


def decoders() -> list[psutil.Process]:
    """Ours that are alive; a process has its title a moment after its start."""
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "decod" in " ".join(child.cmdline())
    ]


def wait_until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def a_decoder_that(does: str) -> tuple[str, ...]:
    """A real decoder but for pictures that contain the word: ``does`` runs with their ``data``."""
    code = f"""
        import os, signal, socket, sys, time
        from service.decoding import process
        answer = process._answer
        def answer_unless_told(header, data):
            if b"hostile" in data:
                {does}
            return answer(header, data)
        process._answer = answer_unless_told
        process.main()
    """
    return (sys.executable, "-P", "-c", textwrap.dedent(code))


HOSTILE = PNG + b"hostile"


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True}),
        ("RGB", "JPEG", {"comment": b"x" * 60_000, "exif": b"Exif\0\0" + bytes(60_000)}),
        ("L", "JPEG", {"optimize": True}),
    ],
)
def test_ordinary_jpegs_are_decoded_without_a_process(
    mode: str, kind: str, options: dict[str, Any], open_pool: Open, manifest: Manifest
) -> None:
    data = encoded(drawn(mode), kind, **options)
    assert is_ordinary(data)
    picture = open_pool(command=NO_DECODER).prepare(data, manifest)
    assert np.array_equal(picture.pixels, prepare(data, manifest, LIMITS).pixels)


def frames_of(data: bytes, **at: int) -> bytes:
    """The JPEG with other values in its frame header: depth, height, width."""
    start = data.index(b"\xff\xc0") + 4
    edited = bytearray(data)
    for name, value in at.items():
        offset, size = {"depth": (0, 1), "height": (1, 2), "width": (3, 2)}[name]
        edited[start + offset : start + offset + size] = value.to_bytes(size)
    return bytes(edited)


def test_what_is_small_is_decoded_at_once_and_nothing_else_is(
    open_pool: Open, manifest: Manifest
) -> None:
    pool = open_pool(command=NO_DECODER)
    picture = pool.prepare_small(JPEG, manifest)
    assert picture is not None
    assert np.array_equal(picture.pixels, prepare(JPEG, manifest, LIMITS).pixels)
    large, slow = (
        encoded(drawn(side=520), "JPEG"),
        encoded(drawn(side=512), "JPEG", progressive=True),
    )
    assert is_ordinary(large)
    assert is_ordinary(slow)
    assert [pool.prepare_small(data, manifest) for data in (PNG, large, slow)] == [None] * 3
    assert open_pool("all").prepare_small(JPEG, manifest) is None
    graph = manifest.graphs[0].model_copy(update={"canvas": Size(height=1024, width=1024)})
    vast = manifest.model_copy(update={"graphs": [graph]})
    assert pool.prepare_small(JPEG, vast) is None


@pytest.mark.parametrize(
    "data",
    [
        PNG,
        encoded(drawn(), "WEBP"),
        encoded(drawn("CMYK"), "JPEG"),
        JPEG[:-2],
        JPEG[:300],
        JPEG[:3],
        JPEG[:2] + b"\xff\xc0",
        JPEG[:2] + b"\xff\xda\0\2" + JPEG[2:],
        JPEG[:2] + b"\xff" + JPEG[2:],
        JPEG[:2] + b"\xff\xfe\0\2junk" + JPEG[2:],
        JPEG[:2] + b"\xff\xfe\0\2" * 600 + JPEG[2:],
        frames_of(JPEG, depth=12),
        frames_of(JPEG, height=0),
        frames_of(JPEG, height=5000, width=5000),
        JPEG.replace(b"\xff\xc0", b"\xff\xc9"),
        frames_of(encoded(drawn(), "JPEG"), height=4000, width=3999).replace(
            b"\xff\xd9", b"\xff\xda\0\2" * 5 + b"\xff\xd9"
        ),
    ],
)
def test_what_is_not_ordinary_is_not_parsed_in_the_callers_process(
    data: bytes, open_pool: Open, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr(service.pictures, "Opened", fail)
    assert not is_ordinary(data)
    with pytest.raises(NotReady, match="no decoder could be started"):
        open_pool(command=NO_DECODER).prepare(data, manifest)


def test_headers_without_end_are_given_up_soon() -> None:
    for filling in (b"\xff\xfe\0\2", b"junk", b"\xff\xff\xff\xff", b"\xff\x00"):
        started_s = time.process_time()
        assert not is_ordinary(JPEG[:2] + b"\xff\xe0\0\2" + filling * 5_000_000)
        assert time.process_time() - started_s < 0.5


@pytest.mark.parametrize("keep_upright", [False, True])
@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", "PNG"), ("RGBA", "PNG"), ("L", "PNG"), ("RGBA", "WEBP"), ("CMYK", "JPEG")],
)
def test_a_process_gives_the_same_pixels_as_a_thread(
    mode: str, kind: str, keep_upright: bool, open_pool: Open, manifest: Manifest
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(drawn(mode), kind, exif=exif.tobytes())
    apart = open_pool().prepare(data, manifest, keep_upright)
    here = open_pool("off", command=NO_DECODER).prepare(data, manifest, keep_upright)
    assert apart.placement == here.placement
    assert np.array_equal(apart.pixels, here.pixels)
    assert apart.pixels.flags.writeable is False
    assert (apart.upright is None) == (here.upright is None) == (not keep_upright)
    if apart.upright and here.upright:
        assert apart.upright.tobytes() == here.upright.tobytes()


def test_every_demo_model_gets_the_same_pixels_from_both(open_pool: Open) -> None:
    data = encoded(drawn("RGB", 300).resize((480, 300)), "JPEG")
    apart, here = open_pool("all"), open_pool("off")
    for bundle in load_repository(DEMO_REPOSITORY):
        pixels = apart.prepare(data, bundle.manifest).pixels
        assert np.array_equal(pixels, here.prepare(data, bundle.manifest).pixels)
    assert len(decoders()) == 1


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"GIF89a", UnsupportedFormat),
        (b"", BadImage),
        (PNG[:60], BadImage),
        (JPEG[:300], BadImage),
        (JPEG[:2] + b"\xff\xfe\0\2" * 600 + JPEG[40:], BadImage),
        (PNG[:16] + b"\0\1\0\0\0\1\0\0" + PNG[24:], TooLarge),
        (frames_of(JPEG, height=60_000, width=60_000), TooLarge),
    ],
)
def test_a_refusal_reads_the_same_wherever_it_was_made(
    data: bytes, kind: type[ClientError], open_pool: Open, manifest: Manifest
) -> None:
    refusals = []
    for isolation in ("auto", "all", "off"):
        with pytest.raises(ClientError) as caught:
            open_pool(isolation).prepare(data, manifest)
        refusals.append((type(caught.value), str(caught.value), caught.value.facts))
    assert refusals[0][0] is kind
    assert refusals[0] == refusals[1] == refusals[2]


def test_a_picture_that_crashes_its_decoder_is_refused_and_remembered(
    open_pool: Open, manifest: Manifest
) -> None:
    lost: list[str] = []
    pool = open_pool(lost=lost, command=a_decoder_that("os.kill(os.getpid(), signal.SIGSEGV)"))
    pool.prepare(PNG, manifest)
    for _ in range(3):
        with pytest.raises(DecoderLost, match="made its decoder crash"):
            pool.prepare(HOSTILE, manifest)
        assert lost == ["crashed", "crashed"]
        pool.prepare(PNG, manifest)


def test_a_picture_is_tried_again_when_its_decoder_was_killed(
    open_pool: Open, manifest: Manifest, tmp_path: Path
) -> None:
    marker = tmp_path / "killed"
    lost: list[str] = []
    kill_once = (
        f"os.path.exists({str(marker)!r}) or "
        f"(os.mkdir({str(marker)!r}), os.kill(os.getpid(), signal.SIGKILL))"
    )
    pool = open_pool(lost=lost, command=a_decoder_that(kill_once))
    expected = prepare(HOSTILE, manifest, LIMITS)
    assert np.array_equal(pool.prepare(HOSTILE, manifest).pixels, expected.pixels)
    assert lost == ["killed"]


def test_a_picture_is_not_to_blame_for_decoders_that_were_killed(
    open_pool: Open, manifest: Manifest, tmp_path: Path
) -> None:
    safe = tmp_path / "safe"
    kill = f"os.path.exists({str(safe)!r}) or os.kill(os.getpid(), signal.SIGKILL)"
    pool = open_pool(command=a_decoder_that(kill))
    with pytest.raises(NotReady, match="being killed"):
        pool.prepare(HOSTILE, manifest)
    safe.touch()
    pool.prepare(HOSTILE, manifest)


def test_what_was_refused_is_tried_again_after_a_while(
    open_pool: Open, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str] = []
    monkeypatch.setattr(pool_module, "REMEMBERED_S", 0.0)
    pool = open_pool(lost=lost, command=a_decoder_that("os.abort()"))
    for count in (2, 4):
        with pytest.raises(DecoderLost):
            pool.prepare(HOSTILE, manifest)
        assert lost == ["crashed"] * count


def test_killing_an_idle_decoder_costs_no_picture(open_pool: Open, manifest: Manifest) -> None:
    pool = open_pool()
    pool.prepare(PNG, manifest)
    (decoder,) = decoders()
    decoder.kill()
    pool.prepare(PNG, manifest)
    assert decoders() != [decoder]


def test_a_picture_that_takes_too_long_is_refused_and_its_decoder_killed(
    open_pool: Open, manifest: Manifest
) -> None:
    lost: list[str] = []
    pool = open_pool(timeout_s=1.0, lost=lost, command=a_decoder_that("time.sleep(3600)"))
    pool.prepare(PNG, manifest)
    (decoder,) = decoders()
    started_s = time.monotonic()
    with pytest.raises(TooLarge, match="more than 1 s to decode"):
        pool.prepare(HOSTILE, manifest)
    assert 1.0 <= time.monotonic() - started_s < PATIENCE_S
    assert not decoder.is_running()
    assert lost == ["slow"]
    with pytest.raises(TooLarge, match="more than 1 s to decode"):  # at once, from memory
        pool.prepare(HOSTILE, manifest)
    assert lost == ["slow"]
    pool.prepare(PNG, manifest)


def test_a_picture_that_nobody_waits_for_any_more_keeps_no_thread_and_is_not_blamed(
    open_pool: Open, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str] = []
    pool = open_pool(timeout_s=3600.0, lost=lost, command=a_decoder_that("time.sleep(3600)"))
    pool.prepare(PNG, manifest)
    (decoder,) = decoders()
    monkeypatch.setattr(pool_module, "LEAST_S", 0.1)
    for _ in range(2):
        with pytest.raises(DeadlineExceeded, match="before the picture was decoded"):
            pool.prepare(HOSTILE, manifest, deadline_s=time.monotonic() + 0.2)
    assert not decoder.is_running()
    assert lost == []


def test_a_short_deadline_costs_no_decoder(open_pool: Open, manifest: Manifest) -> None:
    pool = open_pool()
    pool.prepare(PNG, manifest)
    before = decoders()
    pool.prepare(PNG, manifest, deadline_s=time.monotonic())
    assert decoders() == before


def test_a_stopped_decoder_counts_as_too_slow(open_pool: Open, manifest: Manifest) -> None:
    pool = open_pool(timeout_s=1.0)
    pool.prepare(PNG, manifest)
    decoders()[0].suspend()
    with pytest.raises(TooLarge, match="more than 1 s to decode"):
        pool.prepare(PNG, manifest)
    with pytest.raises(TooLarge):
        pool.prepare(PNG, manifest)
    pool.prepare(encoded(drawn("L"), "PNG"), manifest)


def test_a_picture_that_needs_more_memory_than_allowed_is_refused(
    open_pool: Open, manifest: Manifest
) -> None:
    pool = open_pool(memory_bytes=320 * 2**20)
    data = encoded(Image.new("RGB", (7000, 7000)), "PNG", compress_level=1)
    with pytest.raises(TooLarge, match="needs more memory to decode than is allowed"):
        pool.prepare(data, manifest)
    (decoder,) = decoders()
    pool.prepare(PNG, manifest)
    assert decoders() == [decoder]


def test_a_decoder_is_bound_by_the_kernel_and_knows_no_setting(
    open_pool: Open, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SACCADE_API_KEYS", "secret")
    open_pool().prepare(PNG, manifest)
    (decoder,) = decoders()
    assert decoder.cmdline()[0].startswith("saccade decoder")
    assert decoder.rlimit(psutil.RLIMIT_AS) == (MEMORY_BYTES, MEMORY_BYTES)
    assert decoder.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    assert decoder.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
    assert Path(f"/proc/{decoder.pid}/oom_score_adj").read_text().strip() == "1000"
    assert b"SACCADE_" not in Path(f"/proc/{decoder.pid}/environ").read_bytes()
    assert decoder.num_fds() == 4  # three of /dev/null, and its owner


def test_an_idle_decoder_goes_and_leaves_no_zombie(open_pool: Open, manifest: Manifest) -> None:
    lost: list[str] = []
    before = set(psutil.Process().children())  # of other tests
    pool = open_pool(idle_s=0.3, lost=lost)
    for _ in range(2):
        pool.prepare(PNG, manifest)
        assert len(decoders()) == 1
        wait_until(lambda: set(psutil.Process().children()) <= before)
    assert lost == []


def test_a_closed_pool_leaves_nothing_behind(open_pool: Open, manifest: Manifest) -> None:
    pool = open_pool()
    pool.prepare(PNG, manifest)
    (decoder,) = decoders()
    pool.close()
    assert not decoder.is_running()
    with pytest.raises(NotReady):
        pool.prepare(PNG, manifest)
    assert decoders() == []


@pytest.mark.parametrize("does", ["pass", "time.sleep(3600)"])
def test_a_decoder_ends_with_its_owner(does: str) -> None:
    code = f"""
        import sys, threading, time
        from service.bundle import load_repository
        from service.decoding.pool import Bounds, DecoderPool
        from service.images import ImageLimits
        from service.settings import DEMO_REPOSITORY, foreign_environment
        manifest = load_repository(DEMO_REPOSITORY)[0].manifest
        bounds = Bounds(1.0, {MEMORY_BYTES})
        command = {a_decoder_that(does)!r}
        pool = DecoderPool(ImageLimits(), "auto", bounds, foreign_environment(), print, command)
        good, hostile = [bytes.fromhex(line) for line in sys.stdin.read().split()]
        pool.prepare(good, manifest)
        (decoder,) = pool._idle
        work = threading.Thread(target=pool.prepare, args=(hostile, manifest), daemon=True)
        work.start()
        print(decoder._process.pid, flush=True)
        time.sleep(3600)
    """
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with owner:
        assert owner.stdin
        assert owner.stdout
        owner.stdin.write(f"{PNG.hex()} {HOSTILE.hex()}")
        owner.stdin.close()
        pid = int(owner.stdout.readline())
        os.kill(owner.pid, signal.SIGKILL)
    wait_until(lambda: gone(pid))


def gone(pid: int) -> bool:
    """Also true of a zombie, where nobody collects the children of the dead."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def a_decoder_that_says(text: str) -> tuple[str, ...]:
    """Not ours: what a decoder would be that an attacker has taken over; ``text`` is Python."""
    code = f"""
        import socket, struct, sys
        from service.decoding.wire import receive, send
        owner = socket.socket(fileno=int(sys.argv[1]))
        send(owner, {{"ready": True}})
        receive(owner, 2**30)
        said = {text}
        owner.sendall(struct.pack("<I", len(said)) + said)
    """
    return (sys.executable, "-P", "-c", textwrap.dedent(code))


@pytest.mark.parametrize(
    "text",
    [
        'b""',
        'b"{}"',
        'b"[]"',
        'b"\\xff"',
        'b"{" + b" " * 2**21',
        """b'{"blob_bytes": [1099511627776]}'""",
        """b'{"blob_bytes": [-1]}'""",
        """b'{"blob_bytes": "x"}'""",
        """b'{"blob_bytes": null}'""",
    ],
)
def test_nonsense_from_a_decoder_counts_as_a_crash(
    text: str, open_pool: Open, manifest: Manifest
) -> None:
    with pytest.raises(DecoderLost):
        open_pool(command=a_decoder_that_says(text)).prepare(PNG, manifest)
    assert decoders() == []


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"size": [10, 10], "upright": None, "preprocess_s": 0},
        {"size": [0, 10], "upright": None, "preprocess_s": 0},
        {"size": "xx", "upright": None, "preprocess_s": 0},
        {"bug": "Traceback"},
    ],
)
def test_a_reply_that_is_not_what_was_asked_is_an_error_of_ours(
    reply: dict[str, Any], open_pool: Open, manifest: Manifest
) -> None:
    text = repr(json.dumps(reply | {"blob_bytes": [0, 0]}).encode())
    with pytest.raises((RuntimeError, ValueError, LookupError)):
        open_pool(command=a_decoder_that_says(text)).prepare(PNG, manifest)
    assert decoders() == []


@pytest.mark.parametrize("command", [("/nowhere/python",), NO_DECODER])
def test_where_no_decoder_starts_ordinary_pictures_are_answered_still(
    command: tuple[str, ...], open_pool: Open, manifest: Manifest
) -> None:
    pool = open_pool(command=command)
    for _ in range(2):
        with pytest.raises(NotReady, match="no decoder could be started"):
            pool.prepare(PNG, manifest)
    assert pool.prepare(JPEG, manifest).pixels.shape[2] == 3


def test_no_more_decoders_than_threads_ask_for(open_pool: Open, manifest: Manifest) -> None:
    pool = open_pool()
    for _ in range(5):
        pool.prepare(PNG, manifest)
    assert len(decoders()) == 1


def test_animations_of_too_many_frames_are_refused() -> None:
    frames = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in range(12)]
    for kind in ("PNG", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert decode(data, ImageLimits(max_frames=12)).size == (8, 8)
        with pytest.raises(TooLarge, match="has 12 frames; at most 11") as caught:
            decode(data, ImageLimits(max_frames=11))
        assert caught.value.facts == {"frames": 12, "max_frames": 11}


def test_nothing_but_pixels_is_kept_of_a_file() -> None:
    comment = encoded(drawn("CMYK"), "JPEG", comment=b"secret", icc_profile=b"secret" * 30)
    profile = encoded(drawn().quantize(9), "PNG", icc_profile=b"secret" * 30, transparency=3)
    for data in (comment, profile):
        again = decode(data, LIMITS)
        assert again.info == {}
        for kind in ("JPEG", "PNG"):
            assert b"secret" not in encoded(again, kind)
