"""Named objectives: plain dicts of config fields, values with the place in their paper where it gives one.

Use one as `GRPOExtConfig(**PRESETS["gspo"], ...)` or as `--preset gspo` on a recipe's command line.
"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # DeepSeekMath, 2402.03300
    "deepseekmath": {
        "advantage_baseline": "mean",  # sec. 4.1.2
        "scale_rewards": "group",  # sec. 4.1.2
        "loss_type": "grpo",  # eq. 3
        "importance_sampling_level": "token",  # eq. 3
        "epsilon": 0.2,  # not given in the paper; PPO's
        "beta": 0.04,  # sec. 4.2
        "use_bias_correction_kl": False,  # eq. 4 is the plain k3
        "num_iterations": 1,  # sec. 4.2: a single update after each exploration stage
    },
    # DeepSeekMath with process supervision; a rule in place of the paper's trained process reward model, hence the
    # outcome as the reward of the last step
    "deepseekmath_process": {
        "process_reward": "calculations",
        "process_answer_step": "outcome",
        "process_weight": 1.0,  # sec. 4.1.3: process advantages alone
        "advantage_baseline": "mean",  # sec. 4.1.3: over all steps of the group
        "scale_rewards": "group",  # sec. 4.1.3
        "loss_type": "grpo",  # eq. 3
        "importance_sampling_level": "token",  # eq. 3
        "epsilon": 0.2,  # not given in the paper; PPO's
        "beta": 0.04,  # sec. 4.2
        "use_bias_correction_kl": False,  # eq. 4 is the plain k3
        "num_iterations": 1,  # sec. 4.2
    },
    # Dr. GRPO, 2503.20783
    "dr_grpo": {
        "advantage_baseline": "mean",  # sec. 3.2
        "scale_rewards": "none",  # sec. 3.2: no division by the std
        "loss_type": "dr_grpo",  # sec. 3.2: no division by the length
        "epsilon": 0.2,  # app. G, table 6
        "beta": 0.0,  # app. G, table 6
    },
    # DAPO, 2503.14476; the overlong penalty of sec. 3.4 is a reward function
    "dapo": {
        "advantage_baseline": "mean",  # eq. 9
        "scale_rewards": "group",  # eq. 9
        "loss_type": "dapo",  # eq. 12
        "epsilon": 0.2,  # sec. 4.1
        "epsilon_high": 0.28,  # sec. 4.1
        "beta": 0.0,  # sec. 2.3
        "resampling": "dynamic_sampling",  # sec. 3.2, eq. 11
    },
    # GSPO, 2507.18071
    "gspo": {
        "advantage_baseline": "mean",  # eq. 6
        "scale_rewards": "group",  # eq. 6
        "loss_type": "grpo",  # eq. 5
        "importance_sampling_level": "sequence",  # eq. 7
        "epsilon": 3e-4,  # sec. 5.1
        "epsilon_high": 4e-4,  # sec. 5.1
        "beta": 0.0,  # eq. 5 has none; sec. 2.2 leaves it out for brevity
    },
    "gspo_token": {
        "advantage_baseline": "mean",  # eq. 6
        "scale_rewards": "group",  # eq. 6
        "loss_type": "grpo",  # eq. 13
        "importance_sampling_level": "sequence_token",  # eq. 13, 14
        "epsilon": 3e-4,  # sec. 5.1, of gspo
        "epsilon_high": 4e-4,  # sec. 5.1, of gspo
        "beta": 0.0,  # as gspo
    },
    # CISPO, MiniMax-M1, 2506.13585
    "cispo": {
        "advantage_baseline": "mean",  # eq. 2
        "scale_rewards": "group",  # eq. 2
        "loss_type": "cispo",  # eq. 4, token mean; eq. 5, the weight
        "epsilon_high": 5.0,  # the absolute cap; not given in the paper: one of 4, 5, 8 of 2510.13786, app. A.17
        "beta": 0.0,  # sec. 3.1: no KL penalty term
    },
    # GMPO, 2507.20673
    "gmpo": {
        "advantage_baseline": "mean",  # sec. 2.2, at eq. 1
        "scale_rewards": "group",  # sec. 2.2, at eq. 1
        "surrogate": "geometric",  # eq. 4, algorithm 1
        "aggregation": "seq_mean_token_mean",  # eq. 4
        "epsilon": 0.4,  # sec. 4.3, table 5; log space: ratios between e^-0.4 and e^0.4
        "epsilon_high": 0.4,  # sec. 4.3, table 5
        "beta": 0.0,  # sec. 2.2 leaves the KL out
    },
    # SAPO, 2511.20347
    "sapo": {
        "advantage_baseline": "mean",  # eq. 2
        "scale_rewards": "group",  # eq. 2
        "loss_type": "sapo",  # eq. 5; eq. 6, the gate
        "sapo_temperature_pos": 1.0,  # sec. 5.1
        "sapo_temperature_neg": 1.05,  # sec. 5.1
        "beta": 0.0,  # eq. 5 has none
    },
    # LUSPO, 2602.05261
    "luspo": {
        "advantage_baseline": "mean",  # eq. 5
        "scale_rewards": "group",  # eq. 5
        "loss_type": "luspo",  # eq. 7
        "importance_sampling_level": "sequence",  # eq. 6
        "epsilon": 2e-3,  # sec. 5.1
        "epsilon_high": 2.5e-3,  # sec. 5.1
        "beta": 0.0,  # eq. 7 has none
    },
    # VESPO, 2602.10693
    "vespo": {
        "advantage_baseline": "mean",  # sec. 3.5
        "scale_rewards": "none",  # sec. 3.5: R - b
        "loss_type": "vespo",  # eq. 20
        "importance_sampling_level": "token",  # the loss forms the weight of the sequence itself
        "vespo_k_pos": 2.0,  # sec. 4.1
        "vespo_lambda_pos": 3.0,  # sec. 4.1
        "vespo_k_neg": 3.0,  # sec. 4.1
        "vespo_lambda_neg": 2.0,  # sec. 4.1
        "vllm_importance_sampling_mode": "token_truncate",  # not of the paper; TRL takes a mode of tokens alone
        "beta": 0.0,  # eq. 20 has none
    },
    # A common write-up: the group's summed loss with the ratio to the reference. Its groups come from beam search,
    # whose outputs are no samples of the old policy.
    "beam": {
        "group_generation": "beam",
        "advantage_baseline": "mean",
        "scale_rewards": "group_eps_inside",
        "surrogate": "clip",
        "ratio_against": "reference",
        "aggregation": "group_sum",
        "beta": 0.04,
        "kl_estimator": "k3",
    },
    # The product of token ratios, unclipped, held to the old policy.
    "sequence_product": {
        "advantage_baseline": "mean",
        "scale_rewards": "none",
        "importance_sampling_level": "sequence_sum",
        "surrogate": "none",
        "aggregation": "group_sum",
        "kl_against": "old",
        "kl_estimator": "k3",
        "beta": 0.04,
    },
    # The plain policy gradient A log π(o) with z-scored rewards; log π(o) is the sum over the tokens.
    "reinforce_group": {
        "advantage_baseline": "mean",
        "scale_rewards": "group",
        "advantage_eps": 1e-8,
        "surrogate": "reinforce",
        "aggregation": "seq_mean_token_sum",
        "kl_estimator": "k3",
        "beta": 0.1,
    },
}
