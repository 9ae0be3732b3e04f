"""Pictures from URLs: every known way around an allow-list, and what hosts may do to us."""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trustme

from service import fetch
from service.errors import ServiceError, TooLarge, UrlFailed, UrlRefused
from service.fetch import ImageFetcher, is_public

PUBLIC = "93.184.216.34"
HOSTS = ["images.example.org", "*.example.com"]
OK = b"HTTP/1.1 200 OK\r\n"
Answer = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


class World:
    """Names, addresses, and one TLS server that stands for every address."""

    def __init__(self, port: int, authority: trustme.CA) -> None:
        self.names: dict[str, list[list[str]]] = {}
        self.connected: list[tuple[str, str]] = []
        self.requests: list[str] = []
        self.refusing: set[str] = set()
        self._port = port
        self._trust = ssl.create_default_context()
        authority.configure_trust(self._trust)

    async def resolve(self, host: str) -> list[str]:
        """The next answer for a name; the last one stays."""
        answers = self.names.get(host, [[PUBLIC]])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    async def connect(
        self, address: str, host: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.connected.append((address, host))
        if address in self.refusing:
            raise ConnectionRefusedError
        return await asyncio.open_connection(
            "127.0.0.1", self._port, ssl=self._trust, server_hostname=host
        )

    def fetcher(self, max_bytes: int = 1000, timeout_s: float = 5.0) -> ImageFetcher:
        return ImageFetcher(HOSTS, max_bytes, timeout_s, self.resolve, self.connect)


@asynccontextmanager
async def serving(answer: Answer, *names: str) -> AsyncIterator[World]:
    """``answer`` writes what comes back for a request line."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*(names or ("images.example.org", "*.example.com"))).configure_cert(
        context
    )

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            world.requests.append(head)
            await answer(head.split()[1], writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has left
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    world = World(server.sockets[0].getsockname()[1], authority)
    async with server:
        yield world


def saying(*parts: bytes) -> Answer:
    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"".join(parts))

    return answer


async def attempt(fetcher: ImageFetcher, url: str) -> bytes | ServiceError:
    try:
        return await fetcher.fetch(url)
    except ServiceError as error:
        return error


def fetched(
    answer: Answer, url: str = "https://images.example.org/a.jpg", max_bytes: int = 1000
) -> bytes | ServiceError:
    async def scenario() -> bytes | ServiceError:
        async with serving(answer) as world:
            return await attempt(world.fetcher(max_bytes), url)

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    "url",
    [
        "http://images.example.org/a.jpg",
        "ftp://images.example.org/a.jpg",
        "file:///etc/passwd",
        "gopher://images.example.org/",
        "//images.example.org/a.jpg",
        "images.example.org/a.jpg",
        "",
        "https:///a.jpg",
        "https://example.org/a.jpg",
        "https://example.com/a.jpg",  # the suffix asks for a name below
        "https://evilexample.com/a.jpg",
        "https://images.example.org.evil.net/a.jpg",
        "https://images.example.org@evil.net/a.jpg",
        "https://user:password@images.example.org/a.jpg",
        "https://@images.example.org/a.jpg",
        "https://evil.net#@images.example.org/a.jpg",
        "https://evil.net?images.example.org/a.jpg",
        "https://evil.net\\@images.example.org/a.jpg",
        "https://evil.net\\.example.com/a.jpg",
        "https://images.example.org:80/a.jpg",
        "https://images.example.org:22/a.jpg",
        "https://images.example.org:8443/a.jpg",
        "https://images.example.org:99999/a.jpg",
        "https://images.example.org:x/a.jpg",
        "https://images.example.org./a.jpg",
        "https://.example.com/a.jpg",
        "https://a..example.com/a.jpg",
        "https://127.0.0.1/a.jpg",
        "https://2130706433/a.jpg",
        "https://0x7f000001/a.jpg",
        "https://0x7f.1/a.jpg",
        "https://0177.0.0.1/a.jpg",
        "https://127.1/a.jpg",
        "https://[::1]/a.jpg",
        "https://[::ffff:169.254.169.254]/a.jpg",
        "https://[fe80::1%25eth0]/a.jpg",
        "https://[::1",
        "https://169.254.169.254/latest/meta-data/",
        "https://localhost/a.jpg",
        "https://metadata/a.jpg",
        "https://metadata.google.internal/a.jpg",
        "https://①②⑦.⓪.⓪.①/a.jpg",
        "https://images。example。org/a.jpg",
        "https://image\u017f.example.org/a.jpg",
        "https://images.example.org/a b.jpg",
        "https://images.example.org/\r\nHost: evil.net",
        "https://ima\tges.example.org/a.jpg",
        " https://images.example.org/a.jpg",
        "https://images.example.org/\0",
        "https://images.example.org/%0d%0a" + 5000 * "a",
        "https://%69mages.example.org/a.jpg",
        "https://images.example.org%00.evil.net/a.jpg",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
    ],
)
def test_a_url_that_is_not_plain_https_to_an_allowed_host_is_refused(url: str) -> None:
    async def never(*_: str) -> None:
        raise AssertionError

    with pytest.raises(UrlRefused):
        asyncio.run(ImageFetcher(HOSTS, 1000, 5.0, never, never).fetch(url))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "host", "path"),
    [
        ("https://images.example.org", "images.example.org", "/"),
        ("HTTPS://IMAGES.Example.org:443/a.jpg?b=c&d#e", "images.example.org", "/a.jpg?b=c&d"),
        ("https://a.example.com/%0d%0aX:y", "a.example.com", "/%0d%0aX:y"),
        ("https://a.b.example.com/../..//etc?u=https://evil.net", "a.b.example.com", None),
        ("https://xn--bcher-kva.example.com/", "xn--bcher-kva.example.com", "/"),
        ("https://images.example.org/u@evil.net:80", "images.example.org", "/u@evil.net:80"),
    ],
)
def test_an_allowed_url_says_whom_to_ask_what(url: str, host: str, path: str | None) -> None:
    target = ImageFetcher(HOSTS, 1000, 5.0).check(url)
    assert target.host == host
    assert path in (None, target.path)


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
        *("127.0.0.1", "127.255.255.254", "169.254.169.254", "100.64.0.1", "100.100.100.200"),
        *("192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1"),
        *("224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "168.63.129.16"),
        *("192.88.99.1", "::", "::1", "::7f00:1", "::127.0.0.1", "::ffff:127.0.0.1"),
        *("::ffff:93.184.216.34", "::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::a00:1"),
        *("64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2001:10::1", "2002:7f00:1::"),
        *("2002:c0a8:101::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1"),
        *("fe80::1%eth0", "fec0::1", "ff02::1", "2606:2800::1%1", "4000::1"),
        *("", "localhost", "2130706433", "0177.0.0.1", "127.1", "1.2.3.4 "),
    ],
)
def test_addresses_that_are_not_of_the_public_internet_are_refused(address: str) -> None:
    assert not is_public(address)

    async def scenario() -> None:
        async with serving(saying(OK, b"\r\n")) as world:
            world.names["images.example.org"] = [[PUBLIC, address]]
            with pytest.raises(UrlRefused, match="has an address"):
                await world.fetcher().fetch("https://images.example.org/")
            assert world.connected == []

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "address", [PUBLIC, "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "64:ff9b::808:808"]
)
def test_public_addresses_are_not(address: str) -> None:
    assert is_public(address)


def test_the_name_is_resolved_once_and_the_connection_goes_to_that_address() -> None:
    async def scenario() -> None:
        async with serving(saying(OK, b"content-length: 3\r\n\r\nJPG")) as world:
            world.names["images.example.org"] = [[PUBLIC], ["127.0.0.1"]]  # a rebinding server
            fetcher = world.fetcher()
            assert await fetcher.fetch("https://images.example.org/a.jpg?b") == b"JPG"
            assert world.connected == [(PUBLIC, "images.example.org")]
            with pytest.raises(UrlRefused):
                await fetcher.fetch("https://images.example.org/a.jpg")
            assert len(world.connected) == 1
            request = world.requests[0].lower()
            assert request.startswith("get /a.jpg?b http/1.1\r\nhost: images.example.org\r\n")
            assert "accept-encoding: identity" in request
            assert "authorization" not in request
            assert "cookie" not in request

    asyncio.run(scenario())


def test_the_next_address_is_tried_where_one_takes_no_connection() -> None:
    async def scenario() -> None:
        async with serving(saying(OK, b"\r\nJPG")) as world:
            world.names["images.example.org"] = [["8.8.8.8", PUBLIC]]
            world.refusing = {"8.8.8.8"}
            assert await world.fetcher().fetch("https://images.example.org/") == b"JPG"
            assert [address for address, _ in world.connected] == ["8.8.8.8", PUBLIC]
            world.refusing.add(PUBLIC)
            with pytest.raises(UrlFailed, match="cannot be reached"):
                await world.fetcher().fetch("https://images.example.org/")

    asyncio.run(scenario())


def test_an_address_that_swallows_everything_leaves_time_for_the_next() -> None:
    async def scenario() -> None:
        async with serving(saying(OK, b"\r\nJPG")) as world:
            world.names["images.example.org"] = [["8.8.8.8", PUBLIC]]
            reach, never = world.connect, asyncio.Event()

            async def connect(
                address: str, host: str
            ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
                if address == "8.8.8.8":
                    await never.wait()
                return await reach(address, host)

            fetcher = ImageFetcher(HOSTS, 1000, 5.0, world.resolve, connect)
            assert await fetcher.fetch("https://images.example.org/") == b"JPG"

    asyncio.run(scenario())


def test_a_certificate_for_another_name_is_not_trusted() -> None:
    async def scenario() -> None:
        async with serving(saying(OK, b"\r\nJPG"), "evil.net") as world:
            with pytest.raises(UrlFailed, match=r"not to be trusted: .*mismatch"):
                await world.fetcher().fetch("https://images.example.org/")
            assert world.requests == []

    asyncio.run(scenario())


def redirecting(location: str, status: int = 302) -> Answer:
    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        if path == "/there":
            writer.write(OK + b"content-length: 3\r\n\r\nJPG")
            return
        writer.write(f"HTTP/1.1 {status} Moved\r\nlocation: {location}\r\n\r\n".encode())

    return answer


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location", ["/there", "there", "https://cdn.example.com/there", "//a.example.com/there"]
)
def test_a_redirect_to_an_allowed_host_is_followed(location: str, status: int) -> None:
    assert fetched(redirecting(location, status)) == b"JPG"


@pytest.mark.parametrize(
    "location",
    [
        "http://images.example.org/there",
        "https://169.254.169.254/latest/meta-data/",
        "http://169.254.169.254/latest/meta-data/",
        "//169.254.169.254/there",
        "https://evil.net/there",
        "https://images.example.org:8443/there",
        "https://user@images.example.org/there",
        "file:///etc/passwd",
        "https:\\\\evil.net/there",
        "/there\\..\\x",
        "https://[::1/there",
        "https://[x]/there",
    ],
)
def test_a_redirect_to_elsewhere_is_refused(location: str) -> None:
    assert isinstance(fetched(redirecting(location)), UrlRefused)


def test_a_redirect_is_resolved_and_judged_again() -> None:
    async def scenario() -> None:
        async with serving(redirecting("https://inside.example.com/there")) as world:
            world.names["inside.example.com"] = [["10.0.0.1"]]
            with pytest.raises(UrlRefused, match=r"inside\.example\.com has an address"):
                await world.fetcher().fetch("https://images.example.org/")
            assert world.connected == [(PUBLIC, "images.example.org")]

    asyncio.run(scenario())


def test_redirects_in_a_circle_end() -> None:
    error = fetched(redirecting("/again"))
    assert isinstance(error, UrlFailed)
    assert "more than 3 times" in str(error)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([b"HTTP/1.1 404 Not Found\r\n\r\n"], "status 404"),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], "status 204"),
        ([b"HTTP/1.1 206 Partial\r\n\r\nJPG"], "status 206"),
        ([b"HTTP/1.1 302 Found\r\n\r\n"], "status 302"),
        ([OK, b"content-encoding: gzip\r\n\r\nJPG"], "compressed"),
        ([OK, b"content-length: 5\r\n\r\nJPG"], "should"),
        ([OK, b"content-length: x\r\n\r\nJPG"], "should"),
        ([OK, b"content-length: 3\r\ncontent-length: 4\r\n\r\nJPG"], "should"),
        ([OK, b"transfer-encoding: chunked\r\n\r\nzz\r\n"], "should"),
        ([b"SSH-2.0-OpenSSH_9.9\r\n"], "should"),
        ([b"HTTP/1.1 101 Switching\r\n\r\n"], "should"),
        ([], "should|closed"),
        ([OK, b"x: " + 100_000 * b"y"], "should"),
    ],
)
def test_an_answer_that_is_no_picture_is_said_to_be_none(parts: list[bytes], says: str) -> None:
    error = fetched(saying(*parts), max_bytes=10**6)
    assert isinstance(error, UrlFailed)
    assert re.search(says, str(error))


@pytest.mark.parametrize(
    "parts",
    [
        [OK, b"content-length: 11\r\n\r\n"],
        [OK, b"content-length: 999999999999999\r\n\r\n"],
        [OK, b"\r\n", 11 * b"x"],
        [OK, b"transfer-encoding: chunked\r\n\r\n", 11 * b"1\r\nx\r\n", b"0\r\n\r\n"],
        [b"HTTP/1.1 103 Early Hints\r\n\r\n" * 10_000, OK, b"\r\nJPG"],
    ],
)
def test_more_bytes_than_allowed_are_not_read(parts: list[bytes]) -> None:
    assert isinstance(fetched(saying(*parts), max_bytes=10), TooLarge)


def test_as_many_bytes_as_allowed_are_read_however_they_are_framed() -> None:
    body = bytes(range(10))
    assert fetched(saying(OK, b"content-length: 10\r\n\r\n", body), max_bytes=10) == body
    assert fetched(saying(OK, b"\r\n", body), max_bytes=10) == body
    chunked = b"transfer-encoding: chunked\r\n\r\na\r\n" + body + b"\r\n0\r\n\r\n"
    assert fetched(saying(OK, chunked), max_bytes=10) == body


@pytest.mark.parametrize("stage", ["resolve", "connect", "headers", "body"])
def test_a_host_that_is_slow_at_any_stage_is_given_up(stage: str) -> None:
    async def scenario() -> None:
        for_ever = asyncio.Event()

        async def answer(path: str, writer: asyncio.StreamWriter) -> None:
            if stage == "body":
                writer.write(OK + b"\r\nJ")
                await writer.drain()
            await for_ever.wait()

        async def wait(*_: str) -> None:
            await for_ever.wait()

        async with serving(answer) as world:
            if stage in ("resolve", "connect"):
                setattr(world, stage, wait)
            with pytest.raises(UrlFailed, match=r"within 0\.2 seconds"):
                await world.fetcher(timeout_s=0.2).fetch("https://images.example.org/")
            for_ever.set()

    asyncio.run(scenario())


def test_no_more_than_so_many_pictures_are_fetched_at_once() -> None:
    async def scenario() -> int:
        release, most = asyncio.Event(), 0

        async def connect(address: str, host: str) -> None:
            nonlocal most
            most += 1
            if most == fetch.MAX_AT_ONCE:
                asyncio.get_running_loop().call_later(0.05, release.set)
            await release.wait()
            raise ConnectionRefusedError

        async def resolve(host: str) -> list[str]:
            return [PUBLIC]

        fetcher = ImageFetcher(HOSTS, 1000, 5.0, resolve, connect)  # type: ignore[arg-type]
        tasks = [
            asyncio.create_task(attempt(fetcher, "https://images.example.org/"))
            for _ in range(3 * fetch.MAX_AT_ONCE)
        ]
        await release.wait()
        at_once = most
        assert all(isinstance(found, UrlFailed) for found in await asyncio.gather(*tasks))
        return at_once

    assert asyncio.run(scenario()) == fetch.MAX_AT_ONCE


def test_a_name_that_does_not_exist_is_said_not_to() -> None:
    async def scenario() -> None:
        fetcher = ImageFetcher(["nowhere.invalid"], 1000, 5.0)
        with pytest.raises(UrlFailed, match=r"no host|within"):
            await fetcher.fetch("https://nowhere.invalid/a.jpg")

    asyncio.run(scenario())
