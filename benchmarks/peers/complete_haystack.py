"""Haystack 1 as the docstring of its reader trains: ``distil_prediction_layer_from``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from complete import Checkpoints, read_setting
from haystack.modeling.training.base import DistillationTrainer
from haystack.nodes import FARMReader

LEARNING_RATE, WEIGHT, TEMPERATURE = 3e-5, 1.0, 5


def main() -> None:
    """Train."""
    setting = read_setting()
    checkpoints = Checkpoints(setting)
    options: dict[str, Any] = {
        "use_gpu": False,
        "max_seq_len": setting.max_length,
        "doc_stride": setting.doc_stride,
        "progress_bar": False,
    }
    teacher = FARMReader(model_name_or_path=setting.teacher, **options)
    student = FARMReader(model_name_or_path=setting.student, **options)
    original = DistillationTrainer.backward_propagate

    def propagate(self: Any, loss: Any, step: int) -> Any:
        result = original(self, loss, step)
        if step == len(self.data_silo.loaders["train"]) - 1:
            checkpoints.save(self.model.convert_to_transformers()[0])
        return result

    DistillationTrainer.backward_propagate = propagate
    file = Path(setting.train_file)
    student.distil_prediction_layer_from(
        teacher,
        data_dir=str(file.parent),
        train_filename=file.name,
        use_gpu=False,
        n_epochs=setting.epochs,
        learning_rate=LEARNING_RATE,
        distillation_loss_weight=WEIGHT,
        temperature=TEMPERATURE,
        num_processes=1,
        save_dir=str(Path(setting.output) / "saved"),
    )
    checkpoints.write()


if __name__ == "__main__":
    main()
