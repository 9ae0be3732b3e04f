"""A bundle as an OCI artefact: every file is a layer under its own name, so that other clients of
registries (ORAS, for one) read and write it too.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from service.bundle import MANIFEST, Bundle, File, FileName
from service.distribution.blobs import Advance
from service.distribution.registry import MANIFEST_TYPE, Registry
from service.distribution.remote import (
    MAX_MANIFEST_BYTES,
    at_most,
    digest_of_bytes,
    patiently,
)
from service.errors import TransferFailed

ARTEFACT_TYPE = "application/vnd.saccade.bundle.v1"
MANIFEST_LAYER_TYPE = "application/vnd.saccade.bundle.manifest.v1+json"
FILE_LAYER_TYPE = "application/vnd.saccade.bundle.file.v1"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY = b"{}"
TITLE = "org.opencontainers.image.title"
VERSION = "org.opencontainers.image.version"
LICENCES = "org.opencontainers.image.licenses"


class _Titles(BaseModel):
    title: FileName = Field(alias="org.opencontainers.image.title")


class _Layer(BaseModel):
    digest: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
    size: int = Field(ge=0)
    annotations: _Titles


class _Manifest(BaseModel):
    layers: list[_Layer] = Field(min_length=1, max_length=1000)


@dataclass(frozen=True)
class ArtefactRemote:
    """The layers of one artefact, by name."""

    place: str
    registry: Registry
    layers: dict[str, _Layer]

    def stream(self, name: str, offset: int) -> Iterator[bytes]:
        """From the layer of that name; the manifest is held to its digest, and holds the rest."""
        layer = self.layers.get(name)
        if layer is None:
            raise TransferFailed(
                f"{self.place} has no {name}: {', '.join(sorted(self.layers))} are all. "
                "It was not written by saccade push; push the bundle again"
            )
        chunks = self.registry.blob(layer.digest, offset)
        return self._checked(layer, chunks) if name == MANIFEST else chunks

    def _checked(self, layer: _Layer, chunks: Iterator[bytes]) -> Iterator[bytes]:
        raw = at_most(chunks, MAX_MANIFEST_BYTES, f"{self.place}: {MANIFEST}")
        found = digest_of_bytes(raw)
        if found != layer.digest:
            raise TransferFailed(
                f"{self.place}: {MANIFEST} has {found}; its artefact expects {layer.digest}. "
                "Nothing was installed"
            )
        yield raw


def find_artefact(registry: Registry, asked: str, place: str) -> tuple[ArtefactRemote, str]:
    """The artefact under a tag or digest, and its digest.

    Raises:
        TransferFailed: there is none, or it is something else than a bundle.
    """
    found = patiently(lambda: registry.manifest(asked), place)
    if found is None:
        raise TransferFailed(f"{place}: the registry has no such artefact; is the tag right?")
    raw, digest = found
    try:
        layers = _Manifest.model_validate_json(raw).layers
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise TransferFailed(
            f"{place} is no bundle: {where}: {first['msg']} (found {first['input']!r:.80}). "
            "Images of containers and lists of them are none; saccade push writes bundles"
        ) from None
    named = {layer.annotations.title: layer for layer in layers}
    if len(named) < len(layers):
        raise TransferFailed(f"{place} is no bundle: two of its layers have the same name")
    return ArtefactRemote(place, registry, named), digest


def push_artefact(
    registry: Registry, tag: str, bundle: Bundle, place: str, replace: bool, advance: Advance
) -> tuple[str, bool]:
    """The digest of the artefact that ``tag`` now names, and whether it did before.

    Raises:
        TransferFailed: the tag names another one, or the registry does not take it.
    """
    manifest = (bundle.folder / MANIFEST).read_bytes()
    own = File(sha256=digest_of_bytes(manifest).removeprefix("sha256:"), size_bytes=len(manifest))
    raw = artefact_manifest(bundle, own)
    digest = digest_of_bytes(raw)
    there = patiently(lambda: registry.manifest(tag), place)
    if there is not None and there[1] == digest:
        return digest, True
    if there is not None and not replace:
        raise TransferFailed(
            f"{place} names {there[1]} already; it is left as it is. "
            "Choose another tag, or move this one with --replace"
        )
    patiently(lambda: registry.put_blob(digest_of_bytes(EMPTY), len(EMPTY), EMPTY), place)
    for name, file in {**bundle.manifest.files, MANIFEST: own}.items():
        patiently(
            lambda name=name, file=file: registry.put_blob(  # type: ignore[misc]
                f"sha256:{file.sha256}", file.size_bytes, bundle.folder / name
            ),
            f"{place}: {name}",
        )
        advance(file.size_bytes)
    patiently(lambda: registry.put_manifest(tag, raw), place)
    return digest, False


def artefact_manifest(bundle: Bundle, own: File) -> bytes:
    """The artefact's manifest: the same for the same bundle, whenever it is written."""
    m = bundle.manifest
    annotations = {TITLE: m.name, VERSION: m.version}
    if m.provenance.license:
        annotations[LICENCES] = m.provenance.license
    layers = [_layer(MANIFEST, own, MANIFEST_LAYER_TYPE)]
    layers += [_layer(name, file, FILE_LAYER_TYPE) for name, file in sorted(m.files.items())]
    empty = {"mediaType": EMPTY_TYPE, "digest": digest_of_bytes(EMPTY), "size": len(EMPTY)}
    whole = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTEFACT_TYPE,
        "config": empty,
        "layers": layers,
        "annotations": annotations,
    }
    return json.dumps(whole, separators=(",", ":")).encode()


def _layer(name: str, file: File, kind: str) -> dict[str, object]:
    return {
        "mediaType": kind,
        "digest": f"sha256:{file.sha256}",
        "size": file.size_bytes,
        "annotations": {TITLE: name},
    }
