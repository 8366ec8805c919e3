"""`hf-distill` commands, whose checkpoints are noted as they appear."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

from complete import Checkpoints, Setting, read_setting

from hf_distill.cli.main import main as hf_distill

LOOK_SECONDS = 0.2


def watch(folder: Path, checkpoints: Checkpoints, output: Path, end: threading.Event) -> None:
    """Copy each checkpoint of a training when it is whole."""
    seen: set[str] = set()
    while True:
        last = end.wait(LOOK_SECONDS)
        for state in sorted(
            folder.glob("checkpoint-*/trainer_state.json"),
            key=lambda path: int(path.parent.name.rpartition("-")[2]),
        ):
            if state.parent.name not in seen:
                seen.add(state.parent.name)
                now, name = time.process_time(), f"point-{state.parent.name}"
                shutil.copytree(state.parent, output / name)
                checkpoints.add(name, now)
        if last:
            return


def commands(setting: Setting) -> tuple[list[list[str]], Path]:
    """Return what is typed, and the folder of the checkpoints."""
    output = Path(setting.output)
    data = ["--task", "question-answering", "--train_file", setting.train_file, "--max_length",
            str(setting.max_length), "--doc_stride", str(setting.doc_stride)]  # fmt: skip
    if not setting.student:
        shrink = ["shrink", *data, "--teacher_model", setting.teacher, "--validation_file",
                  setting.validation_file, "--use_cpu", "--seed", str(setting.seed), "--no_export",
                  "--num_train_epochs", str(setting.epochs), "--output_dir",
                  str(output / "shrink")]  # fmt: skip
        if not setting.bf16:
            shrink += ["--bf16", "false"]
        return [shrink], output / "shrink" / "student"
    stored, student = str(output / "outputs"), output / "student"
    precision = ["--bf16"] if setting.bf16 else []
    cache = ["cache", *data, "--teacher_model", setting.teacher, "--use_cpu", "--output_dir",
             stored, *(["--mixed_precision", "bf16"] if setting.bf16 else [])]  # fmt: skip
    train = ["train", *data, "--student_model", setting.student, "--teacher_outputs", stored,
             "--num_train_epochs", str(setting.epochs), "--seed", str(setting.seed), "--use_cpu",
             *precision, "--save_strategy", "epoch", "--output_dir", str(student),
             *setting.more]  # fmt: skip
    return [cache, train], student


def main() -> None:
    """Run the commands."""
    setting = read_setting()
    checkpoints, end = Checkpoints(setting), threading.Event()
    typed, folder = commands(setting)
    watcher = threading.Thread(
        target=watch, args=(folder, checkpoints, Path(setting.output), end), daemon=True
    )
    watcher.start()
    for command in typed:
        if hf_distill(command) != 0:
            raise SystemExit(f"hf-distill {command[0]} failed")
    end.set()
    watcher.join()
    checkpoints.write()


if __name__ == "__main__":
    main()
