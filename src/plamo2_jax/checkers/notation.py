"""Checkers of notation: numbers, dates, times, money, units, telephone numbers, addresses."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterator

from plamo2_jax.checkers.checker import Checker, Wordings, plain
from plamo2_jax.checkers.parameters import count

_DECIMAL = re.compile(r"(?<![\w/])[+-]?(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?(?!\w)")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_FRACTION = re.compile(
    r"(?<!\d)\d+\.(\d+)"
)  # The look-behind keeps a long run of digits from being read once for each digit.
_INTEGER = re.compile(r"\d[\d,_\s]*")
_SPACES = str.maketrans("\u00a0\u2009\u202f", "   ")
_DASHES = re.compile("[\u2010-\u2015\u2212\uff0d]")
_PHONE = re.compile(r"(?<!\w)\+?\d[\d\-\s()]{8,}")
_POSTAL = {True: re.compile(r"(?<!\d)\d{3}-\d{4}(?!\d)"), False: re.compile(r"(?<!\d)\d{7}(?!\d)")}
_YEN = re.compile(r"(?<!\d)¥(?:0|[1-9]\d{0,2}(?:,\d{3})*)(?![\d.])")
_DATE = re.compile(r"\b\d{4}年\d{2}月\d{2}日\b")
_TIME = re.compile(r"\b(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d)?\b")
_UNIT = re.compile(r"\d\s{0,100}(?:da|[YZEPTGMkhdcmunpfazyμu])?(?:m|g|s|A|K|mol|cd)(?![A-Za-z0-9_])")
_RUBY = re.compile("<ruby>[^<]+<rt>[^<]+</rt></ruby>")
_LOCAL_CHARACTERS = string.ascii_letters + string.digits + ".!#$%&'*+/=?^_`{|}~-"
_DOMAIN = re.compile("[A-Za-z0-9.-]{1,1000}")
_LOCAL = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_LABEL = re.compile("[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


def decimal_places(text: str, places: int) -> bool:
    found = _DECIMAL.findall(text.replace("．", ".").replace("−", "-"))
    return all(len(re.split("[eE]", number)[0].partition(".")[2]) == places for number in found)


def rounded(text: str, places: int) -> bool:
    fractions = _FRACTION.findall(text)
    return bool(fractions) and all(not fraction[places:].strip("0") for fraction in fractions)


def numbers(text: str, count: int) -> bool:
    return sum(1 for _ in _NUMBER.finditer(text)) == count


def digit_groups(text: str, size: int) -> bool:
    """Whether every whole number above `size` digits is written in groups with one kind of separator."""
    text = unicodedata.normalize("NFKC", text).translate(_SPACES)
    for match in _INTEGER.finditer(text):
        number = match.group().rstrip(",_ \t\n\r\f\v")
        end = match.start() + len(number)
        if text[match.start() - 1 : match.start()] == "." or text[end : end + 1] == ".":
            continue
        separators = {c for c in number if c in ",_ "}
        if not separators:
            if sum(c.isdigit() for c in number) > size:
                return False
            continue
        if len(separators) > 1:
            return False
        first, *rest = number.split(separators.pop())
        if not (first.isdigit() and len(first) <= size and all(part.isdigit() and len(part) == size for part in rest)):
            return False
    return True


def zero_padded(text: str, width: int) -> bool:
    return re.search(rf"\b0\d{{{width - 1}}}\b", text) is not None


def _dashes(text: str) -> str:
    return _DASHES.sub("-", unicodedata.normalize("NFKC", text))


def phone_numbers(text: str, hyphens: bool) -> bool:
    """Whether telephone numbers of 10 or 11 digits occur, all with hyphens or all without."""
    found = 0
    normal = _dashes(text)
    for match in _PHONE.finditer(normal):
        number = match.group().rstrip("-() \t\n\r\f\v")
        end = match.start() + len(number)
        if len(number) < 10 or re.match(r"\w", normal[end : end + 1]):
            continue
        digits = number.replace("-", "") if hyphens else number
        if not (digits.isdigit() and len(digits) in (10, 11) and digits[0] == "0"):
            return False
        if hyphens and ("-" not in number or "--" in number or number.startswith("-")):
            return False
        found += 1
    return found > 0


def postal_code(text: str, hyphens: bool) -> bool:
    return _POSTAL[hyphens].search(_dashes(text)) is not None


def yen(text: str) -> bool:
    return _YEN.search(text) is not None


def date(text: str) -> bool:
    return _DATE.search(text) is not None


def time(text: str) -> bool:
    return _TIME.search(text) is not None


def unit(text: str) -> bool:
    return _UNIT.search(text) is not None


def ruby(text: str) -> bool:
    return _RUBY.search(text) is not None


def mail_address(text: str) -> bool:
    """Whether mail addresses occur, and all are valid."""
    found = [
        candidate.lstrip("<([{'`\"").rstrip(">)]}.,;:!?'`\"")
        for candidate in _mail_candidates(unicodedata.normalize("NFKC", text))
    ]
    return bool(found) and all(_is_address(address) for address in found)


def _mail_candidates(text: str) -> Iterator[str]:
    """Yield up to 1,000 characters of a mail address on each side of an @, without characters of the candidate before it."""
    # Searching for the @ first reads a run of letters once. A regular expression would read it again from each of its letters.
    position, at = 0, text.find("@")
    while at >= 0:
        before = text[max(position, at - 1000) : at]
        local = before[len(before.rstrip(_LOCAL_CHARACTERS)) :]
        domain = _DOMAIN.match(text, at + 1) if local else None
        if domain is not None:
            position = domain.end()
            yield f"{local}@{domain.group()}"
        at = text.find("@", at + 1)


def _is_address(address: str) -> bool:
    local, _, domain = address.rpartition("@")
    labels = domain.split(".")
    return (
        len(address) <= 254
        and len(local) <= 64
        and _LOCAL.fullmatch(local) is not None
        and len(labels) > 1
        and all(_LABEL.fullmatch(label) for label in labels)
    )


def with_hyphens(function):
    return lambda text: function(text, True)


def without_hyphens(function):
    return lambda text: function(text, False)


CHECKERS = (
    Checker(
        "decimal_places",
        "Every decimal has an exact number of decimal places. A text without decimals passes.",
        decimal_places,
        {"places": count(1, 4, most=100)},
        {
            "ja": Wordings(
                ("小数は小数点以下{places}桁で書いてください。", "小数点の後の桁数を{places}にそろえてください。"),
                ("どの小数も、小数部がちょうど{places}桁になるように表してください。",),
            ),
            "en": Wordings(
                ("Write decimals with {places} decimal places.", "Every decimal has {places} digits after the point."),
                ("Give each decimal to exactly {places} places.",),
            ),
        },
    ),
    Checker(
        "rounded",
        "Decimals occur, and none has digits other than 0 after a number of decimal places.",
        rounded,
        {"places": count(1, 4, most=100)},
        {
            "ja": Wordings(
                (
                    "小数を使い、小数第{places}位までに丸めてください。",
                    "小数第{places}位までで表した小数を入れてください。",
                ),
                ("小数を一つ以上含め、その精度は小数第{places}位までとしてください。",),
            ),
            "en": Wordings(
                (
                    "Use decimals and round them to {places} decimal places.",
                    "Include decimals, rounded to {places} places.",
                ),
                ("Decimals must occur, none finer than {places} places.",),
            ),
        },
    ),
    Checker(
        "numbers",
        "The text has an exact number of numbers in digits.",
        numbers,
        {"count": count(2, 15)},
        {
            "ja": Wordings(
                ("数値をちょうど{count}個入れてください。", "算用数字の数を{count}個使ってください。"),
                ("回答に出てくる数値は全部で{count}個とします。",),
            ),
            "en": Wordings(
                ("Use exactly {count} numbers.", "Your answer must contain {count} numbers in digits."),
                ("The count of numbers in the answer has to be {count}.",),
            ),
        },
    ),
    Checker(
        "digit_groups",
        "Every longer whole number is written in groups of digits, such as 1,000 for a size of 3.",
        digit_groups,
        {"size": count(3, 4, least=1, most=100)},
        {
            "ja": Wordings(
                ("整数は{size}桁ごとに区切ってください。", "桁の多い整数には{size}桁ごとにコンマを入れてください。"),
                ("{size}桁を超える整数には、{size}桁ごとの区切りを付けてください。",),
            ),
            "en": Wordings(
                (
                    "Group the digits of whole numbers by {size}.",
                    "Put a separator after every {size} digits of a whole number.",
                ),
                ("Whole numbers above {size} digits need separators every {size} digits.",),
            ),
        },
    ),
    Checker(
        "zero_padded",
        "A number of an exact number of digits occurs that begins with 0.",
        zero_padded,
        {"width": count(2, 6, least=1, most=100)},
        {
            "ja": Wordings(
                ("ゼロで埋めた{width}桁の数を入れてください。", "先頭に0を付けて{width}桁にした数値を使ってください。"),
                ("0で始まり、全体で{width}桁になる数を一つ以上示してください。",),
            ),
            "en": Wordings(
                (
                    "Include a number padded with zeros to {width} digits.",
                    "Write a number of {width} digits that starts with 0.",
                ),
                ("A zero-padded number, {width} digits wide, must occur.",),
            ),
        },
    ),
    plain(
        "phone_hyphens",
        "Telephone numbers of 10 or 11 digits occur, all with hyphens.",
        with_hyphens(phone_numbers),
        ja=(
            "ハイフン入りの電話番号を書いてください。",
            "電話番号は 03-0000-0000 の形で入れてください。",
            "ハイフンで区切った10桁か11桁の電話番号を示してください。",
        ),
        en=(
            "Include a phone number with hyphens.",
            "Write a Japanese phone number such as 03-0000-0000.",
            "A hyphenated phone number of 10 or 11 digits must occur.",
        ),
    ),
    plain(
        "phone_digits",
        "Telephone numbers of 10 or 11 digits occur, all without hyphens.",
        without_hyphens(phone_numbers),
        ja=(
            "ハイフンのない電話番号を書いてください。",
            "電話番号は 0300000000 の形で入れてください。",
            "区切りのない10桁か11桁の電話番号を示してください。",
        ),
        en=(
            "Include a phone number without hyphens.",
            "Write a Japanese phone number such as 0300000000.",
            "A phone number of 10 or 11 digits in one run must occur.",
        ),
    ),
    plain(
        "postal_hyphen",
        "A Japanese postal code with a hyphen occurs.",
        with_hyphens(postal_code),
        ja=(
            "ハイフン入りの郵便番号を書いてください。",
            "郵便番号は 000-0000 の形で入れてください。",
            "3桁と4桁をハイフンでつないだ郵便番号を示してください。",
        ),
        en=(
            "Include a Japanese postal code with a hyphen.",
            "Write a postal code such as 000-0000.",
            "A postal code of three and four digits joined by a hyphen must occur.",
        ),
    ),
    plain(
        "postal_digits",
        "A Japanese postal code without a hyphen occurs.",
        without_hyphens(postal_code),
        ja=(
            "ハイフンのない郵便番号を書いてください。",
            "郵便番号は 0000000 の形で入れてください。",
            "区切りのない7桁の郵便番号を示してください。",
        ),
        en=(
            "Include a Japanese postal code without a hyphen.",
            "Write a postal code such as 0000000.",
            "A postal code of seven digits in one run must occur.",
        ),
    ),
    plain(
        "yen",
        "An amount with ¥ and commas occurs, such as ¥1,234.",
        yen,
        ja=(
            "¥1,234 の形の金額を入れてください。",
            "金額は¥と3桁ごとのコンマで書いてください。",
            "円記号で始まり、桁をコンマで区切った金額を示してください。",
        ),
        en=(
            "Include an amount such as ¥1,234.",
            "Write an amount with ¥ and commas.",
            "A yen amount with the sign in front and commas every three digits must occur.",
        ),
    ),
    plain(
        "date",
        "A date of the form 2026年01月05日 occurs, with something other than a letter after it.",
        date,
        ja=(
            "2026年01月05日の形の日付を入れてください。",
            "日付は YYYY年MM月DD日 で書いてください。",
            "月と日を2桁にした年月日を一つ以上示してください。",
        ),
        en=(
            "Include a date such as 2026年01月05日.",
            "Write a date as YYYY年MM月DD日.",
            "A Japanese date with two digits for month and day must occur.",
        ),
    ),
    plain(
        "time",
        "A time of 24 hours occurs, such as 09:30 or 21:05:00.",
        time,
        ja=(
            "09:30 の形の時刻を入れてください。",
            "時刻は24時間表記の HH:MM で書いてください。",
            "24時間制で、時と分をコロンで区切った時刻を示してください。",
        ),
        en=(
            "Include a time such as 09:30.",
            "Write a time as HH:MM in 24-hour notation.",
            "A time of day with a colon, on the 24-hour clock, must occur.",
        ),
    ),
    plain(
        "unit",
        "A number with an SI base unit occurs, such as 5 km.",
        unit,
        ja=(
            "5 km のように SI 単位を付けた数を入れてください。",
            "数値に SI 単位を付けて書いてください。",
            "m、kg、s などの SI 単位を伴う数値を一つ以上示してください。",
        ),
        en=(
            "Include a number with an SI unit, such as 5 km.",
            "Write a quantity with an SI unit.",
            "A number followed by m, kg, s or another SI unit must occur.",
        ),
    ),
    plain(
        "ruby",
        "A <ruby> element with <rt> occurs.",
        ruby,
        ja=(
            "<ruby>漢字<rt>かんじ</rt></ruby>の形で読みを付けてください。",
            "ふりがなを<ruby>タグで書いてください。",
            "HTMLの<ruby>と<rt>を使って、読みを示してください。",
        ),
        en=(
            "Give a reading with <ruby> and <rt>.",
            "Write furigana as a <ruby> element.",
            "An HTML <ruby> element with <rt> must occur.",
        ),
    ),
    plain(
        "mail_address",
        "Mail addresses occur, and all are valid.",
        mail_address,
        ja=(
            "メールアドレスを入れてください。",
            "正しい形のメールアドレスを一つ以上書いてください。",
            "連絡先として有効な電子メールのアドレスを示してください。",
        ),
        en=(
            "Include a mail address.",
            "Write one or more valid mail addresses.",
            "A well-formed e-mail address must occur as a contact.",
        ),
    ),
)
