"""Which versions fit: read off the metadata of the package itself and of its hosts, never written down twice."""

import importlib.metadata
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import Specifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

OWN = "grpo-ext"
SIDES = {">": "lower", ">=": "lower", "<": "upper", "<=": "upper"}


@dataclass(frozen=True)
class Bound:
    """What one package asks of another.

    Attributes:
        name: canonical name of the package that is asked for.
        specifier: versions that fit; empty for any.
        source: who asks, as a user would write it.
    """

    name: str
    specifier: SpecifierSet
    source: str


def own_requirements() -> tuple[str, ...]:
    """The requirements of grpo_ext, those of its extras with a marker, as in an installed package's metadata.

    The interpreter is among them under the name "python". In a source tree they come from its `pyproject.toml`: one
    that is only on the path has no metadata, and an editable install keeps that of the day it was made.
    """
    source = source_requirements(Path(__file__).resolve().parents[2] / "pyproject.toml")
    if source:
        return source
    try:
        found = importlib.metadata.metadata(OWN)
    except importlib.metadata.PackageNotFoundError:
        return ()
    return f"python{found['Requires-Python']}", *(found.get_all("Requires-Dist") or ())


def source_requirements(file: Path) -> tuple[str, ...]:
    """The requirements in a `pyproject.toml`, in the form of an installed package's metadata.

    Args:
        file: the file; nothing is required where it does not exist or belongs to another package.
    """
    project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {}) if file.is_file() else {}
    if project.get("name") != OWN:
        return ()
    extras = project.get("optional-dependencies", {})
    return (
        f"python{project['requires-python']}",
        *project["dependencies"],
        *(f'{line}; extra == "{extra}"' for extra, lines in extras.items() for line in lines),
    )


def bounds(
    requires: Mapping[str, Sequence[str]], extra: str = "", package: str = OWN, own_only: bool = False
) -> Iterator[Bound]:
    """What a package asks for, and through an extra of another package (`trl[vllm]`) what that one asks for.

    Args:
        requires: requirements by canonical package name.
        extra: an extra of the package; empty for what it always needs.
        package: who asks.
        own_only: with an extra, leave out what is needed without it.

    Yields:
        Bounds in the order of the metadata.
    """
    source = f"{package}[{extra}]" if extra else package
    for line in requires.get(package, ()):
        requirement = Requirement(line)
        always = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if not always and not (requirement.marker and requirement.marker.evaluate({"extra": extra})):
            continue
        if own_only and always:
            continue
        name = canonicalize_name(requirement.name)
        yield Bound(name, requirement.specifier, source)
        for inner in sorted(requirement.extras):
            yield from bounds(requires, inner, name, own_only=True)


def merged(found: Sequence[Bound], name: str) -> SpecifierSet:
    """All that is asked of one package at once.

    Args:
        found: bounds.
        name: canonical name.
    """
    return SpecifierSet(",".join(sorted({str(bound.specifier) for bound in found if bound.name == name} - {""})))


def fits(version: str, specifier: SpecifierSet) -> bool:
    """Whether an installed version is among those asked for; a pre-release counts by its number.

    Args:
        version: as in the metadata.
        specifier: versions that fit.
    """
    try:
        return specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def requirement(name: str, specifier: SpecifierSet) -> str:
    """A package with its bounds as one quoted word of an install line, `"trl>=1.15,<=1.15.0"`."""
    return f'"{name}{shown(specifier)}"'


def shown(specifier: SpecifierSet) -> str:
    """Bounds in the usual order without those that another one implies: `>=5.2,<=5.17.0,!=5.5`."""
    sides: dict[str, list[Specifier]] = {side: [] for side in ("lower", "upper", "other")}
    for part in sorted(specifier, key=str):
        sides[SIDES.get(part.operator, "other")].append(part)
    kept = [max(sides["lower"], key=_tightness)] if sides["lower"] else []
    kept += [min(sides["upper"], key=_tightness)] if sides["upper"] else []
    within = SpecifierSet(",".join(map(str, kept)))
    # A release that is left out below the lowest one says nothing
    others = [one for one in sides["other"] if one.operator != "!=" or fits(one.version.removesuffix(".*"), within)]
    return ",".join(map(str, [*kept, *others]))


def _tightness(part: Specifier) -> tuple[Version, bool]:
    return Version(part.version), part.operator in (">", "<=")
