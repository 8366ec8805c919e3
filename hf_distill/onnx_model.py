"""Exported models: found in a folder, and run like the model they were made of."""

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

from hf_distill.extras import MissingExtraError, require

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
OPENVINO_FILE = "openvino/openvino_model.xml"
_LABELS = {"ForQuestionAnswering": ("start_positions", "end_positions")}


def exported_file(source: str | os.PathLike[str]) -> Path | None:
    """Return the file of an exported model in a folder without other weights, or ``None``.

    Raises:
        ValueError: there are several.
    """
    folder = Path(source)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return None
    patterns = ("*.onnx", "onnx/*.onnx", "openvino/*.xml")
    files = sorted(path for pattern in patterns for path in folder.glob(pattern))
    if len(files) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in files)
        raise ValueError(
            f"{source} has several exported models ({names}); leave one of them in the folder."
        )
    return files[0] if files else None


def weights_of(file: Path) -> Path:
    """Return the file with the weights of an exported model; OpenVINO's are apart."""
    return file.with_suffix(".bin") if file.suffix == ".xml" else file


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


class _OnnxRuntime:
    def __init__(self, file: Path) -> None:
        runtime = require("onnxruntime", "export")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        # Else its threads wait actively after each call, and slow down what is computed next to it.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = runtime.InferenceSession(
            os.fspath(file), options, providers=["CPUExecutionProvider"]
        )
        self.inputs: dict[str, Any] = {
            one.name: np.float32 if "float" in one.type else np.int64
            for one in self._session.get_inputs()
        }
        self.outputs = [one.name for one in self._session.get_outputs()]

    def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        found: list[np.ndarray] = self._session.run(None, inputs)
        return found


class _OpenVino:
    def __init__(self, file: Path) -> None:
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            # By default bfloat16 where the processor has it.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        core = require("openvino", "openvino").Core()
        self._model = core.compile_model(os.fspath(file), "CPU", settings)
        self.inputs: dict[str, Any] = {
            one.any_name: one.element_type.to_dtype() for one in self._model.inputs
        }
        self.outputs = [one.any_name for one in self._model.outputs]

    def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        found = self._model(inputs)
        return [np.array(found[name]) for name in self.outputs]


_RUNTIMES: dict[str, Any] = {".onnx": _OnnxRuntime, ".xml": _OpenVino}


class ExportedModel(nn.Module):
    """A model that its runtime computes on the CPU, with as many threads as PyTorch uses.

    ONNX Runtime and OpenVINO are known.

    It takes and returns what the model of ``transformers`` does that it was made of, the loss of
    labels included, so that scoring, comparing and answering need not know the difference. It
    cannot be trained. ``load`` makes one.

    Args:
        file: the exported file, ``.onnx`` or ``.xml``.
        config: of the model that was exported.

    Raises:
        MissingExtraError: the runtime is not installed.
        ValueError: models of this class cannot be exported, or the file is damaged.
    """

    kind: str

    def __init__(self, file: Path, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config
        try:
            self._runtime = _RUNTIMES[file.suffix](file)
        except MissingExtraError:
            raise
        except Exception as error:  # its errors have no class in common
            raise ValueError(
                f"{file} cannot be loaded: it is damaged, or of another version of its runtime "
                f"({(str(error).splitlines() or [type(error).__name__])[0]}). Export it again."
            ) from error

    @classmethod
    def load(cls, file: Path, config: PreTrainedConfig, kind: str | None = None) -> ExportedModel:
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

        def forward(self: ExportedModel, **inputs: Any) -> Any:
            return self._run(inputs)

        forward.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
        made: Callable[..., ExportedModel] = type(
            f"Exported{architecture}", (cls,), {"forward": forward, "kind": kind}
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
        types = self._runtime.inputs
        if missing := sorted(types.keys() - given.keys()):
            raise ValueError(f"The exported model needs {', '.join(missing)}, which a batch lacks.")
        arrays = {n: given[n].cpu().numpy().astype(t, copy=False) for n, t in types.items()}
        device = next(iter(given.values())).device
        outputs = {
            name: torch.from_numpy(array).to(device)
            for name, array in zip(self._runtime.outputs, self._runtime.run(arrays), strict=True)
        }
        return _OUTPUTS[self.kind](loss=self._loss(given, outputs), **outputs)

    def _loss(self, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> Tensor | None:
        labels = {k: inputs.get(k) for k in _LABELS.get(self.kind, ("labels",))}
        if any(value is None for value in labels.values()):
            return None
        if self.kind == "ForMultipleChoice":  # which has no entry there
            return nn.CrossEntropyLoss()(outputs["logits"], labels["labels"])
        compute: Any = loss_utils.LOSS_MAPPING[self.kind]
        if self.kind in ("ForSequenceClassification", "ForImageClassification"):
            loss = compute(labels["labels"], outputs["logits"], self.config)
        elif self.kind == "ForTokenClassification":
            loss = compute(outputs["logits"], labels["labels"], self.config)
        elif self.kind == "ForQuestionAnswering":
            loss = compute(**outputs, **labels)
        else:
            loss = compute(outputs["logits"], labels["labels"], vocab_size=self.config.vocab_size)
        found: Tensor = loss
        return found


def load_exported(source: str | os.PathLike[str]) -> ExportedModel | None:
    """Load the exported model of a folder; ``None`` if it has none.

    Raises:
        MissingExtraError: its runtime is not installed.
        ValueError: the folder has several, or models of this class cannot be exported.
    """
    file = exported_file(source)
    if file is None:
        return None
    return ExportedModel.load(file, AutoConfig.from_pretrained(source, trust_remote_code=False))
