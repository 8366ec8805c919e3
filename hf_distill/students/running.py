"""Run parts of a model: its embeddings, one of its layers, or what comes after all of them.

The model's own forward runs, so masks, positions and what else a layer is given are its own. Layers
that are not wanted hand on what they get, and an exception ends the forward where the wanted value
is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from hf_distill.compatibility import input_names
from hf_distill.heads import Seq2SeqLMHead, find_head
from hf_distill.heads.base import main_input
from hf_distill.layers.counting import Batch, TargetTokens, Tokens
from hf_distill.restoring import temporarily_set
from hf_distill.students.families import Attention, Block, Stack
from hf_distill.students.sizes import Sizes
from hf_distill.students.weights import Map, find

Hook = Callable[[Tensor, Tensor], None]
"""Called with the input and the output of a module."""
ENCODED = "encoded"
"""In a batch: by the model, what its encoder gave, so that its decoder runs without it."""
Feed = Callable[[Tensor], Tensor]
"""Makes the hidden state that a layer is to have, of the shape and type of that which it gets."""


class _FoundError(Exception):
    """Not an error: the value that was looked for, which ends the forward."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


class LayerRunner:
    """Runs one layer of a model at a time.

    Args:
        model: with its head, if it has one.
        layers: its layers, in order.
        always: layers that are run even where they are not wanted.
    """

    def __init__(self, model: nn.Module, layers: nn.ModuleList, always: Iterable[int] = ()) -> None:
        if not getattr(getattr(model, "config", None), "return_dict", True):
            raise ValueError(
                "teacher has return_dict=False in its configuration, so its outputs have no names: "
                "set teacher.config.return_dict = True."
            )
        self.model = model
        self.layers = layers
        self._always = frozenset(always)
        self._names = input_names(model)
        self._head = find_head(model)
        self._entries: int | None = None
        """Of the tuple that a layer returns; 0 if it returns a tensor; not known before it ran."""

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of a batch that the model takes, on its device, without labels.

        Of labels that a decoder learns to write, its input is made.
        """
        weight = next(self.model.parameters())
        target = {} if self._head is None else self._head.target_inputs(batch, self.model)
        taken: dict[str, Any] = {}
        for name, value in {**batch, **target}.items():
            if name not in self._names:
                continue
            if isinstance(value, Tensor):
                dtype = weight.dtype if value.is_floating_point() else None
                value = value.to(weight.device, dtype)
            taken[name] = value
        if "use_cache" in self._names:
            taken["use_cache"] = False
        if ENCODED in batch:
            state = batch[ENCODED][self.model].to(weight.device, weight.dtype)
            taken["encoder_outputs"] = BaseModelOutput(last_hidden_state=state)
        return taken

    def embed(self, batch: Mapping[str, Any], until: nn.Module | None = None) -> Tensor:
        """Return the input of the first layer, or of the module ``until`` before it."""
        with ExitStack() as stack:
            stack.enter_context(_ending_before(until or self.layers[0]))
            return self._run(batch)

    def run(
        self,
        batch: Mapping[str, Any],
        index: int,
        state: Feed,
        *,
        until: nn.Module | None = None,
        hooks: Mapping[nn.Module, Hook] | None = None,
    ) -> Tensor:
        """Return the output of a layer, or the input of its module ``until``.

        Args:
            batch: what the model is given.
            index: of the layer.
            state: makes its input, ``(rows, length, width)``.
            until: where to stop.
            hooks: called with inputs and outputs of modules.
        """
        if index > 0:
            self._see_output(batch)
        with ExitStack() as stack:
            self._skip(stack, range(index))
            stack.enter_context(_fed(self.layers[index], state))
            stack.enter_context(recording(hooks or {}))
            if until is None:
                stack.enter_context(_ending_after(self.layers[index], self._note_entries))
            else:
                stack.enter_context(_ending_before(until))
            return self._run(batch)

    def without(self, batch: Mapping[str, Any], skipped: Iterable[int]) -> Any:
        """Return what the model gives if some layers are skipped."""
        self._see_output(batch)
        with ExitStack() as stack:
            self._skip(stack, skipped)
            return self.model(**self.inputs(batch))

    def after(
        self,
        batch: Mapping[str, Any],
        state: Feed,
        *,
        until: nn.Module | None = None,
        hooks: Mapping[nn.Module, Hook] | None = None,
        others_are_nan: bool = False,
    ) -> Any:
        """Run what comes after the last layer, whose output ``state`` makes.

        Args:
            batch: what the model is given.
            state: makes the last layer's output.
            until: where to stop.
            hooks: called with inputs and outputs of modules.
            others_are_nan: the hidden states of all other layers are NaN, which shows in what reads
                them.

        Returns:
            the outputs of the model, or the input of the module ``until``.
        """
        self._see_output(batch)
        last = self.layers[-1]
        with ExitStack() as stack:
            self._skip(stack, range(len(self.layers) - 1))
            if others_are_nan:
                stack.enter_context(_fed(self.layers[0], lambda s: torch.full_like(s, torch.nan)))
            stack.enter_context(temporarily_set(last, forward=partial(self._hand_on, feed=state)))
            stack.enter_context(recording(hooks or {}))
            if until is None:
                return self.model(**self.inputs(batch))
            stack.enter_context(_ending_before(until))
            return self._run(batch)

    def _run(self, batch: Mapping[str, Any]) -> Tensor:
        try:
            self.model(**self.inputs(batch))
        except _FoundError as found:
            return found.value
        raise RuntimeError("the forward came to its end without passing the wanted module")

    def _skip(self, stack: ExitStack, layers: Iterable[int]) -> None:
        for index in layers:
            if index not in self._always:
                stack.enter_context(temporarily_set(self.layers[index], forward=self._hand_on))

    def _hand_on(self, *args: Any, feed: Feed | None = None, **kwargs: Any) -> Any:
        state = args[0] if args else kwargs["hidden_states"]
        if feed is not None:
            state = feed(state)
        return (state, *[None] * (self._entries - 1)) if self._entries else state

    def _see_output(self, batch: Mapping[str, Any]) -> None:
        if self._entries is None:
            self.run(batch, 0, lambda state: state)

    def _note_entries(self, output: Any) -> None:
        self._entries = len(output) if isinstance(output, tuple) else 0


class _TokensOfDecoder(TargetTokens):
    """The positions that count, and those before them, which they attend to."""

    def mask(self, batch: Batch, length: int) -> Tensor:
        counted = super().mask(batch, length).long()
        until_last = counted.flip(-1).cummax(-1).values.flip(-1).bool()
        return until_last & self.keys(batch, length)


class Side:
    """One of the two models, or a stack of it: its runner, its layers and its sizes."""

    def __init__(self, model: PreTrainedModel, stack: Stack, sizes: Sizes) -> None:
        self.model, self.stack, self.sizes = model, stack, sizes
        self.base: nn.Module = model.base_model
        layers: nn.ModuleList = find(self.base, stack.layers)
        self.runner = LayerRunner(model, layers, stack.always_run)
        self.layers = layers
        self.centred = any(isinstance(module, nn.LayerNorm) for module in layers.modules())
        """Whether its norms subtract the mean over the units."""
        self.final_norm: nn.Module | None = find(self.base, stack.final_norm)
        self._count = Tokens(model)
        if any(isinstance(block, Attention) and block.crosses for block in stack.blocks):
            head = find_head(model) or Seq2SeqLMHead(model.config)
            self._count = _TokensOfDecoder(model, head)

    def norm(self, layer: int, block: Block) -> nn.Module | None:
        """Return the norm of a block; ``None`` where a layer goes without it."""
        norm: nn.Module | None = find(self.layers[layer], block.norm)
        return None if isinstance(norm, nn.Identity) else norm

    def writer(self, layer: int, block: Block) -> Map:
        """Return the map of a block to the stream."""
        return Map(find(self.layers[layer], block.writer))

    def tokens(self, batch: dict[str, Any], state: Tensor) -> Tensor:
        """Return which positions of ``(rows, length, width)`` are no padding, bool."""
        mask = self._count.mask(batch, state.shape[1])
        if mask is None:
            return torch.ones(state.shape[:2], dtype=torch.bool, device=state.device)
        return mask.to(state.device)

    def feed(self, batch: dict[str, Any], states: Tensor) -> Feed:
        """Return what makes a layer's input of the stored states of a batch's tokens."""

        def padded(like: Tensor) -> Tensor:
            state = torch.zeros_like(like)
            state[self.tokens(batch, like)] = states.to(like.device, like.dtype)
            return state

        return padded

    def encoded(self, batch: dict[str, Any], states: Tensor) -> Tensor:
        """Return what the decoder reads, of the stored outputs of the encoder's last layer."""
        like = states.new_zeros(*main_input(batch).shape[:2], states.shape[1])
        return self.feed(batch, normalised(self.final_norm, states))(like)

    def left_by(self, layer: int, block: Block, total: Tensor) -> Tensor:
        """Return what a block leaves in the stream: its sum, normalised unless norms come first."""
        norm = None if self.stack.pre_norm else self.norm(layer, block)
        return normalised(norm, total)


