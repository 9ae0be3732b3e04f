"""Settings: flags, then the environment, then defaults; wrong ones stop the start."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from service.commands.serve import serve
from service.errors import BadSettings
from service.settings import PREFIX, SECRETS, Settings, check_files, load_settings

OTHER_VALUES: dict[str, Any] = {
    "repository": Path("/models here/ünd"),
    "host": "::1",
    "port": 9001,
    "device": "cuda:3",
    "precision": "bf16",
    "runtime": "openvino",
    "threads": 3,
    "tuning": "/models here/tuning.json",
    "cache": "/var/cache/säccade",
    "api_processes": 2,
    "decode_threads": 5,
    "max_batch": 48,
    "max_queue": 77,
    "max_queue_bytes": 5 * 2**20,
    "max_body_bytes": 4096,
    "max_images": 3,
    "max_pixels": 5000,
    "timeout_s": 1.25,
    "body_timeout_s": 0.1 + 0.2,
    "batch_timeout_s": 7.5,
    "probe_every_s": 0.25,
    "liveness_s": 45.0,
    "drain_delay_s": 3.0,
    "grace_s": 0.0,
    "api_keys": SecretStr("anna:0123456789abcdef,sha256:" + 64 * "0"),
    "api_keys_file": "/run/secrets/säccade keys",
    "admin_keys": SecretStr("fedcba9876543210"),
    "admin_keys_file": "/run/secrets/admin",
    "metrics_access": "open",
    "tls_certificate": "/run/secrets/tls.crt",
    "tls_key": "/run/secrets/tls.key",
    "cors_origins": "https://example.org, http://localhost:3000",
    "url_hosts": "images.example.org, *.example.com",
    "url_timeout_s": 2.5,
    "otlp_endpoint": "https://collector.example.org:4318/otlp",
    "log_level": "debug",
}


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)


def test_a_flag_beats_the_environment_which_beats_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert load_settings().port == 8000
    monkeypatch.setenv("SACCADE_PORT", "9000")
    assert load_settings().port == 9000
    assert load_settings({"port": "9001"}).port == 9001


def test_a_flag_that_was_not_given_leaves_the_environment_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SACCADE_MAX_BATCH", "16")
    settings = load_settings(dict.fromkeys(Settings.model_fields))
    assert settings.max_batch == 16
    assert settings == Settings(max_batch=16)


def test_a_misspelt_variable_is_refused_with_the_one_that_was_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SACCADE_PROT", "1")
    monkeypatch.setenv("SACCADE_MAX_BATCHES", "1")
    with pytest.raises(BadSettings, match=r"did you mean SACCADE_MAX_BATCH, SACCADE_PORT\?$"):
        load_settings()


@pytest.mark.parametrize("endpoint", ["localhost:4318", "grpc://h:4317", "http://", "http://a@b"])
def test_a_collector_has_an_http_address(endpoint: str) -> None:
    with pytest.raises(BadSettings, match="otlp"):
        load_settings({"otlp_endpoint": endpoint})


def test_an_unknown_variable_is_refused_by_name_with_those_that_exist(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SACCADE_PROT", "9000")
    with pytest.raises(BadSettings, match="SACCADE_PROT") as refused:
        load_settings()
    assert "SACCADE_PORT" in str(refused.value)


def test_variables_of_others_are_none_of_our_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOT_SACCADE_PROT", "9000")
    monkeypatch.setenv("SACCADES", "many")
    assert load_settings() == Settings()


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("port", "65536", "65535"),
        ("port", "http", "integer"),
        ("port", "", "integer"),
        ("device", "gpu", "auto, cpu, cuda"),
        ("device", "cuda:x", "auto, cpu, cuda"),
        ("device", "auto,cpu", "auto, cpu, cuda"),
        ("precision", "fp64", "'bf16'"),
        ("max_batch", "0", "1"),
        ("max_pixels", "178956971", "178956970"),
        ("timeout_s", "nan", "3600"),
        ("timeout_s", "0", "greater than 0"),
        ("grace_s", "inf", "3600"),
        ("log_level", "loud", "'warning'"),
        ("host", "", "1 character"),
        ("metrics_access", "closed", "'off'"),
        ("tls_key", "server.key", "--tls-certificate"),
        ("cors_origins", "https://example.org/", "without a path"),
        ("cors_origins", "example.org", "https://example.org"),
        ("url_hosts", "*", "*.example.org"),
        ("url_hosts", "*.*.org", "*.example.org"),
        ("url_hosts", "localhost", "with a dot"),
        ("url_hosts", "10.0.0.1", "never an address"),
        ("url_hosts", "0x7f.0x1", "never an address"),
        ("url_hosts", "[::1]", "never an address"),
        ("url_hosts", "Example.org", "lower case"),
    ],
)
def test_a_wrong_value_names_the_setting_what_was_found_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str
) -> None:
    with pytest.raises(BadSettings) as by_flag:
        load_settings({name: value})
    monkeypatch.setenv(PREFIX + name.upper(), value)
    with pytest.raises(BadSettings) as by_variable:
        load_settings()
    assert str(by_flag.value) == str(by_variable.value)
    said = str(by_flag.value)
    assert "--" + name.replace("_", "-") in said
    assert PREFIX + name.upper() in said
    assert f"found {value!r}" in said
    assert allowed in said


@pytest.mark.parametrize("name", sorted(SECRETS))
@pytest.mark.parametrize("wrong", ["short-secret", "0123456789abcdef,two words of secret"])
def test_a_wrong_secret_is_named_and_never_repeated(
    monkeypatch: pytest.MonkeyPatch, name: str, wrong: str
) -> None:
    monkeypatch.setenv(PREFIX + name.upper(), wrong)
    with pytest.raises(BadSettings, match=PREFIX + name.upper()) as refused:
        load_settings()
    assert "secret" not in str(refused.value)
    with pytest.raises(ValueError, match="is no key") as bare:
        Settings()
    assert "secret" not in str(bare.value)


@pytest.mark.parametrize("blank", [" ", ",", "\n", "# 0123456789abcdef"])
def test_keys_that_are_none_do_not_let_everybody_in(
    monkeypatch: pytest.MonkeyPatch, blank: str
) -> None:
    monkeypatch.setenv("SACCADE_API_KEYS", blank)
    with pytest.raises(BadSettings, match=r"SACCADE_API_KEYS: .*holds no key"):
        load_settings()


def test_secrets_are_no_flags_and_do_not_show_in_what_is_printed() -> None:
    flags = inspect.signature(serve).parameters
    assert flags.keys() == Settings.model_fields.keys() - SECRETS
    settings = Settings(api_keys=SecretStr("0123456789abcdef"))
    assert "0123456789abcdef" not in f"{settings!r} {settings} {settings.model_dump()}"


def test_every_wrong_setting_is_named_at_once() -> None:
    with pytest.raises(BadSettings, match=r"--port .*; --max-batch "):
        load_settings({"port": "x", "max_batch": "x"})


def test_a_flag_that_does_not_exist_is_refused() -> None:
    with pytest.raises(BadSettings, match="--prot"):
        load_settings({"prot": "1"})


def test_a_child_reads_the_same_settings_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fields = Settings.model_fields
    given = OTHER_VALUES | {name: fields[name].default for name in fields.keys() - OTHER_VALUES}
    settings = load_settings(given)
    environment = settings.to_environment()
    assert environment.keys() == {PREFIX + name.upper() for name in fields}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings
    assert load_settings().model_dump() == given


def test_every_field_is_described_and_every_default_is_within_its_own_bounds() -> None:
    assert all(field.description for field in Settings.model_fields.values())
    environment = Settings().to_environment()
    defaults = {name: environment[PREFIX + name.upper()] for name in Settings.model_fields}
    assert load_settings(defaults) == Settings()


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(load_settings(), "port", 1)  # noqa: B010


def test_http_processes_and_their_threads_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def shared(cores: int, **flags: int) -> tuple[int, int]:
        monkeypatch.setattr("service.settings.usable_cores", lambda: cores)
        settings = Settings.model_validate(flags)
        return settings.http_processes(), settings.decoders()

    assert [shared(cores) for cores in (1, 2, 4, 8, 64)] == [
        (1, 2),
        (2, 2),
        (2, 2),
        (4, 2),
        (16, 4),
    ]
    assert shared(2, api_processes=4) == (4, 2)
    assert shared(8, api_processes=3) == (3, 3)
    assert shared(8, decode_threads=7) == (4, 7)


def test_files_that_are_not_there_are_named_before_anything_starts(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("0123456789abcdef\n")
    there = load_settings({"api_keys_file": str(keys)})
    check_files(there)
    absent = load_settings({"api_keys_file": str(keys), "tls_certificate": "/none/chain.pem"})
    with pytest.raises(BadSettings, match=r"--tls-certificate: there is no file /none/"):
        check_files(absent)
