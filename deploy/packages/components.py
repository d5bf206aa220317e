#!/usr/bin/env python3
"""Completes what a release says of the parts of the program: deploy/packages/components.py BILL NOTICES

BILL is the bill of materials that cargo-cyclonedx made. It gets the C library, which is linked statically, and loses
the path of the folder of the build. NOTICES is written: the licenses of all parts, as their authors ask for.
"""

import collections
import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
LICENSE = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)", re.I)


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def main():
    bill_path, notices_path = (pathlib.Path(argument) for argument in sys.argv[1:])
    text = bill_path.read_text().replace(f"path+file://{ROOT}", "path+file:///workspace-gateway")
    bill = json.loads(text)
    metadata = json.loads(output("cargo", "metadata", "--locked", "--format-version=1"))
    manifests = {(crate["name"], crate["version"]): crate["manifest_path"] for crate in metadata["packages"]}

    parts = collections.defaultdict(list)
    for crate in bill["components"]:
        name, version = crate["name"], crate["version"]
        files = sorted(pathlib.Path(manifests[name, version]).parent.iterdir())
        licenses = [path for path in files if path.is_file() and LICENSE.match(path.name)]
        texts = [path.read_text(errors="replace").strip() for path in licenses]
        [declared] = crate["licenses"]
        declared = declared.get("expression") or declared["license"].get("id") or declared["license"]["name"]
        # Some crates have no file. What they declare is then all that there is.
        for license in texts or [f"License: {declared}"]:
            parts[license].append(f"{name} {version}")

    # Of this machine's architecture. That of the other one has the same version, or apt would not install it.
    package = "libc6-dev:" + output("dpkg", "--print-architecture").strip()
    library = output("dpkg-query", "--show", "--showformat=${Version}", package)
    purl = f"pkg:deb/debian/glibc@{library.replace('+', '%2B')}?arch=source"
    component = {"type": "library", "bom-ref": purl, "name": "glibc", "version": library, "scope": "required"}
    bill["components"].append(component | {"purl": purl, "licenses": [{"license": {"id": "LGPL-2.1-or-later"}}]})
    parts[pathlib.Path("/usr/share/doc/libc6-dev/copyright").read_text().strip()].append(f"glibc {library}")
    bill_path.write_text(json.dumps(bill, indent=2) + "\n")

    line = "-" * 80
    sections = [f"{line}\n{', '.join(names)}\n{line}\n\n{license}\n" for license, names in parts.items()]
    about = "The program contains these parts, and Rust's standard library (MIT OR Apache-2.0), in binary form.\n"
    notices_path.write_text("\n".join([about, *sections]))


if __name__ == "__main__":
    main()
