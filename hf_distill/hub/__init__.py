"""The distilled student on the Hub: the files that are pushed, and its model card."""

from __future__ import annotations

from hf_distill.hub.card import write_card
from hf_distill.hub.contents import published_files
from hf_distill.hub.facts import FACTS_FILE, read_facts, write_facts
from hf_distill.hub.publisher import HubPublisher
from hf_distill.hub.push import PublishingError, push_folder

__all__ = [
    "FACTS_FILE",
    "HubPublisher",
    "PublishingError",
    "published_files",
    "push_folder",
    "read_facts",
    "write_card",
    "write_facts",
]
