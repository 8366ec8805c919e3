"""Two optimizer steps with a teacher of another tokenizer, as one of the processes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "alignment"))

import torch
from accelerate.state import AcceleratorState
from runs import distil, logged
from settings import setting
from step import LOSSES, sums

from hf_distill import cache_teacher_outputs


def main(output: str, batch_size: str, accumulation: str, cases: str) -> None:
    torch.set_num_threads(1)
    results = {}
    for name, case in json.loads(cases).items():
        AcceleratorState._reset_state()
        student, teacher, rows, ours, theirs, collator = setting(case["setting"])
        given = {"processing_class": ours, "teacher_processing_class": theirs}
        if case["cached"]:
            rows = cache_teacher_outputs(
                teacher,
                rows,
                output_dir=Path(output) / f"cache-{case['setting']}",
                data_collator=collator,
                dtype="float32",
                use_cpu=True,
                batch_size=3,
                **given,
            )
            teacher = None
        trainer, norms = distil(
            "",
            output,
            student=student,
            teacher=teacher,
            train_dataset=rows,
            trainer_options={"data_collator": collator, **given},
            per_device_train_batch_size=int(batch_size),
            gradient_accumulation_steps=int(accumulation),
            max_steps=2,
            optim="sgd",
            max_grad_norm=0.0,
            distillation_loss_weight=0.3,
            teacher_check_samples=0,
            train_sampling_strategy="sequential",
        )
        trained_student = trainer.accelerator.unwrap_model(trainer.model)
        results[name] = {
            **{loss: logged(trainer, loss) for loss in LOSSES},
            "norms": norms.norms,
            "processes": trainer.args.world_size,
            "aligned": trainer.distiller.alignment.two_encodings,
            "weights": sums(dict(trained_student.named_parameters())),
        }
    path = Path(output) / f"rank{os.environ.get('RANK', '0')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # gloo aborts at exit now and then
