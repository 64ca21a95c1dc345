"""The instruction ids of IFEval and M-IFEval: which checker, with which parameters, decides each instruction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from plamo2_jax.checkers.checker import CheckerError
from plamo2_jax.validation import shown

NEVER_FOUND = ("創造性", "秘密の特訓", "伝説のコーチ", "奇跡の道具", "大聖堂", "色落ち")
"""Keywords of M-IFEval's Japanese prompts that its analyser splits into several words. Its verdicts count them as absent, however often a
text has them, so the task counts them as absent too."""
_OPTIONS = {
    "en": ["My answer is yes.", "My answer is no.", "My answer is maybe."],
    "ja": ["はい、そうです。", "いいえ、違います。", "どちらとも言えません。"],
}
_RELATIONS = {"at least": "at least", "less than": "less than", "以上": "at least", "未満": "less than"}
Call = tuple[str, dict[str, Any]]


def _fixed(name: str, **parameters: Any) -> Callable[[Mapping[str, Any]], Call]:
    return lambda arguments: (name, parameters)


def _renamed(name: str, **names: str) -> Callable[[Mapping[str, Any]], Call]:
    """Return a conversion that renames arguments. names: the argument of each parameter."""

    def convert(arguments: Mapping[str, Any]) -> Call:
        parameters = {parameter: arguments[argument] for parameter, argument in names.items()}
        if "relation" in parameters:
            parameters["relation"] = _RELATIONS[parameters["relation"]]
        return name, parameters

    return convert


def _with(convert: Callable[[Mapping[str, Any]], Call], **more: Any) -> Callable[[Mapping[str, Any]], Call]:
    def converted(arguments: Mapping[str, Any]) -> Call:
        name, parameters = convert(arguments)
        return name, parameters | more

    return converted


_BOTH: Mapping[str, Callable[[Mapping[str, Any]], Call]] = {
    "combination:two_responses": _fixed("two_responses"),
    "detectable_content:number_placeholders": _renamed("placeholders", count="num_placeholders"),
    "detectable_content:postscript": _renamed("postscript", marker="postscript_marker"),
    "detectable_format:json_format": _fixed("json_or_block"),
    "keywords:letter_frequency": _renamed(
        "letter_frequency", letter="letter", relation="let_relation", count="let_frequency"
    ),
    "language:response_language": _renamed("response_language", language="language"),
    "length_constraints:number_paragraphs": _renamed("divided_paragraphs", count="num_paragraphs"),
    "startend:end_checker": _renamed("ends_with_phrase", phrase="end_phrase"),
}
_ENGLISH: Mapping[str, Callable[[Mapping[str, Any]], Call]] = {
    "change_case:capital_word_frequency": _renamed(
        "capital_words", relation="capital_relation", count="capital_frequency"
    ),
    "change_case:english_capital": _fixed("uppercase_english"),
    "change_case:english_lowercase": _fixed("lowercase_english"),
    "combination:repeat_prompt": _with(_renamed("repeat_prompt", prompt="prompt_to_repeat"), ignore_case=True),
    "detectable_format:constrained_response": _fixed("one_of", options=_OPTIONS["en"]),
    "detectable_format:multiple_sections": _renamed("sections_en", word="section_spliter", count="num_sections"),
    "detectable_format:number_bullet_lists": _with(_renamed("bullets", count="num_bullets"), mark="* or -"),
    "detectable_format:number_highlighted_sections": _with(_renamed("highlights", count="num_highlights"), mark="*"),
    "detectable_format:title": _fixed("title", marks="<<>>"),
    "keywords:existence": _renamed("words_en", words="keywords"),
    "keywords:forbidden_words": _renamed("forbidden_words_en", words="forbidden_words"),
    "keywords:frequency": _renamed("word_frequency_en", word="keyword", relation="relation", count="frequency"),
    "length_constraints:nth_paragraph_first_word": _renamed(
        "paragraph_start_en", paragraphs="num_paragraphs", paragraph="nth_paragraph", word="first_word"
    ),
    "length_constraints:number_sentences": _renamed("sentences_en", relation="relation", count="num_sentences"),
    "length_constraints:number_words": _renamed("words", relation="relation", count="num_words"),
    "punctuation:no_comma": _fixed("no_comma"),
    "startend:quotation": _fixed("wrapped", marks='""'),
}
_JAPANESE: Mapping[str, Callable[[Mapping[str, Any]], Call]] = {
    "combination:repeat_prompt": _renamed("repeat_prompt", prompt="prompt_to_repeat"),
    "detectable_format:constrained_response": _fixed("one_of", options=_OPTIONS["ja"]),
    "detectable_format:multiple_sections": _renamed("sections_ja", unit="section_spliter", count="num_sections"),
    "detectable_format:nominal_ending": _renamed("noun_endings", count="count"),
    "detectable_format:number_bullet_lists": _with(_renamed("bullets", count="num_bullets"), mark="・"),
    "detectable_format:number_highlighted_sections": _with(_renamed("highlights", count="num_highlights"), mark="《》"),
    "detectable_format:number_numbered_lists": _renamed("numbered_items", count="num_items"),
    "detectable_format:title": _fixed("title", marks="『』"),
    "keywords:existence": _with(_renamed("words_ja", words="keywords"), never=list(NEVER_FOUND)),
    "keywords:forbidden_words": _renamed("forbidden_words_ja", words="forbidden_words"),
    "keywords:frequency": _with(
        _renamed("word_frequency_ja", word="keyword", relation="relation", count="frequency"), never=list(NEVER_FOUND)
    ),
    "length_constraints:nth_paragraph_first_word": _renamed(
        "paragraph_start_ja", paragraphs="num_paragraphs", paragraph="nth_paragraph", word="first_word"
    ),
    "length_constraints:number_letters": _renamed("characters", relation="relation", count="num_letters"),
    "length_constraints:number_sentences": _renamed("sentences_ja", relation="relation", count="num_sentences"),
    "letters:furigana": _fixed("furigana"),
    "letters:hiragana_only": _fixed("hiragana_only"),
    "letters:kanji": _renamed("kanji_count", relation="relation", count="kanji_limit"),
    "letters:kansuuji": _fixed("no_digits"),
    "letters:katakana_only": _fixed("katakana_only"),
    "letters:no_hiragana": _fixed("no_hiragana"),
    "letters:no_katakana": _fixed("no_katakana"),
    "punctuation:no_comma": _fixed("no_japanese_comma"),
    "punctuation:no_period": _fixed("no_japanese_period"),
    "startend:quotation": _fixed("wrapped", marks="「」"),
    "startend:sentence_unified_end": _renamed("sentence_endings", ending="ending"),
}
INSTRUCTIONS: Mapping[str, Callable[[Mapping[str, Any]], Call]] = {
    **{f"en:{name}": convert for name, convert in (_BOTH | _ENGLISH).items()},
    **{f"ja:{name}": convert for name, convert in (_BOTH | _JAPANESE).items()},
}
"""By instruction id of M-IFEval, `LANGUAGE:GROUP:NAME`. IFEval's own ids lack the language."""


def to_checker(instruction_id: str, arguments: Mapping[str, Any], where: str) -> Call:
    """Return the name of the checker of an instruction, and its parameters.

    Args:
        arguments: The instruction's `kwargs` in the benchmark's file. Null values are ignored.
        where: Name of the file and line in error messages.

    Raises:
        CheckerError: the instruction is unknown, or lacks an argument.
    """
    if instruction_id not in INSTRUCTIONS:
        raise CheckerError(f"{where}: the instruction {shown(instruction_id)} is unknown: ids of M-IFEval are allowed")
    given = {name: value for name, value in arguments.items() if value is not None}
    try:
        return INSTRUCTIONS[instruction_id](given)
    except KeyError as missing:
        raise CheckerError(f"{where}: {instruction_id} has no argument or no value {missing}") from None
