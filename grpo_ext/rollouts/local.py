"""Groups from a model in this process, behind transformers' own `generate`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from grpo_ext.rollouts.decode import prefill
from grpo_ext.rollouts.sampling import Rules, sample
from grpo_ext.rollouts.strategies import SEARCHES, Groups, GroupSize
from grpo_ext.scoring.attention import unsupported, use_tree_attention


def undecodable(model: PreTrainedModel) -> str | None:
    """Prepare a model for decoding with shared prompts, or say why it cannot be.

    Args:
        model: causal language model, not wrapped.

    Returns:
        None when it is prepared, or the reason, as the end of a sentence that begins with the model.
    """
    reason = unsupported(model.config.get_text_config())
    if reason is None:
        try:
            use_tree_attention(model)
        except NotImplementedError as error:
            return str(error)
    return reason


class LocalGroups:
    """Takes the place of the loop in `model.generate`, which still prepares the logits processors and the ends.

    Args:
        strategy: row of `SEARCHES`, or "sampling", where each row is a sample of its own.
        size: numbers of a group; not used by "sampling".
        uniforms: numbers that "sampling" draws with, see `Rules`.
    """

    def __init__(
        self,
        strategy: str = "sampling",
        size: GroupSize | None = None,
        uniforms: Callable[[Tensor, int], Tensor] | None = None,
    ) -> None:
        self.strategy, self.size, self.uniforms = strategy, size, uniforms
        self.made: Groups | None = None

    @contextmanager
    def within(self, model: PreTrainedModel) -> Iterator[None]:
        """Within the context, `model.generate` makes groups; `made` holds what else is known of the last ones.

        Args:
            model: causal language model for which `undecodable` found nothing, not wrapped.
        """
        # A class has its own generate, an instance may have another
        before, original = vars(model).get("generate"), model.generate

        def generate(*args: Any, **kwargs: Any) -> Any:
            return original(*args, **kwargs, custom_generate=self._generate)

        model.generate = generate
        try:
            yield
        finally:
            del model.generate
            if before is not None:
                model.generate = before

    def _generate(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Tensor:
        # transformers drops a mask of ones
        mask = model_kwargs.get("attention_mask")
        mask = torch.ones_like(input_ids) if mask is None else mask

        def rules(first_rows: Tensor) -> Rules:
            pad, draws = generation_config.pad_token_id, generation_config.do_sample
            return Rules(logits_processor, stopping_criteria, pad, first_rows, draws, self.uniforms)

        make = self._rows if self.strategy == "sampling" else self._groups
        return torch.cat([input_ids, make(model, input_ids, mask.bool(), rules)], 1)

    def _rows(self, model: PreTrainedModel, ids: Tensor, mask: Tensor, rules: Callable[[Tensor], Rules]) -> Tensor:
        """(R, T) samples, each different prompt forwarded once."""
        # In the order in which they come, so that the first draws are those of transformers' own loop
        keys = [tuple(row) for row in torch.cat([ids, mask], 1).tolist()]
        place = {key: index for index, key in enumerate(dict.fromkeys(keys))}
        prompt = torch.tensor([place[key] for key in keys], device=ids.device)
        order = prompt.argsort(stable=True)
        firsts = torch.tensor([keys.index(key) for key in place], device=ids.device)
        prompts = prefill(model, [ids[row][mask[row]] for row in firsts])
        return sample(prompts, ids[firsts], prompt[order], rules(firsts), order)

    def _groups(self, model: PreTrainedModel, ids: Tensor, mask: Tensor, rules: Callable[[Tensor], Rules]) -> Tensor:
        """(R, T) completions, G rows for each G rows with the same prompt."""
        assert self.size is not None
        completions = self.size.completions
        grouped = ids.unflatten(0, (-1, completions))
        if (grouped != grouped[:, :1]).any():
            raise ValueError(f"`group_generation` {self.strategy!r} needs the {completions} rows of a group in a row.")
        firsts = torch.arange(0, len(ids), completions, device=ids.device)
        prompts = prefill(model, [ids[row][mask[row]] for row in firsts])
        self.made = SEARCHES[self.strategy](prompts, ids[firsts], rules(firsts), self.size)
        return self.made.tokens.flatten(0, 1)
