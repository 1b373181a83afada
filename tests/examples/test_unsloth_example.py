"""The example with Unsloth's CPU back end, in a process of its own."""

from pathlib import Path

import pytest

from real_unsloth import finish, start

pytestmark = pytest.mark.unsloth

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "unsloth_lora.py"
SCRIPT = f"""
import runpy, sys
from grpo_ext.backends import active_backend
main = runpy.run_path({str(EXAMPLE)!r})["main"]

def run():
    trainer = main(sys.argv[1], 32, output_dir="out", use_cpu=True, bf16=False, per_device_train_batch_size=8,
                   num_generations=4, max_completion_length=8, max_steps=2, save_strategy="no", disable_tqdm=True)
    print("back end:", active_backend(), "steps:", trainer.state.global_step)

if __name__ == "__main__":
    run()
"""


def test_unsloth_lora(tmp_path: Path) -> None:
    from grpo_ext.models import tiny_policy

    for part in tiny_policy(seed=0, hidden_size=64):
        part.save_pretrained(tmp_path / "tiny")
    said = finish(start(tmp_path / "run", "-c", SCRIPT, str(tmp_path / "tiny")), tmp_path / "run")
    assert "back end: unsloth steps: 2" in said
    assert (tmp_path / "run" / "out" / "adapter" / "adapter_model.safetensors").is_file()
