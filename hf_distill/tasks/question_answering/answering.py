"""Questions in, answers out: the use of a trained extractive question-answering model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_distill.compatibility import input_limit
from hf_distill.loading import load_fine_tuned, load_tokenizer
from hf_distill.tasks.question_answering.features import WindowCutter, check_fast
from hf_distill.tasks.question_answering.postprocessing import (
    WINDOW_COLUMNS,
    Answer,
    Prediction,
    postprocess_windows,
)

# Spans that share the probability with "no answer"; as many as the official scripts keep.
_CANDIDATES = 20
# Questions whose windows are held in memory at a time.
_GROUP = 512


class QuestionAnswerer:
    """Answers questions with a piece of a text, or finds that the text has no answer.

    Args:
        model: A model with a question-answering head (`AutoModelForQuestionAnswering`). It is
            moved to `device` and put into evaluation mode.
        tokenizer: Its fast tokenizer.
        device: Where to compute: `"cpu"`, `"cuda:1"` … By default an accelerator if there is one.
        dtype: Precision of the model: `torch.bfloat16`, `"float16"` … By default, as it is.

    Raises:
        TypeError: The tokenizer is not a fast one.

    Example:
        >>> from hf_distill import QuestionAnswerer
        >>> answerer = QuestionAnswerer.from_pretrained("out/student")  # doctest: +SKIP
        >>> text = "Paris has been the capital of France since 987. It lies on the Seine."
        >>> [answer] = answerer(question="Where does Paris lie?", context=text)  # doctest: +SKIP
        >>> answer  # doctest: +SKIP
        Answer(text='Seine', start=63, end=68, score=0.79)
        >>> text[answer.start : answer.end]  # doctest: +SKIP
        'Seine'
        >>> paris, berlin = answerer(  # doctest: +SKIP
        ...     [
        ...         {"question": "Where does Paris lie?", "context": text},
        ...         {"question": "Who founded Berlin?", "context": text},
        ...     ],
        ...     top_k=2,
        ... )
        >>> paris[1]  # doctest: +SKIP
        Answer(text='the Seine', start=59, end=68, score=0.13)
        >>> berlin[0]  # doctest: +SKIP
        Answer(text='', start=0, end=0, score=1.0)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        check_fast(tokenizer)
        self.device = torch.device(device) if device is not None else _default_device()
        self.model = model.eval()
        self.model.to(device=self.device, dtype=_torch_dtype(dtype))
        self.tokenizer = tokenizer
        self._cutter: WindowCutter | None = None

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
    ) -> QuestionAnswerer:
        """Load a model and its tokenizer.

        Args:
            path_or_id: A folder, or the id of a model on the Hub.
            device: Where to compute. By default an accelerator if there is one.
            dtype: Precision of the model. By default float32, whatever was saved.
            revision: The branch, tag or commit of a model on the Hub.

        Returns:
            Ready to be called.

        Raises:
            OSError: The model does not exist.
            ValueError: The model has no trained question-answering head.
            TypeError: The model has no fast tokenizer.
        """
        model = load_fine_tuned(
            "AutoModelForQuestionAnswering",
            path_or_id,
            task="question-answering",
            dtype=_torch_dtype(dtype) or torch.float32,
            revision=revision,
        )
        tokenizer = load_tokenizer(path_or_id, revision=revision)
        return cls(model, tokenizer, device=device)

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is also a Sequence[str]
        self,
        inputs: None = None,
        *,
        question: str,
        context: str,
        top_k: int = ...,
        batch_size: int = ...,
        max_length: int = ...,
        doc_stride: int = ...,
        max_answer_length: int = ...,
        no_answer_threshold: float | None = ...,
        progress: bool = ...,
    ) -> list[Answer]: ...

    @overload
    def __call__(
        self,
        inputs: Sequence[Mapping[str, str]] | None = None,
        *,
        question: str | Sequence[str] | None = None,
        context: str | Sequence[str] | None = None,
        top_k: int = ...,
        batch_size: int = ...,
        max_length: int = ...,
        doc_stride: int = ...,
        max_answer_length: int = ...,
        no_answer_threshold: float | None = ...,
        progress: bool = ...,
    ) -> list[list[Answer]]: ...

    def __call__(
        self,
        inputs: Sequence[Mapping[str, str]] | None = None,
        *,
        question: str | Sequence[str] | None = None,
        context: str | Sequence[str] | None = None,
        top_k: int = 1,
        batch_size: int = 16,
        max_length: int = 384,
        doc_stride: int = 128,
        max_answer_length: int = 30,
        no_answer_threshold: float | None = 0.0,
        progress: bool = False,
    ) -> list[Answer] | list[list[Answer]]:
        """Answer one question or many.

        The `score` of an answer is a probability: the softmax over the max(20, `top_k`) best
        spans of the whole context (start logit + end logit each) and "no answer" (its own logits,
        the lowest sum of all windows, less `no_answer_threshold`). It compares the candidates of
        one question; it is not calibrated.

        Args:
            inputs: Objects with `question` and `context`, instead of the next two.
            question: A question, or several.
            context: The text to answer from. One text serves several questions; several texts go
                with as many questions.
            top_k: Most answers to return for a question.
            batch_size: Windows to compute at a time.
            max_length: Most tokens in a window; longer contexts are cut into overlapping windows.
            doc_stride: Tokens that two consecutive windows share.
            max_answer_length: Most tokens in an answer.
            no_answer_threshold: "No answer" comes first if its logits exceed those of the best
                span by more than this. None: leave "no answer" out.
            progress: Show a progress bar.

        Returns:
            For one question (two strings) its answers, the most probable first; for several, a
            list of such lists. "No answer" is an `Answer` with the text "", start 0 and end 0. It
            is the only one, with probability 1.0 whatever the threshold, if the tokenizer finds
            nothing in the context.

        Raises:
            ValueError: A question or context is blank, an option is out of range, or the model
                gives NaN.
            TypeError: Neither `inputs` nor `question` and `context`, or both, are given.
        """
        _check_options(top_k, batch_size, no_answer_threshold)
        self._check_length(max_length)
        questions, contexts = _pairs(inputs, question, context)
        answers = self.answer_all(
            questions,
            contexts,
            top_k=top_k,
            batch_size=batch_size,
            max_length=max_length,
            doc_stride=doc_stride,
            max_answer_length=max_answer_length,
            no_answer_threshold=no_answer_threshold,
            progress=progress,
        )
        alone = isinstance(question, str) and isinstance(context, str)
        return answers[0] if alone else answers

    def answer_all(
        self,
        questions: Sequence[str],
        contexts: Sequence[str],
        *,
        top_k: int,
        batch_size: int,
        max_length: int,
        doc_stride: int,
        max_answer_length: int,
        no_answer_threshold: float | None = 0.0,
        progress: bool = False,
    ) -> list[list[Answer]]:
        """Answer each question from its context, where either may be blank, as in data sets.

        Args and result are those of a call. "No answer" is the only answer to a blank context.
        """
        cutter = self._window_cutter(max_length, doc_stride)
        answers: list[list[Answer]] = []
        with tqdm(total=len(questions), desc="Answering", disable=not progress) as bar:
            for begin in range(0, len(questions), _GROUP):
                part = slice(begin, begin + _GROUP)
                examples = {
                    "id": [str(index) for index in range(len(questions))[part]],
                    "question": list(questions[part]),
                    "context": list(contexts[part]),
                }
                features = cutter(examples)
                predictions = postprocess_windows(
                    examples["id"],
                    examples["context"],
                    pa.table({name: features[name] for name in WINDOW_COLUMNS}),
                    *self._logits(features, batch_size),
                    n_best=max(_CANDIDATES, top_k),
                    max_answer_length=max_answer_length,
                    no_answer_threshold=None,
                )
                answers += [_ranked(one, no_answer_threshold)[:top_k] for one in predictions]
                bar.update(len(predictions))
        return answers

    def _logits(
        self, features: Mapping[str, list[Any]], batch_size: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return start and end logits, `(windows, longest window)` each, in order."""
        accepted = inspect.signature(self.model.forward).parameters
        names = [
            name
            for name in self.tokenizer.model_input_names
            if name in features and name in accepted
        ]
        lengths = np.array([len(ids) for ids in features["input_ids"]])
        start_logits = np.zeros((len(lengths), lengths.max()), dtype=np.float32)
        end_logits = np.zeros_like(start_logits)
        # Windows of like length together waste no padding; the longest first, so that a batch
        # too big for the memory fails at once.
        order = np.argsort(-lengths, kind="stable")
        for begin in range(0, len(order), batch_size):
            batch = order[begin : begin + batch_size]
            rows = {name: [features[name][index] for index in batch] for name in names}
            inputs = self.tokenizer.pad(rows, return_tensors="pt").to(self.device)
            with torch.inference_mode():
                output = self.model(**inputs)
            width = output.start_logits.shape[1]
            start_logits[batch, :width] = output.start_logits.float().cpu().numpy()
            end_logits[batch, :width] = output.end_logits.float().cpu().numpy()
        return start_logits, end_logits

    def _window_cutter(self, max_length: int, doc_stride: int) -> WindowCutter:
        """Return the last call's if it fits: it copies the tokenizer, which takes a while."""
        cutter = self._cutter
        if cutter is None or (cutter.max_length, cutter.doc_stride) != (max_length, doc_stride):
            cutter = WindowCutter(self.tokenizer, max_length, doc_stride, for_evaluation=True)
            self._cutter = cutter
        return cutter

    def _check_length(self, max_length: int) -> None:
        most = input_limit(self.model)
        if most is not None and max_length > most:
            raise ValueError(
                f"max_length={max_length} is more than the {most} tokens that the model takes; "
                "lower max_length"
            )


def _default_device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _torch_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"dtype={dtype!r} is not a floating-point type; use 'float32', 'bfloat16' or 'float16'"
        )
    return found


