"""Why verdicts of a JFBench constraint can differ from ours."""

_SENTENCES = (
    "pysbd has more rules for lists, brackets and abbreviations; ours splits at marks and line ends. They differ by a sentence in such "
    "text, which matters only near the bound"
)
_HEADINGS = "JFBench parses CommonMark; ours reads a heading at the beginning of a line, of a quote or of a list item, and knows no nesting"
_FENCES = "a character before or after the name of the language, or text after the block, is read differently"
REASONS = {
    "LatexFormatConstraint": "pylatexenc tolerates an unusual use of $ or a brace; ours wants every group and formula closed",
    "MarkdownHeadingJumpsConstraint": _HEADINGS,
    "MarkdownHeadingsStructureConstraint": _HEADINGS,
    "PythonFormatConstraint": _FENCES,
    "WithCodeFencePythonFormatConstraint": _FENCES,
    "SentencesLengthConstraint": _SENTENCES,
    "SentenceBalanceRatioIfbenchConstraint": _SENTENCES,
    "SentenceTypeRatioIfbenchConstraint": _SENTENCES,
    "KeywordSentenceIfbenchConstraint": _SENTENCES,
    "NegationLogicConstraint": f"of the sentence delimiter: {_SENTENCES}",
    "SentenceDelimiterFormatConstraint": _SENTENCES,
    "SnakecaseNotationConstraint": "a full-width letter or kanji inside a name ends the name for ours; JFBench then finds no name",
}
