"""Do the ids that the data consists of mean the same to teacher and student?"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.compatibility.findings import Finding, error, info, warning
from hf_distill.compatibility.vocabulary_map import VocabularyMap, mark_of
from hf_distill.files import json_hash
from hf_distill.heads import (
    CausalLMHead,
    SequenceClassificationHead,
    TaskHead,
    find_head,
    unwrapped,
)
from hf_distill.loading import TOKENIZER_FILES, find_file, load_tokenizer

PROBES = (
    "The quick brown fox jumps over 13 lazy dogs.",
    "Überraschung! Wo liegt Łódź? C'est où, ça?",
    "tokenisation, e-mail@example.org, 3.14 % (unbelievable)",
    "東京は日本の首都です。 Москва",
)
SPECIAL_IDS = tuple(
    f"{name}_token_id" for name in ("bos", "eos", "cls", "sep", "pad", "mask", "unk")
)
# Where a causal model's text ends and how it is padded, which never counts, is not the teacher's
# business; instruct and base models differ in it.
_CAUSAL_SPECIAL_IDS = ("bos_token_id", "unk_token_id")
_ATTRIBUTE = "distillation_tokenizer"
_REMEDY = (
    "A teacher's predictions mean nothing for ids of another tokenizer; choose a teacher and a "
    "student that share one, and prepare the data with it (processing_class)."
)


def check_tokenizers(
    teacher: nn.Module, student: nn.Module, head: TaskHead, processing_class: Any
) -> Finding:
    """Check that the ids of the data mean the same to the teacher.

    The teacher's tokenizer is read from where the teacher was loaded, a directory or the Hub.

    Args:
        teacher: the teacher.
        student: the student.
        head: the task.
        processing_class: what the data was prepared with; if it is no tokenizer, the student's is
            read from where the student was loaded.
    """
    tokenizer = tokenizer_of_data(student, processing_class)
    pads = getattr(unwrapped(student), "config", None) if tokenizer is None else tokenizer
    pad: int | None = getattr(pads, "pad_token_id", None)
    try:
        vocabulary = find_vocabulary_map(teacher, student, head, tokenizer)
        if vocabulary is not None and pad is not None:
            pad = int(vocabulary.ids[pad])
        check_padding(pad, teacher, "teacher")
    except ValueError as problem:
        return error("tokenizer", str(problem))
    if vocabulary is not None:
        return info(
            "tokenizer",
            f"Trimmed vocabulary: {len(vocabulary.ids)} of {vocabulary.size} tokens; ids are "
            "mapped to the teacher's.",
        )
    teacher_tokenizer = tokenizer_of(teacher)
    sizes = {"teacher": vocabulary_size(teacher), "student": vocabulary_size(student)}
    finding = None
    if tokenizer is not None and teacher_tokenizer is not None:
        finding = compare_tokenizers(
            teacher_tokenizer,
            tokenizer,
            teacher_size=sizes["teacher"],
            special_ids=special_ids_of(head),
        )
        if finding.status == "error":
            return finding
    if tokenizer is not None:
        try:
            check_vocabulary(tokenizer, student, "teacher" if student is teacher else "student")
        except ValueError as problem:
            return error("tokenizer", str(problem))
    if finding is not None:
        return finding
    if tokenizer is not None and len(tokenizer) > (sizes["teacher"] or math.inf):
        return error(
            "tokenizer",
            f"The tokenizer (processing_class) has {len(tokenizer)} tokens and the teacher knows "
            f"only {sizes['teacher']}: it was trained with another tokenizer. {_REMEDY}",
        )
    if None not in sizes.values() and sizes["teacher"] != sizes["student"]:
        return warning(
            "tokenizer",
            f"The teacher's vocabulary has {sizes['teacher']} entries and the student's "
            f"{sizes['student']}, and the teacher's tokenizer is not at hand to compare; make sure "
            "that both use the same one, or pass teacher_model as a directory that holds its "
            "tokenizer, too.",
        )
    return info("tokenizer", "Not compared: the teacher's tokenizer is not at hand.")


def find_vocabulary_map(
    teacher: nn.Module, student: nn.Module, head: TaskHead, processing_class: Any
) -> VocabularyMap | None:
    """Return the teacher's ids for data that is prepared with a trimmed vocabulary.

    ``None`` if the data's vocabulary is not trimmed, or is the teacher's own.

    Args:
        teacher: the teacher.
        student: the student; the teacher itself if there is none.
        head: the task.
        processing_class: as for ``check_tokenizers``.

    Raises:
        ValueError: the student was trimmed otherwise than its tokenizer, or the vocabulary was not
            cut from the teacher's.
    """
    tokenizer = tokenizer_of_data(student, processing_class)
    found, mark = VocabularyMap.of(tokenizer), mark_of(student)
    if student is not teacher and mark != (found and found.mark):
        raise ValueError(
            "The vocabulary of the student and that of the tokenizer (processing_class) were not "
            f"trimmed together: the student has {vocabulary_size(student)} tokens "
            f"({'trimmed' if mark else 'not trimmed'}) and the tokenizer "
            f"{'none' if tokenizer is None else len(tokenizer)} "
            f"({'trimmed' if found else 'not trimmed'}). Pass the model and the tokenizer "
            "(processing_class) that trim_vocabulary returned or wrote."
        )
    if tokenizer is None or found is None or mark_of(teacher) == found.mark:
        return None
    if len(tokenizer) != len(found.ids):
        raise ValueError(
            f"The trimmed tokenizer (processing_class) has {len(tokenizer)} tokens, of which the "
            f"teacher knows {len(found.ids)}: tokens were added after trimming. Add them to model "
            "and tokenizer before, or leave them out."
        )
    theirs, size = tokenizer_of(teacher), vocabulary_size(teacher)
    if theirs is not None:
        check_map(found, theirs, tokenizer, special_ids_of(head))
    if (theirs is None and size != found.size) or (size or math.inf) <= int(found.ids[-1]):
        raise ValueError(
            f"The student's vocabulary was cut from one of {found.size} tokens and the teacher's "
            f"has {size}: its ids mean nothing to this teacher. Choose a teacher with the "
            "tokenizer of the model that was trimmed."
        )
    return found


def check_map(
    vocabulary: VocabularyMap,
    teacher: PreTrainedTokenizerBase,
    student: PreTrainedTokenizerBase,
    names: Sequence[str],
) -> None:
    """Check that a trimmed tokenizer and the teacher's give the same tokens.

    Raises:
        ValueError: they differ in a token, a special token, or in the encoding of a probe text
            all of whose tokens were kept.
    """
    theirs, ids = teacher.get_vocab(), vocabulary.ids.tolist()
    for token, place in sorted(student.get_vocab().items(), key=_by_id):
        if theirs.get(token) != ids[place]:
            raise ValueError(
                f"The student's vocabulary was not cut from the teacher's: {token!r} was the id "
                f"{ids[place]} in that of the student, and is {theirs.get(token)} in the "
                f"teacher's. {_REMEDY}"
            )
    for name in names:
        special: Any = getattr(teacher, name, None), getattr(student, name, None)
        if None not in special and special[0] != ids[special[1]]:
            raise ValueError(
                f"Teacher and student have different tokenizers: {name} is {special[0]} for the "
                f"teacher and {ids[special[1]]} for the student, before trimming. {_REMEDY}"
            )
    for probe in PROBES:
        wanted = teacher(probe)["input_ids"]
        if {*wanted} <= {*ids} and wanted != [ids[i] for i in student(probe)["input_ids"]]:
            raise ValueError(
                "Teacher and trimmed student encode the text "
                f"{probe!r} differently (lower-casing or accents, often). {_REMEDY}"
            )


def special_ids_of(head: TaskHead) -> Sequence[str]:
    return _CAUSAL_SPECIAL_IDS if isinstance(head, CausalLMHead) else SPECIAL_IDS


def tokenizer_of_data(student: nn.Module, processing_class: Any) -> PreTrainedTokenizerBase | None:
    if isinstance(processing_class, PreTrainedTokenizerBase):
        return processing_class
    return tokenizer_of(student)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: nn.Module, who: str) -> None:
    """Check that a model has an embedding for each token of its tokenizer.

    Raises:
        ValueError: it has fewer.
    """
    size = vocabulary_size(model)
    if len(tokenizer) > (size or math.inf):
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens and the {who} knows only {size} of them. "
            f"Use the tokenizer that the {who} was trained with, or add what it lacks: "
            f"model.resize_token_embeddings({len(tokenizer)})."
        )


def check_padding(pad: int | None, model: nn.Module, who: str) -> None:
    """Check that a model that reads a text's label at its last token knows what padding is.

    Decoders with such a head look for the last token that is not ``config.pad_token_id``.

    Raises:
        ValueError: the data is padded with another token than that.
    """
    model = unwrapped(model)
    if pad is None or not isinstance(model, PreTrainedModel):
        return
    if not isinstance(find_head(model), SequenceClassificationHead):
        return
    try:
        looks_for_it = "pad_token_id" in inspect.getsource(type(model).forward)
    except OSError:  # a class whose source is not at hand
        return
    own = getattr(model.config.get_text_config(), "pad_token_id", None)
    if looks_for_it and own not in (None, pad):
        raise ValueError(
            f"The {who} reads the label of a text at the last token that is not its "
            f"config.pad_token_id={own}, and the data is padded with token {pad}, where it would "
            f"then read. Set config.pad_token_id={pad} in the {who} (its config.json), or pad with "
            f"token {own} (tokenizer.pad_token_id)."
        )


def tokenizer_hash(processing_class: Any) -> str | None:
    """SHA-256 of what a tokenizer does: vocabulary, special ids, the encoding of probe texts.

    Of other processors their settings. ``None`` if there is nothing to tell.
    """
    if isinstance(processing_class, PreTrainedTokenizerBase):
        content: Any = [
            sorted(processing_class.get_vocab().items()),
            [getattr(processing_class, name, None) for name in SPECIAL_IDS],
            [processing_class(probe)["input_ids"] for probe in PROBES],
        ]
        vocabulary = VocabularyMap.of(processing_class)
        if vocabulary is not None:
            content.append(vocabulary.mark)
    elif hasattr(processing_class, "to_dict"):
        content = processing_class.to_dict()
    else:
        return None
    return json_hash(content)


def compare_tokenizers(
    teacher: PreTrainedTokenizerBase,
    student: PreTrainedTokenizerBase,
    *,
    teacher_size: int | None = None,
    special_ids: Sequence[str] = SPECIAL_IDS,
) -> Finding:
    """Whether two tokenizers give the same ids: vocabulary, special tokens, and probe texts.

    One of them may have more tokens than the other at the end of its vocabulary.

    Args:
        teacher: the teacher's.
        student: the one that the data is prepared with.
        teacher_size: ids that the teacher has embeddings for; by default those of its tokenizer.
        special_ids: the special tokens that must be the same, where both have them.
    """
    found = _compare_vocabularies(teacher, student, teacher_size or len(teacher))
    if found.status == "error":
        return found
    for name in special_ids:
        ids = getattr(teacher, name, None), getattr(student, name, None)
        if None not in ids and ids[0] != ids[1]:
            return error(
                "tokenizer",
                f"Teacher and student have different tokenizers: {name} is {ids[0]} for the "
                f"teacher and {ids[1]} for the student. {_REMEDY}",
            )
    for probe in PROBES:
        if teacher(probe)["input_ids"] != student(probe)["input_ids"]:
            return error(
                "tokenizer",
                "Teacher and student have the same vocabulary, but encode the text "
                f"{probe!r} differently (lower-casing or accents, often). {_REMEDY}",
            )
    return found


def _compare_vocabularies(
    teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, teacher_size: int
) -> Finding:
    theirs, ours = set(teacher.get_vocab().items()), set(student.get_vocab().items())
    only_ours, only_theirs = (sorted(items, key=_by_id) for items in (ours - theirs, theirs - ours))
    if not only_ours:
        more = f"; the teacher has {len(only_theirs)} more" if only_theirs else ""
        return info(
            "tokenizer",
            f"The same: {len(ours)} tokens{more}, special tokens and the encoding of "
            f"{len(PROBES)} probe texts.",
        )
    token, token_id = min(only_ours + only_theirs, key=_by_id)
    if only_theirs or len(only_ours) > max(10, len(ours) // 100):
        return error(
            "tokenizer",
            f"Teacher and student have different tokenizers: {len(theirs)} and {len(ours)} tokens, "
            f"and {token!r} (id {token_id}) is only in one of them. {_REMEDY}",
        )
    token, token_id = only_ours[-1]
    if token_id >= teacher_size:
        return error(
            "tokenizer",
            f"The student's tokenizer has the added token {token!r} (id {token_id}), for which the "
            f"teacher, with {teacher_size} entries, has no embedding. Take a token that both have "
            "(tokenizer.pad_token = tokenizer.eos_token, for padding), or resize the teacher's "
            "embeddings.",
        )
    return warning(
        "tokenizer",
        f"The student's tokenizer has {len(only_ours)} tokens that the teacher's lacks (the last "
        f"is {token!r}); the teacher was not trained on them. Leave them out of the data, but for "
        "padding.",
    )


def _by_id(item: tuple[str, int]) -> tuple[int, str]:
    return item[1], item[0]


def keep_tokenizer(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let ``tokenizer_of`` find the tokenizer of a model that was made with it."""
    holder: Any = model
    setattr(holder, _ATTRIBUTE, tokenizer)


def tokenizer_of(model: nn.Module) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer that a model was made with, or that is next to its weights.

    ``None`` where there is none on this machine or on the Hub.
    """
    model = unwrapped(model)
    kept: PreTrainedTokenizerBase | None = getattr(model, _ATTRIBUTE, None)
    if kept is not None:
        return kept
    return saved_tokenizer(getattr(model, "name_or_path", None))


def saved_tokenizer(source: Any) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer of a folder or repository; ``None`` without one of a known kind."""
    try:
        if not source or not any(find_file(source, name) for name in TOKENIZER_FILES):
            return None
        return load_tokenizer(source)
    except (OSError, ValueError):  # not a directory or a repository; a tokenizer of another kind
        return None


def vocabulary_size(model: nn.Module) -> int | None:
    """Return how many tokens a model has embeddings for; ``None`` if it does not say so."""
    size: int | None = getattr(getattr(unwrapped(model), "config", None), "vocab_size", None)
    return size
