"""The tree of errors: one place for codes, and messages that travel with their facts."""

import pytest

from service.errors import (
    ClientError,
    NotReady,
    Overloaded,
    ServerError,
    ServiceError,
    StartError,
    TooLarge,
    leaves,
)


def test_leaves_are_the_classes_without_subclasses() -> None:
    found = leaves()
    assert Overloaded in found
    assert TooLarge in found
    assert not {ServiceError, ClientError, ServerError, StartError} & set(found)


@pytest.mark.parametrize("kind", leaves(), ids=lambda kind: kind.__name__)
def test_every_leaf_says_what_it_means_and_whose_fault_it_is(kind: type[ServiceError]) -> None:
    assert kind.__doc__
    assert kind.__doc__ != kind.__base__.__doc__
    assert sum(issubclass(kind, side) for side in (ClientError, ServerError, StartError)) == 1


def test_codes_are_unique_and_stable_in_form() -> None:
    codes = [kind.code for kind in leaves()]
    assert len(set(codes)) == len(codes)
    assert all(code.replace("_", "").islower() for code in codes)
    assert all("code" in vars(kind) for kind in leaves())


def test_facts_travel_beside_the_message() -> None:
    error = TooLarge("too many pixels", pixels=12, limit=10)
    assert str(error) == "too many pixels"
    assert error.facts == {"pixels": 12, "limit": 10}


def test_retry_after_is_no_fact_and_has_a_default() -> None:
    assert (NotReady("starting").retry_after_s, NotReady("starting").facts) == (1.0, {})
    error = Overloaded("full", retry_after_s=2.5, waiting=3)
    assert (error.retry_after_s, error.facts) == (2.5, {"waiting": 3})
