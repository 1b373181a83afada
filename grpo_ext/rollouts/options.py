"""Fields of the config that say how a group of completions comes to be."""

import math
from dataclasses import dataclass, field
from typing import Any

from grpo_ext.checks import choice
from grpo_ext.compat import TRLConfig
from grpo_ext.rollouts.strategies import SEARCHES, GroupSize
from grpo_ext.rollouts.vllm.requests import REFUSED_STRATEGIES
from grpo_ext.trust import without_password

RESAMPLING = ("dynamic_sampling", "adaptive_group_size")
SYNCS = ("merged", "adapter")


@dataclass
class RolloutOptions(TRLConfig):
    """Strategy of a group, resampling of groups without spread, and where vLLM gets the policy from."""

    group_generation: str = choice(
        "sampling", ("sampling", *SEARCHES), "How the completions of a training prompt come to be."
    )
    num_beams: int | None = field(
        default=None,
        metadata={
            "help": "Beams of a search; unset: `num_generations`, or half of them with beam+sampling, whose other "
            "completions are samples."
        },
    )
    num_beam_groups: int = field(default=4, metadata={"help": "Groups of a diverse beam search."})
    diversity_penalty: float = field(
        default=0.5, metadata={"help": "Nats a token costs for each earlier beam group that chose it at this step."}
    )
    length_penalty: float = field(
        default=1.0, metadata={"help": "Exponent of the length by which a beam's log-probability is divided."}
    )
    resampling: str | None = choice(
        None, RESAMPLING, "What becomes of groups whose rewards are all equal; unset: they stay."
    )
    resampling_rounds: int = field(
        default=3, metadata={"help": "Rounds of generation at most in one step, the first one not counted."}
    )
    initial_group_size: int | None = field(
        default=None,
        metadata={"help": "Completions of the first round of adaptive_group_size; unset: a quarter of the group."},
    )
    vllm_sync: str | None = choice(
        None, SYNCS, "What is sent to vLLM after a step: merged weights (TRL's way, unset) or the LoRA adapter."
    )
    vllm_server_urls: list[str] | None = field(
        default=None,
        metadata={"help": "Stock `vllm serve --enable-lora` servers that share the prompts; with vllm_sync=adapter."},
    )
    vllm_adapter_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder that trainer and servers share, where adapters are written; unset: in memory, for servers "
            "on this machine."
        },
    )
    vllm_base_model: str | None = field(
        default=None,
        metadata={
            "help": "16-bit base that vLLM holds under the adapter; unset: what the policy was loaded from, or for a "
            "4-bit checkpoint the model it is named after."
        },
    )
    vllm_request_timeout: float = field(
        default=600.0,
        metadata={
            "help": "Seconds that one prompt's completions, or the loading of an adapter, may take before their "
            "server counts as dead."
        },
    )

    @property
    def has_inclusion_weights(self) -> bool:
        """Whether a group is drawn without replacement, so that its completions weigh differently."""
        return self.group_generation == "stochastic_beam"

    def group_size(self) -> GroupSize:
        """Numbers of a training group, for the strategies that search."""
        mixed = self.group_generation == "beam+sampling"
        default = self.num_generations // 2 if mixed else self.num_generations
        return GroupSize(
            completions=self.num_generations,
            beams=self.num_beams or default,
            beam_groups=self.num_beam_groups,
            diversity_penalty=self.diversity_penalty,
            length_penalty=self.length_penalty,
        )

    @property
    def first_group_size(self) -> int:
        """Completions of a prompt in the first round of adaptive_group_size."""
        return self.initial_group_size or max(2, self.num_generations // 4)

    def check_resampling(self) -> None:
        """Refuse numbers and combinations with which groups cannot be drawn anew or grow.

        Raises:
            ValueError: in one sentence.
        """
        config: Any = self  # fields of GRPOExtConfig
        if self.initial_group_size is not None and self.resampling != "adaptive_group_size":
            raise ValueError(
                f"`initial_group_size` is {self.initial_group_size}, but only resampling='adaptive_group_size' begins "
                f"with groups of another size; `resampling` is {self.resampling!r}."
            )
        if self.resampling is None:
            return
        name = f"`resampling` is {self.resampling!r}, but"
        if self.resampling_rounds < 1:
            raise ValueError(f"`resampling_rounds` is {self.resampling_rounds}; it must be at least 1, 3 is usual.")
        if config.group_by is not None:
            raise ValueError(
                f"{name} `group_by` {config.group_by!r} compares completions of different prompts, so no group can "
                "be replaced on its own; leave one of the two unset."
            )
        if config.advantage_baseline == "none":
            raise ValueError(
                f"{name} with `advantage_baseline` 'none' equal rewards move the policy too; use baseline 'mean', "
                "'leave_one_out' or 'rank'."
            )
        if self.has_inclusion_weights:
            raise ValueError(
                f"{name} the weights of group_generation='stochastic_beam' hold for a group that is not chosen by its "
                "rewards; use group_generation='sampling'."
            )
        if self.resampling == "adaptive_group_size":
            self._check_growth()
        else:
            self._check_whole_groups()

    def _check_growth(self) -> None:
        if self.group_generation != "sampling":
            raise ValueError(
                "`resampling` 'adaptive_group_size' lets a group grow, but `group_generation` "
                f"{self.group_generation!r} makes it in one search; use group_generation='sampling'."
            )
        if self.world_size > 1:
            raise ValueError(
                "`resampling` 'adaptive_group_size' gives rows of one prompt to another, which may live in another of "
                f"the {self.world_size} processes; use one process, or 'dynamic_sampling'."
            )
        if not 2 <= self.first_group_size < self.num_generations:
            raise ValueError(
                f"`initial_group_size` is {self.first_group_size}; it must be at least 2, so that rewards can "
                f"disagree, and below `num_generations` {self.num_generations}, so that rows are left to grow by."
            )

    def _check_whole_groups(self) -> None:
        batch, steps, size = self.per_device_train_batch_size, self.steps_per_generation, self.num_generations
        if self.world_size > 1 and batch * steps % size:
            fitting = [n for n in range(2, batch * steps + 1) if batch * steps % n == 0]
            raise ValueError(
                f"`resampling` 'dynamic_sampling' replaces groups inside a process, but each of {self.world_size} "
                f"has {batch * steps} completions (per_device_train_batch_size {batch} x steps_per_generation "
                f"{steps}), not a multiple of `num_generations` {size}; num_generations in {fitting} would fit, or "
                f"per_device_train_batch_size={math.lcm(batch * steps, size) // steps}."
            )

    def check_groups(self) -> None:
        """Refuse numbers and combinations that no group can come from.

        Raises:
            ValueError: in one sentence.
        """
        given = self.generation_kwargs or {}
        for name in ("num_beams", "num_beam_groups", "num_return_sequences"):
            if (given.get(name) or 1) != 1:
                raise ValueError(
                    f"`generation_kwargs` has {name}={given[name]}, which searches once for each row and gives every "
                    "row of a group the same completion; use group_generation='beam'."
                )
        if self.group_generation == "sampling":
            if self.num_beams is not None:
                raise ValueError(
                    f"`num_beams` is {self.num_beams}, but group_generation='sampling' searches with no beams; leave "
                    f"it unset, or set group_generation to one of: {', '.join(SEARCHES)}."
                )
            return
        size, name = self.group_size(), self.group_generation
        mixed = name == "beam+sampling"
        if not (0 < size.beams < size.completions if mixed else size.beams >= size.completions):
            raise ValueError(
                f"`num_beams` is {self.num_beams}; with group_generation={name!r} and num_generations="
                f"{size.completions} it must be {'below' if mixed else 'at least'} {size.completions}."
            )
        if name == "diverse_beam" and (size.beam_groups < 1 or size.beams % size.beam_groups):
            raise ValueError(
                f"`num_beam_groups` is {size.beam_groups}; it must divide the {size.beams} beams of the search."
            )
        if self.has_inclusion_weights:
            self._check_inclusion_weights()

    def _check_inclusion_weights(self) -> None:
        plain: dict[str, tuple[Any, ...]] = {"top_p": (1.0,), "top_k": (0, None), "repetition_penalty": (1.0,)}
        plain |= dict.fromkeys(("min_p", "num_beams", "advantage_baseline", "group_by"), (None,))
        plain |= {"multi_objective_aggregation": ("sum_then_normalize",)}
        for name, values in plain.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r}, but the weights of group_generation='stochastic_beam' hold "
                    "for completions of the policy itself and come with a baseline of their own; leave it at "
                    f"{values[0]}."
                )
        if self.scale_rewards != "none":
            raise ValueError(
                f"`scale_rewards` is {self.scale_rewards!r}, but the advantages of group_generation='stochastic_beam' "
                "are not 0 where all rewards are equal, and would there be divided by almost 0; set "
                "scale_rewards='none'."
            )

    def check_vllm(self) -> None:
        """Refuse combinations that vLLM cannot serve.

        Raises:
            ValueError: in one sentence.
        """
        adapter = self.vllm_sync == "adapter"
        if adapter and not self.use_vllm:
            raise ValueError("`vllm_sync` is 'adapter', but `use_vllm` is off; set use_vllm=True.")
        for name in ("vllm_server_urls", "vllm_adapter_dir", "vllm_base_model"):
            if getattr(self, name) is not None and not adapter:
                raise ValueError(f"`{name}` is set, but only vllm_sync='adapter' uses it; set that and use_vllm=True.")
        if not self.use_vllm:
            return
        if self.group_generation != "sampling":
            self._check_vllm_search(adapter)
        if adapter:
            self._check_adapter_sync()

    def _check_vllm_search(self, adapter: bool) -> None:
        name = f"`group_generation` is {self.group_generation!r}, but"
        if self.group_generation in REFUSED_STRATEGIES:
            raise ValueError(
                f"{name} vLLM cannot make such groups: {REFUSED_STRATEGIES[self.group_generation]}; use 'beam' or "
                "'beam+sampling', or leave use_vllm off."
            )
        if not adapter:
            raise ValueError(
                f"{name} TRL's own vLLM path samples only; set vllm_sync='adapter', or leave use_vllm off."
            )
        if self.vllm_importance_sampling_correction:
            raise ValueError(
                f"{name} beams are no samples, so `vllm_importance_sampling_correction` has no distribution to weigh "
                "them against; set vllm_importance_sampling_correction=False."
            )
        # vLLM's search knows the temperature alone
        plain: dict[str, tuple[Any, ...]] = {"top_p": (1.0,), "top_k": (0, -1, None), "min_p": (None, 0.0)}
        plain |= {"repetition_penalty": (1.0,), "generation_kwargs": (None, {})}
        plain |= {"vllm_structured_outputs_regex": (None,)}
        for field_name, values in plain.items():
            if getattr(self, field_name) not in values:
                raise ValueError(
                    f"{name} vLLM's beam search knows the temperature alone and would pass over `{field_name}` "
                    f"{getattr(self, field_name)!r}; leave it at {values[0]}."
                )

    def _check_adapter_sync(self) -> None:
        if self.vllm_mode == "server" and not self.vllm_server_urls:
            raise ValueError(
                "`vllm_mode` is 'server', whose protocol is TRL's own; with vllm_sync='adapter' name stock servers in "
                "`vllm_server_urls`."
            )
        if self.vllm_server_urls is not None and not self.vllm_server_urls:
            raise ValueError("`vllm_server_urls` is empty; name at least one server, or leave it unset.")
        for url in self.vllm_server_urls or []:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"`vllm_server_urls` has {url!r}; an address begins with http:// or https://.")
            without_password(url, "vllm_server_urls")
        if len(set(self.vllm_server_urls or [])) < len(self.vllm_server_urls or []):
            raise ValueError("`vllm_server_urls` names a server twice; it would get two shares of the prompts.")
        own = self.vllm_server_urls is None
        if own and self.vllm_tensor_parallel_size != 1:
            raise ValueError(
                f"`vllm_tensor_parallel_size` is {self.vllm_tensor_parallel_size}, but with vllm_sync='adapter' each "
                "process has an engine of its own; start `vllm serve --tensor-parallel-size` and name it in "
                "`vllm_server_urls`."
            )
        if own and self.vllm_enable_sleep_mode:
            raise ValueError(
                "`vllm_enable_sleep_mode` throws the engine's weights away, and with vllm_sync='adapter' they are not "
                "sent again; leave it off and lower `vllm_gpu_memory_utilization`."
            )
        if "n" in (self.generation_kwargs or {}):
            raise ValueError("`generation_kwargs` has 'n', which is the group's size; use `num_generations`.")
