"""Students of encoders with decoders, and of others whose layers are copied only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM
from zoo import zoo_dataset, zoo_model

from hf_distill import create_student
from hf_distill.students import save_student

TASK = "summarization"
LAYERS = {"t5": "num_decoder_layers", "longt5": "num_decoder_layers", "bart": "decoder_layers"}


def stacks(model: Any) -> tuple[Any, Any]:
    name = "layers" if model.config.model_type == "bart" else "block"
    return getattr(model.base_model.encoder, name), getattr(model.base_model.decoder, name)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    ("options", "encoder", "decoder"),
    [
        ({"num_hidden_layers": 2}, [0, 2], [0, 1]),
        ({"num_hidden_layers": 1}, [0], [0]),
        ({"layers": [0, 1]}, [0, 1], [0, 1]),
        ({"layers": {"decoder": [0, 2]}}, [0, 1, 2, 3], [0, 2]),
        ({"layers": {"encoder": [0, 3], "decoder": [0]}}, [0, 3], [0]),
    ],
)
def test_each_stack_keeps_its_layers(
    name: str, options: Any, encoder: list[int], decoder: list[int], tmp_path: Path
) -> None:
    teacher = zoo_model(TASK, name, seed=0, layers=4, **{LAYERS[name]: 3}).eval()
    student = create_student(teacher, **options)
    assert student.config.num_hidden_layers == len(encoder)
    assert getattr(student.config, LAYERS[name]) == len(decoder)
    for made, given, kept in zip(stacks(student), stacks(teacher), (encoder, decoder), strict=True):
        assert len(made) == len(kept)
        for one, index in zip(made, kept, strict=True):
            weights = given[index].state_dict()
            assert one.state_dict().keys() == weights.keys()
            assert all(torch.equal(v, weights[key]) for key, v in one.state_dict().items())
    table = student.get_input_embeddings().weight
    assert student.get_output_embeddings().weight is table
    assert torch.equal(table, teacher.get_input_embeddings().weight)
    record = save_student(student, tmp_path)
    assert (record["layers"], record["decoder_layers"]) == (encoder, decoder)
    loaded, info = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = torch.tensor([[5, 6, 7, 3]])
    made, again = (
        model.generate(ids, max_new_tokens=5, do_sample=False, num_beams=1)
        for model in (student, loaded)
    )
    assert torch.equal(made, again)


@pytest.mark.parametrize("attention", ["local", "transient-global"])
def test_all_layers_of_a_longt5_are_the_teacher(attention: str) -> None:
    teacher = zoo_model(
        TASK, "longt5", seed=0, layers=3, num_decoder_layers=2, encoder_attention_type=attention
    ).eval()
    whole = create_student(teacher, layers={"encoder": [0, 1, 2]})
    ids = torch.tensor([[5, 6, 7, 8, 9, 3] * 4])
    inputs = {"input_ids": ids, "decoder_input_ids": ids[:, :4]}
    with torch.no_grad():
        assert torch.equal(whole(**inputs).logits, teacher(**inputs).logits)
    cut = create_student(teacher, layers={"encoder": [0, 2], "decoder": [0]})
    assert torch.isfinite(cut(**inputs).logits).all()


@pytest.mark.parametrize("name", [*LAYERS, "wav2vec2"])
@pytest.mark.parametrize(
    "options",
    [
        {"hidden_size": 8},
        {"intermediate_size": 8},
        {"layers": "auto", "num_hidden_layers": 1},
        {"initialization": "least_squares", "num_hidden_layers": 1},
    ],
)
def test_widths_are_refused_with_the_reason(name: str, options: dict[str, Any]) -> None:
    task = "audio-classification" if name == "wav2vec2" else TASK
    teacher = zoo_model(task, name, seed=0, layers=2)
    with pytest.raises(ValueError, match=rf"{name}.*hidden_size"):
        create_student(teacher, calibration_data=zoo_dataset(task), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "last", "num_hidden_layers": 1}, "layers='last'.*layer 0.*bias"),
        ({"layers": {"decoder": [1]}}, r"layers=\[1\].*layer 0.*bias"),
        ({"layers": {"cross": [0]}}, "'cross'"),
        ({"layers": {"encoder": "first"}}, "layers=.*'first'"),
        ({"layers": {}}, r"layers=\{\}"),
        ({"layers": {"encoder": [0]}, "num_hidden_layers": 1}, "num_hidden_layers=1"),
        ({"layers": [0, 2]}, r"layers=\[0, 2\].*0 to 1"),
    ],
)
def test_wrong_choices_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_student(zoo_model(TASK, "t5", seed=0, layers=2), **options)


def test_a_mapping_is_for_two_stacks() -> None:
    teacher = zoo_model("text-classification", "bert", seed=0, layers=2)
    with pytest.raises(ValueError, match="layers=.*encoder"):
        create_student(teacher, layers={"encoder": [0]})
