"""Checkpoints made under a temporary name: a folder `checkpoint-N` is whole, and older ones are kept until it is."""

from pathlib import Path
from typing import Any

from grpo_ext.checkpoints import TRAINER_STATE, WORKING, choose, publish, recover, rotate, write_manifest
from grpo_ext.trainer.resume import ResumableTrainer


class SavingTrainer(ResumableTrainer):
    """Lets everyone below write a checkpoint in `<output_dir>/.saving`, and gives it its name when it is whole.

    `train` takes "last" for `resume_from_checkpoint`, and leaves a torn checkpoint for the one before.
    """

    _is_saving = False

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        chosen = choose(resume_from_checkpoint, self.args.output_dir)
        self.accelerator.wait_for_everyone()
        return super().train(None if chosen is None else str(chosen), *args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / WORKING) if self._is_saving else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = Path(self._get_output_dir(trial))
        final = run / f"checkpoint-{self.state.global_step}"
        working = run / WORKING / final.name
        if self.args.should_save:
            recover(run)
        self.accelerator.wait_for_everyone()
        self._is_saving = True
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._name_best(working, final)
                write_manifest(working)
                publish(working, final)
        finally:
            self._is_saving = False
            if self.args.should_save:
                # After an error or Ctrl-C too, for example on a full disk
                recover(run)
        if self.args.should_save:
            rotate(run, self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(final))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # An upload goes on in the background, from the folder under its final name
        if not self._is_saving:
            super()._push_from_checkpoint(checkpoint_folder)

    def _name_best(self, working: Path, final: Path) -> None:
        """transformers looks for the best checkpoint beside the one it writes."""
        if self.state.best_model_checkpoint == str(working):
            self.state.best_model_checkpoint = str(final)
        elif self.state.best_global_step:
            best = final.with_name(f"checkpoint-{self.state.best_global_step}")
            if best.is_dir():
                self.state.best_model_checkpoint = str(best)
        self.state.save_to_json(str(working / TRAINER_STATE))
