"""Promises that all losses on intermediate layers share."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from attention_cases import LOSSES, MAPS, MASKS, Loss, inputs, relative, token_mask, trained
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from hf_distill.losses import AttentionInputs
from hf_distill.losses.chunks import groups

every_loss = pytest.mark.parametrize("name", LOSSES)


def value_and_gradients(
    loss: Loss, student: AttentionInputs, teacher: AttentionInputs, **options: Any
) -> tuple[Tensor, list[Tensor]]:
    """The gradients of Q, K and V, zeros for those that do not matter."""
    student = trained(student)
    value = loss(student, teacher, **options)
    gradients = torch.autograd.grad(value, student[:3], allow_unused=True, materialize_grads=True)
    return value.detach(), list(gradients)


def cast(values: AttentionInputs, dtype: torch.dtype) -> AttentionInputs:
    return AttentionInputs(*(x.to(dtype) for x in values[:3]), values.scaling)


# ---- padding -----------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("mask", [kind for kind in MASKS if kind != "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_content_of_padding_does_not_matter(dtype: torch.dtype, mask: str, name: str) -> None:
    student, teacher = cast(inputs(), dtype), cast(inputs(seed=1), dtype)
    valid = token_mask(mask)
    assert valid is not None
    wanted = value_and_gradients(LOSSES[name], student, teacher, token_mask=valid)
    for junk in (math.nan, math.inf, -1e30):
        fill = ~valid[:, None, :, None]
        dirty = [
            AttentionInputs(*(x.masked_fill(fill, junk) for x in values[:3]), values.scaling)
            for values in (student, teacher)
        ]
        value, gradients = value_and_gradients(LOSSES[name], *dirty, token_mask=valid)
        assert torch.equal(value, wanted[0])
        for ours, theirs in zip(gradients, wanted[1], strict=True):
            assert torch.equal(ours, theirs)
            assert (ours.masked_select(fill) == 0).all()
    assert any((gradient != 0).any() for gradient in wanted[1])


@every_loss
def test_padding_longer_changes_nothing(name: str) -> None:
    student, teacher = inputs(length=6), inputs(length=6, seed=1)
    longer = [
        AttentionInputs(*(nn_pad(x) for x in values[:3]), values.scaling)
        for values in (student, teacher)
    ]
    mask = torch.arange(11).expand(3, 11) < 6
    wanted = value_and_gradients(LOSSES[name], student, teacher)
    got = value_and_gradients(LOSSES[name], *longer, token_mask=mask)
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-12, atol=0)
    for ours, theirs in zip(got[1], wanted[1], strict=True):
        torch.testing.assert_close(ours[:, :, :6], theirs, rtol=1e-11, atol=1e-13)


def nn_pad(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x, (0, 0, 0, 5), value=3.0)


@every_loss
def test_a_batch_without_valid_tokens_counts_nothing(name: str) -> None:
    mask = torch.zeros(3, 9, dtype=torch.bool)
    value, gradients = value_and_gradients(LOSSES[name], inputs(), inputs(seed=1), token_mask=mask)
    assert value == 0
    assert all((gradient == 0).all() for gradient in gradients)


@every_loss
def test_any_split_of_the_batch_adds_up(name: str) -> None:
    student, teacher, mask = inputs(), inputs(seed=1), token_mask("right")
    assert mask is not None
    whole, gradients = value_and_gradients(LOSSES[name], student, teacher, token_mask=mask)
    parts = [
        value_and_gradients(
            LOSSES[name],
            *(AttentionInputs(*(x[rows] for x in v[:3]), v.scaling) for v in (student, teacher)),
            token_mask=mask[rows],
        )
        for rows in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(value for value, _ in parts), whole)
    for i, gradient in enumerate(gradients):
        torch.testing.assert_close(torch.cat([found[i] for _, found in parts]), gradient)


@every_loss
@pytest.mark.parametrize("mask", MASKS)
def test_the_grouping_of_other_devices(
    mask: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Elsewhere than on a CPU the batch is one group, with all of its padding.
    student, teacher, valid = inputs(key_heads=2), inputs(seed=1), token_mask(mask)
    if valid is not None:
        fill = ~valid[:, None, :, None]
        student, teacher = (
            AttentionInputs(*(x.masked_fill(fill, math.nan) for x in v[:3]), v.scaling)
            for v in (student, teacher)
        )
    if name == "relations":
        teacher = teacher._replace(key=teacher.key[:, :2], value=teacher.value[:, :2])
    if name.startswith("hidden"):
        teacher = teacher._replace(value=teacher.value[:, :2])
    wanted = value_and_gradients(LOSSES[name], student, teacher, token_mask=valid)
    for module in ("chunks", "hidden_states"):
        monkeypatch.setattr(
            f"hf_distill.losses.{module}.groups",
            lambda token_mask, batch, length, device: groups(
                token_mask, batch, length, torch.device("cuda")
            ),
        )
    got = value_and_gradients(LOSSES[name], student, teacher, token_mask=valid)
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-12, atol=0)
    for ours, theirs in zip(got[1], wanted[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)
        if valid is not None:
            assert (ours.masked_select(fill) == 0).all()


# ---- types -------------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("teacher_dtype", [torch.float32, torch.bfloat16])
def test_types(teacher_dtype: torch.dtype, dtype: torch.dtype, name: str) -> None:
    student, teacher = cast(inputs(), dtype), cast(inputs(seed=1), teacher_dtype)

    def scaled(*sides: AttentionInputs) -> Tensor:
        # A gradient that is rounded before it is scaled is rounded twice.
        return 0.3 * LOSSES[name](*sides)

    value, gradients = value_and_gradients(scaled, student, teacher)
    assert value.dim() == 0
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact, wanted = value_and_gradients(
        scaled, cast(student, torch.float64), cast(teacher, torch.float64)
    )
    assert relative(value, exact) < 1e-5
    for ours, theirs in zip(gradients, wanted, strict=True):
        assert ours.dtype == dtype
        if theirs.any():
            assert relative(ours, theirs.to(dtype)) < 1e-3


@every_loss
def test_autocast_changes_nothing(name: str) -> None:
    student, teacher = cast(inputs(), torch.float32), cast(inputs(seed=1), torch.float32)
    plain = value_and_gradients(LOSSES[name], student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        got = value_and_gradients(LOSSES[name], student, teacher)
    assert torch.equal(got[0], plain[0])
    assert all(torch.equal(a, b) for a, b in zip(got[1], plain[1], strict=True))


# ---- autograd ----------------------------------------------------------------------------------


@every_loss
def test_the_gradient_is_scaled_by_what_follows(name: str) -> None:
    student, teacher = inputs(), inputs(seed=1)
    _, plain = value_and_gradients(LOSSES[name], student, teacher)
    _, scaled = value_and_gradients(lambda *sides: LOSSES[name](*sides) * 0.125, student, teacher)
    for ours, theirs in zip(scaled, plain, strict=True):
        torch.testing.assert_close(ours, theirs * 0.125)


@pytest.mark.parametrize("name", MAPS)
def test_one_tensor_as_query_and_key(name: str) -> None:
    student, teacher = inputs(), inputs(seed=1)
    wanted = value_and_gradients(LOSSES[name], student._replace(key=student.query), teacher)
    shared = student.query.clone().requires_grad_()
    loss = LOSSES[name](student._replace(query=shared, key=shared), teacher)
    (gradient,) = torch.autograd.grad(loss, shared)
    torch.testing.assert_close(gradient, wanted[1][0] + wanted[1][1])


@every_loss
def test_the_teacher_gets_no_gradient(name: str) -> None:
    student, teacher = trained(inputs()), trained(inputs(seed=1))
    LOSSES[name](student, teacher).backward()
    assert all(x.grad is None for x in teacher[:3])
    assert any(x.grad is not None for x in student[:3])


@every_loss
def test_the_teachers_tensors_may_come_from_inference_mode(name: str) -> None:
    student, teacher = inputs(), inputs(seed=1)
    with torch.inference_mode():
        frozen = AttentionInputs(*(x.clone() for x in teacher[:3]), teacher.scaling)
    plain = value_and_gradients(LOSSES[name], student, teacher)
    got = value_and_gradients(LOSSES[name], student, frozen)
    assert torch.equal(got[0], plain[0])
    assert all(torch.equal(a, b) for a, b in zip(got[1], plain[1], strict=True))


@every_loss
def test_no_graph_without_gradients(name: str) -> None:
    student, teacher = inputs(), inputs(seed=1)
    value = LOSSES[name](student, teacher)
    assert not value.requires_grad
    with torch.no_grad():
        quiet = LOSSES[name](trained(student), teacher)
    assert not quiet.requires_grad
    assert torch.equal(quiet, value)
    assert torch.equal(LOSSES[name](trained(student), teacher), value)


@every_loss
def test_second_derivatives_are_refused(name: str) -> None:
    student = trained(inputs())
    value = LOSSES[name](student, inputs(seed=1))
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(value, student[:3], create_graph=True, allow_unused=True)


@every_loss
def test_backward_twice_gives_the_same(name: str) -> None:
    student = trained(inputs())
    value = LOSSES[name](student, inputs(seed=1))
    first, second = (
        torch.autograd.grad(value, student[:3], retain_graph=True, allow_unused=True)
        for _ in range(2)
    )
    for a, b in zip(first, second, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


@every_loss
def test_under_checkpointing(name: str) -> None:
    student, teacher = inputs(), inputs(seed=1)
    plain = value_and_gradients(LOSSES[name], student, teacher)

    def again(ours: AttentionInputs, theirs: AttentionInputs) -> Tensor:
        result: Tensor = checkpoint(
            lambda *x: LOSSES[name](AttentionInputs(*x, ours.scaling), theirs),
            *ours[:3],
            use_reentrant=False,
        )
        return result

    got = value_and_gradients(again, student, teacher)
    assert torch.equal(got[0], plain[0])
    assert all(torch.equal(a, b) for a, b in zip(got[1], plain[1], strict=True))


@every_loss
def test_in_a_compiled_caller(name: str) -> None:
    torch._dynamo.reset()
    student, teacher, mask = inputs(), inputs(seed=1), token_mask("right")

    @torch.compile(backend="aot_eager")
    def caller(ours: AttentionInputs, theirs: AttentionInputs) -> Tensor:
        doubled = AttentionInputs(*(2 * x for x in ours[:3]), ours.scaling)
        return 3 * LOSSES[name](doubled, theirs, token_mask=mask)

    def plain(ours: AttentionInputs, theirs: AttentionInputs) -> Tensor:
        doubled = AttentionInputs(*(2 * x for x in ours[:3]), ours.scaling)
        return 3 * LOSSES[name](doubled, theirs, token_mask=mask)

    wanted = value_and_gradients(plain, student, teacher)
    got = value_and_gradients(caller, student, teacher)
    torch.testing.assert_close(got[0], wanted[0])
    for ours, theirs in zip(got[1], wanted[1], strict=True):
        torch.testing.assert_close(ours, theirs)


# ---- memory ------------------------------------------------------------------------------------


def saved_bytes(loss: Loss, length: int) -> int:
    """What is kept for the backward pass, each storage once, besides the student's own tensors."""
    student = trained(inputs(2, 8, batch=1, length=length, dtype=torch.float32))
    teacher = inputs(2, 8, batch=1, length=length, dtype=torch.float32, seed=1)
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss(student, teacher)
    for tensor in student[:3]:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    assert value.requires_grad
    return sum(storages.values())


class _Largest(TorchDispatchMode):
    """The largest storage that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


@every_loss
def test_memory_for_the_backward_pass_is_linear_in_length(name: str) -> None:
    short, long = saved_bytes(LOSSES[name], 200), saved_bytes(LOSSES[name], 800)
    assert long <= 4 * short
    if name == "scores, gram":
        assert 0 < short == long
    elif name in MAPS:
        # A gradient for queries and keys, or for each kind of relation
        assert long == 4 * 800 * 2 * 8 * (3 if name == "relations" else 2)
    else:
        assert long <= 4 * 800 * 16


@pytest.mark.parametrize("name", MAPS)
def test_no_map_exists_as_a_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_distill.losses.chunks._CPU_NUMBERS", 2**15)
    length = 1024
    student = trained(inputs(2, 8, batch=1, length=length, dtype=torch.float32))
    teacher = inputs(2, 8, batch=1, length=length, dtype=torch.float32, seed=1)
    with _Largest() as largest:
        LOSSES[name](student, teacher).backward()
    whole = 4 * 2 * length * length
    assert largest.bytes <= whole / 16
