"""The parts of scripts/build_corpus.py that need no network: pages to blocks, blocks to documents."""

import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module", autouse=True)
def scripts_on_path():
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


def blocks_of(html: str, **rules) -> list[tuple[str, str]]:
    from corpus_html import Rules, by_id, extract_blocks, parse_html

    page = f"<html><body><nav>Menu</nav><div id=main>{html}</div><footer>Imprint</footer></body></html>"
    blocks = extract_blocks(parse_html(page), Rules(root=by_id("main"), **rules))
    return [(block.kind, block.text) for block in blocks]


def test_paragraphs_headings_and_inline_markup():
    html = "<h1>見出し <b>A</b></h1>\n<p>本文は\n   続き、<code>ls</code>\n   です。<br>次</p><p>x&nbsp;&amp;&lt;y<p>z"
    assert blocks_of(html) == [
        ("heading", "見出し A"),
        ("text", "本文は続き、ls です。次"),
        ("text", "x &<y"),
        ("text", "z"),
    ]


def test_lists_are_numbered_and_tables_become_rows():
    html = """<ol start=3><li><p>three</p><p>more</p></li><li>four</li></ol><ul><li>dot</ul>
    <table><tr><th>a<th>b</tr><tr><td><p>c</p><p>d</p></td><td>e</td></tr></table>"""
    assert blocks_of(html) == [
        ("item", "3. three"),
        ("text", "more"),
        ("item", "4. four"),
        ("item", "- dot"),
        ("row", "a | b"),
        ("row", "c d | e"),
    ]


def test_listings_keep_their_lines():
    html = "<pre>if x:\n\ty = 1  \n\n</pre><p class=code>f(<span>a</span>)</p>"
    assert blocks_of(html, code_classes=frozenset({"code"})) == [("code", "if x:\n    y = 1"), ("code", "f(a)")]


def test_dropped_and_alternative_parts():
    html = """<div class=menu>no</div><p>press <span class=switch><span class=MAC>Cmd</span>
    <span id=default1>Ctrl</span></span>+N<script>var x</script></p><!-- no -->"""
    rules = {"drop_classes": frozenset({"menu"}), "alternatives": frozenset({"switch"})}
    assert blocks_of(html, **rules) == [("text", "press Ctrl+N")]


def test_bad_nesting_is_read():
    assert blocks_of("<p>a</b></i> <b>b</p></div></div>") == [("text", "a b")]


def test_manual_page():
    from corpus_man import man_blocks

    source = r""".\" comment
.TH FORK 2
.SH NAME
fork \- create a child
.SH "RETURN VALUE"
.PP
See
.BR wait (2),
\fIerrno\fP and \(lqthis\(rq.
.TP
.B EAGAIN
Too many.
.IP \(bu 3
A point.
.nf
int x;

  int y;
.fi
.TS
no
.TE
"""
    assert [(block.kind, block.text) for block in man_blocks(source)] == [
        ("heading", "NAME"),
        ("text", "fork - create a child"),
        ("heading", "RETURN VALUE"),
        ("text", "See wait(2), errno and “this”."),
        ("text", "EAGAIN"),
        ("text", "Too many."),
        ("text", "- A point."),
        ("code", "int x;\n  int y;"),
    ]
    assert man_blocks(".so man2/fork.2\n") == []


def test_untranslated_paragraphs_of_a_japanese_page_go():
    from corpus_html import Block
    from corpus_text import drop_untranslated

    english = [Block("heading", "Day Function"), Block("heading", "Syntax"), Block("text", "Returns the day.")]
    japanese = [
        *english,
        Block("heading", "BETA.DIST"),
        Block("text", "日を返します。See also the page about it."),
        Block("text", "To use this function choose Tools and then Options in the menu (第 3 章)."),
        Block("code", "Print Day(now)"),
    ]
    pages, dropped = drop_untranslated({("en", "s/day"): english, ("ja", "s/day"): japanese})
    assert dropped == 3
    assert [b.text for b in pages["ja", "s/day"]] == [
        "Day Function",
        "BETA.DIST",
        "日を返します。See also the page about it.",
        "Print Day(now)",
    ]
    assert pages["en", "s/day"] == english


def test_repeated_and_leaking_paragraphs_go_from_train():
    from corpus_html import Block
    from corpus_text import drop_leaks, drop_repeats

    shared = "The quick brown fox jumps over the lazy dog while seventeen zebras watch from afar"
    pages = {
        ("en", "held"): [Block("text", f"First. {shared}."), Block("text", "Resets all the values of the dialog 12.")],
        ("en", "train"): [
            Block("heading", "Resets all the values of the dialog 12."),
            Block("text", "Resets  all the values of the dialog 34."),
            Block("text", f"Unlike before, {shared.replace(' ', '  ')}, we say."),
            Block("text", "Click OK."),
            Block("text", "Click OK."),
        ],
    }
    pages, repeated = drop_repeats(pages, list(pages))
    assert repeated == 1
    pages, leaked = drop_leaks(pages, {"held"})
    assert leaked == {"en": 1}
    assert len(pages["en", "held"]) == 2
    assert [b.text for b in pages["en", "train"]][1:] == ["Click OK.", "Click OK."]


def test_render_closes_holes_in_numbered_lists():
    from corpus_html import Block
    from corpus_text import drop_empty_sections, render

    page = [
        Block("heading", "Title"),
        Block("item", "1. a"),
        Block("text", "note"),
        Block("item", "3. c"),
        Block("heading", "Empty"),
        Block("heading", "More"),
        Block("item", "1. x"),
        Block("item", "1. y"),
        Block("heading", "Last"),
    ]
    assert render(drop_empty_sections(page)) == "Title\n1. a\nnote\n2. c\n\nMore\n1. x\n1. y"


def test_extra_sources_are_checked():
    from build_corpus import Options

    with pytest.raises(ValueError, match="extra names wikipedia: it must name some of lilypond, gimp-help"):
        Options(extra=("wikipedia",), out=Path("x"))
    with pytest.raises(ValueError, match="extra needs out"):
        Options(extra=("lilypond",))
