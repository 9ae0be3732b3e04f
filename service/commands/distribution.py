"""``saccade pull`` and ``saccade push``: bundles from and to other machines."""

import re
from pathlib import Path
from typing import Annotated

import typer

from service.commands.shared import examples, needing
from service.errors import BadSettings
from service.settings import DEMO_REPOSITORY, load_settings, registry_logins

app = typer.Typer()


@app.command(
    "pull",
    epilog=examples(
        "saccade pull oci://ghcr.io/me/vit:1 --repository models-repository",
        "saccade pull s3://bucket/models-repository --repository models-repository",
        "saccade pull https://example.org/vit/1 --repository models-repository --digest sha256:...",
    ),
)
def pull_models(
    source: Annotated[
        str,
        typer.Argument(
            help="oci://host/name:tag or @sha256:..., https://host/folder, s3://, gs://, az://, "
            "hf://user/repository, or a folder: a bundle, a model, or a whole repository"
        ),
    ],
    repository: Annotated[
        Path | None, typer.Option(help="Model repository to install into", show_default=False)
    ] = None,
    digest: Annotated[
        str | None, typer.Option(help="What the manifest must be: sha256:..., as push prints it")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also where this version is, with other files")
    ] = False,
    cache: Annotated[
        str | None, typer.Option(help="As for saccade serve; fetched files are kept in blobs/")
    ] = None,
    max_gb: Annotated[
        float, typer.Option(min=0.001, help="Largest bundle to fetch, in 1e9 bytes")
    ] = 100.0,
) -> None:
    """Install bundles from a registry, a bucket, a web server or a hub (needs ``pull``).

    Every byte is checked against digests. A bundle is whole in the repository, or not there.
    """
    settings = load_settings({"repository": repository, "cache": cache})
    if settings.repository == DEMO_REPOSITORY:
        raise BadSettings("name the folder to install into: --repository FOLDER")
    if digest is not None and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise BadSettings(f"--digest {digest}: a digest is sha256: and 64 hexadecimal digits")
    with needing("pull", "pull"):
        from service.distribution.command import pull
        from service.distribution.install import Wish
    folder = settings.cache_folder()
    wish = Wish(
        repository=settings.repository,
        cache=folder / "blobs" if folder else None,
        digest=digest,
        replace=replace,
        max_bytes=round(max_gb * 1e9),
    )
    pull(source, wish, registry_logins)


@app.command(
    "push",
    epilog=examples(
        "saccade push vit oci://ghcr.io/me/vit --repository models-repository",
        "saccade push vit s3://bucket/models-repository --repository models-repository",
    ),
)
def push_model(
    name: Annotated[str, typer.Argument(help="A model in the repository")],
    target: Annotated[
        str,
        typer.Argument(
            help="oci://host/name[:tag], where the tag is the version unless you name one; or a "
            "repository: s3://, gs://, az://, hf://user/repository, or a folder"
        ),
    ],
    repository: Annotated[
        Path, typer.Option(help="Model repository \\[default: demo]", show_default=False)
    ] = DEMO_REPOSITORY,
    version: Annotated[
        str | None, typer.Option(help="Which one \\[default: the newest]", show_default=False)
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also where something else has its place")
    ] = False,
) -> None:
    """Send a bundle to where pull finds it, and print its digests (needs ``pull``)."""
    from service.bundle import find_bundle

    bundle = find_bundle(repository, name, version)
    with needing("pull", "push"):
        from service.distribution.command import push
    push(bundle, target, replace, registry_logins)
