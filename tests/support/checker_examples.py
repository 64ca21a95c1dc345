"""Texts that pass and fail each checker: (parameters, passing texts, failing texts) by name. All are written for these tests."""

from __future__ import annotations

from typing import Any

Examples = list[tuple[dict[str, Any], list[str], list[str]]]
TABLE = "<table><tr><th>名</th></tr><tr><td>猫</td></tr></table>"
DIFF = "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n"

EXAMPLES: dict[str, Examples] = {
    # length
    "characters": [
        ({"relation": "at least", "count": 5}, ["猫は動物", "abcde"][1:], ["猫", "abcd"]),
        ({"relation": "less than", "count": 5}, ["猫", "abcd"], ["abcde", "猫は動物だ"]),
    ],
    "characters_between": [({"least": 2, "most": 4}, ["猫だ", "four"], ["猫", "seven"])],
    "words": [
        ({"relation": "at least", "count": 3}, ["one two three", "It's me"], ["one two", "猫は動物です"]),
        ({"relation": "less than", "count": 3}, ["one two"], ["one two three"]),
    ],
    "sentences_ja": [
        (
            {"relation": "at least", "count": 2},
            ["猫です。犬です。", "猫\n犬", "本当？はい！"],
            ["猫です。", "「猫。犬。」と言う。"],
        ),
        ({"relation": "less than", "count": 2}, ["猫（大きい。）です。"], ["猫です！犬です？"]),
    ],
    "sentences_en": [
        (
            {"relation": "at least", "count": 2},
            ["It rains. We stay.", 'He asked "Why?" We left.', "One\nline. Two"],
            ["Dr. Smith rests.", "It costs 3.50 yen", "See e.g. the map.", "No\nperiod\nhere"],
        ),
        ({"relation": "less than", "count": 2}, ["We met at 5 p.m. today."], ["Stop! Go."]),
    ],
    "sentences_between": [
        (
            {"least": 2, "most": 3},
            ["猫。犬。", "猫。犬。鳥。", "猫．犬．", "猫.犬", "A b. C 3.5 d."],
            ["猫。", "猫。犬。鳥。魚。", "3.5", "「猫。犬。」と言う。"],
        )
    ],
    "divided_paragraphs": [
        ({"count": 2}, ["a\n***\nb", "***\n猫\n***\n犬\n***"], ["a\n\nb", "a\n***\n***\nb", "a***b***c"])
    ],
    "paragraph_start_en": [
        (
            {"paragraphs": 2, "paragraph": 2, "word": "river"},
            ["A.\n\nRiver, wide.", 'A\n\n"river" b'],
            ["river\n\nlake", "A\n\nrivers"],
        ),
    ],
    "paragraph_start_ja": [
        (
            {"paragraphs": 2, "paragraph": 1, "word": "海"},
            ["海は広い。\n\n山は高い。", "「海」だ\n\n山"],
            ["山\n\n海", "海は広い。"],
        ),
    ],
    "paragraphs_between": [({"least": 2, "most": 3}, ["a\n\nb", "猫\n\n犬\n\n鳥"], ["a\nb", "a\n\nb\n\nc\n\nd"])],
    "sections_between": [
        ({"least": 2, "most": 2, "separator": "----"}, ["猫----犬", "a\n----\nb"], ["a", "a----b----c"]),
        ({"least": 2, "most": 2, "separator": "\\n\\n"}, ["a\n\nb"], ["a\nb"]),
    ],
    "line_breaks": [({"count": 1}, ["猫\n犬", "a\n"], ["猫", "a\nb\nc"])],
    "blank_lines": [({"count": 1}, ["猫\n\n犬", "a\n \nb"], ["猫\n犬", "a\n\n\nb"])],
    # keywords
    "words_en": [({"words": ["tea", "cup"]}, ["A Teacup", "tea in a cup"], ["tea", "coffee"])],
    "word_frequency_en": [
        ({"word": "tea", "relation": "at least", "count": 2}, ["Tea and tea"], ["tea"]),
        ({"word": "tea", "relation": "less than", "count": 2}, ["one tea", "none"], ["tea tea"]),
    ],
    "forbidden_words_en": [({"words": ["tea"]}, ["coffee", "teacup"], ["Tea.", "no tea here"])],
    "words_ja": [
        ({"words": ["海", "ラテ"]}, ["海でラテを飲む。"], ["海外でラテを飲む。", "海でラテン語を読む。"]),
        ({"words": ["海"], "never": ["海"]}, [], ["海です。"]),
    ],
    "word_frequency_ja": [
        ({"word": "雨", "relation": "at least", "count": 2}, ["雨、また雨。"], ["雨と豪雨。"]),
        ({"word": "雨", "relation": "less than", "count": 1}, ["雨季です。"], ["雨です。"]),
        ({"word": "雨", "relation": "less than", "count": 1, "never": ["雨"]}, ["雨です。"], []),
    ],
    "forbidden_words_ja": [({"words": ["海"]}, ["山です。", "海外です。"], ["海です。"])],
    "letter_frequency": [
        ({"letter": "a", "relation": "at least", "count": 2}, ["Aa"], ["a"]),
        ({"letter": "か", "relation": "less than", "count": 2}, ["かき"], ["かカ"]),
    ],
    "excluded_texts": [({"texts": ["火", "tea"]}, ["水", "coffee"], ["花火", "steam? teapot"])],
    "exact_counts": [({"counts": {"東京": 2, "a": 0}}, ["東京と東京"], ["東京", "東京東京東京", "東京と東京 a"])],
    "kinds_of": [
        ({"texts": ["太郎", "花子", "Bob"], "least": 2}, ["太郎と花子", "bobと花子"], ["太郎と太郎", "Alice"])
    ],
    "contains_marks": [({"marks": ["！", "（"]}, ["はい！（笑）"], ["はい！", "(no)"])],
    "starts_with": [({"start": "結論"}, ["結論は猫"], [" 結論", "猫"])],
    "ends_with": [({"end": "END"}, ["the END"], ["END.", "終"])],
    "ends_with_phrase": [
        ({"phrase": "Any questions?"}, ["Bye. any questions?\n", '"Well, any questions?"'], ["Any questions? No."]),
        ({"phrase": "以上です。"}, ["「猫。以上です。」"], ["以上です。終"]),
    ],
    # scripts
    "response_language": [
        ({"language": "ja"}, ["猫は動物です。", "123"], ["The cat is an animal.", "猫是一种动物。"]),
        ({"language": "en"}, ["The cat is on the mat."], ["Le chat est dans la maison avec nous.", "Кот и собака."]),
        ({"language": "fr"}, ["Le chat est dans la maison avec nous."], ["Die Katze ist in dem Haus und schläft."]),
        ({"language": "de"}, ["Die Katze ist in dem Haus und schläft."], ["El gato está en la casa y no sale."]),
        ({"language": "hi"}, ["यह एक घर है और वह लड़का है।"], ["हे एक घर आहे आणि तो मुलगा आहे."]),
        (
            {"language": "ru"},
            ["Это дом, и он стоит на горе."],
            ["Това е къща и тя се намира на хълма.", "これは家です。"],
        ),
        ({"language": "ko"}, ["이것은 집입니다."], ["これは家です。"]),
        ({"language": "th"}, ["นี่คือบ้าน"], ["Това е къща."]),
    ],
    "no_hiragana": [({}, ["漢字ト カタカナ", "abc"], ["ひ"])],
    "hiragana_only": [({}, ["ねこ、３びき！", "らーめん"], ["猫", "ネコ", "neko"])],
    "no_katakana": [({}, ["ひらがなと漢字", "abc"], ["ネコ", "ﾈｺ"])],
    "katakana_only": [({}, ["ネコ、３ビキ！", "ラーメン"], ["猫", "ねこ", "neko"])],
    "kanji_count": [
        ({"relation": "at least", "count": 2}, ["漢字です"], ["字です"]),
        ({"relation": "less than", "count": 2}, ["字です", "abc"], ["漢字です"]),
    ],
    "furigana": [({}, ["猫（ねこ）と犬（いぬ）", "かな"], ["猫（ねこ）と犬", "猫(ねこ)"])],
    "no_digits": [({}, ["三匹の猫", "three cats"], ["3匹", "３匹"])],
    "no_kanji_numerals": [({}, ["3匹の猫", "猫"], ["三匹", "百"])],
    "hiragana_text": [({}, ["ねこ 3!", "ABCねこ"], ["", "猫", "ネコ"])],
    "katakana_text": [({}, ["ネコ 3!", "ラーメン"], ["", "猫", "ねこ"])],
    "kanji_text": [({}, ["日本、東京。"], ["", "日本の", "三3"])],
    "full_width": [({}, ["ＡＢＣ１２ 猫"], ["ABC", "猫1"])],
    "half_width": [({}, ["abc ﾈｺ"], ["猫", "ＡＢＣ"])],
    "romaji": [({}, ["Watashi wa neko desu.", "Tōkyō, kippu, shinbun, gakkou"], ["The cat", "猫 desu", "123"])],
    "no_comma": [({}, ["one two", "猫、犬"], ["one, two"])],
    "no_japanese_comma": [({}, ["猫と犬", "one, two"], ["猫、犬"])],
    "no_japanese_period": [({}, ["猫です", "Yes."], ["猫です。"])],
    "no_commas": [({}, ["1,000円", "none"], ["a, b", "猫、犬", "猫，犬"])],
    "japanese_punctuation": [({}, ["猫、犬。", "3.5"], ["cat, dog", "猫．"])],
    "no_japanese_punctuation": [({}, ["猫, 犬."], ["猫、犬", "猫。"])],
    "no_whitespace": [({}, ["猫です。", "one-two"], ["猫 犬", "a\nb", "猫　犬"])],
    "no_trailing_whitespace": [({}, ["猫", " a"], ["猫\n", "a "])],
    # casing
    "uppercase_english": [({}, ["THE CAT IS HERE."], ["The CAT", "LE CHAT EST DANS LA MAISON AVEC NOUS", "A" * 50])],
    "lowercase_english": [({}, ["the cat is here."], ["The cat", "le chat est dans la maison avec nous"])],
    "capital_words": [
        ({"relation": "at least", "count": 2}, ["I am HERE", "USA-WIDE news: BIG"], ["HERE we are", "Big CATS"]),
        ({"relation": "less than", "count": 1}, ["Big cats"], ["I am"]),
    ],
    "uppercase_letters": [({}, ["猫はCAT"], ["猫はCat", "猫"])],
    "lowercase_letters": [({}, ["猫はcat"], ["猫はCat", "猫"])],
    "camel_case": [({}, ["use MyName here"], ["myName", "My Name"])],
    "snake_case": [({}, ["変数 my_name です"], ["myname", "My_Name"])],
    "title_case": [({}, ["the Title Case"], ["the title", "ABC"])],
    # endings
    "sentence_endings": [({"ending": "です"}, ["猫です。「はい。」犬です！"], ["猫です。犬だ。", "猫です。\n"])],
    "noun_endings": [
        ({"count": 2}, ["青い空。白い雲。", "春の輝き。「はい。」夏の海！"], ["青い空。走る。", "青い空。美しい雲だ。"])
    ],
    "noun_endings_only": [
        ({}, ["青い空。白い雲。", "静かな時のながれと輝き"], ["青い空。雲が流れる。", "空です。", ""])
    ],
    "polite_endings": [({}, ["猫です。走ります。見てください！", "来ましたか？"], ["猫だ。", "猫です。走る。", ""])],
    "plain_endings": [({}, ["猫だ。走る。", "青い空。"], ["猫です。", "猫だ。走ります。", ""])],
    # sentences
    "emoji_endings": [({}, ["猫です😺。犬です🐶", "Yes 🎉!"], ["猫です。", "猫です😺。犬です。"])],
    "balanced_sentences": [
        ({}, ["猫です。猫ですか？猫だ！", "A cat. A cat? A cat!"], ["猫です。", "猫です。犬です。鳥です。本当？はい！"])
    ],
    "two_statements_a_question": [({}, ["猫です。犬です。鳥ですか？"], ["猫です。鳥ですか？", "猫です。"])],
    "word_in_sentence": [({"number": 2, "word": "AI"}, ["猫。aiです。"], ["AIです。猫。", "AIです。"])],
    "sentence_delimiter": [({"delimiter": "◇"}, ["猫です◇犬です◇"], ["猫です◇犬です", "猫です。犬です◇", "◇猫です◇"])],
    # items
    "placeholders": [({"count": 2}, ["[名前]様、[日付]に", "[a][b]"], ["[名前]", "(a) (b)", "[a\n]"])],
    "bullets": [
        ({"count": 2, "mark": "* or -"}, ["* a\n* b", "- a\n  - b"], ["* a", "** a **\n* b", "1. a\n2. b"]),
        ({"count": 2, "mark": "・"}, ["・猫\n　・犬"], ["・猫", "・猫\n・・犬", "- 猫\n- 犬"]),
    ],
    "numbered_items": [({"count": 2}, ["1. 猫\n2. 犬", " 1. a\n 10. b"], ["1. 猫", "1.猫\n2.犬", "1) a\n2) b"])],
    "highlights": [
        ({"count": 2, "mark": "*"}, ["*a* and *b*", "**a** and **b**"], ["*a*", "**a**", "a"]),
        ({"count": 1, "mark": "《》"}, ["《猫》です"], ["《》", "「猫」"]),
    ],
    "sections_en": [
        ({"word": "Section", "count": 2}, ["Section 1\na\nSection 2\nb"], ["Section 1", "Section A Section B"])
    ],
    "sections_ja": [({"unit": "章", "count": 2}, ["第1章 猫\n第２章 犬"], ["第1章", "第一章 第二章", "第1節 第2節"])],
    "title": [
        ({"marks": "<<>>"}, ["<<A poem>>\ntext"], ["<<>>", "<A poem>", "<<a\nb>>"]),
        ({"marks": "『』"}, ["『詩』\n本文"], ["『』", "「詩」"]),
    ],
    "postscript": [
        ({"marker": "P.S."}, ["Bye.\np. s. Call me."], ["Bye.", "PS call"]),
        ({"marker": "P.P.S"}, ["P.P.S. more"], ["P.S. more"]),
        ({"marker": "追伸"}, ["では。\n追伸 また"], ["では。"]),
    ],
    "marked_bullets": [({"mark": "◆"}, ["◆猫\n本文\n ◆ 犬"], ["猫", "◆猫\n◆", "◆ ◆"])],
    "nested_bullets": [({}, ["* a\n  - b\n* c\n- d"], ["* a\n* b\n- c", "- a\n* b\n- c", "a"])],
    # layout
    "one_of": [
        (
            {"options": ["はい。", "My answer is no."]},
            ["はい。", "Well. My answer is no."],
            ["いいえ。", "My answer is yes."],
        )
    ],
    "wrapped": [
        ({"marks": '""'}, ['"text"', ' "text" '], ["text", '"text', '"']),
        ({"marks": "「」"}, ["「猫」"], ["『猫』", "「猫」。"]),
    ],
    "bracket_depth": [({"least": 3}, ["([{a}])", "a(b[c{d}e])"], ["(a)", "([{a}]))", "([)]"])],
    "quote_depth": [({"least": 3}, ['"a \'b "c" d\' e"'], ['"a"', "\"a 'b' c\"", '"a \'b "c" d\''])],
    "explained_quote": [({}, ["「猫」は動物です。", '"cat" is an animal'], ["「猫」", '"cat"', "猫は動物です。"])],
    "template": [
        (
            {"labels": ["回答", "理由"]},
            ["回答：猫\n理由: 好き"],
            ["理由: 好き\n回答: 猫", "回答: 猫\n理由:", "回答: 猫 回答: 犬\n理由: 好き"],
        ),
    ],
    "italic_theses": [({}, ["<i>主張</i>\n本文\n\n<i>b</i>"], ["主張\n\n<i>b</i>", "<i>a</i> b", ""])],
    "growing_indent": [({}, ["a\n b\n   c"], ["a\nb", " a\nb"])],
    "indent_unit": [({"spaces": 4}, ["a\n    b\n        c", "猫"], ["a\n  b", "a\n\tb"])],
    # repeats
    "two_responses": [({}, ["a\n******\nb", "******猫******犬******"], ["a", "a******a", "a******b******c"])],
    "repeat_prompt": [
        ({"prompt": "猫とは何ですか。"}, ["猫とは何ですか。\n動物です。"], ["動物です。"]),
        ({"prompt": "What is a Cat?", "ignore_case": True}, ["what is a cat? An animal."], ["An animal."]),
        ({"prompt": "What is a Cat?"}, [" What is a Cat? An"], ["what is a cat? An"]),
    ],
    "exact_text": [({"wanted": "猫。"}, ["猫。\n"], ["猫", "猫。犬。"])],
    "copies": [
        ({"document": "ab", "times": 2}, ["xababx", "ababab"], ["ab", "ab ab"]),
        ({"document": "猫", "times": 3}, ["猫猫猫"], ["猫猫"]),
    ],
    # documents
    "document_start": [({"document": "日本の山。\n", "length": 3}, ["答え: 日本の"], ["日本", "本の山"])],
    "document_end": [({"document": "日本の山。\n", "length": 2}, ["山。です"], ["日本の山"])],
    "document_range": [({"document": "abcdef", "start": 1, "end": 3}, ["x bcd x"], ["bc", "abc"])],
    "document_replaced": [
        ({"document": "abcdef", "start": 1, "end": 3, "replacement": "###"}, ["a###ef"], ["abcdef", "a###f"])
    ],
    "document_split": [({"document": "abcde", "parts": 2}, ["[\nabc,\nde\n]"], ["abc, de", "[\nab,\ncde\n]"])],
    "document_sorted": [
        (
            {"document": "長い文です。犬。", "order": "length"},
            ["[\n犬。,\n長い文です。\n]"],
            ["[\n長い文です。,\n犬。\n]"],
        ),
        ({"document": "b 3。a 10。", "order": "dictionary"}, ["[\na 10。,\nb 3。\n]"], ["a 10。b 3。"]),
        ({"document": "b 3。a 10。", "order": "sum of numbers"}, ["[\nb 3。,\na 10。\n]"], ["[\na 10。,\nb 3。\n]"]),
    ],
    # notation
    "decimal_places": [({"places": 2}, ["3.14 と 2.50 です", "none"], ["3.1", "3.14 と 2.5 です"])],
    "rounded": [({"places": 1}, ["約3.5です", "2.50"], ["3.14", "none"])],
    "numbers": [({"count": 2}, ["3匹と4.5匹"], ["3匹", "1 2 3"])],
    "digit_groups": [({"size": 3}, ["1,000円と12", "10_000"], ["1000円", "10,00", "1,000_000"])],
    "zero_padded": [({"width": 4}, ["番号 0042 です"], ["番号 042 です", "4200"])],
    "phone_hyphens": [({}, ["電話 03-1234-5678 まで"], ["電話 0312345678 まで", "電話なし", "12-3456-7890 です"])],
    "phone_digits": [({}, ["電話 0312345678 まで"], ["電話 03-1234-5678 まで", "no phone"])],
    "postal_hyphen": [({}, ["〒100-0001", "１００－０００１"], ["1000001", "100-00012"])],
    "postal_digits": [({}, ["〒1000001"], ["100-0001", "10000012"])],
    "yen": [({}, ["¥1,234です", "¥0"], ["1,234円", "¥12345"])],
    "date": [({}, ["2026年01月05日 に", "今日 2026年01月05日"], ["2026年1月5日", "2026-01-05"])],
    "time": [({}, ["at 09:30", "21:05:00 頃"], ["9:30", "25:00"])],
    "unit": [({}, ["距離は 5 km", "3kg"], ["5匹", "5 kmh"])],
    "ruby": [({}, ["<ruby>猫<rt>ねこ</rt></ruby>"], ["猫（ねこ）", "<ruby>猫</ruby>"])],
    "mail_address": [
        ({}, ["連絡は neko@example.com へ", "a.b@x-y.co.jp"], ["neko@", "neko@localhost", "a@example.com, .b@x.jp"])
    ],
    # markup
    "json_text": [({}, ['{"a": [1]}', "3"], ["{a: 1}", "```\n1\n```"])],
    "json_or_block": [({}, ['```json\n{"a": "猫"}\n```', "[1]"], ["猫", "```json\n{\n```"])],
    "yaml_text": [({}, ["a: 1\nb: [2, 3]", "```yaml\n猫: 犬\n```"], ["a: [1", "a: b: c", "\tx"])],
    "xml_text": [({}, ["<a><b>猫</b></a>", "```xml\n<a/>\n```"], ["<a><b></a>", "猫", "<a/><b/>", "~~~\n<a/>\n~~~"])],
    "csv_text": [({}, ["a,b\n猫,犬", "one"], ["a,b\nc", "a\nb,c"])],
    "tsv_text": [({}, ["a\tb\n猫\t犬"], ["a\tb\nc"])],
    "markdown_table": [
        ({}, ["| a | b |\n|---|:-:|\n| 猫 | 犬 |"], ["a,b\nc,d", "| a | b |\n|---|---|\n| 1 |", "| a |"])
    ],
    "mediawiki_table": [
        ({}, ["{|\n! 名\n|-\n| 猫\n|}"], ["{|\n| 猫\n|}", "{|\n! 名\n|}", "| 猫 |", "{|\n! 名\n猫\n|}"])
    ],
    "html_table": [
        (
            {},
            [TABLE, TABLE.replace("<tr>", "<TR>")],
            [f"表: {TABLE}", TABLE + TABLE, "<table></table>", "<table><tr></tr></table>"],
        )
    ],
    "latex_table": [
        (
            {},
            ["\\begin{tabular}{l|r}\na & b \\\\\n\\end{tabular}"],
            ["a & b", "x \\begin{tabular}{l}a\\end{tabular}", "\\begin{tabular}a\\end{tabular}"],
        ),
    ],
    "latex_text": [
        (
            {},
            ["\\textbf{猫} $x^2$", "```latex\n\\begin{itemize}\\item a\\end{itemize}\n```"],
            ["{a", "\\item a", "\\begin{a}\\end{b}", "$x"],
        ),
    ],
    "diff_text": [
        (
            {},
            [
                DIFF,
                f"```diff\n{DIFF}```",
                DIFF.split("\n", 1)[1],
                "--- a/a.sql\n+++ b/a.sql\n@@ -1,2 +1 @@\n--- old comment\n-a\n+b",
            ],
            ["-a\n+b", DIFF.replace("@@ -1,2", "@@ -1,1"), "猫\n" + DIFF],
        )
    ],
    "python_text": [
        (
            {},
            ["x = 1", "説明\n```python\nx = 1\n```", "~~~python\nx = 1\n~~~"],
            ["x = ", "```python\nx =\n```", "猫 です"],
        )
    ],
    "python_bare": [({}, ["def f():\n    return '猫'"], ["```python\nx = 1\n```", "x ="])],
    "python_block": [
        ({}, ["```python\nx = 1\n```", "```py\nx = 1\n```"], ["x = 1", "```\nx = 1\n```", "```python\nx =\n```"])
    ],
    # markdown
    "closed_fences": [({}, ["```\na\n```", "猫"], ["```\na", "~~~\na\n```"])],
    "heading_levels": [
        ({}, ["# 猫\n## 犬\n# 鳥", "猫\n===\n犬\n---", "> # 猫\n- ## 犬"], ["# 猫\n### 犬", "># 猫\n1. ### 犬", "猫"])
    ],
    "heading_titles": [({}, ["# 猫\n## 犬"], ["## 犬", "# 猫\n# 犬", "# 猫\n## 犬\n## 犬", "# 猫\n## "])],
    "links_and_images": [
        (
            {},
            ["[猫](https://example.com) ![絵](a.png)"],
            ["[猫](https://example.com)", "![](a.png) [a](b)", "[a](x:y) ![b](c)"],
        ),
    ],
    "reference_links": [
        (
            {},
            ["[猫][1]\n\n[1]: https://example.com", "# 犬\n[上](#犬)", "猫"],
            ["[猫][1]", "[上](#犬)", "[1]: a\n[1]: b"],
        ),
    ],
}
