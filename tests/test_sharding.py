"""What sharding needs, as far as one process shows it; the rest is in tests/distributed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import DistributedType, PartialState
from datasets import Dataset
from runs import arguments
from torch import nn
from transformers import default_data_collator
from zoo import PAIRS, zoo_dataset, zoo_model

from hf_distill import cache_teacher_outputs
from hf_distill.labelling import label_dataset
from hf_distill.launch import check_launch
from hf_distill.sharding import complete_state
from hf_distill.teachers import block_classes


@pytest.mark.parametrize(("task", "architecture"), PAIRS)
def test_blocks_are_apart_from_the_embeddings(task: str, architecture: str) -> None:
    model: Any = zoo_model(task, architecture, seed=0)
    names = block_classes(model)
    kinds = [type(module).__name__ for module in model.modules()]
    # transformers says nothing about these two: they are one shard.
    assert names or architecture in ("mpnet", "albert")
    for name in names:
        assert name in kinds and "Embedding" not in name
    embeddings = None
    with suppress(NotImplementedError):
        embeddings = model.get_input_embeddings()
    for module in model.modules():
        if type(module).__name__ in names:
            assert all(part is not embeddings for part in module.modules())


def test_a_model_that_transformers_does_not_know_has_no_blocks() -> None:
    assert block_classes(nn.Sequential(nn.Linear(2, 2))) == []


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adafactor])
def test_a_completed_optimizer_state_changes_no_parameter(kind: Any) -> None:
    """A head that an intermediate stage leaves alone, beside layers that it trains."""
    layer, head = nn.Linear(3, 3), nn.Linear(3, 2)
    parameters = [*layer.parameters(), *head.parameters()]
    optimizer = kind(parameters, lr=0.1, weight_decay=0.5)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before = [parameter.detach().clone() for parameter in parameters]
    moments = {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in optimizer.state[layer.weight].items()
    }
    gradients = [parameter.grad for parameter in parameters]
    complete_state(optimizer)
    assert all(torch.equal(new, old) for new, old in zip(parameters, before, strict=True))
    assert all(p.grad is g for p, g in zip(parameters, gradients, strict=True))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1]
    for name, value in optimizer.state[layer.weight].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(moments[name]))
    if kind is not torch.optim.SGD:
        assert all(optimizer.state[parameter] for parameter in parameters)


# ---- launches ------------------------------------------------------------------------------------

BY_ACCELERATE = {
    "ACCELERATE_USE_CPU": "True",
    "ACCELERATE_DYNAMO_BACKEND": "no",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize(
    ("changed", "refused"),
    [
        ({}, True),
        ({"ACCELERATE_USE_CPU": "False"}, True),
        ({"ACCELERATE_USE_CPU": "true"}, False),  # a person's
        ({"MASTER_ADDR": "node1"}, False),  # a batch system's
        ({"MASTER_ADDR": None}, False),  # --num_processes 1
        ({"LOCAL_RANK": "0"}, False),
    ],
    ids=str,
)
def test_one_process_where_several_were_asked_for(
    changed: dict[str, str | None], refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = arguments(tmp_path)
    assert args.world_size == 1
    check_launch(args)
    for name, value in {"LOCAL_RANK": None, **BY_ACCELERATE, **changed}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    if refused:
        with pytest.raises(RuntimeError, match="has started this one only"):
            check_launch(args)
    else:
        check_launch(args)


@pytest.mark.parametrize("work", ["train", "cache", "label"])
def test_processes_that_do_not_know_of_each_other(
    work: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by torchrun on a machine without GPU, without ``use_cpu``."""
    # accelerate finds out that there is one process, as it does there, before it is told otherwise.
    PartialState._reset_state()
    assert PartialState().num_processes == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(RuntimeError, match="WORLD_SIZE=2.*use_cpu=True"):
        if work == "train":
            check_launch(SimpleNamespace(world_size=1))  # type: ignore[arg-type]
        elif work == "cache":
            cache_teacher_outputs(
                zoo_model("text-classification", "bert", seed=1),
                zoo_dataset("text-classification"),
                output_dir=tmp_path / "cache",
                data_collator=default_data_collator,
            )
        else:
            label_dataset(
                Dataset.from_dict({"text": ["good"]}),
                zoo_model("text-generation", "gpt2", seed=1),
                {"good": ["good"], "bad": ["bad"]},
                output_path=tmp_path / "labelled.jsonl",
            )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("by", ["args", "launcher", "nobody"])
def test_fsdp_on_cpus(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(tmp_path)
    assert args.world_size == 1
    args.distributed_state = SimpleNamespace(
        distributed_type=DistributedType.MULTI_CPU, num_processes=2
    )
    args.fsdp = by == "args"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true" if by == "launcher" else "false")
    if by == "nobody":
        check_launch(args)
    else:
        with pytest.raises(RuntimeError, match="nothing would be sharded"):
            check_launch(args)
