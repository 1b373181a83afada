"""Upload of a run in one commit, kept on disk until the hub has it: `grpo-ext push RUN`."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, get_session, get_token

from grpo_ext import __version__
from grpo_ext.hub.errors import ATTEMPTS, FIRST_WAIT, patiently
from grpo_ext.hub.prepare import FOLDER, STATE, check, kept, prepare, rename
from grpo_ext.hub.run import check_repo_id, read_run
from grpo_ext.report import write_json

# Seconds without a single byte. The hub's own client would wait for ever.
SILENCE = 120.0


@dataclass(frozen=True)
class Target:
    """Where a run goes.

    Attributes:
        repo_id: "name" or "owner/name"; None takes the run folder's name.
        token: of the hub; None takes HF_TOKEN or that of `hf auth login`.
        private: whether a new repository is private; None is the owner's default.
        revision: branch; None is main.
        attempts: tries of each request at most.
        first_wait: seconds before the second try.
        silence: seconds that the hub may say nothing.
    """

    repo_id: str | None = None
    # Not in messages about a target
    token: str | None = field(default=None, repr=False)
    private: bool | None = None
    revision: str | None = None
    attempts: int = ATTEMPTS
    first_wait: float = FIRST_WAIT
    silence: float = SILENCE

    def name_for(self, folder: Path) -> str:
        """The repository that a run goes to.

        Args:
            folder: the run.

        Returns:
            "name" or "owner/name".

        Raises:
            ValueError: the hub does not take it.
        """
        name = self.repo_id or folder.absolute().name
        check_repo_id(name, "repo_id")
        return name


@contextmanager
def impatient(seconds: float) -> Iterator[None]:
    """Let the hub's client give up after some seconds of silence, where it would wait for ever."""
    session = get_session()
    before = session.timeout
    session.timeout = seconds
    try:
        yield
    finally:
        session.timeout = before


def push_run(folder: str | Path, target: Target, base_model: str | None = None, reuse: bool = True) -> str:
    """Upload a finished run: prepare `to_push/`, look through it, commit it, and remove it when the hub has it.

    Args:
        folder: the run's `output_dir`.
        target: where it goes.
        base_model: the base's name on the hub, where the run was started from a local folder.
        reuse: whether a folder that an earlier try has prepared is taken as it is.

    Returns:
        Address of the commit.

    Raises:
        OSError: there is no such run, no token, or the hub did not take it; what was prepared stays.
        ValueError: a name that the hub does not take, or a file that must not be uploaded.
    """
    run = read_run(folder, base_model)
    name = target.name_for(run.folder)
    to_push = run.folder / FOLDER
    state = kept(to_push) if reuse and base_model is None else None
    if state is None:
        state = kept(prepare(run, name, target.token))
        assert state is not None
    elif target.repo_id is None:
        name = str(state["asked_for"])
    state["asked_for"] = name
    later = f"everything is kept in {to_push}, and `grpo-ext push {run.folder}` uploads it"
    token = target.token or get_token()
    try:
        if token is None:
            raise OSError("There is no token of the hub; log in with `hf auth login`, or set HF_TOKEN")
        api = HfApi(token=token)
        repo_id = _repository(api, name, target)
        state = rename(to_push, state, read_run(folder, state["base"]), repo_id)
        check(to_push, state, token)
        commit = patiently(lambda: _commit(api, to_push, state, target), repo_id, target.attempts, target.first_wait)
    except (OSError, ValueError) as error:
        write_json(to_push / STATE, {**state, "state": "failed", "error": str(error)})
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{' '.join(str(error).split()).rstrip('.')}; {later}.") from error
    write_json(to_push / STATE, {**state, "state": "pushed", "commit": commit.commit_url})
    for file in state["files"]:
        (to_push / file).unlink()
    return commit.commit_url


def _repository(api: HfApi, name: str, target: Target) -> str:
    """Make the repository unless there is one, and return its full name."""

    def make() -> str:
        with impatient(target.silence):
            full = name if "/" in name else f"{api.whoami()['name']}/{name}"
            return api.create_repo(full, private=target.private, exist_ok=True).repo_id

    def branch() -> None:
        with impatient(target.silence):
            api.create_branch(repo_id, branch=str(target.revision), exist_ok=True)

    repo_id = patiently(make, name, target.attempts, target.first_wait)
    if target.revision not in (None, "main"):
        patiently(branch, repo_id, target.attempts, target.first_wait)
    return repo_id


def _commit(api: HfApi, folder: Path, state: dict[str, Any], target: Target) -> CommitInfo:
    """All files in one commit; operations carry the traces of a try, so each try has its own."""
    operations = [CommitOperationAdd(name, str(folder / name)) for name in state["files"]]
    message = f"{state['kind'].capitalize()} trained with grpo_ext {__version__}"
    with impatient(target.silence):
        return api.create_commit(
            state["repo_id"], operations, commit_message=message, repo_type="model", revision=target.revision
        )


def parser() -> argparse.ArgumentParser:
    """The words after `grpo-ext push`."""
    made = argparse.ArgumentParser(
        prog="grpo-ext push", description="Upload a finished run to the Hugging Face hub: weights, tokenizer, card."
    )
    made.add_argument("run", help="the run's output_dir")
    made.add_argument("--repo_id", help="'name' or 'owner/name'; unset: the folder's name")
    made.add_argument("--base_model", help="hub name of the base, where the run began from a local folder")
    made.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    made.add_argument("--revision", help="branch; unset: main")
    made.add_argument("--again", action="store_true", help="prepare anew, also where an earlier try left its files")
    made.add_argument("--dry_run", action="store_true", help="prepare and check the files, and upload nothing")
    return made


def main(argv: Sequence[str]) -> int:
    """Upload a run, or prepare it to be looked at.

    Args:
        argv: the words after `push`.

    Returns:
        0.
    """
    args = parser().parse_args(argv)
    target = Target(repo_id=args.repo_id, private=args.private, revision=args.revision)
    if args.dry_run:
        run = read_run(args.run, args.base_model)
        folder = prepare(run, target.name_for(run.folder), get_token())
        state = kept(folder)
        assert state is not None
        check(folder, state, get_token())
        print(f"Ready in {folder}: {', '.join(state['files'])}")
        print(f"Left out of {run.weights}: {', '.join(state['left_out']) or 'nothing'}")
        return 0
    print(f"Uploaded: {push_run(args.run, target, args.base_model, reuse=not args.again)}")
    return 0
