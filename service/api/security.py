"""What a request may cost before anyone looks at it: bytes, counted while they stream in."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Overloaded, TooLarge


class BodyLimit:
    """ASGI middleware: reading a body past ``max_bytes`` raises TooLarge, so nothing more of it is
    kept.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_total_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_total_bytes = max_total_bytes
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a counting ``receive``."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = next((v for k, v in scope["headers"] if k == b"content-length"), b"")
        received = 0

        async def limited() -> Message:
            nonlocal received
            if announced.isdigit() and int(announced) > self._max_bytes:
                raise self._too_large(int(announced))
            message = await receive()
            size = len(message.get("body", b""))
            received += size
            self._held_bytes += size
            if received > self._max_bytes:
                raise self._too_large(received)
            if self._held_bytes > self._max_total_bytes:
                raise self._too_many()
            return message

        try:
            await self._app(scope, limited, send)
        finally:
            self._held_bytes -= received

    def _too_large(self, found: int) -> TooLarge:
        return TooLarge(
            f"the body has {found} bytes or more; at most {self._max_bytes} are accepted. "
            "Send a smaller or more compressed picture.",
            found=found,
            limit=self._max_bytes,
        )

    def _too_many(self) -> Overloaded:
        return Overloaded(
            f"the requests in progress here carry {self._held_bytes} bytes; "
            f"at most {self._max_total_bytes} are held at once; try again soon",
            found=self._held_bytes,
            limit=self._max_total_bytes,
        )
