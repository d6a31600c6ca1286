"""Names that people write, in tables and lists: trimmed, in one Unicode form, and which of them are twins to the eye."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable

# Cyrillic and Greek letters that are drawn as Latin ones, and what they are drawn as; then figures that pass for letters.
_DRAWN = (
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0406\u0408\u0405"
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u0501\u04bb"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7"
    "\u03b1\u03b9\u03ba\u03bd\u03bf\u03c1\u03c5\u03c7"
)
_AS_LATIN = "ABEKMHOPCTYXIJSaeopcyxijsdhABEZHIKMNOPTYXaikvopux"
LATIN = str.maketrans(_DRAWN, _AS_LATIN)
LETTERS = str.maketrans("01i", "oll")
DASHES = re.compile("[\u2010-\u2015\u2212]")
# Between two figures a separator means something: 1-2 is not 12.
SEPARATORS = re.compile(r"(?<!\d)[\s_\-]+|[\s_\-]+(?!\d)")


def cleaned(text: str) -> str:
    """The text in Unicode's normal form C, without white space and invisible characters at either end."""
    text = unicodedata.normalize("NFC", text)
    first, last = 0, len(text)
    while first < last and _is_blank(text[first]):
        first += 1
    while last > first and _is_blank(text[last - 1]):
        last -= 1
    return text[first:last]


def as_stored(path: str, folder: str) -> str:
    """A path that somebody wrote, from `folder` on where it is relative, as the disk has it: trimmed, or in another normal form."""
    trimmed = cleaned(path)
    forms = [path, path.strip(), trimmed, unicodedata.normalize("NFD", trimmed)]
    return next(
        (whole for form in forms if os.path.exists(whole := os.path.join(folder, form))), os.path.join(folder, trimmed)
    )


def folded(text: str) -> str:
    """What names of files are compared by where case and normal form must not matter."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def twins(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of different names that case, separators, invisible characters or look-alikes of letters alone keep apart."""
    groups: dict[str, set[str]] = {}
    for name in names:
        groups.setdefault(_drawn(name), set()).add(name)
    return [tuple(sorted(group)) for _, group in sorted(groups.items()) if len(group) > 1]


def _drawn(name: str) -> str:
    text = unicodedata.normalize("NFKC", name).translate(LATIN).casefold()
    text = "".join(letter for letter in DASHES.sub("-", text) if letter.isspace() or not _is_blank(letter))
    return SEPARATORS.sub("", text).translate(LETTERS) or name


def _is_blank(letter: str) -> bool:
    return letter.isspace() or unicodedata.category(letter) in ("Cc", "Cf")
