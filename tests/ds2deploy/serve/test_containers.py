"""Images, compose file and dashboard name what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ds2deploy.serve.limits import Limits
from tests.ds2deploy.serve.test_examples import metric_names

ROOT = Path(__file__).resolve().parents[3]
DOCKER = ROOT / "docker"
IMAGES = sorted(DOCKER.glob("Dockerfile.*"))
HISTOGRAM_ENDINGS = ("_bucket", "_sum", "_count")


def instructions(path: Path) -> list[tuple[str, str]]:
    """Read the instructions of a Dockerfile, continued lines joined."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.M).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line]


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DOCKER / "compose.yaml").read_text()))


def test_there_are_two_images() -> None:
    assert [path.suffix for path in IMAGES] == [".cpu", ".jetson"]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_image_copies_what_exists_and_installs_extras_that_exist(path: Path) -> None:
    steps = instructions(path)
    sources = [word for name, rest in steps if name == "COPY" for word in rest.split()[:-1]]
    assert {"pyproject.toml", "ds2deploy", "export", "runtimes"} <= set(sources)
    assert [one for one in sources if not (ROOT / one).exists()] == []
    project = (ROOT / "pyproject.toml").read_text()
    extras = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    known = set(re.findall(r"^([\w-]+) = \[", extras, re.M))
    named = [re.search(r"\[([\w,]+)\]\"", rest) for name, rest in steps if "pip install" in rest]
    assert named
    for found in named:
        assert found is not None
        assert {"cpu", "serve"} <= set(found[1].split(",")) <= known


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_image_is_pinned_runs_without_rights_and_has_a_health_check(path: Path) -> None:
    steps = instructions(path)
    bases = [rest.split()[0] for name, rest in steps if name == "FROM"]
    assert all(re.search(r":[\w.-]*\d", base) for base in bases)
    last = max(i for i, (name, _) in enumerate(steps) if name == "FROM")
    found = dict(steps[last:])
    assert found["USER"] not in ("", "root", "0")
    assert "/ready" in found["HEALTHCHECK"]
    start = json.loads(found["ENTRYPOINT"])
    assert start[:2] == ["ds2deploy", "serve"]
    assert start[start.index("--port") + 1] == found["EXPOSE"]
    assert "DS2DEPLOY_API_KEY=" not in path.read_text()


def test_compose_names_files_that_exist_and_listens_on_loopback() -> None:
    services = compose()["services"]
    assert services.keys() == {"server", "prometheus", "grafana"}
    build = services["server"]["build"]
    assert (DOCKER / build["context"] / build["dockerfile"]).is_file()
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert "build" in service or re.search(r":v?\d", service["image"])
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (DOCKER / source).exists()
    grace = int(services["server"]["stop_grace_period"].removesuffix("s"))
    assert grace > Limits().drain_s


def test_prometheus_finds_the_server_and_its_key() -> None:
    found = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    (job,) = found["scrape_configs"]
    host, _, port = job["static_configs"][0]["targets"][0].partition(":")
    assert host in compose()["services"]
    assert port == "8000"
    secret = Path(job["authorization"]["credentials_file"]).name
    assert secret in compose()["services"]["prometheus"]["secrets"]


def test_dashboard_shows_every_metric_and_none_that_is_not_there() -> None:
    found = json.loads((DOCKER / "grafana" / "dashboards" / "ds2deploy.json").read_text())
    expressions = [one["expr"] for panel in found["panels"] for one in panel["targets"]]
    used = set(re.findall(r"ds2deploy_\w+", " ".join(expressions)))
    plain = {re.sub("|".join(f"{end}$" for end in HISTOGRAM_ENDINGS), "", name) for name in used}
    assert plain == metric_names()
    (source,) = yaml.safe_load(
        (DOCKER / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text()
    )["datasources"]
    assert {panel["datasource"]["uid"] for panel in found["panels"]} == {source["uid"]}
    (provider,) = yaml.safe_load(
        (DOCKER / "grafana" / "provisioning" / "dashboards" / "dashboards.yml").read_text()
    )["providers"]
    mounts = [volume.split(":")[1] for volume in compose()["services"]["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounts
    places = [tuple(panel["gridPos"].values()) for panel in found["panels"]]
    assert len(set(places)) == len(places)
