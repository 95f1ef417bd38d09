"""Numbers that the book stands on: compared with an exact answer, glued into the prose, or asked of the reader.

``close`` holds a number of a chapter against its exact value. ``glue`` carries a number from a cell into the text, so
that no figure in the prose is typed by hand. ``exercise_N_M`` looks at a reader's answer to exercise M of chapter N;
those of one chapter stand in the file named after the chapter's module.
"""

from bdl_lib.check.bayes import exercise_1_3, exercise_1_5
from bdl_lib.check.dropout import exercise_7_3, exercise_7_5
from bdl_lib.check.evidence import exercise_3_3, exercise_3_5
from bdl_lib.check.mcmc import exercise_4_3, exercise_4_5
from bdl_lib.check.networks import exercise_2_3, exercise_2_5
from bdl_lib.check.numbers import close, glue
from bdl_lib.check.scores import exercise_6_3, exercise_6_5
from bdl_lib.check.uncertainty import exercise_8_3, exercise_8_5
from bdl_lib.check.vae import exercise_9_3, exercise_9_5, exercise_10_3, exercise_10_5, exercise_11_3, exercise_11_5
from bdl_lib.check.verdict import Verdict
from bdl_lib.check.vi import exercise_5_3, exercise_5_5

__all__ = [
    "Verdict",
    "close",
    "exercise_1_3",
    "exercise_1_5",
    "exercise_2_3",
    "exercise_2_5",
    "exercise_3_3",
    "exercise_3_5",
    "exercise_4_3",
    "exercise_4_5",
    "exercise_5_3",
    "exercise_5_5",
    "exercise_6_3",
    "exercise_6_5",
    "exercise_7_3",
    "exercise_7_5",
    "exercise_8_3",
    "exercise_8_5",
    "exercise_9_3",
    "exercise_9_5",
    "exercise_10_3",
    "exercise_10_5",
    "exercise_11_3",
    "exercise_11_5",
    "glue",
]
