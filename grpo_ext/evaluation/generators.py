"""What generates the answers: a model in this process, vLLM in this process, or vLLM servers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpo_ext.evaluation.answering import Complete
from grpo_ext.evaluation.local import LocalModel
from grpo_ext.evaluation.subjects import Subject, load, tokenizer_place
from grpo_ext.evaluation.vllm import Engines, ServedModel
from grpo_ext.models import load_tokenizer
from grpo_ext.models.policy import DTYPES
from grpo_ext.rollouts.vllm.requests import Sampling

# Answers at a time where the user names no number
ENGINES = {"transformers": 64, "vllm": 1024, "server": 1024}


@dataclass(frozen=True)
class Generation:
    """How answers are made.

    Attributes:
        sampling: how tokens are drawn.
        seed: of the samples.
        engine: key of `ENGINES`.
        dtype: key of `grpo_ext.models.policy.DTYPES`.
        plain: whether prompts are plain text, which needs no chat template.
        urls: addresses of vLLM servers.
        memory: share of the device's memory for vLLM in this process.
        window: longest prompt with completion there; None is the model's own.
        trust_remote_code: whether code that comes with a model may run.
    """

    sampling: Sampling
    seed: int = 0
    engine: str = "transformers"
    dtype: str = "bfloat16"
    plain: bool = False
    urls: Sequence[str] = ()
    memory: float = 0.85
    window: int | None = None
    trust_remote_code: bool = False


class Generators:
    """Makes each model's generator when it is needed.

    Args:
        how: how answers are made.
        subjects: all models, whose largest adapter decides an engine's room.

    Raises:
        ValueError: the engine is not there, or an adapter's rank is above its limit.
    """

    def __init__(self, how: Generation, subjects: Sequence[Subject]) -> None:
        self.how, self.engines = how, None
        if how.engine == "vllm":
            rank = max(subject.rank for subject in subjects)
            self.engines = Engines(DTYPES[how.dtype], how.memory, how.window, rank, how.trust_remote_code)

    def start(self, subject: Subject) -> Complete:
        """Load a model.

        Args:
            subject: which.

        Returns:
            What answers a batch of questions.

        Raises:
            OSError: the model is not found, or a server not there.
            ValueError: the adapter does not fit, or the tokenizer has no chat template.
        """
        how = self.how
        if how.engine == "transformers":
            model, tokenizer = load(subject, how.dtype, how.trust_remote_code)
            self._look_at_template(subject, tokenizer)
            return LocalModel(model, tokenizer, how.sampling, how.seed).complete
        tokenizer = load_tokenizer(tokenizer_place(subject), trust_remote_code=how.trust_remote_code)
        self._look_at_template(subject, tokenizer)
        if self.engines is not None:
            return self.engines.model(subject, tokenizer, how.sampling, how.seed).complete
        return ServedModel(how.urls, subject, tokenizer, how.sampling, how.seed).complete

    def close(self) -> None:
        """Give back what an engine holds."""
        if self.engines is not None:
            self.engines.close()

    def _look_at_template(self, subject: Subject, tokenizer: Any) -> None:
        if tokenizer.chat_template is None and not self.how.plain:
            raise ValueError(f"the tokenizer of {subject.name!r} has no chat template; add --plain for plain prompts.")
