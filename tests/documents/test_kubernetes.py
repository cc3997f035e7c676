"""deploy/kubernetes: valid for Kubernetes, consistent in itself, and true to the program."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.cli.serve import GRACEFUL_SHUTDOWN_SECONDS
from app.config.secret_files import file_fields
from app.config.settings import Settings, load_settings
from app.main import create_app
from app.refresh.detached_tasks import DRAIN_SECONDS as STORING_SECONDS
from tests.support.kubernetes import Manifest, build, containers, pod_spec, without_hashes
from tests.support.paths import ROOT
from tests.support.process.command_lines import check_command_line
from tests.support.security.keys import MASTER_KEY
from tests.support.stack.postgres import MIGRATIONS

FOLDER = ROOT / "deploy" / "kubernetes"
BASE = build(FOLDER / "base")
EXAMPLE = build(FOLDER / "overlays" / "example")
SETTINGS = {name.upper() for name in Settings.model_fields} | {f"{name.upper()}_FILE" for name in file_fields(Settings)}
# each Secret and its keys, as docs/containers.md makes them
SECRETS = {
    "token-vault-keys-1": {"token_encryption_key", "audit_key"},
    "token-vault-database": {"database_url"},
    "token-vault-service-keys": {"service-keys.json"},
    "token-vault-providers": {"providers.json"},
    "token-vault-owner": {"database_url"},
}
POOL_SIZE: int = Settings.model_fields["database_pool_size"].default
POSTGRESQL_CONNECTIONS = 97  # max_connections without superuser_reserved_connections, by default
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def _one(kind: str, name: str = "token-vault", manifests: list[Manifest] = BASE) -> Manifest:
    (found,) = (one for one in manifests if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


WORKLOADS = [
    _one("Deployment"),
    _one("Job", "token-vault-migrate"),
    _one("CronJob", "token-vault-rewrap"),
    _one("CronJob", "token-vault-refresh"),
]
every_workload = pytest.mark.parametrize("workload", WORKLOADS, ids=lambda one: str(one["metadata"]["name"]))


KUSTOMIZE = [command for command in (["kubectl", "kustomize"], ["kustomize", "build"]) if shutil.which(command[0])]


@pytest.fixture
def adopting(tmp_path: Path) -> Path:
    """An overlay for a table that PulsePlan's own service still uses."""
    folders = {"resources": "base", "components": "components/adopting"}
    kustomization = {name: [os.path.relpath(FOLDER / path, tmp_path)] for name, path in folders.items()}
    kustomization |= {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}  # type: ignore[dict-item]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return tmp_path


@pytest.mark.skipif(not KUSTOMIZE, reason="neither kubectl nor kustomize is installed")
@pytest.mark.parametrize("folder", ["base", "overlays/example", "adopting"])
def test_kustomize_builds_the_same(folder: str, adopting: Path) -> None:
    path = adopting if folder == "adopting" else FOLDER / folder
    done = subprocess.run([*KUSTOMIZE[0], str(path)], capture_output=True, text=True, check=True)
    built = without_hashes(yaml.safe_load_all(done.stdout), ["token-vault"])

    def ordered(manifests: list[Manifest]) -> list[Manifest]:
        return sorted(manifests, key=lambda one: (one["kind"], one["metadata"]["name"]))

    assert ordered(built) == ordered(build(path))


def test_while_pulseplan_uses_the_table_nothing_is_taken_from_it(adopting: Path) -> None:
    manifests = build(adopting)
    (migrate,) = containers(_one("Job", "token-vault-migrate", manifests))
    last_but_one = sorted(MIGRATIONS.glob("*.sql"))[-2].name
    assert migrate["args"] == ["token-vault", "migrate", "--to", last_but_one.partition("_")[0]]
    assert [one["spec"]["suspend"] for one in manifests if one["kind"] == "CronJob"] == [True, True]
    assert _one("ConfigMap", manifests=manifests)["data"]["ALLOW_LEGACY_FORMATS"] == "true"


