"""The lock, from pip's report of what it would install (`make lock`)."""

import json
import sys

print("# Every package that requirements.txt brings (`make lock`), with the CPU build of torch.")
packages = [package["metadata"] for package in json.load(sys.stdin)["install"]]
for package in sorted(packages, key=lambda package: package["name"].lower()):
    version = package["version"].partition("+")[0]  # not the build: it is a name of an index's own
    print(f"{package['name']}=={version}")
