"""The model card: what was done and what was measured, and nothing that was not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hf_distill.files import write_text
from hf_distill.hub.contents import CARD_FILE, COMPARISON_FILE, LOSSES_FILE
from hf_distill.hub.exports import exports_table, find_exports
from hf_distill.hub.facts import hub_id
from hf_distill.hub.front_matter import join_card, read_card, split_card
from hf_distill.markdown import markdown_table
from hf_distill.tasks import TASKS, task_class

_BEGIN, _END = "<!-- hf-distill: begin -->", "<!-- hf-distill: end -->"
_ONE_HEADING = re.compile(r"(#[^\n]*)?")
# Metadata that are facts of this run, whatever an earlier one has left.
_FACTS = (
    "base_model", "base_model_relation", "datasets", "library_name", "model-index", "pipeline_tag",
)  # fmt: skip
_TAGS = ("hf-distill", "knowledge-distillation", "distillation")

_HINTON = """@article{hinton2015distilling,
  title={Distilling the Knowledge in a Neural Network},
  author={Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  journal={arXiv preprint arXiv:1503.02531},
  year={2015}
}"""
_TINYBERT = """@inproceedings{jiao2020tinybert,
  title={TinyBERT: Distilling BERT for Natural Language Understanding},
  author={Jiao, Xiaoqi and Yin, Yichun and Shang, Lifeng and Jiang, Xin and Chen, Xiao and
          Li, Linlin and Wang, Fang and Liu, Qun},
  booktitle={Findings of EMNLP},
  year={2020}
}"""
_MINILM = """@inproceedings{wang2021minilmv2,
  title={MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained
         Transformers},
  author={Wang, Wenhui and Bao, Hangbo and Huang, Shaohan and Dong, Li and Wei, Furu},
  booktitle={Findings of ACL-IJCNLP},
  year={2021}
}"""


def write_card(
    folder: Path,
    facts: Mapping[str, Any],
    *,
    title: str,
    language: str | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
    repository: str | None = None,
) -> Path:
    """Write ``README.md``, with the ``comparison.md`` of ``hf-distill compare`` if there is one.

    A card that is there already is somebody's: only what stands between our marks is replaced, or
    added below, and only metadata that it lacks. Its example loads ``repository``, or ``title``.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / CARD_FILE
    section = f"{_BEGIN}\n{render(folder, facts, repository or title)}{_END}\n"
    data = _metadata(facts, title, language, license, tags)
    if not path.exists():
        return write_text(path, join_card(data, f"# {title}\n\n{section}"))
    return write_text(path, _merged(*split_card(read_card(path, str(path))), data, section))


def merged_cards(card: str, there: str | None) -> str:
    """Return the card to push to a repository that may have one.

    Args:
        card: as ``write_card`` wrote it.
        there: that of the repository.

    Returns:
        ``card``, if a person wrote into it or if there is no other; otherwise that of the
        repository with our part and our metadata of ``card``.
    """
    data, text = split_card(card)
    before, section, after = _parts(text)
    if there is None or not section or after.strip() or not _ONE_HEADING.fullmatch(before.strip()):
        return card
    return _merged(*split_card(there, "the README.md of the repository"), data, section)


def _parts(text: str) -> tuple[str, str, str]:
    """Split a card's text into what stands before our part, our part, and what stands after it."""
    if _BEGIN not in text or _END not in text:
        return text, "", ""
    before, rest = text.split(_BEGIN, 1)
    ours, after = rest.split(_END, 1)
    return before, f"{_BEGIN}{ours}{_END}\n", after.removeprefix("\n")


def _merged(metadata: Mapping[str, Any], text: str, data: Mapping[str, Any], section: str) -> str:
    """Return a card with our part in it; of our metadata, what a person gave stays."""
    before, ours, after = _parts(text)
    merged = dict(metadata)
    for name, value in data.items():
        present = merged.get(name)
        if name == "tags":
            tags = present if isinstance(present, list) else [present] if present else []
            merged["tags"] = [*tags, *(tag for tag in value if tag not in tags)]
        elif present is None or (ours and name in _FACTS):
            merged[name] = value
    return join_card(
        merged, f"{before}{section}{after}" if ours else f"{before.rstrip()}\n\n{section}"
    )


def _metadata(
    facts: Mapping[str, Any],
    title: str,
    language: str | None,
    license: str | None,
    tags: Sequence[str],
) -> dict[str, Any]:
    task, base = facts.get("task"), facts["student"].get("base_model")
    data_id = hub_id(facts.get("train_data_id"))
    options: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": task,
        "tags": [*_TAGS, *(tag for tag in tags if tag not in _TAGS)],
        "language": language,
        "license": license,
        "base_model": base,
        "base_model_relation": None if base is None else "finetune",
        "datasets": None if data_id is None else [data_id],
    }
    scores = {name: value for name, value in facts.get("scores", {}).items() if "loss" not in name}
    if scores:
        name = facts.get("validation_data") or "evaluation data"
        options["model_name"] = title
        options["eval_results"] = [
            EvalResult(
                task_type=task or "other",
                dataset_type=hub_id(facts.get("validation_data_id")) or "other",
                dataset_name=name,
                metric_type=metric,
                metric_value=value,
            )
            for metric, value in scores.items()
        ]
    metadata = ModelCardData(**{k: value for k, value in options.items() if value is not None})
    return dict(metadata.to_dict())


