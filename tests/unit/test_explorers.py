"""An explorer shows its figure first, everywhere; sliders only where somebody can move them."""

from types import SimpleNamespace

import IPython
import IPython.display
import ipywidgets
import pytest
import torch
from matplotlib.figure import Figure

from emlab.errors import InputError
from emlab.viz import Picture, explore, explorers

ALT = "A figure that says nothing."
CHOICES = {"dose": (1, 2, 4), "defocus": (0.5, 1.5)}


class Notebook:
    """Stands in for a front end: what was displayed, what replaced it, and what was drawn."""

    def __init__(self):
        self.displayed, self.replaced, self.drawn, self.grad = [], [], [], []

    def display(self, item, display_id=False):
        self.displayed.append(item)
        return SimpleNamespace(update=self.replaced.append)

    def draw(self, dose, defocus):
        self.drawn.append((dose, defocus))
        self.grad.append(torch.is_grad_enabled())
        if dose == 4:
            raise InputError("too much")
        return Figure(figsize=(1, 1))

    def sliders(self):
        return self.displayed[1].children[:2]


@pytest.fixture
def notebook(monkeypatch):
    """A live notebook."""
    made = Notebook()
    monkeypatch.setattr(IPython.display, "display", made.display)
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=object()))
    monkeypatch.delenv(explorers.SWITCH, raising=False)
    return made


def test_the_figure_comes_first_and_sliders_replace_it(notebook):
    explore(notebook.draw, CHOICES, ALT, start=(2, 1.5))
    picture, box = notebook.displayed
    assert isinstance(picture, Picture)
    assert picture.alt == f"{ALT} Shown: dose 2, defocus 1.5."
    assert [child.description for child in box.children[:2]] == ["dose", "defocus"]
    notebook.sliders()[0].value = 1
    assert notebook.replaced[-1].alt == f"{ALT} Shown: dose 1, defocus 1.5."
    notebook.sliders()[0].value = 2
    assert notebook.replaced[-1] is picture
    assert notebook.drawn == [(2, 1.5), (1, 1.5)], "a setting is drawn once"


def test_a_drawing_that_fails_is_said_and_the_figure_stays(notebook):
    explore(notebook.draw, CHOICES, ALT, start=(2, 1.5))
    notebook.sliders()[0].value = 4
    said = notebook.displayed[1].children[-1]
    assert said.value == "This was not drawn: too much"
    assert notebook.replaced == []
    notebook.sliders()[0].value = 1
    assert said.value == ""


def test_redrawing_keeps_the_gradient_mode_of_the_cell(notebook):
    with torch.no_grad():
        explore(notebook.draw, CHOICES, ALT, start=(2, 1.5))
    notebook.sliders()[1].value = 0.5
    assert notebook.grad == [False, False]


@pytest.mark.parametrize("lacking", ["kernel", "ipywidgets", "somebody"])
def test_without_a_listener_the_figure_is_all(notebook, monkeypatch, lacking):
    if lacking == "kernel":
        monkeypatch.setattr(IPython, "get_ipython", lambda: None)
    elif lacking == "ipywidgets":
        monkeypatch.setattr(explorers, "find_spec", lambda name: None)
        monkeypatch.delattr(ipywidgets, "SelectionSlider")
    else:
        monkeypatch.setenv(explorers.SWITCH, "off")
    explore(notebook.draw, CHOICES, ALT, start=(2, 1.5))
    assert len(notebook.displayed) == 1
    assert isinstance(notebook.displayed[0], Picture)


@pytest.mark.parametrize(
    ("choices", "start"),
    [({}, ()), ({"dose": (1,)}, (1,)), (CHOICES, (2,)), (CHOICES, (3, 1.5))],
)
def test_unusable_sliders_are_refused(notebook, choices, start):
    with pytest.raises(InputError):
        explore(notebook.draw, choices, ALT, start)
    assert notebook.displayed == []
