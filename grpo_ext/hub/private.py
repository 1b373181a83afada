"""What must not leave this machine, how it is taken out of text, and how what is left is found."""

import getpass
import os
import re
import shlex
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from grpo_ext.folders import cache_root

HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
SECRET_VARIABLES = ("_TOKEN", "_KEY", "_SECRET", "_PASSWORD")
SHORTEST_SECRET = 8
# Folders at the root of a file system under which people keep things; a bare "/think" is a word to a model
ROOTS = "home|Users|root|tmp|mnt|data|scratch|work|workspace|var|opt|srv|media|content|nfs|lustre|gpfs|private"
LOCAL_PATH = re.compile(rf"(?<![\w.~:/-])(?:/(?:{ROOTS})/[\w.~-]|~/[\w.]|[A-Za-z]:\\+Users\\)")
# Accounts and hosts that name nobody, and words that a card has anyway
NOBODY = frozenset(
    "root user users admin administrator ubuntu debian centos fedora runner jovyan docker vscode codespace nobody "
    "work worker build test tests data model models train trainer training grpo trl peft vllm unsloth torch lora "
    "local localhost adapter hub python base main default home colab kaggle sagemaker".split()
)
SHORTEST_NAME = 4

# Flags of a recipe that are about the upload and not about the training
UPLOAD_FLAGS = ("push_to_hub", "hub_")
# Keys of a config whose value is the name of a model
MODEL_KEYS = ("base_model_name_or_path", "name_or_path", "_name_or_path")


@dataclass(frozen=True)
class Private:
    """Strings of this machine and its user.

    Attributes:
        tokens: of the hub, and secrets from the environment.
        paths: absolute folders, the longest first.
        names: of the account and the host, where these say who it is.
    """

    tokens: tuple[str, ...]
    paths: tuple[str, ...]
    names: tuple[str, ...]


def private_words(folder: Path, token: str | None = None, environment: Mapping[str, str] = os.environ) -> Private:
    """Collect what is private here.

    Args:
        folder: the run.
        token: token of the hub, if there is one.
        environment: variables whose names end as those of secrets do are secrets.

    Returns:
        The strings to look for.
    """
    secrets = _secrets(environment)
    folders = [Path.home(), Path.cwd(), Path(tempfile.gettempdir()), folder.absolute(), Path(sys.prefix), cache_root()]
    named = [environment[name] for name in ("HF_HOME", "GRPO_EXT_DATA", "VIRTUAL_ENV") if environment.get(name)]
    paths = {str(path) for path in [*folders, *(path.resolve() for path in folders), *map(Path, named)]}
    try:
        account = getpass.getuser()
    except (KeyError, ImportError, OSError):  # a container whose user has no name
        account = ""
    host = socket.gethostname()
    names = {account, host, host.partition(".")[0]}
    return Private(
        tokens=tuple(secrets | ({token} if token and len(token) >= SHORTEST_SECRET else set())),
        paths=tuple(sorted((path for path in paths if PurePath(path).is_absolute() and len(path) > 3), key=len))[::-1],
        names=tuple(name for name in names if len(name) >= SHORTEST_NAME and name.lower() not in NOBODY),
    )


def _secrets(environment: Mapping[str, str]) -> set[str]:
    found = {value for name, value in environment.items() if name.upper().endswith(SECRET_VARIABLES)}
    return {value for value in found if len(value) >= SHORTEST_SECRET}


def is_local_path(text: str, private: Private) -> bool:
    """Whether a value names a place on this machine.

    Args:
        text: the whole value.
        private: strings of this machine.

    Returns:
        True for an absolute path that exists here or lies where people keep things, and for `~` and `..`.
    """
    if text.startswith(("~", "..")) or LOCAL_PATH.search(text) or any(path in text for path in private.paths):
        return True
    return os.path.isabs(text) and Path(text).exists()


def without_names(text: str, private: Private) -> str:
    """The text with the names of the account and the host replaced by `_`."""
    for name in private.names:
        text = _alone(name).sub("_", text)
    return text


def _alone(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", re.IGNORECASE)


def without_token(words: Sequence[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """The words of a command line without the hub's token, and with `_` for other secrets.

    Args:
        words: the words after the command.
        environment: variables whose names end as those of secrets do are secrets.

    Returns:
        The words as a summary may repeat them.
    """
    kept = [HUB_TOKEN.sub("_", word) for word in _dropped(words, ("hub_token",))]
    for secret in _secrets(environment):
        kept = [word.replace(secret, "_") for word in kept]
    return kept


def _dropped(words: Sequence[str], flags: tuple[str, ...]) -> list[str]:
    """The words without flags that begin so, written with hyphens or not, and their values."""
    kept: list[str] = []
    dropping = False
    for word in words:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("-", "_")
            dropping = name.startswith(flags)
            # The value stands in the same word
            if dropping and "=" in word:
                dropping = False
                continue
        if not dropping:
            kept.append(word)
    return kept


def public_command(command: str, title: str, private: Private) -> str:
    """A run's command as another person may see it: no upload flags, local paths cut to their last part.

    Args:
        command: as the run noted it.
        title: what the base model is called, in place of a local folder.
        private: strings of this machine.

    Returns:
        The command line.
    """
    cleaned: list[str] = []
    before = ""
    for word in _dropped(shlex.split(command), UPLOAD_FLAGS):
        flag, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if value and is_local_path(value, private):
            value = title if (flag or before) == "--model_name_or_path" else PurePath(value).name
        before = word
        cleaned.append(without_names(HUB_TOKEN.sub("_", flag + sign + value), private))
    return shlex.join(cleaned)


def public_json(content: Any, title: str, private: Private) -> Any:
    """A config file's content with names of models made public and local paths left out.

    Args:
        content: what the file holds.
        title: what the base model is called.
        private: strings of this machine.

    Returns:
        The same, cleaned.
    """
    if isinstance(content, dict):
        named = {key: title if key in MODEL_KEYS and value else value for key, value in content.items()}
        kept = {key: value for key, value in named.items() if not _is_place(value, private)}
        return {key: public_json(value, title, private) for key, value in kept.items()}
    if isinstance(content, list):
        return [public_json(value, title, private) for value in content if not _is_place(value, private)]
    return content


def _is_place(value: Any, private: Private) -> bool:
    return isinstance(value, str) and "\n" not in value and is_local_path(value, private)


def leaks(content: bytes, private: Private, public: Sequence[str] = (), prose: bool = False) -> list[str]:
    """What a file says that it must not, each in words that do not repeat it.

    Args:
        content: bytes of the file.
        private: strings of this machine.
        public: names that may stand there although they are also someone's, such as the repository's.
        prose: whether the file is a card or a config, where any local path and the account's and host's names count;
            a vocabulary holds "/tmp" and many a name as tokens.

    Returns:
        One entry a kind of leak.
    """
    text = content.decode("utf-8", errors="replace")
    found = []
    if any(token in text for token in private.tokens) or HUB_TOKEN.search(text):
        found.append("a token")
    if any(path in text for path in private.paths if prose or len(PurePath(path).parts) > 2):
        found.append("a path of this machine")
    elif prose and (place := LOCAL_PATH.search(text)):
        found.append(f"a local path (character {place.start()})")
    if prose:
        for name in public:
            text = text.replace(name, "")
        if any(_alone(name).search(text) for name in private.names):
            found.append("the name of this account or host")
    return found
