"""The page computes what the library computes, says what was measured, and works in a browser."""

import base64
import json
import re

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from gumbelrl.examples import temperature_explorer as explorer
from gumbelrl.gumbel import gumbel_noise, make_estimator

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    out = tmp_path_factory.mktemp("explorer") / "page.html"
    explorer.main(["--out", str(out), "--draws", "30", "--samples", "500", "--seed", "7"])
    return out


@pytest.fixture(scope="module")
def data(page):
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    return json.loads(text[1])


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def move(tab, id, value):
    tab.run(
        f"(() => {{ const i = document.getElementById('{id}'); i.value = {value}; "
        "i.dispatchEvent(new Event('input')); i.dispatchEvent(new Event('change')); })()"
    )


def heights(tab, id, kind="bar"):
    """The bars of a figure as they are drawn, pixels."""
    every = f"[...document.querySelectorAll('#{id} .{kind}')]"
    return tab.run(f"{every}.map(bar => Number(bar.getAttribute('height')))")


def test_the_noise_in_the_page_is_the_librarys(data):
    stored = np.frombuffer(base64.b64decode(data["noise"]), "<f4").reshape(500, 5)
    drawn = gumbel_noise((500, 5), torch.Generator().manual_seed(7))
    assert np.array_equal(stored, drawn.numpy())


def test_the_page_asks_for_nothing(page):
    text = page.read_text()
    assert not re.search(
        r"(?:src|href)=\"(?!data:)|https?://(?!www\.w3\.org/2000/svg)|@import", text
    )


def test_the_four_objectives_agree_at_the_choices():
    corners = torch.eye(5)
    for between in explorer.Objective.about:
        f = explorer.Objective(between, torch.full((5,), 0.2))
        assert f(corners).tolist() == pytest.approx(explorer.VALUES, abs=1e-6)
        halfway = f(corners[:2].mean(0)).item()
        straight = halfway == pytest.approx(sum(explorer.VALUES[:2]) / 2, abs=1e-6)
        assert straight == (between == "linear")


def test_what_the_page_says_is_what_was_measured():
    """Its sentences on each objective. At 4,000 draws; a bias counts from 4 standard errors on
    (false alarm of all together below 1e-3), and what is denied is denied by a wide margin."""
    measured = {
        between: explorer.measure(explorer.PRESETS["leaning"], between, 4000, 0)
        for between in explorer.Objective.about
    }
    one = explorer.TEMPERATURES.index(1.0)

    def unbiased(report):
        return report.bias < max(4 * report.bias_error, 1e-3)

    linear = measured["linear"]
    bias, std = ([getattr(r, key) for r in linear["st_gumbel"]] for key in ("bias", "std"))
    assert std == sorted(std, reverse=True)
    assert bias[one:] == sorted(bias[one:])
    assert bias[-1] > 0.8
    assert unbiased(linear["st_gumbel"][0])
    assert unbiased(linear["straight_through"][one])
    assert linear["straight_through"][one].std < 1e-6
    pairs = list(zip(linear["gumbel_rao"], linear["st_gumbel"], strict=True))
    assert all(rao.std < st.std for rao, st in pairs)
    assert all(abs(r.bias - s.bias) < 4 * (r.bias_error + s.bias_error) + 0.01 for r, s in pairs)
    reinmax = measured["quadratic"]["reinmax"]
    assert [i for i, report in enumerate(reinmax) if unbiased(report)] == [one]
    for between in ("network", "misleading"):
        assert (
            measured[between]["st_gumbel"][0].bias
            > 4 * measured[between]["st_gumbel"][0].bias_error
        )
        assert measured[between]["st_gumbel"][0].bias > 0.25
    for rows in measured.values():
        assert unbiased(rows["rloo"][0])
        assert unbiased(rows["reinforce"][0])


