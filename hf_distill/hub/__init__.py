"""The distilled student on the Hub: what is pushed of it, and what its model card says."""

from __future__ import annotations

from hf_distill.hub.card import write_card
from hf_distill.hub.contents import published_files
from hf_distill.hub.facts import FACTS_FILE, read_facts, write_facts
from hf_distill.hub.push import PublishingError, push_folder
from hf_distill.hub.trainer import PublishingTrainer

__all__ = [
    "FACTS_FILE",
    "PublishingError",
    "PublishingTrainer",
    "published_files",
    "push_folder",
    "read_facts",
    "write_card",
    "write_facts",
]
