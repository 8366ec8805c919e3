"""Hidden states and attentions of chosen layers: recorded while models run, and compared."""

from hf_distill.layers.distillation import IntermediateDistillation
from hf_distill.layers.projections import PROJECTIONS_FILE
from hf_distill.layers.samples import TeacherRecorderCallback

__all__ = ["PROJECTIONS_FILE", "IntermediateDistillation", "TeacherRecorderCallback"]
