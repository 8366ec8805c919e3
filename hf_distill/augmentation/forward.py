"""The logits of a masked language model at some places only.

The head of a language model costs as much as several layers: a vocabulary's worth of products for
every token. Here it sees the masked tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Logits that differ by less, relative to the largest, are the same but for rounding.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


class LogitsAtPlaces:
    """Computes logits at some places of a batch.

    A hook on the model's encoder hands only the hidden states at those places on, so that the
    model's own head, whatever it is made of, runs on them alone. That this gives the logits of
    the whole forward pass is tried out at the start; for a model where it does not, the whole
    pass is computed.

    Args:
        model: a masked language model, in evaluation mode.
        pad: the token to fill short rows with.
        probe: tokens that the model takes, to try it out.

    Attributes:
        head_at_places: whether the head runs on those places alone.
    """

    def __init__(self, model: PreTrainedModel, pad: int, probe: Sequence[int]) -> None:
        self._model = model
        self._pad = pad
        self.head_at_places = False
        self.head_at_places = model.base_model is not model and self._is_exact(list(probe))
        if not self.head_at_places:
            logger.info(
                "The head of %s runs on all tokens: it needs more than the masked ones.",
                type(model).__name__,
            )

    def __call__(self, rows: Sequence[list[int]], places: Sequence[tuple[int, int]]) -> Tensor:
        """Compute logits.

        Args:
            rows: token ids, of any lengths.
            places: (row, token) of each place.

        Returns:
            (places, vocabulary), in the model's number format, without gradients.
        """
        width = max(map(len, rows))
        ids = torch.tensor([row + [self._pad] * (width - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(width) < lengths[:, None]).long()
        device = self._model.device
        row, column = torch.tensor(places, device=device).unbind(-1)

        def pick(module: Any, inputs: Any, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state[row, column][None]
            return output

        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self.head_at_places:
                # For this call only: the model is the caller's.
                stack.callback(self._model.base_model.register_forward_hook(pick).remove)
            output = self._model(input_ids=ids.to(device), attention_mask=mask.to(device))
            logits: Tensor = output.logits
            return logits[0] if self.head_at_places else logits[row, column]

    def _is_exact(self, probe: list[int]) -> bool:
        rows = [probe, probe[: max(len(probe) // 2, 1)]]
        places = [(0, len(probe) - 1), (1, 0), (0, len(probe) // 2)]
        whole = self(rows, places).float()
        self.head_at_places = True
        try:
            picked = self(rows, places).float()
        except Exception:  # a head may need all tokens in its own way, and fail in its own way
            picked = torch.empty(0)
        scale = whole.abs().max().clamp(min=1.0) * _TOLERANCE.get(self._model.dtype, 1e-4)
        return whole.shape == picked.shape and bool(((whole - picked).abs() <= scale).all())
