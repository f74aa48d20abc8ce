"""Prints a CycloneDX 1.5 bill of materials of the binary: `sbom.py TARGET`, for example x86_64-unknown-linux-musl.

It has the crates that are linked into the binary or run when it is built, for this target and without those of the tests, with their licences
and, from Cargo.lock, the checksums of their sources. The same sources give the same document.
"""

import json
import pathlib
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[1]


def metadata(target):
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)


def reachable(nodes, root):
    """The ids of all packages that the root needs, through dependencies that are not only for tests."""
    found, rest = set(), [root]
    while rest:
        package = rest.pop()
        if package not in found:
            found.add(package)
            needed = (dep for dep in nodes[package]["deps"] if any(kind["kind"] != "dev" for kind in dep["dep_kinds"]))
            rest += [dep["pkg"] for dep in needed]
    return found


def purl(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def component(package, checksums):
    described = {"type": "library", "bom-ref": purl(package), "name": package["name"], "version": package["version"], "purl": purl(package)}
    if package["license"]:
        described["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    if checksum := checksums.get((package["name"], package["version"])):
        described["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    if package["repository"]:
        described["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return described


def main():
    known = metadata(sys.argv[1])
    packages = {package["id"]: package for package in known["packages"]}
    nodes = {node["id"]: node for node in known["resolve"]["nodes"]}
    root = known["resolve"]["root"]
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    checksums = {(entry["name"], entry["version"]): entry.get("checksum") for entry in lock["package"]}
    ids = reachable(nodes, root)
    ordered = sorted(ids, key=lambda found: purl(packages[found]))
    subject = component(packages[root], checksums) | {"type": "application"}
    dependencies = [{"ref": purl(packages[found]), "dependsOn": sorted({purl(packages[dep["pkg"]]) for dep in nodes[found]["deps"] if dep["pkg"] in ids})}
                    for found in ordered]
    document = {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "metadata": {"component": subject},
                "components": [component(packages[found], checksums) for found in ordered if found != root], "dependencies": dependencies}
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
