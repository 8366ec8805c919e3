"""Recorded samples: one sentence in both models at one step, on disk for pictures."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback

from hf_distill.files import write_atomically
from hf_distill.layers.mapping import LayerPair
from hf_distill.layers.recording import Recording

logger = logging.getLogger(__name__)

Who = Literal["teacher", "student"]

_FORMAT = "hf_distill recorded sample 2"
_FILE = re.compile(r"step-(\d{8,})\.safetensors")
_TENSOR = re.compile(
    r"(teacher|student)\.(hidden_states|query|key|attention|pair_mask)\.(0|[1-9]\d*)"
)


@dataclass
class RecordedLayers:
    """The recorded layers of one model, for one sentence without padding, by layer.

    Layers are numbered as in transformers' ``hidden_states``: 0 is the embedding output. A layer
    has either a query and a key, or an attention map, or neither.
    """

    hidden_states: dict[int, Tensor] = field(default_factory=dict)
    """``(length, width)``."""
    query: dict[int, Tensor] = field(default_factory=dict)
    """``(heads, length, head_dim)``."""
    key: dict[int, Tensor] = field(default_factory=dict)
    """``(key_value_heads, length, head_dim)``; each serves as many consecutive query heads."""
    attention: dict[int, Tensor] = field(default_factory=dict)
    """``(heads, length, length)``, probabilities, of families without queries and keys."""
    pair_mask: dict[int, Tensor] = field(default_factory=dict)
    """``(heads or 1, length, length)`` bool, True where a query sees a key; only of layers where
    ``causal`` does not tell it, such as those with local attention."""
    scaling: dict[int, float] = field(default_factory=dict)
    """What the products of queries and keys are multiplied by; of each layer with a query."""
    causal: dict[int, bool] = field(default_factory=dict)
    """Whether a token sees only those before it and itself; of each layer with a query."""

    @classmethod
    def from_recording(cls, recording: Recording, row: int, valid: Tensor) -> RecordedLayers:
        """Return one sentence of a recorded batch, without its padding."""
        layers = cls()
        for layer, states in recording.hidden_states.items():
            layers.hidden_states[layer] = states[row][valid]
        for layer, call in recording.attentions.items():
            mask = call.mask
            if mask is not None:
                mask = mask[row if mask.shape[0] > 1 else 0][None][..., valid, :][..., valid]
            visible = replace(call, mask=mask).visible_pairs(None)
            if call.beyond or visible.bias is not None:
                continue  # queries and keys alone do not make its probabilities
            layers.query[layer] = call.inputs.query[row][:, valid]
            layers.key[layer] = call.inputs.key[row][:, valid]
            layers.scaling[layer] = call.inputs.scaling
            layers.causal[layer] = visible.causal
            if visible.pair_mask is not None:
                layers.pair_mask[layer] = visible.pair_mask[0]
        for layer, probabilities in recording.attention_maps.items():
            layers.attention[layer] = probabilities[row][:, valid][:, :, valid]
        return layers


@dataclass
class RecordedSample:
    """What both models computed for one sentence at one step."""

    step: int
    """The optimizer step that was about to be taken, 0 or more."""
    layer_pairs: list[LayerPair]
    input_ids: Tensor
    """``(length,)`` int64, without padding."""
    teacher: RecordedLayers
    student: RecordedLayers
    tokens: list[str] | None = None
    """The texts of ``input_ids``, if they are known."""

    def attention(self, who: Who, layer: int) -> Tensor:
        """The attention probabilities of a layer, before dropout.

        ``softmax(scaling · Q Kᵀ)`` over the keys that each query sees, or the recorded map.

        Args:
            who: ``"teacher"`` or ``"student"``.
            layer: from 1.

        Returns:
            ``(heads, length, length)`` float32, rows are queries.

        Raises:
            ValueError: if ``who`` is none of the two, or the layer's attention was not recorded.
        """
        if who not in get_args(Who):
            raise ValueError(f"who must be 'teacher' or 'student', but it is {who!r}.")
        layers = self.teacher if who == "teacher" else self.student
        if layer in layers.attention:
            return layers.attention[layer].float()
        if layer not in layers.query:
            recorded = sorted({*layers.attention, *layers.query})
            raise ValueError(
                f"layer={layer}: the sample of step {self.step} has no attention of this layer of "
                f"the {who}; it has the layers {recorded}."
            )
        query, key = layers.query[layer].float(), layers.key[layer].float()
        key = key.repeat_interleave(query.shape[0] // key.shape[0], dim=0)
        scores = layers.scaling[layer] * query @ key.mT
        if layers.causal[layer]:
            length = scores.shape[-1]
            future = torch.ones(length, length, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(future.to(scores.device), -torch.inf)
        if layer in layers.pair_mask:
            scores = scores.masked_fill(~layers.pair_mask[layer], -torch.inf)
        return scores.softmax(dim=-1)


class SampleFolder:
    """A folder of recorded samples, one safetensors file for each step, bounded in size.

    Tensors are stored as float16, values beyond its range (±65,504) at its ends. Files are whole or
    not there at all.

    Args:
        path: the folder; made at the first write.
        max_bytes: the size of all samples in the folder, those of an earlier run included, that is
            never exceeded. At the first sample that does not fit, writing stops for good.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, but it is {max_bytes}.")
        self.path = Path(path)
        self.max_bytes = max_bytes
        self.full = False
        """Whether writing has stopped."""

    def write(self, sample: RecordedSample) -> Path | None:
        """Write a sample, in place of one of the same step.

        Returns:
            The file, or ``None`` if the folder is full; the first time, a warning says so.

        Raises:
            OSError: if it cannot be written.
        """
        if self.full:
            return None
        content = _serialize(sample)
        path = self.path / f"step-{sample.step:08d}.safetensors"
        others = sum(file.stat().st_size for file in self._files() if file != path)
        if others + len(content) > self.max_bytes:
            self.full = True
            logger.warning(
                "Recorded samples in %s have reached their bound of %s bytes: step %d and later "
                "ones are not recorded. Raise max_bytes, or record fewer steps or layers.",
                self.path, f"{self.max_bytes:,}", sample.step,
            )  # fmt: skip
            return None
        return write_atomically(path, lambda temporary: temporary.write_bytes(content))

    def __iter__(self) -> Iterator[RecordedSample]:
        """All samples in the order of their steps, read one at a time.

        Raises:
            FileNotFoundError: if the folder is not there.
            ValueError: if a safetensors file in it is cut short or no recorded sample.
        """
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path}: no folder of recorded samples is there.")
        for file in self._files():
            yield read_sample(file)

    def _files(self) -> list[Path]:
        """The samples in the order of their steps; what a killed run left half-written is none."""
        files = [file for file in self.path.glob("*.safetensors") if not file.name.startswith(".")]
        return sorted(files, key=lambda file: (len(file.name), file.name))


