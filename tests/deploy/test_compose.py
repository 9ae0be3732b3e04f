"""The compose files are whole: what they mount is there, and Prometheus accepts its part."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import PREFIX, Settings

COMPOSE = Path(__file__).parents[2] / "deploy" / "compose"
FILES = ("compose.yaml", "models.yaml", "gpu.yaml")


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((COMPOSE / name).read_text())
    return found


def services() -> dict[str, Any]:
    found: dict[str, Any] = read("compose.yaml")["services"]
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_compose_file_keeps_to_the_specification(name: str) -> None:
    specification = pytest.importorskip("compose_spec", reason="needs compose-spec, of PyPI")
    text = re.sub(r"\$\{\w+[^}]*\}", "/given", (COMPOSE / name).read_text())  # as compose does
    parsed = specification.PyCompose.from_yaml(text)
    parsed.validate()
    assert set(parsed.service_names()) == set(read(name)["services"])
    misspelt = text.replace("services:\n  saccade:", "services:\n  saccade:\n    portz: []")
    with pytest.raises(ValueError, match="portz"):
        specification.PyCompose.from_yaml(misspelt)


@pytest.mark.parametrize("service", services())
def test_every_file_that_is_mounted_is_there(service: str) -> None:
    volumes = read("compose.yaml")["volumes"]
    for mount in services()[service]["volumes"]:
        source, target, *mode = mount.split(":")
        assert target.startswith("/")
        if source.startswith("."):
            assert (COMPOSE / source).is_file(), source
            assert mode == ["ro"], mount
        else:
            assert source in volumes, source


@pytest.mark.parametrize("service", services())
def test_a_service_is_reached_from_this_machine_alone_and_gains_no_rights(service: str) -> None:
    about = services()[service]
    assert all(port.startswith("127.0.0.1:") for port in about["ports"])
    assert about["cap_drop"] == ["ALL"]
    assert about["security_opt"] == ["no-new-privileges:true"]
    assert ":" in about["image"] or "build" in about, "others' images are of a stated version"


def test_the_server_is_given_variables_that_exist_and_time_to_finish() -> None:
    for name in FILES:
        given = read(name)["services"]["saccade"].get("environment", {})
        unknown = {key for key in given if key.removeprefix(PREFIX).lower() not in fields()}
        assert unknown == set(), name
    server = services()["saccade"]
    assert server["read_only"] is True
    grace_s = int(server["stop_grace_period"].removesuffix("s"))
    assert grace_s > Settings().grace_s + Settings().drain_delay_s


def fields() -> set[str]:
    return set(Settings.model_fields)


def test_the_images_that_are_built_are_stages_of_the_dockerfile() -> None:
    dockerfile = (COMPOSE.parents[1] / "Dockerfile").read_text()
    targets = {read(name)["services"]["saccade"].get("build", {}).get("target") for name in FILES}
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", dockerfile, flags=re.MULTILINE))
    assert targets - {None} == {"cpu", "gpu"}
    assert targets - {None} <= stages
    context = (COMPOSE / services()["saccade"]["build"]["context"]).resolve()
    assert context == COMPOSE.parents[1]


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    datasource = read("grafana/datasource.yaml")["datasources"][0]
    host, port = re.fullmatch(r"http://(\w+):(\d+)", datasource["url"]).groups()  # type: ignore[union-attr]
    assert host in services()
    assert services()[host]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert datasource["type"] == "prometheus"
    assert datasource["isDefault"] is True, "the dashboard takes the default one"
    folder = read("grafana/dashboards.yaml")["providers"][0]["options"]["path"]
    mounts = [mount.split(":") for mount in services()["grafana"]["volumes"]]
    boards = [COMPOSE / source for source, target, _ in mounts if target.startswith(folder)]
    assert [json.loads(board.read_text())["uid"] for board in boards] == ["saccade"]
    home = services()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in [target for _, target, _ in mounts]


def test_prometheus_scrapes_the_server_under_the_name_that_alerts_look_for() -> None:
    job = read("prometheus.yml")["scrape_configs"][0]
    assert "saccade" in job["job_name"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert services()[host]["ports"] == [f"127.0.0.1:{port}:{port}"]
    interval = read("grafana/datasource.yaml")["datasources"][0]["jsonData"]["timeInterval"]
    assert interval == read("prometheus.yml")["global"]["scrape_interval"]


def test_promtool_accepts_the_configuration_with_its_alerts(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool, of Debian's package prometheus")
    for mount in services()["prometheus"]["volumes"]:
        source, target, *_ = mount.split(":")
        if target.startswith("/etc/prometheus/"):
            shutil.copy(COMPOSE / source, tmp_path / Path(target).name)
    checked = subprocess.run(
        [promtool, "check", "config", str(tmp_path / "prometheus.yml")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "1 rule files found" in checked.stdout
