"""The trainer's vLLM back end: TRL's own, or ours where the adapter is what is sent."""

import math
from typing import Any

from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import Tensor

from grpo_ext import compat
from grpo_ext.config import GRPOExtConfig
from grpo_ext.faults import RunStopped
from grpo_ext.rollouts.vllm.adapters import AdapterFolder, unservable
from grpo_ext.rollouts.vllm.base import base_name, engine_dtype
from grpo_ext.rollouts.vllm.engine import EngineFailed, EngineOptions, EngineRollouts
from grpo_ext.rollouts.vllm.requests import GroupSearch, Sampling
from grpo_ext.rollouts.vllm.rollouts import AdapterRollouts
from grpo_ext.rollouts.vllm.servers import ServerOptions, ServerRollouts
from grpo_ext.trainer.prompts import PromptTrainer


class VLLMTrainer(PromptTrainer):
    """`trl.GRPOTrainer` whose `vllm_generation` swaps adapters when `vllm_sync` is "adapter"."""

    args: GRPOExtConfig
    _adapter_of_step: int | None = None
    # What ended a turn of the generation under way
    _broken: Exception | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with compat.vllm_generation_from(self._make_vllm_generation):
            super().__init__(*args, **kwargs)
        if self.args.vllm_sync == "adapter" and not isinstance(self.vllm_generation, AdapterRollouts):
            raise RuntimeError(
                "`vllm_sync` is 'adapter', but this version of TRL made a vLLM back end of its own; use a version "
                "that grpo_ext is tested with, or leave `vllm_sync` unset."
            )

    def _make_vllm_generation(self, stock: Any, *rest: Any, **fields: Any) -> Any:
        """What TRL's `__init__` keeps as `vllm_generation`, from the keyword arguments that it has for its own."""
        model = fields["model"]
        if self.args.vllm_sync != "adapter":
            if getattr(model, "is_loaded_in_4bit", False):
                raise ValueError(
                    "The policy's weights are 4-bit, and TRL's sync would merge the adapter into them, which loses "
                    "most of it; set vllm_sync='adapter', which sends the adapter and leaves a 16-bit base in vLLM."
                )
            return stock(*rest, **fields)
        self._check_adapter(model)
        folder = None
        dtype = engine_dtype(model, self.args.bf16, self.args.fp16)
        if self.args.vllm_server_urls is None or self.accelerator.is_main_process:
            folder = AdapterFolder(self.args.vllm_adapter_dir, dtype)
        base = base_name(model, self.args.vllm_base_model)
        sampling = Sampling(
            temperature=fields["temperature"],
            top_p=fields["top_p"],
            top_k=fields["top_k"] or 0,
            min_p=fields["min_p"] or 0.0,
            repetition_penalty=fields["repetition_penalty"],
            max_tokens=fields["max_completion_length"],
            extra=dict(fields["generation_kwargs"] or {}),
            regex=fields["structured_outputs_regex"],
        )
        search = GroupSearch(self.args.group_generation, self.args.group_size())
        parts = (model, sampling, search, self.eos_token_ids)
        if self.args.vllm_server_urls is not None:
            return ServerRollouts(*parts, self._server_options(base), folder, self.accelerator)
        # Unsloth's fast_inference leaves an engine on the policy, which shares the base weights with it
        engine = getattr(model, "vllm_engine", None)
        return EngineRollouts(*parts, self._engine_options(base, dtype, fields), folder, engine)

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        self._broken = None
        made = super()._generate(*args, **kwargs)
        if self.use_vllm:
            self._stop_if_broken()
        return made

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        if not self.use_vllm:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        faults: tuple[type[Exception], ...] = (OSError, SafetensorError, EngineFailed, *compat.vllm_errors())
        try:
            self._sync_shared_engine()
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        except faults as error:
            if self.accelerator.num_processes > 1 and not isinstance(self.vllm_generation, AdapterRollouts):
                # TRL's own back end talks to the other processes in the middle of this
                raise
            self._broken = error
        # Rows that end at once, so that this process comes to where all stop. With tools each has turns of its own.
        return [self.eos_token_ids[:1] for _ in prompt_ids], [[0.0] for _ in prompt_ids]

    def _sync_shared_engine(self) -> None:
        """With an engine of Unsloth's fast_inference, Unsloth leaves the sync out, as if the adapter were shared."""
        if getattr(self.model, "vllm_engine", None) is None or self._adapter_of_step == self.state.global_step:
            return
        self._adapter_of_step = self.state.global_step
        self.vllm_generation.sync_weights()

    def _stop_if_broken(self) -> None:
        """Stop all processes where one of them has no completions, because a checkpoint is made by all."""
        problem = None
        if self._broken is not None:
            problem = (
                f"Step {self.state.global_step + 1}: vLLM made no completions ({str(self._broken).rstrip('.')}); "
                "start it again and go on from the checkpoint."
            )
        problem = next((one for one in gather_object([problem]) if one is not None), None)
        if problem is not None:
            raise RunStopped(problem) from self._broken

    def _check_adapter(self, model: Any) -> None:
        reason = unservable(model)
        if reason is None and self.shards_weights:
            reason = "has sharded weights, of which no process holds the whole adapter"
        if reason is not None:
            raise ValueError(
                f"`vllm_sync` is 'adapter', but the policy {reason}; leave `vllm_sync` unset, which sends merged "
                "weights."
            )

    @property
    def shards_weights(self) -> bool:
        """Whether no process holds all weights: with FSDP and ZeRO-3, not with DDP, ZeRO-1 and ZeRO-2."""
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        return self.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)

    def gathered_weights(self) -> dict[str, Tensor] | None:
        """All weights by name on the main process where they are sharded, else None; every process must call it."""
        return self.accelerator.get_state_dict(self.model_wrapped) if self.shards_weights else None

    def _server_options(self, base: str) -> ServerOptions:
        return ServerOptions(
            urls=self.args.vllm_server_urls or [],
            base=base,
            timeout=self.args.vllm_request_timeout,
            patience=self.args.vllm_server_timeout,
            needs_logprobs=self.args.vllm_importance_sampling_correction,
        )

    def _engine_options(self, base: str, dtype: Any, fields: dict[str, Any]) -> EngineOptions:
        widest = max(self.args.group_size().beams, self.args.num_generations)
        rows = fields["max_num_seqs"]
        return EngineOptions(
            base=base,
            dtype=dtype,
            gpu_memory_utilization=fields["gpu_memory_utilization"],
            max_model_length=fields["max_model_length"],
            # A search may be wider than the group that it leaves
            max_num_seqs=max(rows, math.ceil(rows / self.args.num_generations) * widest),
            model_impl=fields["model_impl"],
            trust_remote_code=fields["trust_remote_code"],
            seed=self.args.seed + self.accelerator.process_index,
            several_processes=self.accelerator.num_processes > 1,
        )
