"""Whether what pip installs today, without constraints, is what was tested (`make test-newest`).

    python tests/helpers/newest_versions.py constraints/newest.txt < REPORT

Args:
    REPORT: of `pip install --dry-run --ignore-installed --report -`.

Prints the packages that differ, and exits with 1 if any does.
"""

import json
import sys
from pathlib import Path


def canonical(name: str) -> str:
    return name.lower().replace("_", "-")


def main() -> None:
    lines = [line for line in Path(sys.argv[1]).read_text().splitlines() if "==" in line]
    tested = {canonical(name): version for name, _, version in (line.partition("==") for line in lines)}
    entries = [entry["metadata"] for entry in json.load(sys.stdin)["install"]]
    today = {canonical(entry["name"]): entry["version"].partition("+")[0] for entry in entries}
    other = {name: version for name, version in today.items() if tested.get(name, version) != version}
    for name, version in sorted(other.items()):
        print(f"{name} {version} (tested: {tested[name]})")
    sys.exit(1 if other else 0)


if __name__ == "__main__":
    main()
