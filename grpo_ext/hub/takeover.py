"""`--push_to_hub` of a recipe: TRL's own fields say where, and one upload at the end takes the place of Trainer's.

Trainer makes the repository when it is constructed and commits its whole output folder at every save, with
`training_args.bin`, a pickle that holds the token. A recipe uploads what `grpo_ext.hub.prepare` lets through, once.
"""

from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import OfflineModeIsEnabled
from transformers.trainer_utils import HubStrategy

from grpo_ext.config import GRPOExtConfig
from grpo_ext.hub.errors import FAILURES, passes, sentence
from grpo_ext.hub.push import Target, impatient

# What Trainer's strategies come to here: one upload at the end
STRATEGIES = (HubStrategy.EVERY_SAVE, HubStrategy.END)
FIRST_SILENCE = 10.0


def take_over(config: GRPOExtConfig) -> Target | None:
    """Take the upload out of Trainer's hands, and see now whether it can work at the end.

    Args:
        config: the trainer's; `push_to_hub` and `hub_token` are reset, so that Trainer neither uploads nor keeps them.

    Returns:
        Where the run goes, or None where nobody asked for it.

    Raises:
        ValueError: a name that the hub does not take, or a field that only Trainer's own uploads can honour.
        OSError: there is no token, or the hub does not accept it.
    """
    if not config.push_to_hub:
        # Trainer would write it into each checkpoint's training_args.bin
        config.hub_token = None
        return None
    strategy = HubStrategy(config.hub_strategy)
    if strategy not in STRATEGIES or config.hub_always_push:
        field = "`hub_always_push`" if strategy in STRATEGIES else f"`hub_strategy` {strategy.value!r}"
        raise ValueError(
            f"{field} asks for uploads of checkpoints, which hold optimizer states and pickles; a recipe uploads once "
            "at its end, leave the field unset."
        )
    target = Target(config.hub_model_id, config.hub_token, config.hub_private_repo, config.hub_revision)
    name = target.name_for(Path(config.output_dir))
    config.push_to_hub = False
    config.hub_token = None
    if config.process_index == 0:
        knock(target, name)
        print(
            f"Upload: to {name!r} when the run is finished, weights and card in one commit; Trainer's own uploads of "
            "checkpoints are off.",
            flush=True,
        )
    return replace(target, repo_id=name)


def knock(target: Target, name: str) -> None:
    """Ask the hub whether it knows the token, before hours of training and not after.

    A hub that cannot be reached now stops nothing: it may be there at the end, and what is prepared is kept.

    Args:
        target: where the run goes.
        name: the repository.

    Raises:
        OSError: there is no token, or the hub does not accept it.
    """
    token = target.token or get_token()
    if token is None:
        raise OSError("`push_to_hub` needs a token of the hub; log in with `hf auth login`, or set HF_TOKEN.")
    try:
        with impatient(min(FIRST_SILENCE, target.silence)):
            HfApi(token=token).whoami()
    except FAILURES as error:
        said = sentence(error, name)
        if not passes(error) and not isinstance(error, OfflineModeIsEnabled):
            raise OSError(f"`push_to_hub` cannot work: {said[0].lower()}{said[1:]}.") from error
        print(f"{said}. The run goes on, and what it uploads is kept until the hub takes it.", flush=True)
