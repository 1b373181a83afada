"""One of two processes: `torchrun --nproc_per_node 2 drop_in_processes.py POLICY OUT`.

Each trains with TRL's trainer, then with ours, and compares what it has of the two. A group is half on each.
"""

import sys
from pathlib import Path

from drop_in_runs import assert_same, both
from tiny_runs import digits_or_none, early_letters

from grpo_ext.launch import leave_process_group

FIELDS = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 3,
    "num_iterations": 2,
    "max_steps": 3,
    "beta": 0.04,
    "ddp_backend": "gloo",
}


def main(folder: Path, out: Path) -> None:
    for lora in (False, True):
        scenario = {"reward_funcs": [early_letters, digits_or_none], "LORA": lora, "FIELDS": FIELDS}
        stock, ours = both(folder, out, scenario)
        assert stock.trainer.accelerator.num_processes == 2
        assert_same(stock, ours, regrouped=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    leave_process_group()