@needs_browser
def test_the_browser_computes_what_the_library_computes(page, tab):
    tab.open(page)
    generator = torch.Generator().manual_seed(7)
    noise = gumbel_noise((500, 5), generator).double()
    values = torch.tensor(explorer.VALUES, dtype=torch.float64)
    for tau in (0.05, 0.3, 1.0, 2.5, 10.0):
        for logits in explorer.PRESETS.values():
            theta = torch.tensor([logits] * 100, dtype=torch.float64, requires_grad=True)
            # The library's own samples and gradient on the same noise, one factor of five.
            sample = make_estimator("gumbel_softmax", temperature=tau)
            soft = sample.relax(theta[:, None], noise[:100, None])[:, 0]
            hard = make_estimator("st_gumbel", temperature=tau)
            one_hot = hard.relax(theta[:, None], noise[:100, None])[:, 0]
            (g,) = torch.autograd.grad((one_hot * values).sum(), theta)
            shown = tab.run(
                f"noise.slice(0, 100).map(g => {{ const y = soft({list(logits)}, g, {tau});"
                f" return [y, winner({list(logits)}, g), pullBack(y, data.values, {tau})]; }})"
            )
            y, winners, pulled = zip(*shown, strict=True)
            assert np.allclose(y, soft.detach().numpy(), rtol=1e-9, atol=1e-14)
            assert list(winners) == one_hot.argmax(-1).tolist()
            assert np.allclose(pulled, g.numpy(), rtol=1e-7, atol=1e-12)


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_sliders_move_the_bars(page, tab, width, scheme):
    tab.problems.clear()
    tab.requests.clear()
    tab.open(page, width, scheme=scheme)
    assert tab.run("document.documentElement.scrollWidth") == width  # nothing sticks out
    before = {id: heights(tab, id) for id in ("one", "all")}
    assert [len(bars) for bars in before.values()] == [10, 15]
    spikes = heights(tab, "spikes", "spike")
    marker = tab.run("document.querySelector('#bias line[stroke-dasharray]').getAttribute('x1')")
    move(tab, "tau", -1.0)
    after = {id: heights(tab, id) for id in ("one", "all")}
    assert tab.run("document.getElementById('tau-out').textContent") == "0.10"
    # Soft copies move with τ; the executed one-hot, softmax and the shares do not.
    assert all(a != b for a, b in zip(after["one"][::2], before["one"][::2], strict=True))
    assert after["one"][1::2] == before["one"][1::2]
    assert after["all"][0::3] == before["all"][0::3]
    assert after["all"][1::3] == before["all"][1::3]
    assert after["all"][2::3] != before["all"][2::3]
    assert heights(tab, "spikes", "spike") != spikes
    assert marker != tab.run(
        "document.querySelector('#bias line[stroke-dasharray]').getAttribute('x1')"
    )
    move(tab, "theta-0", 4)
    assert heights(tab, "all")[0] > 2 * before["all"][0]
    rows = tab.run("document.getElementById('rows').innerText")
    move(tab, "objective", "'misleading'")
    assert tab.run("document.getElementById('rows').innerText") != rows
    tab.run("document.querySelector('#keys button').click()")
    assert tab.run("document.querySelectorAll('#bias .curve').length") == 6
    draw = tab.run("document.getElementById('draw-out').textContent")
    tab.run("document.getElementById('next').click()")
    assert tab.run("document.getElementById('draw-out').textContent") != draw
    paper = tab.run("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(23, 26, 33)"}[scheme]
    assert tab.problems == []
    assert set(tab.requests) == {page.absolute().as_uri()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--draws", "1"], ">= 2 and < 2^31, got 1"),
        (["--samples", "x"], ">= 200 and < 2^31, got x"),
        (["--seed", str(2**64)], ">= 0 and < 2^31, got 1844"),
    ],
)
def test_bad_numbers_end_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        explorer.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("place", ["no/page.html", "."])
def test_a_place_that_cannot_be_written_is_told_at_once(place, tmp_path, capsys, monkeypatch):
    def measure(*given):
        raise AssertionError("measured first")

    monkeypatch.setattr(explorer, "page_data", measure)
    with pytest.raises(SystemExit) as stop:
        explorer.main(["--out", str(tmp_path / place)])
    assert stop.value.code == 2
    assert "give --out FILE" in capsys.readouterr().err


@pytest.mark.parametrize("before", [None, "an older page"])
def test_ctrl_c_leaves_what_was_there(before, tmp_path, capsys, monkeypatch):
    def measure(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(explorer, "page_data", measure)
    out = tmp_path / "page.html"
    if before is not None:
        out.write_text(before)
    with pytest.raises(SystemExit) as stop:
        explorer.main(["--out", str(out)])
    assert stop.value.code == 130
    assert "interrupted, no page is written" in capsys.readouterr().err
    assert (out.read_text() if out.exists() else None) == before
