"""What create_student refuses, by the name of the argument; what it leaves as it was."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from datasets import Dataset, DatasetDict
from tiny import bert_config, dataset_for, model_for, tokenizer
from torch import nn
from transformers import AutoTokenizer, BertForSequenceClassification, BertModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.bert.modeling_bert import BertPreTrainedModel
from zoo import zoo_model

from hf_distill import create_student
from hf_distill.students import save_student

QA = "question-answering"
TEXTS = ["a b c d e f g h"] * 20


def narrow(teacher: Any = None, **options: Any) -> Any:
    rows = dataset_for(QA, 32, seed=3, labels=False)
    options = {"hidden_size": 8, "calibration_data": rows, **options}
    return create_student(teacher or model_for(QA, seed=0), **options)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (Dataset.from_dict({"text": TEXTS, "label": [0] * 20}), "text, label"),
        (tokenizer()(TEXTS), "BatchEncoding"),
        ({"input_ids": [[1, 2]]}, "dict"),
        (DatasetDict({"train": dataset_for(QA, 4, seed=0)}), "DatasetDict"),
        (torch.ones(4, 5, dtype=torch.long), "Tensor"),
        ([["a", "b"]] * 20, "list"),
        ([*TEXTS, None], "NoneType"),
        ((text for text in TEXTS), "generator"),
        ([{"input_ids": [5] * 65}], "65 tokens"),
        ([{"input_ids": [5, 97]}], "id 97"),
        ([{"input_ids": [[5, 6], [5, 97, 6]]}], "id 97"),
        ([{"input_ids": ["5", "6"]}], r"input_ids \['5', '6'\]"),
        ([{"input_ids": [5, -6]}], r"input_ids \[5, -6\]"),
        ([{"input_ids": [5.0, 6.5]}], r"input_ids \[5.0, 6.5\]"),
        ([{"input_ids": [True]}], r"input_ids \[True\]"),
        ([{"input_ids": None}], "row 0.*input_ids"),
        (["", " \n"] * 400, "800 texts.*blank"),
        ([{"input_ids": []}] * 9, "rows 8, .* no tokens"),
        ([{"input_ids": [5, 6], "attention_mask": [1]}], "2 input_ids.*attention_mask of 1"),
        ([{"inputs_embeds": [[0.5] * 16], "attention_mask": [1]}], "inputs_embeds"),
    ],
)
def test_data_without_features_are_named(data: Any, named: str) -> None:
    with pytest.raises(ValueError, match=rf"calibration_data.* {named}"):
        narrow(calibration_data=data, processing_class=tokenizer())


def test_rows_of_several_lengths_need_something_that_pads() -> None:
    rows = [{"input_ids": [5] * size} for size in range(3, 40)]
    with pytest.raises(ValueError, match=r"calibration_data.*processing_class"):
        narrow(calibration_data=rows)
    assert narrow(calibration_data=rows, processing_class=tokenizer()).config.hidden_size == 8


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"hidden_size": "8"}, "hidden_size='8'"),
        ({"hidden_size": 8.0}, "hidden_size=8.0"),
        ({"intermediate_size": True}, "intermediate_size=True"),
        ({"num_hidden_layers": "1"}, "num_hidden_layers='1'"),
        ({"num_hidden_layers": 1.0}, "num_hidden_layers=1.0"),
        ({"layers": 1}, "layers=1"),
        ({"layers": np.array([0, 1])}, "layers=array"),
        ({"calibration_tokens": "9"}, "calibration_tokens='9'"),
        ({"calibration_tokens": 9.5}, "calibration_tokens=9.5"),
        ({"calibration_tokens": True}, "calibration_tokens=True"),
        ({"hidden_size": 7}, "hidden_size=7 .*multiple of 8"),
        ({"calibration_data": TEXTS, "processing_class": "words"}, "processing_class.*'words'"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": None}, "seed=None"),
        ({"seed": 2**32}, f"seed={2**32}"),
    ],
)
def test_values_that_are_no_sizes_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        narrow(**options)


def test_the_largest_seed_is_a_seed() -> None:
    assert narrow(seed=2**32 - 1).config.hidden_size == 8


def test_a_damaged_teacher_is_blamed_itself() -> None:
    teacher: Any = model_for(QA, seed=0)
    with torch.no_grad():
        teacher.qa_outputs.bias[0] = float("nan")
    with pytest.raises(ValueError, match=r"teacher.*not finite.*qa_outputs\.bias"):
        create_student(teacher, num_hidden_layers=1)


def test_weights_that_the_precision_cannot_hold_are_refused() -> None:
    """The teacher's output map is near the largest number of float16, and its input small."""
    teacher: Any = model_for(QA, seed=0)
    with torch.no_grad():
        teacher.bert.encoder.layer[-1].output.LayerNorm.weight.mul_(1e-3)
        teacher.bert.encoder.layer[-1].output.LayerNorm.bias.zero_()
        teacher.qa_outputs.weight.fill_(6e4)
        teacher.qa_outputs.weight[:, ::2] = -6e4
    with pytest.raises(ValueError, match=r"float16.*qa_outputs"):
        narrow(teacher.half())