def render(folder: Path, facts: Mapping[str, Any], name: str) -> str:
    """Return our part of the card, as Markdown."""
    parts = [_summary(facts), "## Use\n", f"```python\n{_use(facts, name)}\n```\n"]
    results = _results(folder, facts)
    if results:
        parts += ["## Results\n", results]
    parts += ["## How it was made\n", _training(facts)]
    if (folder / LOSSES_FILE).exists():
        parts.append(f"![Losses over the steps of the last stage]({LOSSES_FILE})\n")
    parts += ["## Citation\n", f"```bibtex\n{_citations(facts)}\n```\n"]
    return "\n".join(parts)


def _teachers(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    teachers = [t for stage in facts["stages"] for t in stage["settings"].get("teachers", ())]
    return list({teacher["weights"] or teacher["name"]: teacher for teacher in teachers}.values())


def _named(teacher: Mapping[str, Any]) -> str:
    identity = []
    if teacher["revision"]:
        identity.append(f"revision `{teacher['revision']}`")
    if teacher["weights"]:
        what = "the weights" if teacher.get("column") is None else "its numbers"
        identity.append(f"SHA-256 of {what} `{teacher['weights'][:16]}…`")
    return f"`{teacher['name']}`" + (f" ({', '.join(identity)})" if identity else "")


def _summary(facts: Mapping[str, Any]) -> str:
    student = facts["student"]
    what = f"A `{student['architecture']}` with {student['parameters'] / 1e6:.1f} M parameters"
    teachers = " and ".join(_named(teacher) for teacher in _teachers(facts))
    how = f"distilled from {teachers}" if teachers else "trained without a teacher"
    base = student.get("base_model")
    begins = f" It began as `{base}`." if base else ""
    return (
        f"{what}, {how} with hf-distill {facts['hf_distill_version']}.{begins} Everything below is "
        "also in `distillation.json`, for programs.\n"
    )


def _use(facts: Mapping[str, Any], name: str) -> str:
    from hf_distill.tasks.base import Task

    task = str(facts.get("task"))
    use = task_class(task).usage if task in TASKS else Task.usage
    return use.format(name=name, architecture=facts["student"]["architecture"])


def _results(folder: Path, facts: Mapping[str, Any]) -> str:
    comparison = folder / "comparison.md"
    parts = []
    if comparison.exists():
        parts.append(comparison.read_text(encoding="utf-8"))
        if (folder / COMPARISON_FILE).exists():
            parts.append(f"![Quality, size and speed side by side]({COMPARISON_FILE})\n")
    scores = facts.get("scores", {})
    if scores:
        data = facts.get("validation_data")
        on = f" on {data}" if data else ""
        parts.append(f"The student at the end of its training{on}:\n")
        rows = [[metric, _score(value)] for metric, value in scores.items()]
        parts.append(markdown_table(["measure", "value"], rows, right=[1]) + "\n")
    if exports := find_exports(folder):
        parts.append(exports_table(exports))
    return "\n".join(parts)


def _score(value: float) -> str:
    """Write a count as it is, and everything else with four digits or all before the point."""
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.4g}"


def _training(facts: Mapping[str, Any]) -> str:
    header = ["", *(stage["settings"].get("stage", "labels alone") for stage in facts["stages"])]
    stages = [{**_told(stage["settings"]), **stage["training"]} for stage in facts["stages"]]
    names = dict.fromkeys(name for stage in stages for name in stage)
    rows = [
        [name, *(_cell(stage.get(name)) for stage in stages)]
        for name in names
        if any(stage.get(name) is not None for stage in stages)
    ]
    lines = [
        f"- {label}: {facts[name]}"
        for name, label in (("recipe", "recipe"), ("train_data", "training data"),
                            ("validation_data", "validation data"))
        if facts.get(name)
    ]  # fmt: skip
    libraries = ", ".join(f"{name} {number}" for name, number in facts["libraries"].items())
    lines.append(f"- {libraries}")
    return "\n".join([*lines, "", markdown_table(header, rows), ""])


def _told(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a stage, as rows of a table."""
    told = {k: v for k, v in settings.items() if k not in ("stage", "teachers", "layer_pairs")}
    pairs = settings.get("layer_pairs") or []
    for stack, found in (pairs if isinstance(pairs, dict) else {"": pairs}).items():
        if found:
            name = f"layers of the {stack}" if stack else "layers"
            told[f"{name} (student ← teacher)"] = ", ".join(f"{s} ← {t}" for s, t in found)
    return told


def _cell(value: Any) -> str:
    if value is None:
        return ""
    whole = isinstance(value, float) and value.is_integer()
    return f"{value:.0f}" if whole else f"{value:g}" if isinstance(value, float) else str(value)


def _citations(facts: Mapping[str, Any]) -> str:
    settings = [stage["settings"] for stage in facts["stages"]]
    cited = [_HINTON]
    if any("layer_mapping" in stage for stage in settings):
        cited.append(_TINYBERT)
    if any(
        stage.get("attention_loss") == "relations" and stage.get("attention_loss_weight")
        for stage in settings
    ):
        cited.append(_MINILM)
    return "\n\n".join(cited)
