"""Which media type answers an Accept header (RFC 9110, section 12.5.1)."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.negotiation import choose_media_type
from service.errors import NotAcceptable

OFFERED = ("application/json", "application/x-npy", "image/png")
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("*/*", "application/json"),
        (BROWSER, "application/json"),
        ("image/png", "image/png"),
        ("IMAGE/PNG", "image/png"),
        ("image/*", "image/png"),
        ("application/*", "application/json"),
        ("image/png, application/json", "application/json"),
        ("application/json;q=0.5, image/png", "image/png"),
        ("application/json; q=0.5 , image/png; q=0.6", "image/png"),
        ("application/json;q=0, */*", "application/x-npy"),
        ("application/*;q=0.2, application/x-npy;q=0.9, */*;q=0.5", "application/x-npy"),
        ("image/png;level=1;q=0.9, application/json;q=0.1", "image/png"),
        ("image/png,,", "image/png"),
        ("*/*;q=0.1, image/*;q=0.2", "image/png"),
        ("image/png;Q=0.4, application/json;Q=0.5", "application/json"),
    ],
)
def test_the_best_of_what_is_offered_is_chosen(accept: str | None, chosen: str) -> None:
    assert choose_media_type(accept, OFFERED) == chosen


@pytest.mark.parametrize(
    "accept", ["text/html", "image/jpeg", "*/*;q=0", "image/png;q=0", "image/png;q=x", "json", ","]
)
def test_what_excludes_everything_is_refused_with_what_is_offered(accept: str) -> None:
    with pytest.raises(NotAcceptable, match="application/x-npy") as refused:
        choose_media_type(accept, OFFERED)
    assert refused.value.facts == {"allowed": list(OFFERED)}
    assert accept in str(refused.value)


def test_a_refusal_quotes_no_more_than_200_characters() -> None:
    with pytest.raises(NotAcceptable) as refused:
        choose_media_type("x" * 5000, OFFERED)
    assert len(str(refused.value)) < 400


@given(st.text() | st.from_regex(r"(\*/\*|image/png)(;q=[0-9.naif+-]*)?", fullmatch=True))
def test_any_header_is_answered_or_refused(accept: str) -> None:
    with suppress(NotAcceptable):
        assert choose_media_type(accept, OFFERED) in OFFERED
