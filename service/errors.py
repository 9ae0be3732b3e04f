"""Everything that can go wrong, along the path of a request; nothing here knows of HTTP.

    settings --> bundle --> request --> bytes --> image --> job --> batch --> answer
    BadSettings  BadBundle  InvalidParameter      BadImage       Overloaded   RuntimeFailed
                            UnknownModel          UnsupportedFormat           WorkerLost
                            UnsupportedTask       TooLarge                    DeadlineExceeded
                                                  DecoderLost
                            InvalidBody                                       NotReady
                            CannotLoad

A message says what was found, what is allowed, and what to do. ``ClientError`` is the caller's to
mend, ``ServerError`` ours; ``StartError`` stops the start of a process.
"""


class ServiceError(Exception):
    """Base of all; ``code`` is stable and machine-readable, ``str(error)`` is for people."""

    code = "error"

    def __init__(self, message: str, **facts: float | str | list[str]) -> None:
        super().__init__(message)
        self.facts = facts


class StartError(ServiceError):
    """The process cannot start, or a command line tool cannot do what it was asked."""

    code = "start"


class BadSettings(StartError):
    """A setting is out of bounds, contradicts another, or does not exist."""

    code = "bad_settings"


class BadBundle(StartError):
    """A bundle on disk is damaged, of another version, or does not hold what its manifest says."""

    code = "bad_bundle"


class TransferFailed(StartError):
    """A bundle cannot be fetched or sent, or is not what its digests say."""

    code = "transfer_failed"


class ClientError(ServiceError):
    """The request cannot be answered as it stands."""

    code = "client_error"


class Unauthorized(ClientError):
    """A key is needed, and none was shown or nobody holds it."""

    code = "unauthorized"


class Forbidden(ClientError):
    """The key is good, and not for this."""

    code = "forbidden"


class InvalidBody(ClientError):
    """The body is not what its content type says: broken form or JSON, no picture, bad base64."""

    code = "invalid_body"


class InvalidParameter(ClientError):
    """A parameter is unknown, out of range, or not available for this model."""

    code = "invalid_parameter"


class UnknownModel(ClientError):
    """No model of that name is served."""

    code = "unknown_model"


class UnsupportedTask(ClientError):
    """The model exists and does not do what was asked of it."""

    code = "unsupported_task"


class CannotLoad(ClientError):
    """The version to load is damaged, or nothing here may run it; what was served goes on."""

    code = "cannot_load"


class BadImage(ClientError):
    """The bytes claim an allowed format and cannot be decoded."""

    code = "bad_image"


class UnsupportedFormat(ClientError):
    """The bytes are no picture, or in a format that is not allowed."""

    code = "unsupported_format"


class TooLarge(ClientError):
    """More bytes, pixels, pictures or frames than the server accepts."""

    code = "too_large"


class UrlRefused(ClientError):
    """Pictures are not fetched from this URL, whatever is there."""

    code = "url_refused"


class UrlFailed(ClientError):
    """The picture could not be fetched from its URL."""

    code = "url_failed"


class Quarantined(ClientError):
    """The worker died again and again while it ran this very picture, and nothing else."""

    code = "quarantined"


class DecoderLost(ClientError):
    """Two processes crashed that tried to decode the picture."""

    code = "decoder_lost"


class NotAcceptable(ClientError):
    """The ``Accept`` header asks for a media type that this task does not produce."""

    code = "not_acceptable"


class SlowBody(ClientError):
    """The body did not arrive in time."""

    code = "slow_body"


class ServerError(ServiceError):
    """The request was fine and could not be answered."""

    code = "server_error"


class RetryLater(ServerError):
    """Not now; ``retry_after_s`` says when to come back."""

    code = "retry_later"

    def __init__(
        self, message: str, retry_after_s: float = 1.0, **facts: float | str | list[str]
    ) -> None:
        super().__init__(message, **facts)
        self.retry_after_s = retry_after_s


class Overloaded(RetryLater):
    """The queue is full by count or by bytes."""

    code = "overloaded"


class NotReady(RetryLater):
    """The worker is starting, restarting or draining."""

    code = "not_ready"


class WorkerLost(RetryLater):
    """The worker died while it held this job, and could not be retried."""

    code = "worker_lost"


class OutOfMemory(RetryLater):
    """There is not enough memory even for this picture alone."""

    code = "out_of_memory"


class DeadlineExceeded(ServerError):
    """The answer would have come after the deadline."""

    code = "deadline_exceeded"


class RuntimeFailed(ServerError):
    """The runtime raised on this item, or returned what its manifest does not promise."""

    code = "runtime_failed"


def leaves(kind: type[ServiceError] = ServiceError) -> list[type[ServiceError]]:
    """Every error class that has no subclass, below ``kind``."""
    below = kind.__subclasses__()
    return [kind] if not below else [leaf for child in below for leaf in leaves(child)]
