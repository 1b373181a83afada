"""Advisories for the packages that the tests are pinned to, with pip-audit, for make audit.

A service is first asked about a version that has known advisories. One that cannot be reached, or does not know them,
can say nothing about the others either; the audit then says that it was NOT RUN, and leaves a file of that name in its
environment. An advisory ends it with 1.
"""

import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# PYSEC-2019-217, PYSEC-2021-66 and others
KNOWN = "jinja2==2.10"
SERVICES = ("osv", "pypi")
SECONDS = 20.0
PARTS = 8
# Advisory to the reason why it does not concern us, with the day on which to look again
ACCEPTED: dict[str, str] = {}
MARK = Path(sys.prefix) / "not-run"


def pinned(folder: Path) -> list[str]:
    """name==version of each package of each file of pins, without those that stand in several."""
    lines = [line.strip() for file in sorted(folder.glob("*.txt")) for line in file.read_text().splitlines()]
    lines += [line.strip() for file in sorted(folder.glob("*.pins")) for line in file.read_text().splitlines()]
    return sorted({line.lower().replace("_", "-") for line in lines if "==" in line and not line.startswith("#")})


def parts(lines: list[str], count: int = PARTS) -> list[list[str]]:
    """The lines in parts of about the same size, a name at most once in each, as pip-audit wants it."""
    rows: list[list[str]] = [[] for _ in range(count)]
    for line in lines:
        name = line.partition("==")[0]
        free = [row for row in rows if not any(other.startswith(f"{name}==") for other in row)]
        if not free:
            rows.append(free_row := [])
            free = [free_row]
        min(free, key=len).append(line)
    return [row for row in rows if row]


def ask(service: str, lines: list[str]) -> list[dict[str, Any]] | None:
    """What a service says of each package, or None where it does not answer."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pins.txt"
        file.write_text("\n".join(lines) + "\n")
        command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "-r", str(file)]
        command += ["-f", "json", "--progress-spinner", "off", "--timeout", "5", "-s", service]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
            return json.loads(done.stdout)["dependencies"]
        except (subprocess.TimeoutExpired, ValueError, KeyError):
            return None


def advisories(found: list[dict[str, Any]]) -> list[str]:
    """A line for each advisory that is not accepted."""
    return [
        f"{row['name']} {row['version']}: {fault['id']}, mended in {', '.join(fault['fix_versions']) or 'no version'}"
        for row in found
        for fault in row.get("vulns", [])
        if fault["id"] not in ACCEPTED
    ]


def verdict(lines: list[str], found: list[list[dict[str, Any]] | None]) -> tuple[int, str, bool]:
    """Exit code, what to say, and whether every package was looked up.

    Args:
        lines: the pins.
        found: what the service said of each part.
    """
    rows = [row for part in found for row in part or ()]
    unknown = len(lines) - sum("vulns" in row for row in rows)
    faults = advisories(rows)
    if faults:
        return 1, "\n".join([f"{len(faults)} advisories:", *faults]), not unknown
    if unknown:
        return 0, f"NOT RUN for {unknown} of {len(lines)} packages, which the service did not answer for.", False
    return 0, f"No advisories for {len(lines)} packages.", True


def main() -> int:
    """Ask about the pins beside this file."""
    MARK.unlink(missing_ok=True)
    lines = pinned(Path(__file__).parent)
    service = next((name for name in SERVICES if advisories(ask(name, [KNOWN]) or [])), None)
    if service is None:
        code, said, whole = 0, f"NOT RUN: no service of advisories ({', '.join(SERVICES)}) answers from here.", False
    else:
        with ThreadPoolExecutor() as pool:
            code, said, whole = verdict(lines, list(pool.map(lambda part: ask(str(service), part), parts(lines))))
    if not whole:
        MARK.touch()
    print(said)
    return code


if __name__ == "__main__":
    sys.exit(main())
