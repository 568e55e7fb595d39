"""A slider through pictures that works without a kernel, and shows them all without scripts."""

import pytest
from matplotlib.figure import Figure

from emlab import viz
from emlab.errors import InputError


def picture(text):
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    return viz.show(figure, f"a rising line, {text}")


def test_every_picture_is_in_the_page_and_one_is_shown():
    page = viz.strip({name: picture(name) for name in "abc"}, "lines of three kinds", 1).data
    assert page.count("data:image/png;base64,") == 3
    assert page.count("<figure data-off>") == 2
    assert page.count("<figure><img") == 1
    assert 'max="2"' in page
    assert 'value="1"' in page
    assert "http" not in page
    assert "display:none" not in page.split("@media")[0].replace("input{display:none}", "")


def test_what_is_no_strip_is_refused():
    one = picture("one")
    with pytest.raises(InputError, match="two pictures"):
        viz.strip({"a": one}, "only one picture")
    with pytest.raises(InputError, match="starts"):
        viz.strip({"a": one, "b": one}, "two pictures here", 2)
