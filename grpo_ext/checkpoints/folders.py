"""Checkpoint folders: made under another name, renamed when whole, chosen by their manifests.

A checkpoint is made in `<output_dir>/.saving/checkpoint-N`. When everything is in it, `manifest.json` is written last,
with the size of each file and the SHA-256 of the small ones, and the folder is renamed. Only then are older ones
deleted. So a folder `checkpoint-N` is whole, unless something else has cut it short, which its manifest tells.
"""

import json
import logging
import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from grpo_ext.files import digest_of_file
from grpo_ext.trust import inside, refuse_unsafe_states

logger = logging.getLogger("grpo_ext")

MANIFEST = "manifest.json"
WORKING = ".saving"
LAST = "last"
TRAINER_STATE = "trainer_state.json"
# Bytes up to which a file's content is compared, and not its size alone
SMALL = 4 * 2**20
_NAME = re.compile(r"checkpoint-(\d+)")


def _sync(path: Path) -> None:
    """Have the disk hold what was written, so that a power cut cannot undo it after the rename."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_manifest(folder: Path) -> None:
    """Write down what is in a checkpoint. The last file to be written.

    Args:
        folder: the checkpoint.
    """
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST):
        size = path.stat().st_size
        files[path.relative_to(folder).as_posix()] = {
            "bytes": size,
            **({"sha256": digest_of_file(path)} if size <= SMALL else {}),
        }
        _sync(path)
    partial = folder / (MANIFEST + ".partial")
    partial.write_text(json.dumps({"saved": time.time_ns(), "files": files}, indent=1), encoding="utf-8")
    _sync(partial)
    partial.replace(folder / MANIFEST)


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return found if isinstance(found["saved"], int) and isinstance(found["files"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def flaw(folder: Path) -> str | None:
    """Why a checkpoint cannot be gone on from, as the end of a sentence, or None where it is whole.

    Args:
        folder: the checkpoint.
    """
    if not folder.is_dir():
        return "is not there"
    if not (folder / MANIFEST).is_file():
        return f"has no {MANIFEST}, which is written last"
    manifest = _manifest(folder)
    if manifest is None:
        return f"has a {MANIFEST} that is cut off"
    for name, expected in manifest["files"].items():
        path = inside(folder, name, f"{folder / MANIFEST}")
        if not path.is_file():
            return f"lacks {name}"
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"has {size} bytes of {name} in place of {expected['bytes']}"
        if "sha256" in expected and digest_of_file(path) != expected["sha256"]:
            return f"has another {name} than was saved"
    return None


def publish(working: Path, final: Path) -> None:
    """Give a whole checkpoint its name. One of that name, left by an earlier run, goes only then.

    Args:
        working: the checkpoint as it was made, with its manifest.
        final: its folder from now on, on the same disk.
    """
    replaced = working.with_name(f"replaced-{final.name}")
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    working.rename(final)
    _sync(final.parent)
    shutil.rmtree(working.parent, ignore_errors=True)


def recover(output_dir: Path) -> None:
    """Finish a rename that a kill came before, and delete what was left unfinished.

    Args:
        output_dir: folder of the run, which may not exist.
    """
    working = output_dir / WORKING
    try:
        found = list(working.iterdir())
    except FileNotFoundError:
        return
    for folder in found:
        final = output_dir / folder.name
        # Another process may have been first
        with suppress(OSError):
            if _NAME.fullmatch(folder.name) and not final.exists() and flaw(folder) is None:
                folder.rename(final)
    shutil.rmtree(working, ignore_errors=True)


def _step(folder: Path) -> int:
    found = _NAME.fullmatch(folder.name)
    return int(found[1]) if found else -1


def _saved_at(folder: Path) -> int:
    manifest = _manifest(folder)
    return manifest["saved"] if manifest else folder.stat().st_mtime_ns


def checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoints of a folder, the newest first. A folder may hold some of an earlier run, whose steps are higher.

    Args:
        output_dir: folder of the run, which may not exist.
    """
    found = [path for path in output_dir.glob("checkpoint-*") if path.is_dir() and _step(path) >= 0]
    return sorted(found, key=lambda path: (_saved_at(path), _step(path)), reverse=True)


def rotate(output_dir: Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints beyond a limit, never the newest nor the best.

    Args:
        output_dir: folder of the run.
        limit: how many to keep; None or 0 keeps all.
        best: folder of the best one, where the run knows it.
    """
    if not limit or limit < 0:
        return
    newest, *older = checkpoints(output_dir)
    kept = {newest} | {path for path in older if best is not None and path.resolve() == Path(best).resolve()}
    for path in older:
        if path in kept:
            continue
        if len(kept) < limit:
            kept.add(path)
        else:
            shutil.rmtree(path, ignore_errors=True)


def choose(asked: str | os.PathLike[str] | bool | None, output_dir: str | os.PathLike[str]) -> Path | None:
    """The checkpoint to go on from, and a sentence in the log where it is not the one that was asked for.

    Called before anything is saved: what a kill has left unfinished in the folder is finished or deleted.

    Args:
        asked: a checkpoint; "last" or True for the newest one of `output_dir`; None or False for none.
        output_dir: folder of the run.

    Returns:
        A checkpoint that is whole, or None for a run from the beginning: nothing was asked for, or "last" where there
        is no checkpoint yet, so that a scheduler can give the same command each time.

    Raises:
        ValueError: there is none that could be used, or one from elsewhere holds what could run code or names files
            outside of its folder.
    """
    folder = Path(output_dir)
    recover(folder)
    if asked is None or asked is False:
        return None
    if asked is True or asked == LAST:
        candidates = checkpoints(folder)
        if not candidates and asked == LAST:
            logger.info("Resume: %s has no checkpoint yet, so the run begins at step 0.", folder)
            return None
        if not candidates:
            raise ValueError(f"`resume_from_checkpoint` is True, but {folder} has no checkpoint; leave it unset.")
    else:
        named = Path(os.fspath(asked))
        if not named.is_dir():
            raise ValueError(
                f"`resume_from_checkpoint` is {str(named)!r}, which is no folder; name a checkpoint, or 'last'."
            )
        older = [path for path in checkpoints(named.parent) if 0 <= _step(path) < _step(named)]
        candidates = [named, *sorted(older, key=_step, reverse=True)]
    chosen = _first_whole(candidates)
    refuse_unsafe_states(chosen, "resume_from_checkpoint")
    return chosen


def _first_whole(candidates: list[Path]) -> Path:
    first, reason = candidates[0], flaw(candidates[0])
    if reason is None:
        return first
    for path in candidates[1:]:
        if flaw(path) is None:
            logger.warning("Resume: %s %s, so the run goes on from %s.", first, reason, path)
            return path
    # Of another program, or of an earlier version: nobody can tell whether it is whole
    if not (first / MANIFEST).exists() and (first / TRAINER_STATE).is_file():
        logger.warning("Resume: %s %s, so it is taken as it is: TRL's own part alone.", first, reason)
        return first
    raise ValueError(
        f"`resume_from_checkpoint`: {first} {reason}, and there is no whole checkpoint before it; name another "
        "one, or leave it unset to begin at step 0."
    )
