"""Hidden states and attentions of chosen layers, recorded while models run."""

from hf_distill.recording.callback import TeacherRecorderCallback

__all__ = ["TeacherRecorderCallback"]
