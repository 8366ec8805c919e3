"""Are images and sounds prepared as the teacher was trained with them?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from hf_distill.compatibility.findings import Finding, error, info
from hf_distill.compatibility.tokenizers import check_tokenizers
from hf_distill.heads import (
    AudioClassificationHead,
    ImageClassificationHead,
    Seq2SeqLMHead,
    TaskHead,
    unwrapped,
)
from hf_distill.loading import find_file

_FILE = "preprocessor_config.json"
_MEANING = (
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "sampling_rate",
    "feature_size",
)
"""Settings that change what a number of the input means."""


def check_preparation(
    teacher: nn.Module, student: nn.Module, head: TaskHead, processing_class: Any
) -> Finding:
    """Check that the inputs mean the same to the teacher: tokenizers, or how pixels are scaled.

    Args:
        teacher: the teacher.
        student: the student.
        head: the task.
        processing_class: what the data was prepared with.
    """
    sees = isinstance(head, ImageClassificationHead | AudioClassificationHead)
    hears = isinstance(head, Seq2SeqLMHead) and head.auto_model == "AutoModelForSpeechSeq2Seq"
    if not sees and not hears:
        return check_tokenizers(teacher, student, head, processing_class)
    ours, theirs = _settings_of(processing_class), _saved_settings(teacher)
    if ours is None or theirs is None:
        return info("processor", "Not compared: the teacher's or the data's is not at hand.")
    for name in _MEANING:
        values = theirs.get(name), ours.get(name)
        if None not in values and values[0] != values[1]:
            return error(
                "processor",
                f"The data is prepared with {name}={values[1]} and the teacher was trained with "
                f"{values[0]}, so it would misread it. Prepare the data with the teacher's "
                "processor (processing_class), or choose another teacher.",
            )
    return info("processor", "The same scale and normalisation of the inputs.")


def _settings_of(processing_class: Any) -> dict[str, Any] | None:
    for part in ("feature_extractor", "image_processor"):
        processing_class = getattr(processing_class, part, processing_class)
    to_dict = getattr(processing_class, "to_dict", None)
    return None if to_dict is None else json.loads(json.dumps(to_dict(), default=str))


def _saved_settings(model: nn.Module) -> dict[str, Any] | None:
    source: Any = getattr(unwrapped(model), "name_or_path", None)
    if not source:
        return None
    file = find_file(source, _FILE)
    if file is None:
        return None
    settings: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    return settings
