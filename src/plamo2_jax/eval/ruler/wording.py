"""Wordings of the questions. The English ones are RULER's (NVIDIA/RULER, Apache-2.0); the Japanese ones are translations."""

from __future__ import annotations

import dataclasses

LANGUAGES = ("en", "ja")


@dataclasses.dataclass(frozen=True)
class Wording:
    """Templates of one language."""

    noise: str
    """Sentences that are repeated as a context."""
    join: str
    """Text between two sentences."""
    last: str
    """Text between the last two elements of an enumeration."""
    comma: str
    """Text between the other elements."""
    numbers: tuple[str, str]
    """Name of the values, singular and plural, if they are numbers."""
    uuids: tuple[str, str]
    needle: str
    one_value: tuple[str, str]
    """Question and prefix of the answer, if it has one value."""
    values: tuple[str, str]
    """The same, if it has several values."""
    variables: tuple[str, str]
    common: tuple[str, str]
    frequent: tuple[str, str]


WORDINGS = {
    "en": Wording(
        noise="The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.",
        join=" ",
        last=", and ",
        comma=", ",
        numbers=("number", "numbers"),
        uuids=("uuid", "uuids"),
        needle="One of the special magic {values} for {key} is: {value}.",
        one_value=(
            "A special magic {value} is hidden within the following text. Make sure to memorize it. I will quiz you about the {value} "
            "afterwards.\n{context}\nWhat is the special magic {value} for {query} mentioned in the provided text?",
            " The special magic {value} for {query} mentioned in the provided text is",
        ),
        values=(
            "Some special magic {values} are hidden within the following text. Make sure to memorize it. I will quiz you about the "
            "{values} afterwards.\n{context}\nWhat are all the special magic {values} for {query} mentioned in the provided text?",
            " The special magic {values} for {query} mentioned in the provided text are",
        ),
        variables=(
            "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\nQuestion: Find all "
            "variables that are assigned the value {query} in the text above.",
            " Answer: According to the chain(s) of variable assignment in the text above, {count} variables are assigned the value "
            "{query}, they are: ",
        ),
        common=(
            "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that appear most "
            "often.\n{context}\nQuestion: What are the 10 most common words in the above list?",
            " Answer: The top 10 words that appear most often in the list are:",
        ),
        frequent=(
            "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared coded "
            "words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
            "appeared words in the above coded text?",
            " Answer: According to the coded text above, the three most frequently appeared words are:",
        ),
    ),
    "ja": Wording(
        noise="草は緑色です。空は青色です。太陽は黄色です。さあ行きましょう。そしてまた戻ります。",
        join="",
        last="、",
        comma="、",
        numbers=("数字", "数字"),
        uuids=("UUID", "UUID"),
        needle="{key}の特別な魔法の{values}の一つは{value}です。",
        one_value=(
            "次の文章の中に、特別な魔法の{value}が一つ隠されています。必ず覚えてください。後でその{value}について質問します。\n{context}\n"
            "質問：文章に書かれている、{query}の特別な魔法の{value}は何ですか。",
            "\n答え：文章に書かれている、{query}の特別な魔法の{value}は",
        ),
        values=(
            "次の文章の中に、特別な魔法の{values}がいくつか隠されています。必ず覚えてください。後でそれらの{values}について質問します。\n"
            "{context}\n質問：文章に書かれている、{query}の特別な魔法の{values}をすべて挙げてください。",
            "\n答え：文章に書かれている、{query}の特別な魔法の{values}は",
        ),
        variables=(
            "次の文章に隠された変数の代入の連鎖を覚えて、たどってください。\n\n{context}\n"
            "質問：上の文章で、値{query}が代入されている変数をすべて挙げてください。",
            "\n答え：上の文章の代入の連鎖によれば、値{query}が代入されている変数は{count}個あり、それらは次のとおりです：",
        ),
        common=(
            "次は番号を付けた単語の一覧です。ほかの単語より多く現れる単語があります。最も多く現れる単語を覚えてください。\n{context}\n"
            "質問：上の一覧に最も多く現れる10個の単語は何ですか。",
            "\n答え：上の一覧に最も多く現れる10個の単語は次のとおりです：",
        ),
        frequent=(
            "次の暗号文を読み、それぞれの暗号語が現れる回数を数えてください。最も多く現れる三つの暗号語を見つけてください。{context}\n"
            "質問：説明は不要です。点「...」は無視してください。上の暗号文に最も多く現れる三つの単語は何ですか。",
            "\n答え：上の暗号文に最も多く現れる三つの単語は次のとおりです：",
        ),
    ),
}
