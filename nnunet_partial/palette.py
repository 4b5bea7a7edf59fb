"""The colours of every page and picture: Okabe and Ito's, which are told apart by colour-blind readers.

They are told apart by more than colour where they can be: line style, hatching, words. The page's own colours of text and
ground stand in its style sheet, ``evaluation/report/base.html.j2``.
"""

BLUE, SKY, GREEN, YELLOW = "#0072b2", "#56b4e9", "#009e73", "#f0e442"
ORANGE, VERMILION, PURPLE = "#e69f00", "#d55e00", "#cc79a7"
BLACK, GREY, PALE_GREY = "#000000", "#999999", "#dddddd"

ON_WHITE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, GREY)  # without the yellow, which is too pale
ON_GREY = (ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE, GREY)  # outlines on images: the bright ones first
TRUTH, PREDICTION = SKY, ORANGE  # bright on grey
REMARKABLE, GRID = VERMILION, PALE_GREY


def of(colours: tuple, number: int) -> str:
    """The colour of the ``number``-th of any number of things, from 0."""
    return colours[number % len(colours)]
