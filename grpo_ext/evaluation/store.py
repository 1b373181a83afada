"""Samples on disk: one line for each, appended batch by batch, so that a killed evaluation goes on where it was.

The first line holds the settings that the samples were made with.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_ext.evaluation.questions import Answer, Question
from grpo_ext.evaluation.scores import Reading
from grpo_ext.files import write_text

logger = logging.getLogger("grpo_ext")

SAMPLES = "samples.jsonl"
FIELDS = {"problem": int, "key": str, "sample": int | None, "text": str, "tokens": int, "ended": bool}


class SampleStore:
    """The answers of one model in one folder.

    A batch is one write that is synced to the disk. What a kill leaves of a line is recognised by the missing line
    end and cut off; the questions of that batch which have no complete line are asked again.

    Args:
        folder: made if it is not there.
        settings: everything that an answer depends on, as JSON values.

    Raises:
        ValueError: the file was made with other settings, or has a line that is no answer.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.path = folder / SAMPLES
        folder.mkdir(parents=True, exist_ok=True)
        self.answers: dict[tuple[str, int | None], Answer] = {}
        lines = _whole_lines(self.path)
        if lines:
            self._check_settings(lines[0], settings)
            self._read(lines[1:])
        else:
            self._write([{"settings": dict(settings)}])

    def missing(self, asked: Sequence[Question]) -> list[Question]:
        """The questions without an answer.

        Args:
            asked: questions.
        """
        return [question for question in asked if (question.key, question.sample) not in self.answers]

    def answer(self, question: Question) -> Answer:
        """The stored answer of a question that is not missing.

        Args:
            question: which.
        """
        return self.answers[question.key, question.sample]

    def append(self, asked: Sequence[Question], answers: Sequence[Answer]) -> None:
        """Write the answers of a batch that are not there yet.

        Args:
            asked: questions.
            answers: theirs.
        """
        records = []
        for question, answer in zip(asked, answers, strict=True):
            place = question.key, question.sample
            if place not in self.answers:
                self.answers[place] = answer
                records.append(_record(question, answer))
        self._write(records)

    def _write(self, records: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        with self.path.open("ab") as file:
            file.write(text.encode("utf-8", "replace"))
            file.flush()
            os.fsync(file.fileno())

    def _check_settings(self, line: bytes, settings: Mapping[str, Any]) -> None:
        found = _parsed(line).get("settings")
        if not isinstance(found, dict):
            raise ValueError(f"{self.path} does not say how its samples were made; delete it to begin anew.")
        for name, value in settings.items():
            if found.get(name) != value:
                raise ValueError(
                    f"`{name}` is {value!r}, but the samples in {self.path} were made with {found.get(name)!r}; "
                    "name another `output_dir`, or delete that file."
                )

    def _read(self, lines: Sequence[bytes]) -> None:
        for number, line in enumerate(lines, start=2):
            record = _parsed(line)
            if not all(isinstance(record.get(name), kind) for name, kind in FIELDS.items()):
                raise ValueError(
                    f"{self.path}, line {number} is no sample of an evaluation; delete the file to begin anew."
                )
            answer = Answer(record["text"], record["tokens"], record["ended"])
            self.answers.setdefault((record["key"], record["sample"]), answer)


def _whole_lines(path: Path) -> list[bytes]:
    """The complete lines of a file, from which a broken off last one is cut."""
    content = path.read_bytes() if path.is_file() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        logger.info("%s: the last line was broken off and is made again", path)
        os.truncate(path, len(whole))
    return whole.split(b"\n")[:-1]


def _parsed(line: bytes) -> dict[str, Any]:
    """The object in a line, empty where there is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _record(question: Question, answer: Answer) -> dict[str, Any]:
    return {
        "problem": question.problem,
        "key": question.key,
        "sample": question.sample,
        "text": answer.text,
        "tokens": answer.tokens,
        "ended": answer.ended,
    }


def write_scored(
    path: Path,
    asked: Sequence[Question],
    answers: Sequence[Answer],
    rows: Sequence[Mapping[str, Any]],
    readings: Mapping[str, Reading],
) -> None:
    """Each answer with its problem and its verdicts, for people to look through.

    Args:
        path: JSON Lines file.
        asked: questions.
        answers: theirs.
        rows: problems.
        readings: by reader.
    """
    lines = []
    for question, answer in zip(asked, answers, strict=True):
        place, row = (question.problem, question.sample), rows[question.problem]
        line: dict[str, Any] = {"problem": question.problem, "sample": question.sample}
        line |= {reader: reading.right[place] for reader, reading in readings.items()}
        line |= {"question": row["question"], "answer": row["answer"], "text": answer.text}
        line |= {"tokens": answer.tokens, "ended": answer.ended}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))