def normalised(norm: nn.Module | None, states: Tensor) -> Tensor:
    """Return states after a norm, float32; as they are where there is none."""
    if norm is None:
        return states
    weight = next(norm.parameters(), states)
    result: Tensor = norm(states.to(weight.device, weight.dtype))
    return result.float()


@contextmanager
def recording(hooks: Mapping[nn.Module, Hook]) -> Iterator[None]:
    """Call hooks with the (first) input and output of modules inside."""
    handles = [
        module.register_forward_hook(
            lambda _, args, output, hook=hook: hook(args[0], _first(output))
        )
        for module, hook in hooks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def unchunked(model: nn.Module) -> Iterator[None]:
    """Run feed-forward networks on whole rows inside, whatever ``chunk_size_feed_forward`` is."""
    with ExitStack() as stack:
        for module in model.modules():
            if getattr(module, "chunk_size_feed_forward", 0):
                stack.enter_context(temporarily_set(module, chunk_size_feed_forward=0))
        yield


@contextmanager
def _fed(layer: nn.Module, feed: Feed) -> Iterator[None]:
    """Give a layer another hidden state than the model does."""

    def hook(_: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (feed(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": feed(kwargs["hidden_states"])}

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _ending_before(module: nn.Module) -> Iterator[None]:
    def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
        raise _FoundError(args[0] if args else kwargs["hidden_states"])

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _ending_after(module: nn.Module, note: Callable[[Any], None]) -> Iterator[None]:
    def hook(_: nn.Module, args: Any, output: Any) -> None:
        note(output)
        raise _FoundError(_first(output))

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _first(output: Any) -> Tensor:
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first
