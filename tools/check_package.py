# SPDX-License-Identifier: Apache-2.0
"""Lint what ruff does not see: package.xml, versions, licence headers, the lock, shell scripts.

What ament_xmllint and ament_copyright look at on a ROS machine, and that the version is the same
everywhere. Prints one line per fault; exit code 1 when there are any.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE_FOLDERS = ("egoedit_ros", "test", "tools", "launch", "scripts", "config", ".ci")
SPDX = "SPDX-License-Identifier: Apache-2.0"
REQUIRED = ("name", "version", "description", "maintainer", "license", "buildtool_depend")


def check_package_xml(path: Path) -> list[str]:
    """Well-formed, format 3, what every package needs, no dependency twice."""
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        return [f"{path.name}: {error}"]
    faults = []
    if root.tag != "package" or root.get("format") != "3":
        faults.append(f"{path.name}: not a package of format 3")
    for tag in REQUIRED:
        element = root.find(tag)
        if element is None or not (element.text or "").strip():
            faults.append(f"{path.name}: no <{tag}>")
    for element in root.iter("maintainer"):
        if not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", element.get("email", "")):
            faults.append(f"{path.name}: maintainer without an e-mail address")
    seen = set()
    for element in root:
        key = (element.tag, (element.text or "").strip())
        if element.tag.endswith("depend") and key in seen:
            faults.append(f"{path.name}: <{key[0]}>{key[1]} twice")
        seen.add(key)
    if root.findtext("export/build_type") != "ament_cmake":
        faults.append(f"{path.name}: build_type is not ament_cmake")
    if root.findtext("member_of_group") != "rosidl_interface_packages":
        faults.append(f"{path.name}: not a member of rosidl_interface_packages")
    return faults


def check_versions() -> list[str]:
    """One version in package.xml, pyproject.toml and the change log."""
    version = ElementTree.parse(ROOT / "package.xml").getroot().findtext("version")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    faults = []
    if project != version:
        faults.append(f"pyproject.toml: version {project}, package.xml has {version}")
    log = (ROOT / "CHANGELOG.rst").read_text()
    if "Forthcoming" not in log and not re.search(rf"(?m)^{re.escape(version)} \(", log):
        faults.append(f"CHANGELOG.rst: neither 'Forthcoming' nor {version}")
    return faults


def tracked_files() -> list[Path]:
    """What git knows or would add; without git, all that lies in the source folders."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]
    return [p for folder in SOURCE_FOLDERS for p in (ROOT / folder).rglob("*") if p.is_file()]


def check_headers(paths: list[Path]) -> list[str]:
    """An SPDX line near the head of every source file."""
    faults = []
    for path in paths:
        source = path.suffix in (".py", ".yaml", ".xml", ".sh") or path.parent.name == "scripts"
        if not source or path.relative_to(ROOT).parts[0] not in SOURCE_FOLDERS:
            continue
        text = path.read_text(errors="replace")
        if text.strip() and SPDX not in text[:600]:
            faults.append(f"{path.relative_to(ROOT)}: no '{SPDX}'")
    return faults


def check_xml(paths: list[Path]) -> list[str]:
    faults = []
    for path in paths:
        if path.suffix == ".xml":
            try:
                ElementTree.parse(path)
            except ElementTree.ParseError as error:
                faults.append(f"{path.relative_to(ROOT)}: {error}")
    return faults


def check_lock() -> list[str]:
    """Exact versions, a hash each (torch excepted), and no address of any index."""
    text = (ROOT / "requirements.lock").read_text()
    faults = []
    if re.search(r"https?://|^-", text, re.MULTILINE):
        faults.append("requirements.lock: names an address or an option")
    for block in re.split(r"(?m)^(?=[A-Za-z0-9])", re.sub(r"(?m)^#.*\n", "", text)):
        name = block.split("==")[0].strip()
        if not name:
            continue
        if "==" not in block:
            faults.append(f"requirements.lock: {name} is not pinned")
        elif "--hash=sha256:" not in block and name != "torch":
            faults.append(f"requirements.lock: {name} has no hash")
    return faults


def check_shell() -> list[str]:
    script = ROOT / ".ci" / "run"
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    faults = [f".ci/run: {done.stderr.strip()}"] if done.returncode else []
    if not script.stat().st_mode & 0o111:
        faults.append(".ci/run: not executable")
    return faults


def main() -> int:
    paths = tracked_files()
    faults = check_package_xml(ROOT / "package.xml") + check_versions() + check_headers(paths)
    faults += check_xml(paths) + check_lock() + check_shell()
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