def test_inputs_that_are_not_numbers_are_refused() -> None:
    teacher = zoo_model("image-classification", "vit", seed=0, layers=3)
    rows = [{"pixel_values": torch.full((3, 8, 8), float(n))} for n in (1, "nan", 2)]
    for options in ({"hidden_size": 8}, {"num_hidden_layers": 2, "layers": "auto"}):
        with pytest.raises(ValueError, match=r"calibration_data.*pixel_values.*NaN"):
            create_student(teacher, calibration_data=rows, **options)


def test_layers_without_which_the_rest_overflows_are_kept() -> None:
    """Without layer 0, what layer 1 makes is far too large for the last one."""
    teacher: Any = model_for(QA, seed=0, layers=3)
    layers = teacher.bert.encoder.layer
    layers[0].forward = lambda states, *_, **__: states * 1e-25
    layers[1].forward = lambda states, *_, **__: states * 1e25
    layers[2].forward = lambda states, *_, **__: states**2
    rows = dataset_for(QA, 4, seed=3, labels=False)
    auto: Any = {"layers": "auto", "calibration_data": rows}
    record = vars(create_student(teacher, num_hidden_layers=2, **auto))["distillation_record"]
    assert 0 in record["layers"]
    teacher.qa_outputs.forward = lambda states: states[..., :2] * torch.nan
    with pytest.raises(ValueError, match=r"layers='auto'.*calibration_data are NaN"):
        create_student(teacher, num_hidden_layers=2, **auto)


def test_outputs_without_names_are_refused() -> None:
    teacher: Any = model_for(QA, seed=0)
    teacher.config.return_dict = False
    with pytest.raises(ValueError, match=r"teacher.*return_dict=False"):
        narrow(teacher)
    assert create_student(teacher, num_hidden_layers=1).config.return_dict is False


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        (Path("texts.txt"), "a PosixPath"),
        ({"text": TEXTS}, "a dict"),
        ([], "empty"),
        (["", ""], "2 texts.*blank"),
        ([" ", "\n"], "2 texts.*blank"),
        ([[], [" "]], "2 texts.*blank"),
        (["a", None], "text 1 .*NoneType"),
        ([3], "text 0 .*int"),
        (["a b", ["c", "d"]], "text 1 .*list"),
    ],
)
def test_a_corpus_that_is_no_list_of_texts_is_named(texts: Any, named: str) -> None:
    with pytest.raises(ValueError, match=rf"vocabulary_from.*{named}"):
        narrow(vocabulary_from=texts, processing_class=tokenizer())


def test_a_trimmed_student_is_saved_with_its_own_tokenizer(tmp_path: Path) -> None:
    whole = tokenizer()
    student = create_student(
        model_for(QA, seed=0), num_hidden_layers=1, vocabulary_from=["a b"], processing_class=whole
    )
    with pytest.raises(ValueError, match=r"processing_class.*tokenizer_of"):
        save_student(student, tmp_path, whole)
    save_student(student, tmp_path)
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == student.config.vocab_size < len(whole)
    save_student(create_student(student, layers=[0]), tmp_path / "second")  # has no tokenizer


def test_another_model_is_not_overwritten(tmp_path: Path) -> None:
    teacher: Any = model_for(QA, seed=0)
    teacher.save_pretrained(tmp_path)
    student = create_student(tmp_path, num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"folder=.*config\.json"):
        save_student(student, tmp_path)
    assert type(teacher).from_pretrained(tmp_path).config.num_hidden_layers == 2
    for layers in (1, 2):
        save_student(create_student(teacher, num_hidden_layers=layers), tmp_path / "student")


