"""The kinds of word problems. Texts have `{a}`, `{b}` for people, `{x}`, `{y}` for things, and the numbers by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

Numbers = dict[str, int]
Draw = Callable[[np.random.Generator], tuple[Numbers, Numbers]]


@dataclasses.dataclass(frozen=True)
class Texts:
    """The texts of a kind in one language."""

    questions: tuple[str, ...]
    """Wordings of the story. Each has all given numbers."""
    steps: tuple[str, ...]
    """Lines of the solution, each with an equation."""
    unit: str
    """Text after the answer."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A kind of word problem."""

    name: str
    draw: Draw
    """Returns the numbers in the story, and the numbers that follow from them."""
    answer: str
    """Name of the number that is asked for."""
    texts: Mapping[str, Texts]


def _between(random: np.random.Generator, least: int, most: int) -> int:
    return int(random.integers(least, most + 1))


def _shopping(random: np.random.Generator) -> tuple[Numbers, Numbers]:
    n, p, m, q = _between(random, 2, 15), _between(random, 3, 60), _between(random, 2, 15), _between(random, 3, 60)
    p, q = 10 * p, 10 * q
    return {"n": n, "p": p, "m": m, "q": q}, {"np": n * p, "mq": m * q, "total": n * p + m * q}


def _change(random: np.random.Generator) -> tuple[Numbers, Numbers]:
    n, p = _between(random, 2, 12), 10 * _between(random, 3, 40)
    paid = 1000 * -(-(n * p + 1) // 1000)
    return {"n": n, "p": p, "paid": paid}, {"cost": n * p, "rest": paid - n * p}


def _sharing(random: np.random.Generator) -> tuple[Numbers, Numbers]:
    k, each = _between(random, 3, 24), _between(random, 2, 40)
    rest = _between(random, 1, k - 1)
    return {"n": k * each + rest, "k": k}, {"each": each, "given": k * each, "rest": rest}


def _distance(random: np.random.Generator) -> tuple[Numbers, Numbers]:
    v, h, w, j = (_between(random, 40, 110), _between(random, 2, 9), _between(random, 3, 15), _between(random, 2, 5))
    return {"v": v, "h": h, "w": w, "j": j}, {"vh": v * h, "wj": w * j, "total": v * h + w * j}


def _duration(random: np.random.Generator) -> tuple[Numbers, Numbers]:
    v, h = _between(random, 4, 120), _between(random, 2, 15)
    return {"d": v * h, "v": v}, {"h": h}


def _discount(random: np.random.Generator) -> tuple[Numbers, Numbers]:
    p, off = 100 * _between(random, 5, 250), 5 * _between(random, 1, 14)
    less = p * off // 100
    return {"p": p, "off": off}, {"less": less, "price": p - less}


def _ages(random: np.random.Generator) -> tuple[Numbers, Numbers]:
    age, older, years = _between(random, 4, 50), _between(random, 2, 30), _between(random, 2, 20)
    a, later = age + older, age + years
    return (
        {"age": age, "older": older, "years": years},
        {"other": a, "later": later, "other_later": a + years, "total": later + a + years},
    )


def _average(random: np.random.Generator) -> tuple[Numbers, Numbers]:
    scores = [_between(random, 30, 99) for _ in range(3)]
    rest = -sum(scores) % 4
    # The last score makes the mean a whole number.
    last = 40 + rest + 4 * _between(random, 0, 13)
    names = dict(zip(("s", "t", "u", "w"), [*scores, last], strict=True))
    return names, {"sum": sum(names.values()), "mean": sum(names.values()) // 4}


def _rectangle(random: np.random.Generator) -> tuple[Numbers, Numbers]:
    length, width, path = _between(random, 12, 90), _between(random, 8, 60), _between(random, 1, 3)
    inner = (length - 2 * path, width - 2 * path)
    return (
        {"l": length, "w": width, "d": path},
        {"d2": 2 * path, "il": inner[0], "iw": inner[1], "area": inner[0] * inner[1]},
    )


def _ratio(random: np.random.Generator) -> tuple[Numbers, Numbers]:
    r, s = (int(part) for part in random.choice(np.arange(2, 10), 2, replace=False))
    unit = 10 * _between(random, 2, 60)
    return {"total": (r + s) * unit, "r": r, "s": s}, {"parts": r + s, "unit": unit, "share": r * unit}


def _saving(random: np.random.Generator) -> tuple[Numbers, Numbers]:
    monthly, months, start = 100 * _between(random, 3, 60), _between(random, 3, 36), 100 * _between(random, 2, 90)
    return (
        {"start": start, "monthly": monthly, "goal": start + monthly * months},
        {"missing": monthly * months, "months": months},
    )


def _reading(random: np.random.Generator) -> tuple[Numbers, Numbers]:
    daily, days, rest = _between(random, 8, 45), _between(random, 3, 14), _between(random, 10, 200)
    return {"pages": daily * days + rest, "daily": daily, "days": days}, {"read": daily * days, "rest": rest}


def _meeting(random: np.random.Generator) -> tuple[Numbers, Numbers]:
    u, v, minutes = _between(random, 50, 95), _between(random, 50, 95), _between(random, 4, 40)
    return {"d": (u + v) * minutes, "u": u, "v": v}, {"both": u + v, "minutes": minutes}


def _part(random: np.random.Generator) -> tuple[Numbers, Numbers]:
    k, unit = _between(random, 3, 9), _between(random, 4, 50)
    rest = k * unit - unit
    more = _between(random, 2, rest - 1)
    return {"n": k * unit, "k": k, "more": more}, {"used": unit, "left": rest, "end": rest - more}


def _boxes(random: np.random.Generator) -> tuple[Numbers, Numbers]:
    size, full = _between(random, 6, 48), _between(random, 2, 30)
    rest = _between(random, 1, size - 1)
    return {"n": size * full + rest, "size": size}, {
        "full": full,
        "packed": size * full,
        "rest": rest,
        "boxes": full + 1,
    }


KINDS: tuple[Problem, ...] = (
    Problem("shopping", _shopping, "total", {
        "ja": Texts(
            ("{a}さんは1個{p}円の{x}を{n}個と、1個{q}円の{y}を{m}個買いました。代金は全部で何円ですか。",
             "{x}は1個{p}円、{y}は1個{q}円です。{a}さんが{x}を{n}個、{y}を{m}個買うと、合計はいくらになりますか。"),
            ("{x}の代金は {p} × {n} = {np} 円です。", "{y}の代金は {q} × {m} = {mq} 円です。", "合計は {np} + {mq} = {total} 円です。"),
            "円"),
        "en": Texts(
            ("{a} buys {n} {x} at {p} yen each and {m} {y} at {q} yen each. How much does {a} pay in total?",
             "In a shop, {x} cost {p} yen each and {y} {q} yen each. {a} takes {n} {x} and {m} {y}. What is the total price?"),
            ("The {x} cost {p} × {n} = {np} yen.", "The {y} cost {q} × {m} = {mq} yen.", "Together: {np} + {mq} = {total} yen."),
            " yen"),
    }),
    Problem("change", _change, "rest", {
        "ja": Texts(
            ("{a}さんは1個{p}円の{x}を{n}個買い、{paid}円を出しました。おつりは何円ですか。",
             "{x}を{n}個買います。1個の値段は{p}円です。{paid}円を払うと、いくら戻ってきますか。"),
            ("代金は {p} × {n} = {cost} 円です。", "おつりは {paid} - {cost} = {rest} 円です。"), "円"),
        "en": Texts(
            ("{a} buys {n} {x} at {p} yen each and pays with {paid} yen. How much change does {a} get?",
             "A shop sells {x} for {p} yen each. {a} buys {n} of them and gives the cashier {paid} yen. What is the change in yen?"),
            ("The {x} cost {p} × {n} = {cost} yen.", "The change is {paid} - {cost} = {rest} yen."), " yen"),
    }),
    Problem("sharing", _sharing, "rest", {
        "ja": Texts(
            ("{x}が{n}個あります。{k}人に同じ数ずつできるだけ多く配ると、何個余りますか。",
             "{a}さんは{n}個の{x}を{k}人で等しく分けます。配りきれずに残るのは何個ですか。"),
            ("1人分は {n} ÷ {k} の商で {each} 個です。", "配るのは {k} × {each} = {given} 個です。",
             "余りは {n} - {given} = {rest} 個です。"),
            "個"),
        "en": Texts(
            ("There are {n} {x} for {k} children. Each child gets the same number, as many as possible. How many are left over?",
             "{a} divides {n} {x} equally among {k} people. How many {x} remain?"),
            ("The quotient of {n} and {k} is {each}, so each one gets {each}.", "That uses {k} × {each} = {given}.",
             "Left over: {n} - {given} = {rest}."), ""),
    }),
    Problem("distance", _distance, "total", {
        "ja": Texts(
            ("{a}さんは時速{v}kmの電車に{h}時間乗り、そのあと時速{w}kmの自転車で{j}時間走りました。全部で何km進みましたか。",
             "時速{v}kmで{h}時間、続けて時速{w}kmで{j}時間移動すると、道のりは合わせて何kmですか。"),
            ("はじめに進んだのは {v} × {h} = {vh} km です。", "そのあと進んだのは {w} × {j} = {wj} km です。",
             "合わせて {vh} + {wj} = {total} km です。"), "km"),
        "en": Texts(
            ("{a} rides a train at {v} km/h for {h} hours and then a bicycle at {w} km/h for {j} hours. How many kilometres is that?",
             "A trip takes {h} hours at {v} km/h and another {j} hours at {w} km/h. What is the whole distance in kilometres?"),
            ("The first part is {v} × {h} = {vh} km.", "The second part is {w} × {j} = {wj} km.", "Together: {vh} + {wj} = {total} km."),
            " km"),
    }),
    Problem("duration", _duration, "h", {
        "ja": Texts(
            ("{d}kmの道のりを時速{v}kmで進みます。何時間かかりますか。",
             "{a}さんは時速{v}kmで{d}km先の町へ行きます。かかる時間は何時間ですか。"),
            ("時間は {d} ÷ {v} = {h} 時間です。",), "時間"),
        "en": Texts(
            ("How many hours does it take to travel {d} km at {v} km/h?",
             "{a} travels to a town {d} km away at {v} km/h. How many hours is that?"),
            ("The time is {d} ÷ {v} = {h} hours.",), " hours"),
    }),
    Problem("discount", _discount, "price", {
        "ja": Texts(
            ("定価{p}円の商品が{off}%引きになりました。いくらで買えますか。",
             "{a}さんは{p}円の品物を{off}%引きで買います。代金は何円ですか。"),
            ("値引きは {p} × {off} ÷ 100 = {less} 円です。", "代金は {p} - {less} = {price} 円です。"), "円"),
        "en": Texts(
            ("An article of {p} yen is sold at {off}% off. What does it cost now?",
             "{a} gets a discount of {off}% on a price of {p} yen. How much does {a} pay?"),
            ("The discount is {p} × {off} ÷ 100 = {less} yen.", "The price is {p} - {less} = {price} yen."), " yen"),
    }),
    Problem("ages", _ages, "total", {
        "ja": Texts(
            ("{a}さんは{age}歳で、{b}さんは{a}さんより{older}歳年上です。{years}年後、2人の年齢の合計は何歳ですか。",
             "いま{a}さんは{age}歳です。{b}さんは{older}歳上です。{years}年たつと、2人の年齢を足すといくつになりますか。"),
            ("{b}さんはいま {age} + {older} = {other} 歳です。", "{a}さんは{years}年後に {age} + {years} = {later} 歳です。",
             "{b}さんは{years}年後に {other} + {years} = {other_later} 歳です。",
             "合計は {later} + {other_later} = {total} 歳です。"), "歳"),
        "en": Texts(
            ("{a} is {age} years old, and {b} is {older} years older. What is the sum of their ages in {years} years?",
             "{b} is {older} years older than {a}, who is {age}. Add their ages {years} years from now."),
            ("{b} is {age} + {older} = {other} now.", "In {years} years {a} is {age} + {years} = {later}.",
             "In {years} years {b} is {other} + {years} = {other_later}.", "The sum is {later} + {other_later} = {total}."), ""),
    }),
    Problem("average", _average, "mean", {
        "ja": Texts(
            ("{a}さんの4回のテストの点数は{s}点、{t}点、{u}点、{w}点でした。平均点は何点ですか。",
             "4人の点数が{s}、{t}、{u}、{w}のとき、平均を求めてください。"),
            ("合計は {s} + {t} + {u} + {w} = {sum} 点です。", "平均は {sum} ÷ 4 = {mean} 点です。"), "点"),
        "en": Texts(
            ("{a} has {s}, {t}, {u} and {w} points in four tests. What is the mean?",
             "What is the average of the four scores {s}, {t}, {u} and {w}?"),
            ("The sum is {s} + {t} + {u} + {w} = {sum}.", "The mean is {sum} ÷ 4 = {mean}."), " points"),
    }),
    Problem("rectangle", _rectangle, "area", {
        "ja": Texts(
            ("縦{l}m、横{w}mの長方形の土地の内側に、ふちに沿って幅{d}mの道を作ります。残りの土地の面積は何平方メートルですか。",
             "長方形の庭は縦{l}m、横{w}mです。まわりの内側{d}mを花壇にすると、中の長方形の面積は何平方メートルですか。"),
            ("両側で {d} × 2 = {d2} m 短くなります。", "縦は {l} - {d2} = {il} m です。", "横は {w} - {d2} = {iw} m です。",
             "面積は {il} × {iw} = {area} 平方メートルです。"), "平方メートル"),
        "en": Texts(

                       ("A field is {l} m by {w} m. A path of {d} m runs along the inside of its border. What is the area inside the path?",
             "In a garden of {l} m by {w} m, a strip of {d} m on every side becomes a flower bed. What area is left?"),
            ("Both sides together take {d} × 2 = {d2} m.", "The length inside is {l} - {d2} = {il} m.",
             "The width inside is {w} - {d2} = {iw} m.", "The area is {il} × {iw} = {area} square metres."), " square metres"),
    }),
    Problem("ratio", _ratio, "share", {
        "ja": Texts(
            ("{total}円を{a}さんと{b}さんが{r}:{s}の比で分けます。{a}さんは何円もらいますか。",
             "{a}さんと{b}さんの取り分の比は{r}:{s}で、合わせて{total}円です。{a}さんの取り分は何円ですか。"),
            ("比の合計は {r} + {s} = {parts} です。", "1にあたるのは {total} ÷ {parts} = {unit} 円です。",
             "{a}さんの分は {unit} × {r} = {share} 円です。"), "円"),
        "en": Texts(
            ("{a} and {b} share {total} yen in the ratio {r}:{s}. How much does {a} get?",
             "An amount of {total} yen is split between {a} and {b} as {r} to {s}. What is the share of {a}?"),
            ("There are {r} + {s} = {parts} parts.", "One part is {total} ÷ {parts} = {unit} yen.",
             "{a} gets {unit} × {r} = {share} yen."),
            " yen"),
    }),
    Problem("saving", _saving, "months", {
        "ja": Texts(
            ("{a}さんの貯金は{start}円です。毎月{monthly}円ずつ貯めると、{goal}円になるのは何か月後ですか。",
             "いま{start}円あり、1か月に{monthly}円ずつ増えます。{goal}円に達するまで何か月かかりますか。"),
            ("あと {goal} - {start} = {missing} 円必要です。", "{missing} ÷ {monthly} = {months} か月です。"), "か月"),
        "en": Texts(
            ("{a} has {start} yen and saves {monthly} yen every month. After how many months does {a} have {goal} yen?",
             "Starting with {start} yen and adding {monthly} yen a month, how many months does it take to reach {goal} yen?"),
            ("{goal} - {start} = {missing} yen are missing.", "{missing} ÷ {monthly} = {months} months."), " months"),
    }),
    Problem("reading", _reading, "rest", {
        "ja": Texts(
            ("{pages}ページの本を、{a}さんは1日{daily}ページずつ{days}日間読みました。残りは何ページですか。",
             "{a}さんの本は全部で{pages}ページです。毎日{daily}ページ読むと、{days}日後に何ページ残りますか。"),
            ("読んだのは {daily} × {days} = {read} ページです。", "残りは {pages} - {read} = {rest} ページです。"), "ページ"),
        "en": Texts(
            ("{a} reads {daily} pages a day of a book with {pages} pages. How many pages are left after {days} days?",
             "A book has {pages} pages. After {days} days with {daily} pages each, how many pages remain for {a}?"),
            ("{a} has read {daily} × {days} = {read} pages.", "Left: {pages} - {read} = {rest} pages."), " pages"),
    }),
    Problem("meeting", _meeting, "minutes", {
        "ja": Texts(

                       ("{a}さんと{b}さんは{d}m離れた場所から同時に向かい合って歩きます。{a}さんは分速{u}m、{b}さんは分速{v}mです。何分後に出会いますか。",
             "{d}mの道の両端から、分速{u}mの{a}さんと分速{v}mの{b}さんが同時に出発して近づきます。出会うのは何分後ですか。"),
            ("1分間に {u} + {v} = {both} m 近づきます。", "出会うまで {d} ÷ {both} = {minutes} 分です。"), "分"),
        "en": Texts(

                       ("{a} and {b} walk towards each other from {d} m apart, at {u} and {v} m a minute. When do they meet?",
             "A road is {d} m long. {a} starts at one end with {u} m/min, {b} at the other with {v} m/min. When do they meet?"),
            ("In a minute they come {u} + {v} = {both} m closer.", "They meet after {d} ÷ {both} = {minutes} minutes."), " minutes"),
    }),
    Problem("part", _part, "end", {
        "ja": Texts(
            ("{x}が{n}個ありました。その{k}分の1を使い、さらに{more}個使いました。残りは何個ですか。",
             "{a}さんは{n}個の{x}のうち{k}分の1を友達にあげ、あとで{more}個食べたり使ったりしました。何個残っていますか。"),
            ("{k}分の1は {n} ÷ {k} = {used} 個です。", "ここで {n} - {used} = {left} 個残ります。",
             "最後は {left} - {more} = {end} 個です。"),
            "個"),
        "en": Texts(
            ("Of {n} {x}, {a} gives away one in {k} and then uses {more} more. How many are left?",
             "There were {n} {x}. First 1/{k} of them were sold, then another {more}. How many remain?"),
            ("The first part is {n} ÷ {k} = {used}.", "Then {n} - {used} = {left} are left.",
             "At the end: {left} - {more} = {end}."), ""),
    }),
    Problem("boxes", _boxes, "boxes", {
        "ja": Texts(
            ("{n}個の{x}を1箱に{size}個まで入れます。全部を入れるには箱が何箱必要ですか。",
             "{a}さんは{x}{n}個を箱に詰めます。1箱には{size}個入ります。箱は少なくとも何箱いりますか。"),
            ("いっぱいになる箱は {full} 箱で、{size} × {full} = {packed} 個入ります。", "残りは {n} - {packed} = {rest} 個です。",
             "残りにもう1箱使うので {full} + 1 = {boxes} 箱です。"), "箱"),
        "en": Texts(
            ("{n} {x} go into boxes of at most {size}. How many boxes are needed?",
             "{a} packs {n} {x}. A box holds {size}. What is the smallest number of boxes?"),
            ("{full} full boxes hold {size} × {full} = {packed}.", "That leaves {n} - {packed} = {rest}.",
             "They need one more box: {full} + 1 = {boxes}."), " boxes"),
    }),
)  # fmt: skip
"""All kinds of word problems."""
