"""A Hub that cannot be reached is asked once; what was downloaded before is used without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tiny import model_for, tokenizer

SCRIPT = """
import os, pathlib, sys
from hub.server import hub
with hub(pathlib.Path.cwd()) as (url, _):
    os.environ["HF_ENDPOINT"] = url
    import huggingface_hub
    from hf_distill import loading
    from hf_distill.augmentation.masked_lm import MaskedLanguageModel
    from hf_distill.cli.loading import load_tokenizer
    from hf_distill.loading import load_fine_tuned, load_model, read_config
    from hf_distill.tasks.tables import load_table

    def load_small():
        load_tokenizer("student_model", "acme/small")
        return load_model("AutoModelForQuestionAnswering", "acme/small").model.num_parameters()

    print(load_small())
    try:
        load_tokenizer("student_model", "acme/bare")
        sys.exit("made up")
    except ValueError as error:
        print(error)
loading._asked.clear()
print(load_small())
for load in (
    lambda: load_tokenizer("student_model", "acme/absent"),
    lambda: read_config("acme/absent", "teacher"),
    lambda: load_fine_tuned("AutoModelForMaskedLM", "acme/absent", task="fill-mask"),
    lambda: MaskedLanguageModel.from_pretrained("acme/absent"),
    lambda: load_table("acme/absent"),
):
    try:
        load()
        sys.exit("loaded")
    except (OSError, ValueError) as error:
        print(str(error).splitlines()[0])
assert huggingface_hub.constants.HF_HUB_OFFLINE is False
"""


def test_it_is_asked_once(tmp_path: Path) -> None:
    model = model_for("question-answering", seed=0, layers=1)
    model.save_pretrained(tmp_path / "models/acme/small")
    tokenizer().save_pretrained(tmp_path / "models/acme/small")
    model.save_pretrained(tmp_path / "models/acme/bare")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "Retrying" not in done.stderr
    there, bare, without_the_hub, *errors, data = done.stdout.splitlines()
    assert there == without_the_hub == str(model.num_parameters())
    assert bare.startswith("--student_model acme/bare has no tokenizer (no tokenizer.json)")
    neither = "it is neither a local model directory nor a Hub model that you can access."
    for error, beginning in zip(
        errors,
        (
            f"--student_model acme/absent: {neither}",
            f"teacher='acme/absent' cannot be loaded: {neither}",
            f"'acme/absent' cannot be loaded: {neither}",
            f"model='acme/absent' cannot be loaded: {neither}",
        ),
        strict=True,
    ):
        assert error.startswith(beginning)
    assert "'acme/absent'" in data and "on the Hub" in data
