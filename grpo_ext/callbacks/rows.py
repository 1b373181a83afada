"""Files of a run with a JSON object a line, taken up again where a checkpoint was."""

import errno
import json
import logging
import os
from pathlib import Path

from grpo_ext.files import write_text

logger = logging.getLogger("grpo_ext")

# What the callbacks of a recipe write, and what a run says of itself at its end
LOGS = ("metrics.jsonl", "completions.jsonl", "health.jsonl", "summary.json", "learning_curve.png")


def forget_logs(folder: Path) -> None:
    """Delete what an earlier run has logged in a folder, also by callbacks that this one does not have, and its end.

    A run that crashes would otherwise show the results of the one before over curves of its own.

    Args:
        folder: of the run that begins.
    """
    for name in LOGS:
        (folder / name).unlink(missing_ok=True)


# Files whose last row could not be written
_unwritten: set[Path] = set()


def append(path: Path, text: str) -> bool:
    """Append rows, all or none: a full disk must neither end a run nor leave half a row.

    Args:
        path: file, which may not exist.
        text: whole lines.

    Returns:
        Whether they are in the file; where not, a sentence in the log says so once.
    """
    data = text.encode("utf-8")
    try:
        with path.open("ab", buffering=0) as file:
            end = _cut_half_line(path)
            try:
                if file.write(data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        if path not in _unwritten:
            _unwritten.add(path)
            logger.warning(
                "Nothing can be written to %s (%s), so rows are left out; the run goes on.", path, error.strerror
            )
        return False
    _unwritten.discard(path)
    return True


def _cut_half_line(path: Path) -> int:
    """Cut off a line that has no end; returns the size of the file."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                end = file.read().rfind(b"\n") + 1
                file.truncate(end)
    return end


def drop_after(path: Path, step: int) -> None:
    """Drop what a run that was killed had written after its checkpoint, and a line that the kill cut off.

    Args:
        path: file whose rows have a `step`; it may not exist.
        step: step of the checkpoint. Its rows stay, but not the summary that ends a run that was interrupted there. At
            0 a run begins, and the file is deleted.
    """
    if step == 0:
        path.unlink(missing_ok=True)
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(file)
    kept = [line for line in lines if line.endswith("}\n") and _belongs(json.loads(line), step)]
    if len(kept) < len(lines):
        write_text(path, "".join(kept))


def _belongs(row: dict[str, object], step: int) -> bool:
    at = row["step"]
    return isinstance(at, int) and (at < step or (at == step and "train_runtime" not in row))
