"""Let Unsloth write TRL's trainers anew, as on a GPU, and say where it did: the last line is JSON."""

import inspect
import json
import os
from pathlib import Path

from grpo_ext.backends import COMPILE_FOLDER, import_backend

if __name__ == "__main__":
    os.environ.update(UNSLOTH_ALLOW_CPU="1", UNSLOTH_GRPO_PREFIX_GROUPER="0", TORCHDYNAMO_DISABLE="1")
    import_backend("unsloth")
    import unsloth

    os.environ["UNSLOTH_ALLOW_CPU"] = "0"
    from unsloth.models.rl import PatchFastRL

    PatchFastRL(FastLanguageModel=unsloth.FastLanguageModel)
    import trl

    print(
        json.dumps(
            {
                "trainer": trl.GRPOTrainer.__name__,
                "file": inspect.getfile(trl.GRPOTrainer),
                "folder": os.environ[COMPILE_FOLDER],
                "here": sorted(path.name for path in Path.cwd().iterdir()),
            }
        )
    )
