"""Shares of a panoptic answer's time, and the photograph that is asked about."""

import io

from PIL import Image

from bench.panoptic import Run, photograph


def test_shares_are_of_the_server_s_total_and_what_no_stage_names_is_the_rest() -> None:
    run = Run(pings_s=[0.001, 0.004, 0.002], cpu_s=0.3, answer_bytes=7)
    run.tally.latencies_s += [0.11, 0.21]
    run.tally.timings += [
        "decode;dur=20, postprocess;dur=50, encode;dur=10, total;dur=100",
        "decode;dur=40, postprocess;dur=90, encode;dur=20, total;dur=200",
    ]
    figures = run.figures()
    assert figures["total_s"] == 0.15
    assert figures["shares"] == {
        "decode": 0.2,
        "postprocess": 0.4667,
        "encode": 0.1,
        "rest": 0.2333,
    }
    assert figures["server_cpu_s"] == 0.15
    assert (figures["median_ping_s"], figures["longest_ping_s"]) == (0.002, 0.004)


def test_the_photograph_is_the_same_every_time_and_has_grain() -> None:
    data = photograph((160, 120))
    assert data == photograph((160, 120))
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size) == ("JPEG", (160, 120))
    assert photograph((160, 120), seed=1) != data
