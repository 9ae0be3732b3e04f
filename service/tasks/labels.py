"""Which of a model's classes a request asks for."""

import json
from collections.abc import Container

from service.bundle import Manifest
from service.errors import InvalidParameter

SHOWN = 20  # names in a refusal; a model may have thousands
MOST_WORDS = 1024
MOST_CHARACTERS = 64 * 1024  # as of a field of a form


def choose_labels(manifest: Manifest, wanted: str | list[str | int] | None) -> frozenset[int]:
    """Indices into ``manifest.labels``; all of them where nothing is asked for.

    ``wanted`` are names or ids, as a list, as JSON of one, or separated by commas. A name that
    several labels share means all of them.

    Raises:
        InvalidParameter: the model has no such label, none is named, or more than MOST_WORDS are.
    """
    if wanted is None:
        return frozenset(range(len(manifest.labels)))
    by_word: dict[str | int, list[int]] = {}
    for i, label in enumerate(manifest.labels):
        by_word.setdefault(label.name, []).append(i)
        by_word.setdefault(label.id, []).append(i)
    words = _words(by_word, manifest, wanted)
    if len(words) > MOST_WORDS:
        raise _refusal(manifest, f"labels: at most {MOST_WORDS} may be named")
    chosen: set[int] = set()
    for word in words:
        found = by_word.get(word)
        if not found and isinstance(word, str) and word.isascii() and word.isdecimal():
            found = by_word.get(int(word[:18]))
        if not found:
            raise _refusal(manifest, f"labels: this model has no label {word!r:.80}")
        chosen.update(found)
    if not chosen:
        raise _refusal(manifest, "labels: names none; leave it out to ask for all")
    return frozenset(chosen)


def _words(
    known: Container[str | int], manifest: Manifest, wanted: str | list[str | int]
) -> list[str | int]:
    """What is named; of too many not all."""
    if isinstance(wanted, list):
        return wanted
    if wanted in known:  # it may have a comma in it
        return [wanted]
    if wanted.lstrip().startswith("["):
        return _from_json(manifest, wanted)
    parts = wanted.split(",", MOST_WORDS + 1)
    return [word.strip() for word in parts if word.strip()]


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
    names = ", ".join(f"{label.name} ({label.id})" for label in manifest.labels[:SHOWN])
    rest = len(manifest.labels) - SHOWN
    names += f" and {rest} more" if rest > 0 else ""
    return InvalidParameter(f"{fault}; allowed are {names}", parameter="labels")
