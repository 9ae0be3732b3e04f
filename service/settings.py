"""Every setting of the server, with unit and bounds: a flag of ``saccade serve`` and a variable
``SACCADE_*`` each.
"""

import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from service.cores import usable_cores
from service.errors import BadSettings
from service.keys import parse_keys

PREFIX = "SACCADE_"
MOST_PROCESSES = 16  # unless asked for
SECRETS = frozenset({"api_keys", "admin_keys"})
"""Read from the environment only: flags can be seen in the list of processes."""
FILES = ("api_keys_file", "admin_keys_file", "tls_certificate", "tls_key")
HOST = re.compile(
    r"(?=.{1,253}$)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
)
"""A host name in lower case; no way to write an address fits, for the last label has a letter."""
DEMO_REPOSITORY = Path(__file__).parent / "demo" / "repository"

_ORIGIN = re.compile(r"\*|https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?")


class Settings(BaseSettings):
    """Immutable; read once at the start of a process (see ``load_settings``)."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    repository: Path = Field(
        default=DEMO_REPOSITORY, description="Model repository; without it the bundled demo models"
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="Port; 0 takes a free one")
    device: str = Field(
        default="auto",
        pattern=r"^(auto|(cpu|cuda(:\d+)?)(,(cpu|cuda(:\d+)?))*)$",
        description="auto, cpu, cuda (every GPU), cuda:1, or several with commas: a worker each",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8", "fp8"] = Field(
        default="auto", description="Arithmetic; auto takes the fastest that the bundle has proven"
    )
    runtime: Literal["auto", "onnxruntime", "openvino", "tensorrt"] = Field(
        default="auto", description="Library; auto takes the fastest that is installed and proven"
    )
    engines: Literal["refuse", "rebuild"] = Field(
        default="refuse",
        description="TensorRT engines that are not for this machine; rebuild: at the start, proven",
    )
    threads: int = Field(
        default=0, ge=0, le=512, description="Threads of the runtime; 0 takes every core"
    )
    tuning: str = Field(
        default="auto",
        min_length=1,
        description="File of saccade tune; auto: tuning.json in the repository, if any; off: none",
    )
    cache: str = Field(
        default="auto",
        min_length=1,
        description="Folder of compiled models; auto: saccade/ in the user's cache; off: none",
    )
    api_processes: int = Field(
        default=0, ge=0, le=64, description="HTTP processes; 0: one for every two cores, at least 2"
    )
    decode_threads: int = Field(
        default=0,
        ge=0,
        le=512,
        description="Decoding threads per HTTP process; 0: its share of the cores, at least 2",
    )
    decode_isolation: Literal["auto", "all", "off"] = Field(
        default="auto",
        description="Pictures decoded in processes that may be killed; auto: all but common JPEGs",
    )
    decode_timeout_s: float = Field(
        default=10.0, gt=0, le=3600, description="Seconds such a process may take for a picture"
    )
    decode_memory_bytes: int = Field(
        default=1536 * 2**20,
        ge=256 * 2**20,
        description="Address space of such a process; takes 16 bytes a pixel and 200 MiB at worst",
    )
    max_batch: int = Field(
        default=32, ge=1, le=1024, description="Upper limit of a batch; the best is tuned, or 8"
    )
    max_queue: int = Field(default=256, ge=1, le=1_000_000, description="Pictures that may wait")
    max_queue_bytes: int = Field(
        default=256 * 2**20,
        ge=2**20,
        description="Decoded bytes that may wait, and body bytes held per HTTP process",
    )
    max_model_queue: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Pictures of one model that may wait; 0: all, until others need the room",
    )
    max_model_queue_bytes: int = Field(
        default=0, ge=0, description="Decoded bytes of one model that may wait; 0: as above"
    )
    max_body_bytes: int = Field(default=20 * 2**20, ge=1024, description="Largest request body")
    max_images: int = Field(default=16, ge=1, le=1024, description="Pictures in one request")
    max_pixels: int = Field(
        default=64_000_000,
        ge=1024,
        le=178_956_970,  # Pillow refuses more, by a global that is not ours to change
        description="Pixels of one picture, before decoding; at most 178956970",
    )
    timeout_s: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="Seconds a request may take; a request may ask for less",
    )
    body_timeout_s: float = Field(
        default=30.0, gt=0, le=3600, description="Seconds that a body may take to arrive"
    )
    batch_timeout_s: float = Field(
        default=20.0,
        ge=1,
        le=3600,
        description="Seconds a batch may run, or the worker be silent, before it is killed",
    )
    probe_every_s: float = Field(
        default=5.0,
        ge=0.1,
        le=3600,
        description="Seconds without a pass after which an idle worker runs a small one",
    )
    liveness_s: float = Field(
        default=60.0, ge=2, le=86400, description="Seconds without a pass after which /livez fails"
    )
    drain_delay_s: float = Field(
        default=0.0,
        ge=0,
        le=3600,
        description="Seconds to accept requests after SIGTERM, while /readyz is 503 already",
    )
    max_connections: int = Field(
        default=4096,
        ge=1,
        le=1_000_000,
        description="Connections per HTTP process; past it, the one idle for longest is closed",
    )
    header_timeout_s: float = Field(
        default=10.0, gt=0, le=3600, description="Seconds that a request's headers may take"
    )
    idle_timeout_s: float = Field(
        default=75.0,
        ge=1,
        le=3600,
        description="Seconds that a connection may wait for its next request; "
        "more than a load balancer keeps one",
    )
    grace_s: float = Field(
        default=20.0, ge=0, le=3600, description="Seconds to finish accepted work at shutdown"
    )
    api_keys: SecretStr = Field(
        default=SecretStr(""),
        description="Keys that open the server, NAME:KEY or KEY, separated by commas; "
        "in the environment only, for a process list shows flags",
    )
    api_keys_file: str = Field(
        default="", description="File of such keys, one a line; read again when it changes"
    )
    admin_keys: SecretStr = Field(
        default=SecretStr(""),
        description="Keys of the admin routes, which are off without; in the environment only",
    )
    admin_keys_file: str = Field(
        default="", description="File of admin keys, one a line; read again when it changes"
    )
    metrics_access: Literal["key", "open", "off"] = Field(
        default="key", description="/metrics: asks for a key like the rest, for none, or is off"
    )
    tls_certificate: str = Field(
        default="", description="File of the certificate chain in PEM form; with it, only HTTPS"
    )
    tls_key: str = Field(
        default="", description="File of its private key, where the certificate's does not hold it"
    )
    cors_origins: str = Field(
        default="",
        description="Origins whose pages may ask and read answers, separated by commas; * for all",
    )
    url_hosts: str = Field(
        default="",
        description="Hosts that pictures may be fetched from, names or *.names, separated by "
        "commas; without any, pictures by URL are off",
    )
    url_timeout_s: float = Field(
        default=5.0, gt=0, le=300, description="Seconds that fetching a picture may take"
    )
    otlp_endpoint: str = Field(
        default="",
        pattern=r"^(https?://[^/?#@\s]+[^?#@\s]*)?$",
        description="OpenTelemetry collector that is sent traces, like http://localhost:4318; "
        "needs the extra otel",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe line that is logged"
    )

    @field_validator("api_keys", "admin_keys")
    @classmethod
    def _holds_keys(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if text and not parse_keys(text):
            raise ValueError("it is set, and holds no key")  # and must not let everybody in
        return value

    @field_validator("tls_key")
    @classmethod
    def _has_a_certificate(cls, value: str, others: ValidationInfo) -> str:
        if value and not others.data.get("tls_certificate"):
            raise ValueError("it needs --tls-certificate, which is not given")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _holds_origins(cls, value: str) -> str:
        for origin in split_list(value):
            if not _ORIGIN.fullmatch(origin):
                raise ValueError("an origin is * or like https://example.org:8443, without a path")
        return value

    @field_validator("url_hosts")
    @classmethod
    def _holds_hosts(cls, value: str) -> str:
        for host in split_list(value):
            if not HOST.fullmatch(host.removeprefix("*.")):
                raise ValueError(
                    "a host is a name in lower case with a dot, like images.example.org, "
                    "or *.example.org for all below it; never an address"
                )
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment; no dotenv file is read behind the user's back."""
        return init_settings, env_settings

    def cache_folder(self) -> Path | None:
        """Where compiled models are kept; None where they are not, or a user has no home."""
        if self.cache == "off":
            return None
        if self.cache != "auto":
            return Path(self.cache)
        named = os.environ.get("XDG_CACHE_HOME", "")  # which must be absolute to count
        try:
            home = Path(named) if Path(named).is_absolute() else Path.home() / ".cache"
        except RuntimeError:
            return None
        return home / "saccade"

    def http_processes(self) -> int:
        """How many HTTP processes to run.

        Two on two cores answer a sixth more pictures than one, whose event loop and decoding
        threads wait for each other's turn at the interpreter.
        """
        cores = usable_cores()
        return self.api_processes or min(cores, max(2, cores // 2), MOST_PROCESSES)

    def decoders(self) -> int:
        """How many decoding threads each of them has: where it is two, one may begin while the
        other's picture waits for the interpreter.
        """
        return self.decode_threads or max(2, math.ceil(usable_cores() / self.http_processes()))

    def to_environment(self) -> dict[str, str]:
        """The variables from which a child process reads the same settings again."""
        return {
            PREFIX + name.upper(): value.get_secret_value()
            if isinstance(value, SecretStr)
            else str(value)
            for name, value in self.model_dump().items()
        }


def split_list(text: str) -> list[str]:
    """The entries of a setting that is a list."""
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def foreign_environment() -> dict[str, str]:
    """The environment less every ``SACCADE_*``: for processes that have no business with keys."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}


def registry_logins() -> list[tuple[str, str]]:
    """Names and contents of what may hold logins for registries, first the most particular:
    the variable that continuous integration uses, and the files of podman and of docker.
    """
    found = []
    if text := os.environ.get("DOCKER_AUTH_CONFIG"):
        found.append(("DOCKER_AUTH_CONFIG", text))
    files = [os.environ.get("REGISTRY_AUTH_FILE", "")]
    if folder := os.environ.get("XDG_RUNTIME_DIR"):
        files.append(f"{folder}/containers/auth.json")
    if folder := os.environ.get("DOCKER_CONFIG"):
        files.append(f"{folder}/config.json")
    else:
        with suppress(RuntimeError):  # a user without a home
            files.append(str(Path.home() / ".docker" / "config.json"))
    for name in filter(None, files):
        try:
            found.append((name, Path(name).read_text()))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise BadSettings(f"{name} cannot be read: {error}") from None
    return found


def load_settings(flags: Mapping[str, Any] | None = None) -> Settings:
    """Settings from flags that were given (None means not given), else the environment, else the
    defaults.

    Raises:
        BadSettings: naming the setting, what was found, and what is allowed.
    """
    known = sorted(PREFIX + name.upper() for name in Settings.model_fields)
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
    if unknown:
        meant = [name for wrong in unknown for name in get_close_matches(wrong, known, n=1)]
        cure = f"did you mean {', '.join(meant)}?" if meant else f"known are {', '.join(known)}"
        if any(name.endswith("_SERVICE_HOST") for name in unknown):
            cure = (
                "Kubernetes sets such for a service of that name; "
                "put enableServiceLinks: false into the spec of the pod"
            )
        raise BadSettings(f"unknown environment variable {', '.join(unknown)}; {cure}")
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        sentences = []
        for fault in error.errors():
            name = str(fault["loc"][0])
            flag = "--" + name.replace("_", "-")
            complaint = fault["msg"].removeprefix("Value error, ")
            if fault["type"] == "string_pattern_mismatch":
                complaint = f"it takes: {Settings.model_fields[name].description}"
            if name in SECRETS:  # which the message must not repeat
                sentences.append(f"{PREFIX}{name.upper()}: {complaint}")
                continue
            sentences.append(
                f"{flag} ({PREFIX}{name.upper()}): {complaint}; found {fault['input']!r}"
            )
        raise BadSettings("; ".join(sentences)) from None


def check_files(settings: Settings) -> None:
    """Say at once what the processes of a server would each find out for themselves.

    Raises:
        BadSettings: a file that is named is not there.
    """
    named = {name: getattr(settings, name) for name in FILES}
    missing = [
        f"--{name.replace('_', '-')}: there is no file {path}"
        for name, path in named.items()
        if path and not Path(path).exists()
    ]
    if missing:
        raise BadSettings("; ".join(missing))
