"""`kustomize build` for the few features that deploy/kubernetes uses, and the schemas of Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

Manifest = dict[str, Any]
_FEATURES: Final = frozenset(
    {"apiVersion", "kind", "namespace", "resources", "components", "images", "configMapGenerator", "patches"}
)
_CLUSTER_WIDE: Final = ("Namespace",)


def build(folder: Path, onto: Sequence[Manifest] = ()) -> list[Manifest]:
    """Return the manifests, of a component with those that it changes; generated names stay without their hash."""
    kustomization: dict[str, Any] = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert kustomization.keys() <= _FEATURES
    manifests = list(onto)
    for name in kustomization.get("resources", ()):
        path = folder / name
        manifests += build(path) if path.is_dir() else documents(path)
    for name in kustomization.get("components", ()):
        manifests = build(folder / name, manifests)
    for generator in kustomization.get("configMapGenerator", ()):
        data = dict(literal.split("=", 1) for literal in generator["literals"])
        if generator.get("behavior") == "merge":
            _find(manifests, "ConfigMap", generator["name"])["data"] |= data
        else:
            metadata = {"name": generator["name"]}
            manifests.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    for patch in kustomization.get("patches", ()):
        for document in documents(folder / patch["path"]):
            _merge(_find(manifests, document["kind"], document["metadata"]["name"]), document)
    for manifest in manifests:
        _name_images(manifest, kustomization.get("images", ()))
        if "namespace" in kustomization and manifest["kind"] not in _CLUSTER_WIDE:
            manifest["metadata"]["namespace"] = kustomization["namespace"]
    return manifests


def documents(file: Path) -> list[Manifest]:
    return list(yaml.safe_load_all(file.read_text()))


def pod_spec(manifest: Manifest) -> Manifest:
    """Return the specification of the pods that a manifest makes, empty if it makes none."""
    spec: Manifest = manifest.get("spec", {})
    spec = spec.get("jobTemplate", {}).get("spec", spec)
    found: Manifest = spec.get("template", {}).get("spec", {})
    return found


def containers(manifest: Manifest) -> list[Manifest]:
    found: list[Manifest] = pod_spec(manifest).get("containers", [])
    return found


def without_hashes(manifests: Iterable[Manifest], names: Iterable[str]) -> list[Manifest]:
    """Return the manifests with the names of generated ConfigMaps as they are written."""
    text = yaml.safe_dump_all(manifests)
    for name in names:
        text = re.sub(rf"(?<=name: ){name}-[a-z0-9]{{10}}$", name, text, flags=re.MULTILINE)
    return list(yaml.safe_load_all(text))


def _name_images(manifest: Manifest, images: Iterable[dict[str, str]]) -> None:
    for container in containers(manifest):
        for image in images:
            name, _, tag = container["image"].partition(":")
            if name == image["name"]:
                container["image"] = f"{image['newName']}:{image.get('newTag', tag)}"


def _find(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = (one for one in manifests if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


def _merge(target: Manifest, patch: Manifest) -> None:
    """Merge as a strategic patch does, of lists only those of containers."""
    for name, value in patch.items():
        if isinstance(value, dict) and isinstance(target.get(name), dict):
            _merge(target[name], value)
        elif name == "containers":
            for container in value:
                _merge(next(one for one in target[name] if one["name"] == container["name"]), container)
        else:
            target[name] = value