@pytest.mark.parametrize("chunk", [1, 7])
def test_a_teacher_with_chunked_feed_forward_networks_is_fitted(chunk: int) -> None:
    whole, chunked = (model_for(QA, seed=0) for _ in range(2))
    for module in chunked.modules():
        if hasattr(module, "chunk_size_feed_forward"):
            module.chunk_size_feed_forward = chunk
    chunked.config.chunk_size_feed_forward = chunk
    student = narrow(chunked)
    for name, weight in narrow(whole).state_dict().items():
        assert torch.equal(student.state_dict()[name], weight), name
    assert student.bert.encoder.layer[0].chunk_size_feed_forward == chunk
    assert chunked.bert.encoder.layer[0].chunk_size_feed_forward == chunk


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_size": 8, "calibration_data": TEXTS * 4},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 1, "vocabulary_from": TEXTS},
    ],
)
def test_a_student_made_in_inference_mode_can_be_trained(
    options: dict[str, Any], tmp_path: Path
) -> None:
    model_for(QA, seed=0).save_pretrained(tmp_path)
    with torch.inference_mode():
        student = create_student(tmp_path, processing_class=tokenizer(), **options)
    place = torch.tensor([1])
    student(torch.tensor([[5, 6, 7]]), start_positions=place, end_positions=place).loss.backward()
    assert all(p.grad is not None for p in student.parameters())


def test_texts_are_checked_before_the_student_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*_: Any) -> None:
        raise AssertionError("fitted")

    monkeypatch.setattr("hf_distill.students.create._fit", fit)
    with pytest.raises(ValueError, match=r"vocabulary_from.*empty"):
        narrow(vocabulary_from=[], processing_class=tokenizer())


def test_adapters_inside_a_model_are_seen() -> None:
    """A narrower student would be fitted without them."""
    teacher: Any = copy.deepcopy(model_for(QA, seed=0))
    teacher.add_adapter(peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(ValueError, match=r"teacher has adapters"):
        narrow(teacher)


class WithOption(BertForSequenceClassification):
    def __init__(self, config: Any, pooling: str) -> None:
        super().__init__(config)


def test_a_class_that_needs_more_than_a_configuration_is_refused() -> None:
    with pytest.raises(ValueError, match=r"WithOption.*pooling"):
        create_student(WithOption(bert_config(2), "mean"), num_hidden_layers=1)


class OwnHead(BertPreTrainedModel):
    """Reads values that ``read`` picks from the encoder's outputs."""

    read: Any
    parts = 1

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.head = nn.Linear(self.parts * config.hidden_size, 3)
        self.post_init()

    def forward(self, input_ids: Any = None, attention_mask: Any = None) -> Any:
        outputs = self.bert(input_ids, attention_mask, output_hidden_states=True)
        return SequenceClassifierOutput(logits=self.head(type(self).read(outputs)))


class SumOfLayers(OwnHead):
    read = staticmethod(lambda outputs: sum(outputs.hidden_states[1:])[:, 0])


class TwoPoolings(OwnHead):
    read = staticmethod(
        lambda o: torch.cat([o.last_hidden_state.amax(1), o.last_hidden_state.amin(1)], -1)
    )
    parts = 2


class LastOnly(OwnHead):
    read = staticmethod(lambda outputs: outputs.hidden_states[-1][:, 0])


@pytest.mark.parametrize(
    ("head", "named"), [(SumOfLayers, "hidden states than the last"), (TwoPoolings, "head reads")]
)
def test_a_head_that_cannot_be_fitted_is_refused(head: Any, named: str) -> None:
    with pytest.raises(ValueError, match=rf"{head.__name__}.*{named}"):
        narrow(head(bert_config(3)).eval())


def test_a_head_of_ones_own_on_the_last_states_is_fitted() -> None:
    assert narrow(LastOnly(bert_config(3)).eval()).head.in_features == 8


def test_a_forward_of_the_teachers_own_is_still_there() -> None:
    teacher: Any = model_for(QA, seed=0)
    layers = teacher.bert.encoder.layer
    forwards = [lambda *a, own=layer.forward, **k: own(*a, **k) for layer in layers]
    for layer, forward in zip(layers, forwards, strict=True):
        layer.forward = forward
    narrow(teacher)
    for layer, forward in zip(layers, forwards, strict=True):
        assert vars(layer)["forward"] is forward


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = tokenizer()

    def interrupt(folder: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(words, "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_student(narrow(), tmp_path / "student", words)
    assert os.listdir(tmp_path / "student") == []
