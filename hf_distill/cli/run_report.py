"""The report of a run of ``hf-distill train``, from what is in its folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hf_distill.cli.progress import duration
from hf_distill.cli.run_folder import INTERMEDIATE, METRICS, PICTURES, read_log, recorded_samples
from hf_distill.files import display_name, read_json
from hf_distill.hub.facts import read_facts
from hf_distill.layers.mapping import LayerPair
from hf_distill.layers.samples import read_sample
from hf_distill.reports.attention_maps import attention_figure
from hf_distill.reports.layer_similarity import similarity_figure
from hf_distill.reports.report import Picture, Report, Stage, Tile
from hf_distill.reports.sweep_report import figure
from hf_distill.reports.terminal import in_words

CHOSE_THE_CHECKPOINT = (
    "The validation data chose the student among its checkpoints, so judge it in the end on other "
    "data."
)
_REMEDY = "train again"
_FACTS = {
    "learning_rate": "learning rate",
    "lr_scheduler_type": "schedule",
    "distillation_loss": "distillation loss",
    "temperature": "temperature",
    "distillation_loss_weight": "weight of the teacher",
    "hidden_states_loss": "loss of hidden states",
    "attention_loss": "loss of attentions",
    "layer_mapping": "layer mapping",
    "seed": "seed",
}
_Run = tuple[str, Mapping[str, Any], Path]
"""Name, figures and folder of a stage."""


def run_report(folder: Path, command: str, machine: Mapping[str, str]) -> Report:
    """Read the report of a finished run.

    Args:
        folder: of the run.
        command: the line that made it.
        machine: as ``describe_machine`` returns it.

    Raises:
        ValueError: a file in it is damaged.
    """
    metrics = read_json(folder / METRICS, _REMEDY)
    facts = read_facts(folder)
    first = metrics["intermediate_stage"]
    runs: list[_Run] = [("prediction layer" if first else "training", metrics, folder)]
    if first:
        runs.insert(0, ("intermediate layers", first, folder / INTERMEDIATE))
    settings = facts["stages"][-len(runs) :]
    stages = [
        Stage(name, _stage_facts(run, made), read_log(where))
        for (name, run, where), made in zip(runs, settings, strict=True)
    ]
    teacher = metrics["teacher_model"]
    return Report(
        title=f"{display_name(folder)}: a {facts['student']['architecture']}"
        + (f" that learned from {teacher}" if teacher else ""),
        subtitle=f"{metrics['task']}: trained on {metrics['train_data']}"
        + (f", scored on {metrics['validation_data']}" if metrics["validation_data"] else ""),
        remarks=[] if metrics.get("kept_step") is None else [CHOSE_THE_CHECKPOINT],
        tiles=list(_tiles(metrics, facts, runs)),
        scores=_scores(metrics),
        stages=stages,
        pictures=[
            *_similarities(folder, runs),
            *(picture for name, _, where in runs for picture in _attentions(name, where)),
        ],
        cost=_cost(runs),
        commands=[command],
        machine={**machine, **facts["libraries"]},
    )


def _scores(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the metrics by the names that tables show, the primary one first."""
    numbers = {
        name: value
        for name, value in metrics["eval"].items()
        if isinstance(value, int | float) and not name.startswith("loss")
    }
    bounds = in_words(metrics["intervals"], metrics["labels"])
    shown = {}
    for label, value in in_words(numbers, metrics["labels"]).items():
        low, high = bounds.get(label) or (None, None)
        spread = "" if low is None else f" (95% interval {low:.2f} to {high:.2f})"
        shown[label] = f"{figure(float(value))}{spread}"
    if metrics["baseline"]:
        what, values = metrics["baseline"]
        known = in_words(values, metrics["labels"])
        shown[what] = ", ".join(f"{label} {figure(value)}" for label, value in known.items())
    return shown


def _tiles(
    metrics: Mapping[str, Any], facts: Mapping[str, Any], runs: Sequence[_Run]
) -> Iterator[Tile]:
    for name, label in list(metrics["labels"].items())[:2]:
        if metrics["eval"].get(name) is not None:
            yield Tile(figure(metrics["eval"][name]), f"{label} on {metrics['validation_data']}")
    yield Tile(f"{facts['student']['parameters'] / 1e6:.1f} M", "parameters")
    yield Tile(f"{sum(run['steps'] for _, run, _ in runs):,}", "training steps")
    if all("runtime" in run["train"] for _, run, _ in runs):
        yield Tile(duration(sum(run["train"]["runtime"] for _, run, _ in runs)), "of training")


def _stage_facts(run: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, str]:
    training = facts["training"]
    parts = [training["per_device_train_batch_size"], training["gradient_accumulation_steps"]]
    rows = parts[0] * parts[1] * training["processes"]
    shown = {
        "data": run["train_data"],
        "steps": f"{run['steps']:,} of {rows} rows ({training['epochs'] or 0:.2f} epochs)",
    }
    if kept := kept_student(run):
        shown["kept"] = kept
    known = {**training, **facts["settings"]}
    for name, label in _FACTS.items():
        if known.get(name) is not None:
            shown[label] = str(known[name])
    if pairs := run.get("layer_pairs"):
        shown["layers, student:teacher"] = str(pairs)
    return shown


def kept_student(run: Mapping[str, Any]) -> str | None:
    """Say which of a run's checkpoints its student is; ``None``: the last one, unscored."""
    kept = run.get("kept_step")
    if kept is None:
        return None
    when = f"after step {kept:,}" if kept else "before the first step, which none bettered"
    return f"the student as it was {when}"


def _cost(runs: Sequence[_Run]) -> dict[str, str]:
    cost = {}
    for name, run, _ in runs:
        if "runtime" in run["train"]:
            speed = run["train"].get("samples_per_second", 0.0)
            cost[name] = f"{duration(run['train']['runtime'])}, {speed:.1f} rows per second"
    return cost


def _similarities(folder: Path, runs: Sequence[_Run]) -> Iterator[Picture]:
    """Yield the similarity of layers, if this run chose its pairs by it."""
    chosen = [run for _, run, _ in runs if run.get("layer_pairs")]
    if not any("auto" in str(run["distillation"]["layer_mapping"]) for run in chosen):
        return
    for file in sorted((folder / PICTURES).glob("*layer_similarity.json")):
        content = read_json(file, _REMEDY)
        pairs = [LayerPair(*pair) for pair in content["pairs"]]
        yield Picture(
            file.stem.replace("_", " ").capitalize(),
            partial(similarity_figure, torch.tensor(content["similarity"]), pairs),
            "Linear CKA: 1 where two layers hold the same up to a rotation; framed pairs learn "
            "from each other.",
            f"{PICTURES}/{file.stem}.png",
        )


def _attentions(name: str, stage: Path) -> Iterator[Picture]:
    """Yield the last attentions that were recorded in a stage."""
    samples = recorded_samples(stage)
    if not samples:
        return
    sample = read_sample(samples[max(samples)])
    pairs = [pair for pair in sample.layer_pairs if pair.student and pair.teacher]
    if pairs:
        yield Picture(
            f"Attention at step {sample.step:,} ({name})",
            partial(attention_figure, sample, pairs[-1]),
            "A row is a token that looks, a column one that is looked at; the darker, the more.",
        )
