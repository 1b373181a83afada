"""The correction for vLLM's rounding, from the training forward where one update follows each generation."""

from collections.abc import Callable
from typing import Any

import torch
import trl
from torch import Tensor

from grpo_ext.compat import GENERATED
from grpo_ext.ops.sampler import sampler_correction
from grpo_ext.trainer.finite import FiniteTrainer

# TRL's metrics below `sampling/`, and how a process's numbers become those of all
METRICS: dict[str, Callable[[Tensor], Tensor]] = {
    "sampling_logp_difference/mean": torch.mean,
    "sampling_logp_difference/max": torch.amax,
    "importance_sampling_ratio/min": torch.amin,
    "importance_sampling_ratio/mean": torch.mean,
    "importance_sampling_ratio/max": torch.amax,
}


class SamplerTrainer(FiniteTrainer):
    """Leaves out TRL's pass for the old policy with vLLM when the old policy is the one that is trained.

    TRL forwards every row once more to compare the policy with vLLM. The training forward has the same numbers.
    """

    _leaves_out_next_pass = False
    _left_out = False
    _waiting: dict[str, Any] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._compared: list[tuple[Tensor, Tensor]] = []

    def train(self, *args: Any, **kwargs: Any) -> Any:
        # Of a step that an earlier run left in its middle
        self._waiting = None
        self._compared.clear()
        return super().train(*args, **kwargs)

    def _needs_no_old_pass(self) -> bool:
        once_a_step = self.args.gradient_accumulation_steps % (self.args.steps_per_generation * self.num_iterations)
        return (
            self.use_vllm
            and self.vllm_importance_sampling_correction
            and self.model.training
            and once_a_step == 0
            and not self.aux_loss_enabled
            # Unsloth's class makes the ratio in its own loss, from that pass
            and not GENERATED
        )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self._needs_no_old_pass():
            return super()._generate_and_score_completions(inputs)
        self._leaves_out_next_pass, self._left_out = True, False
        try:
            output = super()._generate_and_score_completions(inputs)
        finally:
            self._leaves_out_next_pass = False
        if self._left_out:
            self._take_out_placeholder(output)
        return output

    def _take_out_placeholder(self, output: dict[str, Any]) -> None:
        """Remove what TRL made from the placeholder below; the loss makes the real values.

        Raises:
            RuntimeError: the pass that was left out was not the one for the old policy.
        """
        made = {"old_per_token_logps", "importance_sampling_ratio", "sampling_per_token_logps"}
        if not made <= output.keys() or output["old_per_token_logps"].any():
            raise RuntimeError(
                f"TRL {trl.__version__} scores completions in another order than grpo_ext expects, so the pass for "
                "the old policy cannot be left out; use a version that grpo_ext is tested with, or set "
                "vllm_importance_sampling_correction=False."
            )
        del output["old_per_token_logps"], output["importance_sampling_ratio"]
        for name in METRICS:
            self._metrics["train"][f"sampling/{name}"].pop()

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        if self._leaves_out_next_pass and not torch.is_grad_enabled():
            self._leaves_out_next_pass, self._left_out = False, True
            input_ids, _, kept = args[:3]
            return torch.zeros(len(input_ids), kept, device=input_ids.device), None, None
        scores = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self._correct(waiting, scores[0].detach())
        return scores

    def _await_forward(self, inputs: dict[str, Any]) -> None:
        """Give a micro-batch its `importance_sampling_ratio` when its forward pass has run."""
        if self.use_vllm and self.vllm_importance_sampling_correction and "importance_sampling_ratio" not in inputs:
            self._waiting = inputs if "sampling_per_token_logps" in inputs else None

    def _correct(self, inputs: dict[str, Any], logps: Tensor) -> None:
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        old, sampling = inputs.get("old_per_token_logps", logps), inputs["sampling_per_token_logps"]
        bounds = (self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max)
        ratio = sampler_correction(old, sampling, mask, self.vllm_importance_sampling_mode, *bounds)
        inputs["importance_sampling_ratio"] = ratio
        apart = (old - sampling).abs()[mask.bool()]
        seen = ratio[mask.bool()] if ratio.size(1) > 1 else ratio.flatten()
        self._compared.append((apart[~apart.isnan()], seen))
        if self.accelerator.sync_gradients:
            self._log_compared()

    def _log_compared(self) -> None:
        """TRL's metrics over the micro-batches of a step."""
        apart, seen = (torch.cat(column) for column in zip(*self._compared, strict=True))
        self._compared.clear()
        none = torch.zeros(1, device=seen.device)
        apart, seen = (values if values.numel() else none for values in (apart, seen))
        found = torch.stack([apart.mean(), apart.max(), seen.min(), seen.mean(), seen.max()])
        gathered = self.accelerator.gather(found[None])
        for (name, over_processes), column in zip(METRICS.items(), gathered.unbind(1), strict=True):
            self._metrics["train"][f"sampling/{name}"].append(over_processes(column).item())
