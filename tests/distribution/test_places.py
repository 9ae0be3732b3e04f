"""Bundles come from and go to real servers: registries, web servers, buckets, the hub."""

import base64
import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import httpx
import pytest
import trustme

from service.distribution.artefact import ARTEFACT_TYPE
from service.distribution.folders import FsspecFiles, find_remotes
from service.errors import TransferFailed
from service.settings import DEMO_REPOSITORY
from tests.conftest import SACCADE, Server
from tests.distribution.command_line import (
    contents,
    digest_of_manifest,
    make_bundle,
    pull,
    saccade,
    served_files,
    whole,
)
from tests.distribution.places import Hub, Registry, Store, WebServer, served, sha256


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses, and nothing of the person who runs the tests."""
    monkeypatch.setattr("service.distribution.remote.WAITS_S", (0.0, 0.0, 0.0))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("DOCKER_AUTH_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)


def push(target: str, repository: Path, *flags: str) -> str:
    return saccade("push", "tiny", target, "--repository", str(repository), *flags)


# Registries.


def test_a_bundle_goes_to_a_registry_and_comes_back(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "far", version="3")
    registry = Registry()
    with served(registry) as at:
        said = push(f"oci://{at}/me/tiny", tmp_path / "far")
        pinned = said.split()[5].rstrip(",")
        assert pull(f"oci://{at}/me/tiny:3", tmp_path / "a").startswith("tiny 3 ")
        assert pull(pinned, tmp_path / "b").endswith(digest_of_manifest(folder))
    assert pinned.startswith(f"oci://{at}/me/tiny:3@sha256:")
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == whole(version="3")


def test_the_artefact_is_an_oci_manifest_whose_layers_are_the_files(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "far")
    registry = Registry()
    with served(registry) as at:
        push(f"oci://{at}/me/tiny", tmp_path / "far")
    artefact = json.loads(registry.manifests["1"])
    assert artefact["schemaVersion"] == 2
    assert artefact["artifactType"] == ARTEFACT_TYPE
    assert registry.blobs[artefact["config"]["digest"]] == b"{}"
    assert {
        layer["annotations"]["org.opencontainers.image.title"]: registry.blobs[layer["digest"]]
        for layer in artefact["layers"]
    } == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_a_registry_has_is_not_sent_again_and_a_tag_is_not_moved_unasked(
    tmp_path: Path,
) -> None:
    make_bundle(tmp_path / "one")
    make_bundle(tmp_path / "other", parameters=11)
    registry = Registry()
    with served(registry) as at:
        first = push(f"oci://{at}/me/tiny:best", tmp_path / "one")
        registry.asked.clear()
        again = push(f"oci://{at}/me/tiny:best", tmp_path / "one")
        assert registry.asked == ["GET /v2/me/tiny/manifests/best"]
        other = push(f"oci://{at}/me/tiny:best", tmp_path / "other")
        moved = push(f"oci://{at}/me/tiny:best", tmp_path / "other", "--replace")
    assert again == first.replace("is now at", "is already at")
    assert "already; it is left as it is" in other
    assert "is now at" in moved
    assert registry.asked.count("POST /v2/me/tiny/blobs/uploads/") == 1  # the manifest alone


def test_a_registry_is_logged_into_with_what_docker_login_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(tmp_path / "far")
    with served(Registry(login="me:secret")) as at:
        refused = push(f"oci://{at}/me/tiny", tmp_path / "far")
        auth = base64.b64encode(b"me:secret").decode()
        config = json.dumps({"auths": {at: {"auth": auth}}})
        (tmp_path / "docker").mkdir()
        (tmp_path / "docker" / "config.json").write_text(config)
        assert "is now at" in push(f"oci://{at}/me/tiny", tmp_path / "far")
        (tmp_path / "docker" / "config.json").unlink()
        monkeypatch.setenv("DOCKER_AUTH_CONFIG", config)
        assert "is now in" in pull(f"oci://{at}/me/tiny:1", tmp_path / "near")
    assert "does not give it to us (401); credentials are those of docker login" in refused
    assert contents(tmp_path / "near") == whole()


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a/b", ".."])
def test_a_layer_that_would_lie_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    make_bundle(tmp_path / "far")
    registry = Registry()
    with served(registry) as at:
        push(f"oci://{at}/me/tiny", tmp_path / "far")
        artefact = registry.manifests["1"]
        registry.manifests["1"] = artefact.replace(b'"model.onnx"', json.dumps(name).encode())
        said = pull(f"oci://{at}/me/tiny:1", tmp_path / "near" / "repository")
    assert "is no bundle: layers.2.annotations" in said
    assert not (tmp_path / "near").exists()


def test_what_is_not_what_its_digest_says_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "far")
    other = make_bundle(tmp_path / "other", parameters=11)
    registry = Registry()
    with served(registry) as at:
        pinned = push(f"oci://{at}/me/tiny", tmp_path / "far").split()[5].rstrip(",")
        own, digest = registry.manifests["1"], pinned.partition("@")[2]
        registry.manifests[digest] = own + b" "
        assert f"for {digest}" in pull(pinned, tmp_path / "near")
        registry.manifests[digest] = own
        registry.blobs[digest_of_manifest(folder)] = (other / "manifest.json").read_bytes()
        assert "its artefact expects" in pull(pinned, tmp_path / "near")
        registry.blobs[digest_of_manifest(folder)] = (folder / "manifest.json").read_bytes()
        registry.blobs[sha256(b"the serving graph")] = b"the serving grapH"
        assert "model.onnx has sha256" in pull(pinned, tmp_path / "near")
    assert contents(tmp_path / "near") == {}


def test_images_of_containers_and_missing_tags_are_refused_with_a_sentence(tmp_path: Path) -> None:
    image = json.dumps({"layers": [{"digest": sha256(b""), "size": 0, "mediaType": "x"}]}).encode()
    index = json.dumps({"manifests": []}).encode()
    with served(Registry(manifests={"image": image, "index": index})) as at:
        for tag in ("image", "index"):
            assert "saccade push writes bundles" in pull(f"oci://{at}/a:{tag}", tmp_path / "near")
        missing = pull(f"oci://{at}/a", tmp_path / "near")
    assert missing.endswith("the registry has no such artefact; is the tag right?")


@pytest.mark.parametrize(
    "source", ["oci://host", "oci://host/UPPER", "oci://h/a@sha256:12", "oci://"]
)
def test_what_names_no_artefact_is_refused_with_what_does(source: str, tmp_path: Path) -> None:
    assert "write oci://HOST/NAME:TAG" in pull(source, tmp_path)


def test_a_registry_elsewhere_without_tls_is_asked_for_digests_only(tmp_path: Path) -> None:
    said = pull("oci+http://registry.example:5000/a:1", tmp_path)
    assert "is asked without encryption" in said
    assert "@sha256:" in said


@pytest.fixture
def debian_registry(tmp_path: Path) -> Iterator[str]:
    """``host:port`` of the registry that Debian packages."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("apt-get install docker-registry")
    with served(Registry()) as at:
        free = at  # a port that was free a moment ago
    config = tmp_path / "registry.yml"
    storage = json.dumps({"filesystem": {"rootdirectory": str(tmp_path / "registry")}})
    config.write_text(f"version: 0.1\nstorage: {storage}\nhttp: {{addr: '{free}'}}\n")
    process = subprocess.Popen(
        [program, "serve", str(config)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    try:
        while "listening on" not in (line := process.stdout.readline()):
            assert line, "it ended"
        yield free
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_a_real_registry_takes_and_gives_bundles(debian_registry: str, tmp_path: Path) -> None:
    make_bundle(tmp_path / "far")
    pinned = push(f"oci://{debian_registry}/me/tiny", tmp_path / "far").split()[5].rstrip(",")
    assert "is already at" in push(f"oci://{debian_registry}/me/tiny", tmp_path / "far")
    pull(pinned, tmp_path / "near")
    assert contents(tmp_path / "near") == whole()


# Web servers.


def test_a_version_comes_by_https_from_servers_with_and_without_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_bundle(tmp_path / "far")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    for ranges, name in ((True, "a"), (False, "b")):
        web = WebServer(served_files(folder, "/models/tiny"), ranges, cuts=[5, 3])
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(tls)
        with served(web, tls) as at:
            said = pull(f"https://{at}/models/tiny/", tmp_path / name)
        assert said.endswith(digest_of_manifest(folder))
        assert contents(tmp_path / name) == whole()
        spans = [span for path, span in web.asked if path.endswith("model.onnx")]
        assert spans == [None, "bytes=5-", "bytes=8-"] or not ranges


def test_an_address_of_the_manifest_is_that_of_its_folder(tmp_path: Path) -> None:
    web = WebServer(served_files(make_bundle(tmp_path / "far"), "/tiny"))
    with served(web) as at:
        pull(f"http://{at}/tiny/manifest.json", tmp_path / "near")
    assert contents(tmp_path / "near") == whole()


def test_secrets_in_an_address_are_sent_and_not_shown(tmp_path: Path) -> None:
    web = WebServer(served_files(make_bundle(tmp_path / "far"), "/tiny"), login="me:hidden")
    del web.files["/tiny/explain.onnx"]
    with served(web) as at:
        refused = pull(f"http://{at}/tiny", tmp_path / "near")
        said = pull(f"http://me:hidden@{at}/tiny?key=hidden", tmp_path / "near")
    assert "(401)" in refused
    assert (
        said == f"TransferFailed: http://{at}/tiny/explain.onnx: 127.0.0.1 has no such thing (404)"
    )
    assert contents(tmp_path / "near") == {}


def test_a_web_server_is_logged_into_with_netrc(tmp_path: Path) -> None:
    web = WebServer(served_files(make_bundle(tmp_path / "far"), "/tiny"), login="me:hidden")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password hidden\n")
    (tmp_path / ".netrc").chmod(0o600)
    with served(web) as at:
        pull(f"http://{at}/tiny", tmp_path / "near")
    assert contents(tmp_path / "near") == whole()


def test_plain_http_from_elsewhere_needs_a_digest(tmp_path: Path) -> None:
    said = pull("http://models.example/tiny", tmp_path)
    assert "is asked without encryption" in said
    assert "--digest" in said


def test_nothing_can_be_pushed_to_a_web_server(tmp_path: Path) -> None:
    make_bundle(tmp_path / "far")
    assert "nothing can be sent to https://" in push("https://a.example/b", tmp_path / "far")


# Buckets.


@pytest.fixture
def in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, str]]:
    """Environment of S3 and of Google's store, which are one server; and the server."""
    store = Store()
    with served(store) as at:
        account = {"gcs_base_url": f"http://{at}", "disable_oauth": True}
        account |= {"client_email": "", "private_key": "", "private_key_id": ""}
        (tmp_path / "account.json").write_text(json.dumps(account))
        for name, value in {
            "AWS_ACCESS_KEY_ID": "me",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_ENDPOINT_URL": f"http://{at}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "eu-west-1",
            "GOOGLE_SERVICE_ACCOUNT": str(tmp_path / "account.json"),
        }.items():
            monkeypatch.setenv(name, value)
        yield store, at


