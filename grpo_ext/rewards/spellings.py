"""What every reader of answers has to know of spelling: look-alikes of ASCII, and words that change a number."""

# Signs and digits. The full-width comma stays: in a sentence it separates clauses, not thousands.
FOLD = str.maketrans("−－﹣‐‑–０１２３４５６７８９．／⁄％＄￥", "------0123456789.//%$¥")
# Of an answer that stands alone also what has a structure.
FOLD_ALL = FOLD | str.maketrans("（）［］｛｝，：；＝＋\u3000", "()[]{},:;=+ ")

# Words beside a number that make it another number. Not "third", as in third graders, nor "quarters", which are coins.
_SCALES = "hundred thousand million billion trillion dozen half"
_OTHERS = "quarter halves thirds fourths fifths squared cubed minus negative plus over divided sqrt mod pi"
CHANGING = frozenset(f"{_SCALES} {_SCALES.replace(' ', 's ')}s {_OTHERS}".split())
# Words that make a number one of several, or none.
JOINING = frozenset("or and to not no".split())