@every_workload
def test_a_pod_is_restricted(workload: Manifest) -> None:
    """The Pod Security Standard `restricted`, and a root file system that cannot be written."""
    security = pod_spec(workload)["securityContext"]
    assert (security["runAsNonRoot"], security["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
    assert f"--uid {security['runAsUser']} " in (ROOT / "Dockerfile").read_text()
    assert pod_spec(workload)["automountServiceAccountToken"] is False
    (container,) = containers(workload)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert "memory" in container["resources"]["limits"]


@every_workload
def test_a_pod_runs_a_command_of_the_program_in_its_image(workload: Manifest) -> None:
    (container,) = containers(workload)
    assert container["image"] == f"token-vault:{VERSION}"
    check_command_line(container["args"])


@every_workload
def test_a_pod_mounts_what_its_settings_name(workload: Manifest) -> None:
    (container,) = containers(workload)
    values = {one["name"]: one["value"] for one in container.get("env", ())}
    for source in container.get("envFrom", ()):
        values |= _one("ConfigMap", source["configMapRef"]["name"])["data"]
    assert values.keys() <= SETTINGS
    mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    files = {
        f"{mounts[volume['name']]}/{key}"
        for volume in pod_spec(workload)["volumes"]
        if "secret" in volume
        for key in SECRETS[volume["secret"]["secretName"]]
    }
    assert files == {value for value in values.values() if value.startswith("/run/secrets/")}


@pytest.mark.parametrize("manifests", [BASE, EXAMPLE], ids=["base", "example"])
def test_the_settings_start_the_vault(
    manifests: list[Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dict(_one("ConfigMap", manifests=manifests)["data"])
    for name, value in data.items():
        if value.startswith("/run/secrets/"):
            data[name] = str(tmp_path / Path(value).name)
    (tmp_path / "database_url").write_text("postgresql://vault_login:password@database.example.com/postgres")
    for name in ("token_encryption_key", "audit_key"):
        (tmp_path / name).write_text(MASTER_KEY)
    (tmp_path / "service-keys.json").write_text("[]")
    (tmp_path / "providers.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for name, value in data.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert list(settings.warnings()) == []
    assert settings.use_kms is (manifests is EXAMPLE)


def test_every_selector_finds_the_deployments_pods() -> None:
    deployment = _one("Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    spread = [one["labelSelector"] for one in pod_spec(deployment)["topologySpreadConstraints"]]
    selectors = [deployment["spec"]["selector"], _one("PodDisruptionBudget")["spec"]["selector"], *spread]
    selectors += [{"matchLabels": _one("Service", name)["spec"]["selector"]}
                  for name in ("token-vault", "token-vault-metrics")]  # fmt: skip
    assert all(one["matchLabels"] == labels for one in selectors)
    policy = _one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    for workload in WORKLOADS:
        spec = workload["spec"].get("jobTemplate", {}).get("spec", workload["spec"])
        assert policy.items() <= spec["template"]["metadata"]["labels"].items()
        assert workload is deployment or spec["template"]["metadata"]["labels"] != labels, "it would get requests"


def test_the_probes_ask_paths_that_exist_at_ports_that_are_open(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, TOKEN_ENCRYPTION_KEY=MASTER_KEY, SQLITE_PATH=str(tmp_path / "vault.db"))  # type: ignore[call-arg]  # pydantic-settings takes `_env_file`, and fields from elsewhere
    paths = create_app(settings).openapi()["paths"]
    (container,) = containers(_one("Deployment"))
    probes = {name: probe["httpGet"] for name, probe in container.items() if name.endswith("Probe")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    assert all(probe["path"] in paths and probe["port"] == "api" for probe in probes.values())
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    metrics_port = int(_one("ConfigMap")["data"]["METRICS_PORT"])
    assert ports == {"api": Settings.model_fields["port"].default, "metrics": metrics_port}
    targets = {port["targetPort"] for one in BASE if one["kind"] == "Service" for port in one["spec"]["ports"]}
    assert targets == ports.keys()
    admitted = {port["port"] for rule in _one("NetworkPolicy")["spec"]["ingress"] for port in rule["ports"]}
    assert admitted == set(ports.values())


def test_a_rolling_update_never_has_too_few_or_cuts_a_request() -> None:
    deployment = _one("Deployment")
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert "replicas" not in deployment["spec"], "an apply would undo the HorizontalPodAutoscaler"
    drain = int(_one("ConfigMap")["data"]["SHUTDOWN_DRAIN_SECONDS"])
    (container,) = containers(deployment)
    probe = container["readinessProbe"]
    assert drain > probe["periodSeconds"] + probe["timeoutSeconds"]
    grace: int = pod_spec(deployment)["terminationGracePeriodSeconds"]
    assert grace > drain + GRACEFUL_SHUTDOWN_SECONDS + STORING_SECONDS
    assert _one("HorizontalPodAutoscaler")["spec"]["minReplicas"] >= 2


def test_a_pod_that_never_starts_does_not_block_the_runs_after_it() -> None:
    for workload in WORKLOADS[1:]:
        spec = workload["spec"].get("jobTemplate", {}).get("spec", workload["spec"])
        (container,) = containers(workload)
        _, _, seconds = " ".join(container["args"]).partition("--timeout ")
        assert spec["activeDeadlineSeconds"] > int(seconds or 0), workload["metadata"]["name"]


@pytest.mark.parametrize("manifests", [BASE, EXAMPLE], ids=["base", "example"])
def test_all_pods_at_once_fit_into_the_connections_of_postgresql(manifests: list[Manifest]) -> None:
    surge = _one("Deployment", manifests=manifests)["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    jobs = sum(one["kind"] == "CronJob" for one in manifests)
    pods = _one("HorizontalPodAutoscaler", manifests=manifests)["spec"]["maxReplicas"] + surge + jobs
    pool = int(_one("ConfigMap", manifests=manifests)["data"].get("DATABASE_POOL_SIZE", POOL_SIZE))
    assert pods * pool <= POSTGRESQL_CONNECTIONS


def test_prometheus_finds_the_service_of_the_metrics() -> None:
    monitor: dict[str, Any] = _one("ServiceMonitor", manifests=EXAMPLE)["spec"]
    (service,) = (
        one
        for one in EXAMPLE
        if one["kind"] == "Service" and monitor["selector"]["matchLabels"].items() <= one["metadata"]["labels"].items()
    )
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "token-vault", "the alert rules name this job"


def test_the_example_sets_the_role_the_image_and_the_scale() -> None:
    account = _one("ServiceAccount", manifests=EXAMPLE)
    assert account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].endswith(":role/token-vault")
    images = {container["image"] for one in EXAMPLE for container in containers(one)}
    assert images == {f"registry.example.com/token-vault:{VERSION}"}
    assert {one["metadata"].get("namespace") for one in EXAMPLE if one["kind"] != "Namespace"} == {"token-vault"}
    assert _one("HorizontalPodAutoscaler", manifests=EXAMPLE)["spec"]["minReplicas"] == 3
