"""The lock of runtime packages, the bill of materials made of it, and what must not be in either."""

import json
import re

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

LOCK = ROOT / "constraints" / "locked.txt"
SBOM = ROOT / "sbom.cdx.json"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, str]:
    """Versions by name."""
    lines = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "only names and versions"
    return {canonical(name): version for name, _, version in (line.partition("==") for line in lines)}


def test_the_lock_fits_the_requirements():
    """Each direct requirement is locked to a version that it admits, and to the newest tested one."""
    packages = locked()
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            assert requirement.specifier.contains(packages[canonical(requirement.name)]), line
    optional = "".join(
        (ROOT / f"requirements-{extra}.txt").read_text() for extra in ("rl", "gguf")
    )  # not in the lock, which is of what every run needs
    for line in (ROOT / "constraints" / "newest.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        if not line.startswith("#") and f"\n{name}>" not in optional:
            assert packages[canonical(name)] == version, line
    assert not {"pytest", "ruff", "mypy", "pip-audit", "cyclonedx-bom", "lm-eval"} & set(packages)


def test_the_bill_of_materials_is_that_of_the_lock():
    """`make sbom` was run after `make lock`."""
    components = json.loads(SBOM.read_text())["components"]
    assert {canonical(component["name"]): component["version"] for component in components} == locked()
    assert len(components) > 30


def test_the_bill_of_materials_can_be_made_again():
    """Nothing in it changes from one run to the next."""
    bill = json.loads(SBOM.read_text())
    assert bill["bomFormat"] == "CycloneDX" and bill["metadata"]["component"]["name"] == "latent-cot"
    assert "serialNumber" not in bill and "timestamp" not in bill["metadata"]


@pytest.mark.parametrize("path", [LOCK, SBOM], ids=lambda path: path.name)
def test_no_private_index_and_no_path(path):
    text = path.read_text()
    assert not re.search(r"file:|localhost|\d+\.\d+\.\d+\.\d+:\d|/(home|tmp|opt|root|work)/", text)
    hosts = set(re.findall(r"https?://([^/\"\s]+)", text))  # but for the index, pages that the tool names for itself
    tool = {
        "cyclonedx.org",
        "github.com",
        "cyclonedx-bom-tool.readthedocs.io",
        "cyclonedx-python-library.readthedocs.io",
    }
    assert hosts <= {"pypi.org"} | tool
