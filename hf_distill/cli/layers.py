"""Shows which layers ``layer_mapping="auto"`` chose, and why."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hf_distill.cli.run_folder import PICTURES
from hf_distill.console import log_rank_0
from hf_distill.trainer import DistillationTrainer


class ChosenLayers(TrainerCallback):
    """When training begins: the layers' similarities as a table, and as a heat map in a file.

    Args:
        output_dir: the folder of the run or stage; the picture goes to ``pictures`` in it.
    """

    def __init__(self, output_dir: Path) -> None:
        self.trainer: DistillationTrainer | None = None
        self._file = output_dir / PICTURES / "layer_similarity.png"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show them; only then are they known."""
        trainer = self.trainer
        if trainer is None or not state.is_world_process_zero:
            return
        similarity = trainer.layer_similarity
        if similarity is None:
            return
        from hf_distill.reports.layer_similarity import plot_layer_similarity, similarity_table

        pairs = trainer.layer_pairs
        log_rank_0("How alike the layers are (linear CKA); * are those that learn from each other:")
        sys.stderr.write(similarity_table(similarity, pairs) + "\n")
        log_rank_0(f"The same as a picture: {plot_layer_similarity(similarity, pairs, self._file)}")
