"""Files of a run with a JSON object a line, taken up again where a checkpoint was."""

import json
from pathlib import Path

# What the callbacks of a recipe write.
LOGS = ("metrics.jsonl", "completions.jsonl", "health.jsonl")


def forget_logs(folder: Path) -> None:
    """Delete what an earlier run has logged in a folder, also by callbacks that this one does not have.

    Args:
        folder: of the run that begins.
    """
    for name in LOGS:
        (folder / name).unlink(missing_ok=True)


def rewrite(path: Path, text: str) -> None:
    """Put a text in the place of a file's, under a temporary name until it is whole."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


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
        rewrite(path, "".join(kept))


def _belongs(row: dict[str, object], step: int) -> bool:
    at = row["step"]
    return isinstance(at, int) and (at < step or (at == step and "train_runtime" not in row))
