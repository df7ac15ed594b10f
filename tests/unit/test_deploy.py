"""The manifests, checked as far as that goes without running them: schemas, and the rules that we set ourselves."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from rag_tuned_memory.serving.compatibility import MAX_LORA_RANKS
from rag_tuned_memory.settings import Settings

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: it is in the extra test")

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
COMPOSE = sorted(DEPLOY.glob("*/compose*.yaml"))
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
MEANT_VERSION = re.compile(r"[^:@]+:v?\d+\.\d+(\.\d+)?[\w.-]*")
KEY = re.compile(r"(API_?KEY|PASSWORD|TOKEN|SECRET|ALLOWED_KEYS)$")
GIVEN = re.compile(r"\$\{[A-Z_]+:\?[^}]+\}")


def compose(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def services() -> list[Any]:
    return [
        pytest.param(service, compose(path), id=f"{path.parent.name}/{path.name}:{name}")
        for path in COMPOSE
        for name, service in compose(path)["services"].items()
    ]


def objects(text: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(text) if one]


def everything() -> list[dict[str, Any]]:
    return [one for path in KUBERNETES for one in objects(path.read_text(encoding="utf-8"))]


def pods() -> list[Any]:
    return [
        pytest.param(one, id=f"{one['kind']}:{one['metadata']['name']}")
        for one in everything()
        if one["kind"] in ("Deployment", "StatefulSet")
    ]


# Compose


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_compose_files_fit_the_schema(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="check-jsonschema is not installed: it is in the extra test")
    package = pytest.importorskip(
        "check_jsonschema", reason="check-jsonschema is not installed: it is in the extra test"
    )
    vendored = resources.files(package) / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema = json.loads(vendored.read_text(encoding="utf-8"))
    jsonschema.validators.validator_for(schema)(schema).validate(compose(path))


@pytest.mark.parametrize(("service", "file"), services())
def test_a_service_is_pinned_limited_and_closed(service: dict[str, Any], file: dict[str, Any]) -> None:
    assert MEANT_VERSION.fullmatch(service["image"])
    assert service["restart"] == "unless-stopped"
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), "reachable from this machine alone"
    for name, value in service["environment"].items():
        if KEY.search(name):
            assert GIVEN.fullmatch(value), f"{name} has a key in the file, or may be empty"
    for volume in service["volumes"]:
        assert volume.partition(":")[0] in file["volumes"]


@pytest.mark.parametrize(("service", "file"), [one for one in services() if not one.id.startswith("weaviate/")])
def test_a_service_can_be_found_sick_and_cannot_take_all(service: dict[str, Any], file: dict[str, Any]) -> None:
    limits = service["deploy"]["resources"]["limits"]
    assert {"cpus", "memory"} <= set(limits)
    devices = service["deploy"]["resources"]["reservations"].get("devices", [])
    assert bool(devices) == ("weaviate" not in service["image"])
    for device in devices:
        assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    if service["image"].startswith("rag-tuned-memory"):
        return
    assert service["healthcheck"]["test"][-1].endswith(("/health", "/.well-known/ready"))


def test_no_service_lets_in_whoever_comes() -> None:
    for path in COMPOSE:
        for service in compose(path)["services"].values():
            anonymous = service["environment"].get("AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED", "false")
            assert anonymous == "false"
            if "inference" in service["image"]:
                assert GIVEN.fullmatch(service["environment"]["API_KEY"])
            if "vllm" in service["image"]:
                assert GIVEN.fullmatch(service["environment"]["VLLM_API_KEY"])


def test_the_colours_of_tgi_differ_in_name_port_and_adapters_only() -> None:
    found = compose(DEPLOY / "tgi" / "compose.yaml")["services"]
    blue, green = found["tgi-blue"], found["tgi-green"]
    assert green.pop("profiles") == ["green"]
    assert blue.pop("ports") != green.pop("ports")
    assert blue["environment"].pop("LORA_ADAPTERS") == "${TGI_BLUE_ADAPTERS:-}"
    assert green["environment"].pop("LORA_ADAPTERS") == "${TGI_GREEN_ADAPTERS:-}"
    assert blue == green


SHARED = {"models", "adapters", "cache"}


def test_servers_only_read_what_the_worker_writes() -> None:
    for path in COMPOSE:
        for name, service in compose(path)["services"].items():
            volumes = [volume.split(":") for volume in service["volumes"]]
            assert all((volume[2:] == ["ro"]) == (name != "worker") for volume in volumes if volume[0] in SHARED)
            assert name == "worker" or "memory" not in [volume[0] for volume in volumes]
    for one in everything():
        if one["kind"] not in ("Deployment", "StatefulSet"):
            continue
        [container] = one["spec"]["template"]["spec"]["containers"]
        for mount in container["volumeMounts"]:
            if mount["name"] in SHARED:
                assert bool(mount.get("readOnly")) == (container["name"] != "worker")
            assert mount["name"] != "memory" or container["name"] == "worker"


def test_vllm_sees_adapters_and_models_under_the_worker_s_paths() -> None:
    found = compose(DEPLOY / "vllm" / "compose.yaml")["services"]
    worker = set(found["worker"]["volumes"])
    pods = {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]["containers"][0]
        for one in everything()
        if "template" in one.get("spec", {})
    }
    mounts = {name: {mount["name"]: mount["mountPath"] for mount in pod["volumeMounts"]} for name, pod in pods.items()}
    for volume in ("adapters", "cache"):
        [ours] = [one for one in worker if one.startswith(f"{volume}:")]
        assert f"{ours}:ro" in found["vllm"]["volumes"]
        assert mounts["worker"][volume] == mounts["vllm"][volume] == ours.partition(":")[2]
    for text in (found["vllm"]["command"][0], pods["vllm"]["args"][0]):
        assert mounts["worker"]["cache"] + "/models/SmolLM2-135M-Instruct" in text


def test_settings_of_the_service_exist() -> None:
    known = {f"RTM_{name.upper()}" for name in Settings.model_fields}
    used = set(re.findall(r"\bRTM_\w+", "".join(path.read_text() for path in DEPLOY.rglob("*") if path.is_file())))
    assert used
    assert used <= known


def test_vllm_s_rank_is_one_that_it_takes() -> None:
    text = "".join(path.read_text() for path in (DEPLOY / "vllm" / "compose.yaml", DEPLOY / "kubernetes" / "vllm.yaml"))
    ranks = re.findall(r"--max-lora-rank=(?:\$\{VLLM_MAX_LORA_RANK:-)?(\d+)", text)
    assert len(ranks) == 2
    assert {int(rank) for rank in ranks} <= set(MAX_LORA_RANKS)


# Kubernetes


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_kubernetes_objects_fit_the_schema(path: Path) -> None:
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed: it is in the extra test"
    )
    version = ".".join(kubernetes_validate.latest_version().split(".")[:2])
    found = objects(path.read_text(encoding="utf-8"))
    assert found
    for one in found:
        kubernetes_validate.validate(one, version, strict=True)


def test_the_schema_is_not_blind() -> None:
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed: it is in the extra test"
    )
    version = ".".join(kubernetes_validate.latest_version().split(".")[:2])
    [deployment] = [one for one in everything() if one["metadata"]["name"] == "worker"]
    deployment["spec"]["template"]["spec"]["containers"][0]["ressources"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, version, strict=True)


@pytest.mark.parametrize("one", pods())
def test_a_pod_is_pinned_limited_probed_and_closed(one: dict[str, Any]) -> None:
    spec = one["spec"]["template"]["spec"]
    assert spec["enableServiceLinks"] is False, "a Service's name would set variables that servers take for their own"
    assert spec["automountServiceAccountToken"] is False
    [container] = spec["containers"]
    assert MEANT_VERSION.fullmatch(container["image"])
    assert {"cpu", "memory"} <= set(container["resources"]["limits"])
    assert container["resources"]["requests"]
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (container["name"] != "weaviate")
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for variable in container["env"]:
        if KEY.search(variable["name"]):
            assert variable["valueFrom"]["secretKeyRef"]["name"] == "keys"
    if container["name"] == "worker":
        assert spec["securityContext"]["runAsNonRoot"]
        return
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        get = container[probe]["httpGet"]
        assert get["path"] in ("/health", "/v1/.well-known/ready", "/v1/.well-known/live")
        assert get["port"] in {port["name"] for port in container["ports"]}
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    volumes |= {claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", [])}
    assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_selectors_claims_and_names_lead_somewhere() -> None:
    found = everything()
    assert {one["metadata"].get("namespace", one["metadata"]["name"]) for one in found} == {"rag-tuned-memory"}
    names = {(one["kind"], one["metadata"]["name"]) for one in found}
    assert len(names) == len(found)
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in found if "template" in one.get("spec", {})]
    for one in found:
        if one["kind"] == "Service":
            assert [label for label in labels if one["spec"]["selector"].items() <= label.items()], one["metadata"]
        if "template" in one.get("spec", {}):
            spec = one["spec"]["template"]["spec"]
            assert (
                one["spec"]["selector"]["matchLabels"].items() <= one["spec"]["template"]["metadata"]["labels"].items()
            )
            for volume in spec.get("volumes", []):
                if claim := volume.get("persistentVolumeClaim"):
                    assert ("PersistentVolumeClaim", claim["claimName"]) in names
            for source in spec["containers"][0].get("envFrom", []):
                assert ("ConfigMap", source["configMapRef"]["name"]) in names


def test_keys_are_in_no_file() -> None:
    assert not [one for one in everything() if one["kind"] == "Secret"]


def test_the_other_colour_of_tgi_is_another_word() -> None:
    text = (DEPLOY / "kubernetes" / "tgi.yaml").read_text(encoding="utf-8")
    blue, green = objects(text), objects(text.replace("blue", "green"))
    kubernetes = {(one["kind"], one["metadata"]["name"]) for one in blue}
    assert kubernetes.isdisjoint({(one["kind"], one["metadata"]["name"]) for one in green})
    assert [one["spec"]["selector"] for one in green if one["kind"] == "Service"] == [{"app": "tgi", "colour": "green"}]
    [deployment] = [one for one in green if one["kind"] == "Deployment"]
    assert deployment["spec"]["template"]["spec"]["containers"][0]["envFrom"] == [
        {"configMapRef": {"name": "tgi-green"}}
    ]
    for command in re.findall(r"s#\^?(.*?): \.\*#", text):
        assert re.search(rf"^{command}: ", text, re.MULTILINE), "the sed command of the comment changes a line"


# The image


def test_the_image_installs_what_is_there_and_is_not_root() -> None:
    text = (DEPLOY / "service" / "Dockerfile").read_text(encoding="utf-8")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    [extras] = re.findall(r'"\.\[([\w,]+)\]"', text)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE)[-1].startswith("10001")
    assert re.search(r"^FROM python:3\.11-slim$", text, re.MULTILINE)
    assert f"rag-tuned-memory:{project['version']} " in text
    copied = re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE)
    allowed = (DEPLOY / "service" / "Dockerfile.dockerignore").read_text().split()
    for name in " ".join(copied).split():
        assert (REPOSITORY / name).exists()
        assert f"!{name}" in allowed
    for path in (*COMPOSE, *KUBERNETES):
        for image in re.findall(r"image: (rag-tuned-memory:\S+)", path.read_text()):
            assert image == f"rag-tuned-memory:{project['version']}"
