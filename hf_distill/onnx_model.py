"""Exported models: found in a folder, and run by ONNX Runtime like the model they were made of."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.loss import loss_utils
from transformers.modeling_outputs import (
    ImageClassifierOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from hf_distill.extras import require

_OUTPUTS: dict[str, Any] = {
    "ForQuestionAnswering": QuestionAnsweringModelOutput,
    "ForSequenceClassification": SequenceClassifierOutput,
    "ForTokenClassification": TokenClassifierOutput,
    "ForMultipleChoice": MultipleChoiceModelOutput,
    "ForMaskedLM": MaskedLMOutput,
    "ForImageClassification": ImageClassifierOutput,
    "SentenceEncoder": dict,
}
"""Ending of a class that can be exported -> its outputs."""
EXPORT_REPORT = "export.json"
EXPORTED_FILES = ("onnx/model.onnx", "onnx/model_int8.onnx")
_LABELS = {"ForQuestionAnswering": ("start_positions", "end_positions")}


def exported_file(source: str | os.PathLike[str]) -> Path | None:
    """Return the ONNX file of a folder that has no other weights; ``None`` if it has none.

    Raises:
        ValueError: there are several.
    """
    folder = Path(source)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return None
    files = sorted([*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")])
    if len(files) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in files)
        raise ValueError(
            f"{source} has several exported models ({names}); leave one of them in the folder."
        )
    return files[0] if files else None


def exportable_kind(architecture: str) -> str:
    """Return the ending of a class name that says what its outputs are.

    Raises:
        ValueError: models of this class cannot be exported.
    """
    for kind in _OUTPUTS:
        if architecture.endswith(kind):
            return kind
    raise ValueError(
        f"A {architecture} cannot be exported: only encoders with a head can "
        f"({', '.join(f'…{kind}' for kind in _OUTPUTS if kind.startswith('For'))}), and models of "
        "sentence-transformers."
    )


class OnnxModel(nn.Module):
    """A model that ONNX Runtime computes on the CPU, with as many threads as PyTorch uses.

    It takes and returns what the model of ``transformers`` does that it was made of, the loss of
    labels included, so that scoring, comparing and answering need not know the difference. It
    cannot be trained. ``load`` makes one.

    Args:
        file: the ONNX file.
        config: of the model that was exported.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        ValueError: models of this class cannot be exported, or the file is damaged.
    """

    kind: str

    def __init__(self, file: Path, config: PreTrainedConfig) -> None:
        super().__init__()
        runtime = require("onnxruntime", "export")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.config = config
        try:
            self._session = runtime.InferenceSession(
                os.fspath(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no class in common
            raise ValueError(
                f"{file} cannot be loaded: it is damaged, or of another version of ONNX Runtime "
                f"({(str(error).splitlines() or [type(error).__name__])[0]}). Export it again."
            ) from error
        self._types = {
            one.name: np.float32 if "float" in one.type else np.int64
            for one in self._session.get_inputs()
        }
        self._names = [one.name for one in self._session.get_outputs()]

    @classmethod
    def load(cls, file: Path, config: PreTrainedConfig, kind: str | None = None) -> OnnxModel:
        """Load an exported model under a class that has the inputs and labels of its original.

        ``Trainer`` reads the names of labels off a class, and which columns to keep off
        ``forward``.
        """
        architecture = (config.architectures or [""])[0]
        kind = kind or exportable_kind(architecture)
        original = getattr(transformers, architecture, None)
        if original is None:
            raise ValueError(
                f"{file}: transformers {transformers.__version__} has no {architecture}."
            )
        parameters = inspect.signature(original.forward).parameters
        named = [p for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

        def forward(self: OnnxModel, **inputs: Any) -> Any:
            return self._run(inputs)

        forward.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
        made: Callable[..., OnnxModel] = type(
            f"Onnx{architecture}", (cls,), {"forward": forward, "kind": kind}
        )
        return made(file, config).eval()

    @property
    def device(self) -> torch.device:
        """The CPU, where it computes."""
        return torch.device("cpu")

    def num_parameters(self) -> int:
        """Return the number of parameters of the model that was exported."""
        architecture = getattr(transformers, (self.config.architectures or [""])[0])
        with torch.device("meta"):
            count: int = architecture._from_config(self.config).num_parameters()
        return count

    def _run(self, inputs: dict[str, Any]) -> Any:
        given = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        if missing := sorted(self._types.keys() - given.keys()):
            raise ValueError(f"The exported model needs {', '.join(missing)}, which a batch lacks.")
        arrays = {n: given[n].cpu().numpy().astype(t, copy=False) for n, t in self._types.items()}
        device = next(iter(given.values())).device
        outputs = {
            name: torch.from_numpy(array).to(device)
            for name, array in zip(self._names, self._session.run(None, arrays), strict=True)
        }
        return _OUTPUTS[self.kind](loss=self._loss(given, outputs), **outputs)

    def _loss(self, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> Tensor | None:
        labels = {k: inputs.get(k) for k in _LABELS.get(self.kind, ("labels",))}
        if any(value is None for value in labels.values()):
            return None
        compute: Any = loss_utils.LOSS_MAPPING[self.kind]
        if self.kind in ("ForSequenceClassification", "ForImageClassification"):
            loss = compute(labels["labels"], outputs["logits"], self.config)
        elif self.kind == "ForMultipleChoice":
            loss = nn.CrossEntropyLoss()(outputs["logits"], labels["labels"])
        elif self.kind == "ForQuestionAnswering":
            loss = compute(**outputs, **labels)
        else:
            loss = compute(outputs["logits"], labels["labels"], vocab_size=self.config.vocab_size)
        found: Tensor = loss
        return found


def load_exported(source: str | os.PathLike[str]) -> OnnxModel | None:
    """Load the exported model of a folder; ``None`` if it has none.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        ValueError: the folder has several, or models of this class cannot be exported.
    """
    file = exported_file(source)
    if file is None:
        return None
    return OnnxModel.load(file, AutoConfig.from_pretrained(source, trust_remote_code=False))
