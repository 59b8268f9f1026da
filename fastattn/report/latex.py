"""A report as a LaTeX document: each table is a float of booktabs that can be pasted into a paper on its own."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from .table import EMPTY, Table, numeric_columns

MOST_ROWS = 32  # of one float; a longer table is continued
LONG_NAME = 8
PREAMBLE = r"""\documentclass[a4paper,10pt]{article}
\usepackage[margin=18mm,landscape]{geometry}
\usepackage{booktabs}
\usepackage{float}
\usepackage{graphicx}
\setlength{\parindent}{0pt}
"""
SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "{}&#%_"},
    "$": r"{\char36}",  # as \$ it comes from a font that small installations lack
    **{character: f"${character}$" for character in "<>|"},  # others in the font that LaTeX begins with
    **{character: f"{{{character}}}" for character in "[]*`"},  # no argument of a line break, no ligature
    '"': "''",
    "-": "{-}",  # no dash
    "×": r"$\times$",
    "±": r"$\pm$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "≈": r"$\approx$",
    "µ": r"$\mu$",
    "μ": r"$\mu$",
    "·": r"$\cdot$",
    "°": r"$^\circ$",
    "→": r"$\rightarrow$",
    "−": r"$-$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "\N{NO-BREAK SPACE}": "~",
    "²": r"$^2$",
    "³": r"$^3$",
}


def escape(text: str) -> str:
    """Text as LaTeX prints it: in ASCII, in one line; a character that it has no name for as its code point."""
    return "".join(map(escape_character, " ".join(text.split())))


def escape_character(character: str) -> str:
    if character in SPECIAL:
        return SPECIAL[character]
    if " " <= character <= "~":
        return character
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return "".join(SPECIAL.get(each, each) for each in plain) or f"{{[}}U+{ord(character):04X}{{]}}"


def to_latex(table: Table) -> str:
    """A float with caption and rules, shrunk to the width of the page where it is wider, and notes beneath; several,
    each with the head, for a long table."""
    parts = [table.rows[start : start + MOST_ROWS] for start in range(0, len(table.rows), MOST_ROWS)] or [[]]
    align = "".join("r" if right else "l" for right in numeric_columns(table))
    head = " & ".join(map(broken, table.columns)) + r" \\"
    floats = []
    for place, rows in enumerate(parts):
        title = escape(table.title) + (f" (part {place + 1} of {len(parts)})" if len(parts) > 1 else "")
        floats.append(
            "\n".join(
                [
                    r"\begin{table}[H]",
                    r"\centering",
                    rf"\caption{{{title}}}",
                    r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
                    rf"\begin{{tabular}}{{@{{}}{align}@{{}}}}",
                    *(r"\toprule", head, r"\midrule", *map(line, rows), r"\bottomrule"),
                    r"\end{tabular}}",
                    r"\end{table}",
                ]
            )
        )
    notes = [rf"{{\footnotesize {escape(note)}\par}}" for note in table.notes]
    return "\n\n".join(floats) + "\n" + "\n".join(notes) + "\n"


def line(cells: Iterable[str]) -> str:
    return " & ".join("--" if cell == EMPTY else escape(cell) for cell in cells) + r" \\"


def broken(name: str) -> str:
    """A column's name, in two lines where it is long, broken at the space next to its middle."""
    spaces = [place for place, character in enumerate(name) if character == " "]
    if len(name) <= LONG_NAME or not spaces:
        return escape(name)
    middle = min(spaces, key=lambda place: abs(place - len(name) / 2))
    return rf"\shortstack{{{escape(name[:middle])}\\{escape(name[middle:])}}}"


def document(
    title: str,
    facts: Mapping[str, str],
    warnings: Sequence[str],
    tables: Sequence[Table],
    images: Mapping[str, str],
    first: Iterable[tuple[str, Mapping[str, str]]] = (),
) -> str:
    """A document that pdflatex compiles; `images` are paths of pictures, relative to it, and their captions; `first`,
    sentences and such pictures, come before the tables, and the facts come last."""
    body = [rf"\section*{{{escape(title)}}}"]
    body += [part for said, drawn in first for part in (escape(said), *figures(drawn))]
    if warnings:
        body += [
            r"\subsection*{Warnings}",
            *items("itemize", (rf"\item[--] {escape(warning)}" for warning in warnings)),
        ]
    body += [*map(to_latex, tables), *figures(images)]
    body += items("description", (rf"\item[{escape(name)}] {escape(fact)}" for name, fact in facts.items()))
    return "\n\n".join([PREAMBLE + r"\begin{document}", *body, r"\end{document}"]) + "\n"


def figures(images: Mapping[str, str]) -> list[str]:
    """Pictures by path, each above its caption."""
    return [
        "\n".join(
            [
                r"\begin{figure}[H]",
                r"\centering",
                rf"\includegraphics[width=\linewidth,height=0.7\textheight,keepaspectratio]{{{path}}}",
                rf"\caption{{{escape(caption)}}}",
                r"\end{figure}",
            ]
        )
        for path, caption in images.items()
    ]


def items(kind: str, entries: Iterable[str]) -> list[str]:
    """A list, or nothing where it has no entries."""
    found = list(entries)
    return ["\n".join([rf"\begin{{{kind}}}", *found, rf"\end{{{kind}}}"])] if found else []
