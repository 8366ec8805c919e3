"""Intermediate-layer distillation: hidden states and attentions, layer by layer."""

from hf_distill.intermediate.distillation import IntermediateDistillation
from hf_distill.intermediate.projections import PROJECTIONS_FILE

__all__ = ["PROJECTIONS_FILE", "IntermediateDistillation"]
