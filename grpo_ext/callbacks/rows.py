"""Files of a run with a JSON object a line, taken up again where a checkpoint was."""

import json
from pathlib import Path


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
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(path)


def _belongs(row: dict[str, object], step: int) -> bool:
    at = row["step"]
    return isinstance(at, int) and (at < step or (at == step and "train_runtime" not in row))
