"""A recipe on CPUs with FSDP2: `accelerate launch --config_file FSDP2_CPU sharded_recipe.py WORD...`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "trainer"))

from process_cases import shard_on_cpu

from grpo_ext.launch import run
from grpo_ext.recipes.gsm8k import main

if __name__ == "__main__":
    shard_on_cpu()
    run(main)
