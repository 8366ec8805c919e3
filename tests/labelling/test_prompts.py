from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from language_models import tokenizer
from vocabularies import KINDS

from hf_distill.labelling.prompts import Prompt, default_prompt

WORDS = ["hello", "shell", "unhelpful"]
FIELDS = {"text": "text"}


def prompt(template: str = "{text} is", kind: str = "byte_level", **options: Any) -> Prompt:
    chat = options.pop("chat", False)
    made = options.pop("tokenizer", None) or tokenizer(kind, chat=chat)
    settings = {"chat": chat, "max_length": 60, "date": datetime(2024, 7, 26), **options}
    columns = settings.pop("columns", FIELDS)
    return Prompt(template, columns, settings.pop("words", WORDS), made, **settings)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", ["{text} is", "{text} is ", "Paris {text}\n", "{text}"])
def test_each_word_has_the_tokens_of_prompt_and_word_together(kind: str, template: str) -> None:
    made = tokenizer(kind)
    row = prompt(template, tokenizer=made).encode({"text": "Paris lies on the river"})
    written = template.replace("{text}", "Paris lies on the river")
    for word, ending in zip(WORDS, row.endings, strict=True):
        space = "" if written.endswith((" ", "\n")) else " "
        # Special tokens in front, and none behind.
        *begin, last = made(written + space + word)["input_ids"]
        assert last == made.eos_token_id
        assert [*row.prefix, *ending] == begin
    assert len({ending[:1] for ending in row.endings}) > 1
    assert row.cut is False


def test_a_word_of_a_byte_level_tokenizer_begins_with_its_space() -> None:
    made = tokenizer("byte_level")
    for template in ("{text} is", "{text} is "):
        row = prompt(template, tokenizer=made).encode({"text": "Paris"})
        assert [made.convert_ids_to_tokens(list(e))[0][0] for e in row.endings] == ["Ġ"] * 3
    row = prompt("{text}\n", tokenizer=made).encode({"text": "Paris"})
    assert not any(made.convert_ids_to_tokens(list(e))[0].startswith("Ġ") for e in row.endings)


def test_tokens_that_all_words_begin_with_belong_to_the_prefix() -> None:
    row = prompt(words=["hell", "hello", "hellos"], kind="word_piece").encode({"text": "paris"})
    made = tokenizer("word_piece")
    assert made("paris is hell")["input_ids"][:-1] == [*row.prefix, *row.endings[0]]


def test_chat_templates_write_prompt_and_word() -> None:
    made = tokenizer(chat=True)
    row = prompt("How is {text}?", tokenizer=made, chat=True).encode({"text": "Paris"})
    text = "<s>user\nHow is Paris?</s>\n<s>assistant\nhello"
    assert [*row.prefix, *row.endings[0]] == made(text, add_special_tokens=False)["input_ids"]


def test_fields_are_columns_and_texts_are_not_read_as_templates() -> None:
    made = prompt("{{{text}}} {text_pair}?", columns={"text": "a", "text_pair": "b"})
    texts = {"a": "{text_pair}{x}", "b": "y"}
    assert made.written(texts, "hello") == "{{text_pair}{x}} y? hello"
    assert made.columns == ["a", "b"]


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_are_cut_and_the_end_of_the_prompt_is_kept(kind: str) -> None:
    made = tokenizer(kind)
    writer = prompt("Paris: {text} lies on", tokenizer=made, max_length=30)
    long = "the river of the capital, " * 20
    row = writer.encode({"text": long})
    whole = [*row.prefix, *row.endings[0]]
    assert row.cut
    assert 25 <= max(len(row.prefix) + len(ending) for ending in row.endings) <= 30
    end = made("lies on hello", add_special_tokens=False)["input_ids"][-3:]
    assert whole[-3:] == end
    short = prompt("Paris: {text} lies on", tokenizer=made, max_length=1000).encode({"text": long})
    assert not short.cut
    assert whole[:8] == [*short.prefix, *short.endings[0]][:8]


def test_of_two_texts_the_longer_one_is_cut() -> None:
    columns = {"text": "a", "text_pair": "b"}
    writer = prompt("{text} | {text_pair} =", columns=columns, max_length=40)
    row = writer.encode({"a": "short", "b": "long " * 50})
    shown = tokenizer().decode(list(row.prefix))
    assert "short | long" in shown
    assert shown.endswith(" =")


@pytest.mark.parametrize(("a", "b"), [(30, 25), (25, 30), (40, 15), (60, 60), (3, 90)])
def test_of_two_long_texts_both_are_kept_to_the_same_length(a: int, b: int) -> None:
    columns = {"text": "a", "text_pair": "b"}
    writer = prompt("{text} | {text_pair} =", columns=columns, max_length=40)
    row = writer.encode({"a": "hello " * a, "b": "people " * b})
    shown = tokenizer().decode(list(row.prefix))
    kept = [len(tokenizer()(part)["input_ids"]) for part in shown.split("|")]
    whole = [len(tokenizer()(text)["input_ids"]) for text in ("hello " * a, "people " * b)]
    assert len(row.prefix) + max(map(len, row.endings)) >= 37
    shorter = min(kept[0], kept[1])
    assert shorter >= min(*whole, 16)


def test_of_a_text_that_is_shown_twice_no_more_is_cut_than_needed() -> None:
    row = prompt("{text} | {text} =", max_length=40).encode({"text": "hello " * 30})
    assert len(row.prefix) + max(map(len, row.endings)) >= 37


def test_a_chat_template_shows_one_date() -> None:
    made = tokenizer(chat=True)
    made.chat_template = "{{ strftime_now('%d %b %Y') }}: " + made.chat_template
    writer = prompt(tokenizer=made, chat=True)
    assert writer.written({"text": "Paris"}, "hello").startswith("26 Jul 2024: <s>user")
    assert writer.identity["date"] == "2024-07-26T00:00:00"


@pytest.mark.parametrize(
    ("template", "fragments"),
    [
        ("Is it good?", ["prompt=", "{text}"]),
        ("{review} is", ["prompt", "{review}", "text"]),
        ("{text.__class__} is", ["prompt", "{text.__class__}"]),
        ("{text!r} is", ["prompt", "{text!r}"]),
        ("{text:>5} is", ["prompt", "{text:>5}"]),
        ("{} is", ["prompt", "{}"]),
        ("{text is", ["prompt="]),
    ],
)
def test_bad_templates(template: str, fragments: list[str]) -> None:
    with pytest.raises(ValueError, match="prompt") as error:
        prompt(template)
    assert all(fragment in str(error.value) for fragment in fragments)


def test_what_else_is_refused() -> None:
    with pytest.raises(ValueError, match="max_length=6"):
        prompt("Paris lies on the river Seine {text} is", max_length=6).encode({"text": "x"})
    with pytest.raises(ValueError, match="chat"):
        prompt(tokenizer=tokenizer(), chat=True)
    bare = tokenizer()
    bare.backend_tokenizer.post_processor = None
    with pytest.raises(ValueError, match="prompt"):
        prompt("{text}", tokenizer=bare).encode({"text": ""})


def test_default_prompts_show_the_texts_and_list_the_words() -> None:
    for chat in (False, True):
        shown = default_prompt(["bad", "fair", "good"], ["text", "text_pair"], chat=chat)
        assert "bad, fair or good" in shown
        assert "{text}" in shown
        assert "{text_pair}" in shown
