"""The prompts that a run is given, looked at before it begins and again when they are drawn."""

import logging
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from jinja2 import TemplateError
from transformers import ProcessorMixin

from grpo_ext.checks import brief, check_drawn, check_no_images, extreme_rows
from grpo_ext.trainer.host import HostTrainer

logger = logging.getLogger("grpo_ext")

# Longest prompts of a dataset that are tokenised before training
LONGEST = 16


class PromptTrainer(HostTrainer):
    """Names the row whose prompt cannot be trained on, where tokenizer, template or model would raise.

    Before training the first, the shortest and the longest prompts of each dataset are tokenised; in training all of a
    generation are. What every row must have is checked by `grpo_ext.checks.rows`.

    Raises:
        ValueError: a prompt is none, has no tokens, is refused by the chat template, or reaches beyond the positions
            of a model that has a table of them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._takes_images = isinstance(self.processing_class, ProcessorMixin)
        held = self.eval_dataset if isinstance(self.eval_dataset, dict) else {None: self.eval_dataset}
        named = {"eval_dataset" if key is None else f"eval_dataset[{key!r}]": rows for key, rows in held.items()}
        for name, dataset in {"train_dataset": self.train_dataset, **named}.items():
            self._check_extremes(dataset, name)

    def _check_extremes(self, dataset: Any, name: str) -> None:
        plain = isinstance(dataset, Dataset) and dataset.format["type"] != "custom" and len(dataset)
        if plain and not self._takes_images:
            check_no_images(dataset.column_names, f"`{name}`")
        made_elsewhere = self.rollout_func is not None or not self._tokenizes_alone()
        if not plain or made_elsewhere or "prompt" not in dataset.column_names:
            return
        numbers = extreme_rows(dataset, LONGEST)
        prompts = dataset.select(numbers).with_format(None)["prompt"]
        ids, _, _ = self._tokenized(list(prompts), [f"`{name}`, row {number}" for number in numbers])
        lengths = [len(row) for row in ids]
        window = self._window_of_model()
        if window is not None and max(lengths) > window:
            logger.warning(
                "Prompts: row %d of `%s` has %d tokens, and the model was made for %d positions.",
                numbers[lengths.index(max(lengths))],
                name,
                max(lengths),
                window,
            )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.environment_factories is None:
            check_drawn(inputs, self.args.group_by)
            if not self._takes_images:
                check_no_images(inputs[0], "A row of this batch")
        return super()._generate_and_score_completions(inputs)

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        if not self._tokenizes_alone():
            return super()._tokenize_prompts(prompts)
        return self._tokenized(prompts, [f"Prompt {number} of this batch" for number in range(len(prompts))])

    def _tokenized(self, prompts: list[Any], names: Sequence[str]) -> Any:
        """What TRL makes of prompts, or a sentence about the first that it can make nothing of."""
        try:
            result = super()._tokenize_prompts(prompts)
        except (TemplateError, TypeError, ValueError) as error:
            if len(prompts) == 1:
                raise ValueError(
                    f"{names[0]}: column 'prompt' is {brief(prompts[0])}, which the tokenizer or its chat template "
                    f"refuses ({' '.join(str(error).split())}); write it as the model's template asks for."
                ) from error
            for prompt, name in zip(prompts, names, strict=True):
                self._tokenized([prompt], [name])
            raise
        for ids, name in zip(result[0], names, strict=True):
            self._check_length(len(ids), name)
        return result

    def _check_length(self, tokens: int, name: str) -> None:
        if tokens == 0:
            raise ValueError(
                f"{name}: column 'prompt' is empty and the tokenizer begins with no token of its own; write a prompt, "
                "or leave the row out."
            )
        window, completion = self._window_of_model(), self.args.max_completion_length
        if window is not None and self._has_table_of_positions() and tokens + completion > window:
            raise ValueError(
                f"{name}: column 'prompt' has {tokens} tokens, and with `max_completion_length` {completion} it may "
                f"reach beyond the {window} positions of the model; shorten the prompt, or lower "
                "max_completion_length."
            )

    def _tokenizes_alone(self) -> bool:
        """Whether what is tokenised is the column alone, without an environment's answer or images."""
        return self.environment_factories is None and not self._takes_images

    def _window_of_model(self) -> int | None:
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def _has_table_of_positions(self) -> bool:
        # Rotary positions, which go on beyond the window, are described in the config
        return getattr(self.model.config.get_text_config(), "rope_parameters", None) is None