@pytest.mark.parametrize(("scheme", "signed"), [("s3", "Credential=me/"), ("gs", "")])
def test_a_bundle_goes_to_a_bucket_and_comes_back(
    scheme: str, signed: str, in_a_bucket: tuple[Store, str], tmp_path: Path
) -> None:
    store = in_a_bucket[0]
    store.signed = signed
    folder = make_bundle(tmp_path / "far")
    assert f"is now at {scheme}://b/models/tiny/1" in push(f"{scheme}://b/models", tmp_path / "far")
    assert "is already at" in push(f"{scheme}://b/models", tmp_path / "far")
    assert store.written[-1] == "b/models/tiny/1/manifest.json"
    for depth in ("models", "models/tiny", "models/tiny/1"):
        near = tmp_path / depth.replace("/", "-")
        assert pull(f"{scheme}://b/{depth}", near).endswith(digest_of_manifest(folder))
        assert contents(near) == whole()


def test_what_lies_deeper_in_a_bucket_than_models_do_is_not_listed(
    in_a_bucket: tuple[Store, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(tmp_path / "far")
    push("s3://b/all/models", tmp_path / "far")
    store = in_a_bucket[0]
    store.objects |= {f"b/all/models/logs/2026/11/{n}/line": b"" for n in range(9)}
    store.objects |= {f"b/all/models-of-others/{n}": b"" for n in range(9)}
    pull("s3://b/all/models", tmp_path / "near")
    assert contents(tmp_path / "near") == whole()
    files = {f"all/models/{path}" for path in whole()}
    assert set(store.listed) == files
    assert "s3://b/all has no bundle: neither" in pull("s3://b/all", tmp_path / "other")
    monkeypatch.setattr("service.distribution.buckets.MOST_FOLDERS", 3)
    said = pull("s3://b/all/models", tmp_path / "other")
    assert "b/all/models has more than 3 folders, which is no repository" in said


def test_another_bundle_in_a_bucket_is_replaced_only_when_asked(
    in_a_bucket: tuple[Store, str], tmp_path: Path
) -> None:
    make_bundle(tmp_path / "one")
    make_bundle(tmp_path / "other", parameters=11)
    push("s3://b/models", tmp_path / "one")
    assert "holds something else; it is left as it is" in push("s3://b/models", tmp_path / "other")
    assert "is now at" in push("s3://b/models", tmp_path / "other", "--replace")
    pull("s3://b/models", tmp_path / "near")
    assert contents(tmp_path / "near") == whole(parameters=11)


def test_what_a_bucket_refuses_is_said_in_a_sentence(
    in_a_bucket: tuple[Store, str], tmp_path: Path
) -> None:
    in_a_bucket[0].signed = "Credential=somebody/"
    said = pull("s3://b/models", tmp_path / "near")
    assert said == "TransferFailed: s3://b/models: SignatureDoesNotMatch: who are you?"


def test_a_machine_without_an_account_is_told_what_it_lacks() -> None:
    class Cloudless(FsspecFiles):
        def manifests(self, folder: str) -> list[str]:
            raise RuntimeError("Error performing PUT http://169.254.169.254/latest/api/token")

    with pytest.raises(TransferFailed, match="s3://b/c: no credentials are in the environment"):
        find_remotes(Cloudless(fsspec.filesystem("memory")), "s3", "b/c")


# The hub, and what else fsspec knows.


def test_a_bundle_goes_to_the_hub_and_comes_back(tmp_path: Path) -> None:
    make_bundle(tmp_path / "far")
    hub = Hub("me/tiny", {"README.md": b"a card"})
    near = tmp_path / "near"
    words = [
        ["push", "tiny", "hf://me/tiny", "--repository", str(tmp_path / "far")],
        ["pull", "hf://me/tiny", "--repository", str(near)],
    ]
    with served(hub) as at:
        environment = os.environ | {
            "HF_ENDPOINT": f"http://{at}",  # read when the library is imported
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": "hf_none",
        }
        for command, verdict in zip(words, ("is now at", "is now in"), strict=True):
            ended = subprocess.run(
                [str(SACCADE), *command],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            assert verdict in ended.stdout, ended.stderr + str(hub.asked)
    assert contents(near) == whole()


def test_other_file_systems_of_fsspec_are_reached_too(tmp_path: Path) -> None:
    make_bundle(tmp_path / "far")
    target = f"memory://{tmp_path.name}/models"
    assert "is now at" in push(target, tmp_path / "far")
    pull(target, tmp_path / "near")
    assert contents(tmp_path / "near") == whole()


def test_an_unknown_scheme_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    said = pull("ipfs-of-old://a/b", tmp_path)
    assert "known are oci://, https://, s3://, gs://, az://, hf://" in said


def test_a_file_system_whose_library_is_missing_is_told_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    said = pull("s3://a/b", tmp_path)
    assert said.startswith("StartError: s3:// needs a library that is missing (")
    assert said.endswith("pip install 'saccade[pull]'")
    monkeypatch.setitem(sys.modules, "paramiko", None)
    assert pull("sftp://a/b", tmp_path).endswith("install it with pip")


# And are served.


@pytest.mark.slow
def test_a_running_server_takes_what_was_pulled_without_a_restart(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    key, repository = "an-admin-key-of-16", tmp_path / "repository"
    (tmp_path / "keys").write_text(key)
    old = DEMO_REPOSITORY / "vit-scenes" / "1"
    new = tmp_path / "far" / "vit-scenes" / "2"
    shutil.copytree(old, new)
    manifest = json.loads((old / "manifest.json").read_bytes())
    (new / "manifest.json").write_text(json.dumps({**manifest, "version": "2"}))
    pull(str(old), repository)
    server = start_server("--repository", repository, "--admin-keys-file", tmp_path / "keys")
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}) as client:
        before = [one["version"] for one in client.get("/v1/models").json()["models"]]
        pull(str(tmp_path / "far"), repository)
        loaded = client.post("/v1/models/vit-scenes/load", timeout=60)
        after = [one["version"] for one in client.get("/v1/models").json()["models"]]
    assert loaded.status_code == 200
    assert (before, after) == (["1"], ["2"])
