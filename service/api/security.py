"""What a request may cost before anyone looks at it: bytes, counted while they stream in."""

from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import TooLarge


class BodyLimit:
    """ASGI middleware: reading a body past ``max_bytes`` raises TooLarge, so nothing more of it is
    kept.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a counting ``receive``."""
        if scope["type"] == "http":
            receive = self._limited(scope, receive)
        await self._app(scope, receive, send)

    def _limited(self, scope: Scope, receive: Receive) -> Callable[[], Awaitable[Message]]:
        announced = next((v for k, v in scope["headers"] if k == b"content-length"), b"")
        received = 0

        async def limited() -> Message:
            nonlocal received
            if announced.isdigit() and int(announced) > self._max_bytes:
                raise self._too_large(int(announced))
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large(received)
            return message

        return limited

    def _too_large(self, found: int) -> TooLarge:
        return TooLarge(
            f"the body has {found} bytes or more; at most {self._max_bytes} are accepted. "
            "Send a smaller or more compressed picture.",
            found=found,
            limit=self._max_bytes,
        )