def _check_options(top_k: int, batch_size: int, no_answer_threshold: float | None) -> None:
    if top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    if no_answer_threshold is not None and not math.isfinite(no_answer_threshold):
        raise ValueError(
            f"no_answer_threshold={no_answer_threshold} must be a finite number of logits, or None "
            "to leave 'no answer' out"
        )


def _pairs(
    inputs: Sequence[Mapping[str, str]] | None,
    question: str | Sequence[str] | None,
    context: str | Sequence[str] | None,
) -> tuple[list[str], list[str]]:
    """Return questions and contexts, one each a pair, checked."""
    pair_given = question is not None or context is not None
    if inputs is not None and not pair_given:
        for index, one in enumerate(inputs):
            if not isinstance(one, Mapping) or not {"question", "context"} <= one.keys():
                raise TypeError(
                    f"inputs[{index}] must be an object with 'question' and 'context', not {one!r}"
                )
        question = [one["question"] for one in inputs]
        context = [one["context"] for one in inputs]
    elif inputs is not None or question is None or context is None:
        raise TypeError("give either inputs, or both question and context")
    questions = [question] if isinstance(question, str) else list(question)
    contexts = [context] * len(questions) if isinstance(context, str) else list(context)
    if len(contexts) != len(questions):
        raise ValueError(
            f"{len(questions)} questions and {len(contexts)} contexts: give one context for all, "
            "or one for each question"
        )
    for name, texts in (("question", questions), ("context", contexts)):
        for index, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{name} {index} is {text!r}; it must be text that is not blank")
    return questions, contexts


def _ranked(prediction: Prediction, no_answer_threshold: float | None) -> list[Answer]:
    """Return all candidates, the most probable first, with probabilities as scores."""
    candidates = list(prediction.answers)
    if no_answer_threshold is not None or not candidates:
        # Lowered by the threshold, "no answer" comes first exactly if it exceeds the best by more.
        score = prediction.no_answer_score - (no_answer_threshold or 0.0)
        candidates.append(Answer("", 0, 0, max(score, float(np.finfo(np.float32).min))))
    candidates.sort(key=lambda answer: -answer.score)
    weights = [math.exp(answer.score - candidates[0].score) for answer in candidates]
    total = sum(weights)
    return [
        Answer(answer.text, answer.start, answer.end, weight / total)
        for answer, weight in zip(candidates, weights, strict=True)
    ]
