"""A recipe's command line that ends in seconds."""

from pathlib import Path


def words(model: Path, output: Path, **more: object) -> list[str]:
    options = {
        "model_name_or_path": model,
        "output_dir": output,
        "dataset": "arithmetic",
        "dtype": "float32",
        "bf16": "false",
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 8,
        "train_size": 16,
        "eval_size": 4,
        "gradient_checkpointing": "false",
        **more,
    }
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]
