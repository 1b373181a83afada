"""`grpo-ext report RUN...`: one HTML file that shows what a run learned."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from grpo_ext.files import write_text
from grpo_ext.report.pictures import export
from grpo_ext.report.reading import Run, read_run


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="grpo-ext report", description=__doc__)
    add = made.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="Output folder of a run; several are drawn over each other.")
    add("--output", type=Path, help="File to write; unset: report.html in the run's folder, or here for several.")
    add("--png", action="store_true", help="Also write the curves as a PNG beside it, for papers.")
    add("--title", help="Headline; unset: the model and the problems.")
    return made


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the folders, and tell runs of one name apart by their parents.

    Args:
        folders: output folders.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: one holds no run, or is named twice.
    """
    places = [folder.resolve() for folder in folders]
    for place, folder in zip(places, folders, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"{folder} is named twice; name each run once.")
    names = [place.name for place in places]
    longer = [str(Path(*place.parts[-2:])) if names.count(place.name) > 1 else place.name for place in places]
    named = longer if len(set(longer)) == len(longer) else [str(folder) for folder in folders]
    return [read_run(folder, name) for folder, name in zip(folders, named, strict=True)]


def main(argv: Sequence[str]) -> int:
    """Read the runs and write the page.

    Args:
        argv: the words after `report`.

    Returns:
        Exit code 0.
    """
    args = parser().parse_args(argv)
    runs = read_runs(args.runs)
    # The page's libraries are an extra; what is wrong with a folder is said without them
    from grpo_ext.report.page import headline, page

    target = args.output or (args.runs[0] if len(runs) == 1 else Path()) / "report.html"
    if target.is_dir():
        raise IsADirectoryError(f"--output {target} is a folder; name a file in it, such as {target / 'report.html'}.")
    title = args.title or headline(runs)
    content = page(runs, title)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, content)
    print(f"{target}: {len(content.encode()) / 1e6:.1f} MB, opens without a network")
    for run in runs:
        for note in run.notes:
            print(f"  {run.name}: {note}")
    if args.png:
        picture = target.with_suffix(".png")
        export(runs, picture, title)
        print(f"{picture}")
    return 0
