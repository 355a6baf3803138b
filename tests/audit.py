"""Ask the vulnerability service about the tested versions of natscope's libraries.

python -m tests.audit ends with 1 where one has a known vulnerability. pip-audit itself says "No known vulnerabilities
found" about versions that it could not ask for; here, what was not asked for is said, and so is a service out of reach.
"""

import json
import subprocess
import sys
from pathlib import Path

_CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
_COMMAND = ["-m", "pip_audit", "--requirement", str(_CONSTRAINTS), "--no-deps", "--disable-pip", "--format", "json"]


def main() -> int:
    asked = subprocess.run([sys.executable, *_COMMAND], capture_output=True, text=True, check=False)
    lines, code = verdict(asked.stdout)
    print("\n".join(lines))
    return code


def verdict(answer: str) -> tuple[list[str], int]:
    """Return what to say about pip-audit's answer, JSON or nothing, and the exit code."""
    libraries = json.loads(answer)["dependencies"] if answer.strip() else []
    known = [library for library in libraries if "vulns" in library]
    if not known:
        return ["Nothing was checked: the vulnerability service cannot be reached from here."], 0
    faults = [
        f"{library['name']} {library['version']}: {fault['id']}, fixed in {', '.join(fault['fix_versions']) or 'none'}"
        for library in known
        for fault in library["vulns"]
    ]
    left = [library["name"] for library in libraries if "vulns" not in library]
    unknown = [f"Not known to the service: {', '.join(left)}."] if left else []
    return [*faults, f"Libraries checked: {len(known)}; vulnerabilities known: {len(faults)}.", *unknown], int(
        bool(faults)
    )


if __name__ == "__main__":
    sys.exit(main())