class TeacherRecorderCallback(TrainerCallback):
    """Write hidden states and attentions of teacher and student to disk while training.

    Pass it to ``DistillationTrainer`` in ``callbacks``, or to ``add_callback``, in any stage::

        recorder = TeacherRecorderCallback(save_to="out/samples", every_steps=200)
        DistillationTrainer(..., callbacks=[recorder])

    A sample is the first row of a batch: its hidden states, and the queries and keys of its
    attentions (or the maps, for families whose queries and keys are out of reach). Attentions that
    queries and keys alone do not determine (position biases, soft-caps, attention sinks) are left
    out, and so are layers that LayerDrop skipped. Pictures are made of samples (``hf-distill
    pictures``, ``hf_distill.reports``). Several recorders may write to several folders, and one
    may be used for one stage after the other.

    Args:
        save_to: a folder for samples; by default nothing is written.
        every_steps: optimizer steps between two samples; the first is of the first step.
        max_bytes: size at which no more samples are written.

    Raises:
        ValueError: ``every_steps`` or ``max_bytes`` is below 1.
    """

    def __init__(
        self,
        save_to: str | os.PathLike[str] | None = None,
        *,
        every_steps: int = 500,
        max_bytes: int = 256 * 2**20,
    ) -> None:
        for name, value in (("every_steps", every_steps), ("max_bytes", max_bytes)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but it is {value}.")
        self._samples = None if save_to is None else SampleFolder(save_to, max_bytes=max_bytes)
        self._every_steps = every_steps
        self._written_step: int | None = None
        self._tokens: Callable[[list[int]], Any] | None = None

    @property
    def samples_wanted(self) -> bool:
        """Whether samples are written."""
        return self._samples is not None

    def is_sample_due(self, step: int) -> bool:
        """Whether the batch of this optimizer step is to be written."""
        return (
            self._samples is not None
            and step % self._every_steps == 0
            and step != self._written_step
        )

    def write_sample(
        self,
        step: int,
        batch: Mapping[str, Any],
        token_mask: Tensor | None,
        pairs: Sequence[LayerPair],
        teacher: Recording,
        student: Recording,
    ) -> None:
        """Write the first row of the batch that was just recorded."""
        assert self._samples is not None
        self._written_step = step
        states = next(iter(student.hidden_states.values()))
        whole = torch.ones(states.shape[1], dtype=torch.bool, device=states.device)
        valid = whole if token_mask is None else token_mask[0]
        ids = batch.get("input_ids")
        ids = torch.arange(len(valid)) if ids is None else ids.flatten(0, -2)[0][valid]
        self._samples.write(
            RecordedSample(
                step=step,
                layer_pairs=[pair for pair in pairs if pair.student not in student.dropped],
                input_ids=ids,
                teacher=RecordedLayers.from_recording(teacher, 0, valid),
                student=RecordedLayers.from_recording(student, 0, valid),
                tokens=None if self._tokens is None else self._tokens(ids.tolist()),
            )
        )

    def on_train_begin(
        self, args: Any, state: Any, control: Any, processing_class: Any = None, **kwargs: Any
    ) -> None:
        """Begin a run, which may be another stage than the one before."""
        self._written_step = None
        if isinstance(processing_class, PreTrainedTokenizerBase):
            self._tokens = processing_class.convert_ids_to_tokens


def read_sample(path: str | os.PathLike[str]) -> RecordedSample:
    """Read the sample that a ``SampleFolder`` wrote.

    Raises:
        ValueError: if the file is cut short or something else.
        OSError: if it cannot be read.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if not _FILE.fullmatch(path.name) or _FORMAT not in metadata:
                raise ValueError("it was not written by hf_distill, or by a later version")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _sample(json.loads(metadata[_FORMAT]), tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no recorded sample, or it is cut short ({error}): remove the file."
        ) from error


def _serialize(sample: RecordedSample) -> bytes:
    largest = torch.finfo(torch.float16).max
    tensors = {"input_ids": sample.input_ids.detach().cpu().contiguous()}
    for who, layers in (("teacher", sample.teacher), ("student", sample.student)):
        for kind in ("hidden_states", "query", "key", "attention", "pair_mask"):
            for layer, tensor in getattr(layers, kind).items():
                if kind != "pair_mask":
                    tensor = tensor.detach().float().clamp(-largest, largest).half()
                # A copy: safetensors refuses tensors that share memory, as tied ones may.
                tensors[f"{who}.{kind}.{layer}"] = tensor.cpu().contiguous().clone()
    models = {"teacher": sample.teacher, "student": sample.student}
    content = {
        "step": sample.step,
        "layer_pairs": sample.layer_pairs,
        "scaling": {who: layers.scaling for who, layers in models.items()},
        "causal": {who: layers.causal for who, layers in models.items()},
        "tokens": sample.tokens,
    }
    # One entry: safetensors writes several in an order that is drawn by each process.
    return save(tensors, {_FORMAT: json.dumps(content)})


def _sample(content: dict[str, Any], tensors: dict[str, Tensor]) -> RecordedSample:
    scaling, causal = content["scaling"], content["causal"]
    models = {
        who: RecordedLayers(
            scaling={int(layer): float(value) for layer, value in scaling[who].items()},
            causal={int(layer): bool(value) for layer, value in causal[who].items()},
        )
        for who in get_args(Who)
    }
    input_ids = tensors.pop("input_ids")
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise ValueError(f"it holds a tensor {name!r}")
        who, kind, layer = match.groups()
        getattr(models[who], kind)[int(layer)] = tensor
    for layers in models.values():
        if (
            not layers.query.keys()
            == layers.key.keys()
            <= layers.scaling.keys() & layers.causal.keys()
        ):
            raise ValueError("a query lacks its key, scaling or causal")
    return RecordedSample(
        step=int(content["step"]),
        layer_pairs=[LayerPair(*pair) for pair in content["layer_pairs"]],
        input_ids=input_ids,
        tokens=content["tokens"],
        **models,
    )
