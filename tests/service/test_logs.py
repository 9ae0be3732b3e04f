"""What is logged arrives whole, in order, and soon."""

import io
import json
import logging
import threading

from service.logs import JsonFormatter, LinesHandler


class Stream(io.StringIO):
    """Remembers what was written at once, and that something was."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []
        self.written = threading.Event()

    def write(self, text: str) -> int:
        self.writes.append(text)
        self.written.set()
        return len(text)


def logger_to(stream: Stream, name: str) -> logging.Logger:
    logger = logging.Logger(name)
    handler = LinesHandler(stream)
    handler.setFormatter(JsonFormatter("api 0"))
    logger.addHandler(handler)
    return logger


def messages(text: str) -> list[str]:
    return [json.loads(line)["message"] for line in text.splitlines()]


def test_ordinary_lines_are_written_together_and_without_being_asked() -> None:
    stream = Stream()
    logger = logger_to(stream, "together")
    for number in range(3):
        logger.info("line %d", number)
    assert stream.written.wait(10)
    assert [messages(text) for text in stream.writes] == [["line 0", "line 1", "line 2"]]


def test_a_warning_is_written_at_once_behind_what_waited() -> None:
    stream = Stream()
    logger = logger_to(stream, "warning")
    logger.info("first")
    logger.warning("second")
    assert messages("".join(stream.writes)) == ["first", "second"]


def test_what_waits_at_the_end_of_the_process_is_written() -> None:
    stream = Stream()
    logger = logger_to(stream, "end")
    logger.info("last words")
    logger.handlers[0].flush()
    assert messages("".join(stream.writes)) == ["last words"]


def test_a_stream_that_is_gone_does_not_fail_the_request_that_logs() -> None:
    stream = Stream()
    logger = logger_to(stream, "gone")
    stream.write = lambda text: (_ for _ in ()).throw(BrokenPipeError())  # type: ignore[method-assign]
    logger.error("nobody hears this")
    assert stream.writes == []


def test_facts_that_are_no_json_are_written_as_text() -> None:
    record = logging.LogRecord("x", logging.INFO, "x", 1, "told", (), None)
    vars(record)["facts"] = {"model": "vit", "error": ValueError("odd"), "name": "caf\u00e9 \udc80"}
    line = json.loads(JsonFormatter("worker").format(record))
    assert (line["model"], line["error"]) == ("vit", "odd")
    assert line["name"].startswith("caf\u00e9")
