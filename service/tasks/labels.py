"""Which of a model's classes a request asks for."""

import json

from service.bundle import Manifest
from service.errors import InvalidParameter

SHOWN = 20  # names in a refusal; a model may have thousands


def choose_labels(manifest: Manifest, wanted: str | list[str | int] | None) -> frozenset[int]:
    """Indices into ``manifest.labels``; all of them where nothing is asked for.

    ``wanted`` are names or ids, as a list, as JSON of one, or separated by commas. A name that
    several labels share means all of them.

    Raises:
        InvalidParameter: the model has no such label, or none is named.
    """
    if wanted is None:
        return frozenset(range(len(manifest.labels)))
    chosen: set[int] = set()
    for word in _words(manifest, wanted):
        found = {i for i, label in enumerate(manifest.labels) if word in (label.name, label.id)}
        if not found and isinstance(word, str) and word.isascii() and word.isdecimal():
            found = {i for i, label in enumerate(manifest.labels) if label.id == int(word[:18])}
        if not found:
            raise _refusal(manifest, f"labels: this model has no label {word!r:.80}")
        chosen |= found
    if not chosen:
        raise _refusal(manifest, "labels: names none; leave it out to ask for all")
    return frozenset(chosen)


def _words(manifest: Manifest, wanted: str | list[str | int]) -> list[str | int]:
    if isinstance(wanted, list):
        return wanted
    if any(label.name == wanted for label in manifest.labels):  # it may have a comma in it
        return [wanted]
    if wanted.lstrip().startswith("["):
        return _from_json(manifest, wanted)
    return [word.strip() for word in wanted.split(",") if word.strip()]


def _from_json(manifest: Manifest, text: str) -> list[str | int]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    whole = isinstance(found, list) and all(type(word) in (str, int) for word in found)
    if not whole:
        raise _refusal(manifest, f"labels: {text!r:.80} is no JSON list of names or ids")
    words: list[str | int] = found
    return words


def _refusal(manifest: Manifest, fault: str) -> InvalidParameter:
    labels = [f"{label.name} ({label.id})" for label in manifest.labels]
    rest = len(labels) - SHOWN
    names = ", ".join(labels[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
    return InvalidParameter(f"{fault}; allowed are {names}", parameter="labels")
