"""Students of encoders with decoders, and of those whose layers are only copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from planted import embed, model_of
from tiny import tokenizer
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSeq2SeqLM, BartForCausalLM
from zoo import PAD, zoo_config, zoo_dataset, zoo_model

from hf_distill import create_student
from hf_distill.students import save_student

TASK = "summarization"
LAYERS = {
    **dict.fromkeys(("t5", "mt5", "longt5"), "num_decoder_layers"),
    **dict.fromkeys(("bart", "mbart", "marian", "pegasus"), "decoder_layers"),
}
NARROW = ("t5", "bart")


def stacks(model: Any) -> tuple[Any, Any]:
    name = "block" if "t5" in model.config.model_type else "layers"
    return getattr(model.base_model.encoder, name), getattr(model.base_model.decoder, name)


@pytest.mark.parametrize(
    ("name", "options", "encoder", "decoder"),
    [
        *((name, {"num_hidden_layers": 2}, [0, 2], [0, 1]) for name in LAYERS),
        *((name, {"layers": {"decoder": [0, 2]}}, [0, 1, 2, 3], [0, 2]) for name in LAYERS),
        ("t5", {"num_hidden_layers": 1}, [0], [0]),
        ("longt5", {"layers": [0, 1]}, [0, 1], [0, 1]),
        ("bart", {"layers": {"encoder": [0, 3], "decoder": [0]}}, [0, 3], [0]),
    ],
)
def test_each_stack_keeps_its_layers(
    name: str, options: Any, encoder: list[int], decoder: list[int], tmp_path: Path
) -> None:
    teacher = zoo_model(TASK, name, seed=0, layers=4, **{LAYERS[name]: 3}).eval()
    if name == "marian":  # whose positions are not saved: sines again, without the noise
        teacher.save_pretrained(tmp_path / "teacher")
        teacher = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "teacher").eval()
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


@pytest.mark.parametrize("name", ["longt5", "marian", "pegasus", "wav2vec2"])
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


# ---- widths ----------------------------------------------------------------------------------


def data(seed: int = 5, rows: int = 24) -> Any:
    return zoo_dataset(TASK, rows=rows, seed=seed, labels=False, target=True)


def logits(model: Any, seed: int = 9) -> Tensor:
    rows = data(seed)
    rows.set_format("torch")
    with torch.no_grad():
        values: Tensor = model.eval()(**rows[:]).logits
    return values[rows["attention_mask"][:].bool()]


def assert_near(one: Tensor, other: Tensor) -> None:
    """The same but for rounding, which some weights of a random teacher make larger."""
    assert (one - other).square().mean() < 1e-4 * other.var()


def narrow(teacher: Any, **options: Any) -> Any:
    return create_student(teacher, **{"hidden_size": 8, "calibration_data": data(), **options})


@pytest.mark.parametrize("name", NARROW)
def test_the_order_of_units_does_not_matter(name: str) -> None:
    core = model_of(TASK, name, 1, 16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    teacher = embed(core, model_of(TASK, name, 2, 16), torch.eye(16)[order])
    torch.testing.assert_close(logits(teacher), logits(core), atol=1e-4, rtol=1e-4)
    one, other = (logits(narrow(model, num_hidden_layers=1)) for model in (core, teacher))
    assert_near(one, other)


@pytest.mark.parametrize("name", NARROW)
def test_narrow_and_shallow_students_stay_tied_and_write(name: str, tmp_path: Path) -> None:
    teacher = zoo_model(TASK, name, seed=0, layers=3).eval()
    layers = {"encoder": [0, 2], "decoder": [0]}
    student = narrow(teacher, layers=layers)
    assert [len(stack) for stack in stacks(student)] == [2, 1]
    base, table = student.base_model, student.get_input_embeddings().weight
    assert base.encoder.embed_tokens.weight is table is base.decoder.embed_tokens.weight
    assert student.get_output_embeddings().weight is table
    record = save_student(student, tmp_path)
    assert (record["layers"], record["decoder_layers"]) == ([0, 2], [0])
    again = narrow(teacher, layers=layers).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in student.state_dict().items())
    loaded, info = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(logits(loaded), logits(student))
    prompt = torch.tensor([[5, 6, 7, 3]])
    loaded.generation_config.forced_eos_token_id = None  # at the end of a BART's text
    made = loaded.generate(prompt, max_new_tokens=4, do_sample=False, num_beams=1)
    by_hand = torch.tensor([[student.config.decoder_start_token_id]])
    for _ in range(made.shape[1] - 1):
        with torch.no_grad():
            outputs = student(input_ids=prompt, decoder_input_ids=by_hand)
        by_hand = torch.cat([by_hand, outputs.logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(made, by_hand)


@pytest.mark.parametrize("options", [{"num_hidden_layers": 1}, {"hidden_size": 8}])
def test_a_head_of_its_own_stays_so(options: dict[str, Any], tmp_path: Path) -> None:
    """T5 1.1 has one, and a configuration that says that it is tied."""
    teacher = zoo_model(TASK, "t5", seed=0, layers=2, tie_word_embeddings=False).eval()
    teacher.lm_head.weight = nn.Parameter(torch.randn_like(teacher.lm_head.weight))
    student: Any = create_student(
        teacher, **options, **({"calibration_data": data()} if "hidden_size" in options else {})
    )
    assert student.lm_head.weight is not student.shared.weight
    assert student.encoder.embed_tokens.weight is student.shared.weight
    if "hidden_size" not in options:
        assert torch.equal(student.lm_head.weight, teacher.lm_head.weight)
        assert torch.equal(student.shared.weight, teacher.shared.weight)
    save_student(student, tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(student))


@pytest.mark.parametrize("name", NARROW)
def test_a_copy_is_less_near_than_least_squares(name: str) -> None:
    teacher = zoo_model(TASK, name, seed=0, layers=3).eval()
    wanted = logits(teacher, seed=5)
    options = {"layers": {"encoder": [0, 1], "decoder": [0, 2]}}
    copied = create_student(teacher, **options)
    fitted = narrow(teacher, hidden_size=None, initialization="least_squares", **options)
    errors = [(logits(model, seed=5) - wanted).square().mean() for model in (copied, fitted)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("name", NARROW)
def test_auto_searches_each_stack(name: str) -> None:
    """One layer of each hands on what it gets but for a rounding: it goes."""
    teacher = zoo_model(TASK, name, seed=0, layers=3).eval()
    for stack, index in zip(stacks(teacher), (1, 2), strict=True):
        with torch.no_grad():
            for key, weight in stack[index].named_parameters():
                if any(writer in key for writer in (".o.", ".wo.", "out_proj.", "fc2.")):
                    weight.mul_(1e-3)
                elif "norm" in key and name == "bart":
                    weight.fill_(float(key.endswith("weight")))
            before = stack[index - 1] if name == "bart" else None
            if before is not None:
                before.final_layer_norm.weight.fill_(1.0)
                before.final_layer_norm.bias.zero_()
    student = create_student(teacher, num_hidden_layers=2, layers="auto", calibration_data=data())
    for made, given, kept in zip(stacks(student), stacks(teacher), ([0, 2], [0, 1]), strict=True):
        for one, index in zip(made, kept, strict=True):
            weights = given[index].state_dict()
            assert all(torch.equal(v, weights[key]) for key, v in one.state_dict().items())


def test_positions_after_the_last_target_are_left_out() -> None:
    # In float64: some processors round batches of another length so differently that it shows.
    teacher = zoo_model(TASK, "t5", seed=0, layers=2).eval().double()
    rows = list(zoo_dataset(TASK, rows=24, seed=5))
    for row in rows:
        size = sum(row["attention_mask"])
        row["labels"] = row["input_ids"][:size] + [-100] * (len(row["input_ids"]) - size)
    longer = [{**row, "labels": row["labels"] + [-100] * 5} for row in rows]
    shorter = [
        {key: row[key][: sum(row["attention_mask"])] for key in ("input_ids", "labels")}
        for row in rows
    ]
    students = [
        narrow(teacher, calibration_data=rows),
        narrow(teacher, calibration_data=longer),
        narrow(teacher, calibration_data=shorter, processing_class=tokenizer()),
    ]
    wanted, *others = (logits(student) for student in students)
    for other in others:
        assert_near(other, wanted)


@pytest.mark.parametrize("name", NARROW)
def test_a_target_is_asked_for(name: str) -> None:
    teacher = zoo_model(TASK, name, seed=0, layers=2)
    message = "calibration_data.*labels or decoder_input_ids.*text_target"
    with pytest.raises(ValueError, match=message):
        narrow(teacher, calibration_data=["a b c d"] * 40, processing_class=tokenizer())
    with pytest.raises(ValueError, match=message):
        narrow(teacher, calibration_data=data().remove_columns("decoder_input_ids"))
    bare = AutoModel.from_config(zoo_config(name, 2)).eval()
    with pytest.raises(ValueError, match=r"calibration_data.*decoder_input_ids"):
        narrow(bare, calibration_data=data().remove_columns("decoder_input_ids"))
    assert narrow(bare).config.hidden_size == 8


def test_few_tokens_of_the_target_are_refused() -> None:
    teacher = zoo_model(TASK, "bart", seed=0, layers=1)
    rows = [{**row, "decoder_input_ids": [PAD, 5]} for row in data(rows=12)]
    with pytest.raises(ValueError, match=r"calibration_data has 24 tokens.*target.*at least 32"):
        narrow(teacher, calibration_data=rows)


def test_ids_of_the_target_are_checked() -> None:
    rows = [{**row, "decoder_input_ids": [PAD, 97]} for row in data(rows=12)]
    with pytest.raises(ValueError, match=r"calibration_data.*id 97"):
        narrow(zoo_model(TASK, "bart", seed=0, layers=1), calibration_data=rows)


def test_teachers_that_cannot_be_fitted_are_named() -> None:
    uneven = zoo_model(TASK, "bart", seed=0, layers=2, decoder_ffn_dim=48)
    with pytest.raises(ValueError, match=r"encoder_ffn_dim=32.*decoder_ffn_dim=48.*hidden_size"):
        narrow(uneven)
    assert create_student(uneven, num_hidden_layers=1).config.decoder_ffn_dim == 48
    with pytest.raises(ValueError, match=r"BartForCausalLM.*encoder"):
        create_student(BartForCausalLM(zoo_config("bart", 2)), num_hidden_layers=1)
