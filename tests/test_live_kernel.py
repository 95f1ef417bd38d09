"""Explorable figures with a kernel behind them: a real JupyterLab in a real browser, and the kernel's own messages."""

import base64
import io
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from PIL import Image

pytestmark = pytest.mark.live
ROOT = Path(__file__).parent.parent
VIEW = "application/vnd.jupyter.widget-view+json"
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]

CELL = """
import matplotlib.pyplot as plt
from bdl_lib import widgets

calls = []

def draw(red, kind):
    calls.append((red, kind))
    plt.gcf().add_artist(plt.Rectangle((0, 0), 1, 1, color=(red / 255, 1.0 * (kind == "green"), 0)))

explored = widgets.explore(draw, red=[10, 120, 240], kind=["plain", "green"], alt="A field", figsize=(2, 1))
explored
"""


def colour(uri):
    image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
    return image.convert("RGB").getpixel((3, 3))[:2]


@pytest.fixture
def kernel(monkeypatch):
    from jupyter_client.manager import start_new_kernel

    monkeypatch.delenv("BDL_EXPLORE", raising=False)
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(ROOT))
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def run(client, code, *, answers_input=True):
    """What a cell sends: displayed data, its metadata, and printed text."""
    messages = []
    client.execute_interactive(code, allow_stdin=answers_input, output_hook=messages.append, timeout=60)
    errors = [message["content"]["evalue"] for message in messages if message["msg_type"] == "error"]
    assert not errors
    data = [message["content"]["data"] for message in messages if message["msg_type"] == "execute_result"]
    text = "".join(message["content"]["text"] for message in messages if message["msg_type"] == "stream")
    return (data[0] if data else None), text


def test_a_moved_slider_is_a_message_to_the_kernel_which_draws_one_frame(kernel):
    data, _ = run(kernel, CELL)
    assert set(data) == {VIEW, "image/png", "text/plain"}
    _, slider = run(kernel, "print(explored.widget.children[0].comm.comm_id)")
    state = {"method": "update", "state": {"index": 2}, "buffer_paths": []}
    message = kernel.session.msg("comm_msg", {"comm_id": slider.strip(), "data": state})
    kernel.shell_channel.send(message)
    _, text = run(kernel, "print(calls, explored.widget.children[-1].value)")
    assert "[(10, 'plain'), (240, 'plain')]" in text
    assert colour(re.search(r'src="([^"]*)"', text)[1]) == (240, 0)


def test_a_reader_who_cannot_answer_is_no_reader(kernel):
    data, _ = run(kernel, CELL, answers_input=False)
    assert set(data) == {"text/html", "image/png", "text/plain"}


@pytest.fixture
def lab(tmp_path):
    """The address of a notebook in JupyterLab, on loopback, with settings of its own."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)], metadata=metadata)
    (tmp_path / "work").mkdir()
    nbformat.write(notebook, tmp_path / "work" / "figure.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    kinds = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTERLAB_SETTINGS_DIR")
    env = {key: value for key, value in os.environ.items() if key != "BDL_EXPLORE"}
    env |= {kind: str(tmp_path / kind.lower()) for kind in kinds} | {"PYTHONPATH": str(ROOT)}
    settings = [
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={tmp_path / 'work'}",
        f"--IdentityProvider.token={token}",
        "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", *settings]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(address, server, tmp_path / "log")
            yield f"{address}/lab/tree/figure.ipynb?token={token}"
        finally:
            server.terminate()
            server.wait(timeout=30)


def _wait_for(address, server, log, seconds=60):
    for _ in range(5 * seconds):
        if server.poll() is not None:
            break
        try:
            return urllib.request.urlopen(f"{address}/api", timeout=5).close()
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture
def page():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("chromium-browser") or playwright.chromium.executable_path
        if not Path(path).exists():
            missing = pytest.fail if os.environ.get("CI") else pytest.skip
            missing("no Chromium on this machine (apt install chromium, or playwright install chromium)")
        browser = playwright.chromium.launch(executable_path=path, args=ARGS)
        page = browser.new_page()
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def test_jupyterlab_redraws_when_the_slider_moves(lab, page):
    page.goto(lab)
    page.locator(".jp-Notebook .jp-CodeCell .cm-content").first.click()
    page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").wait_for(state="attached")
    page.keyboard.press("Shift+Enter")
    output = page.locator(".jp-OutputArea-output").first

    def drawn(alt):
        image = output.locator(f"img[alt='A field, at {alt}']")
        image.wait_for()
        assert output.locator("img").count() == 1
        return colour(image.get_attribute("src"))

    assert drawn("red = 10 and kind = plain") == (10, 0)
    slider = output.get_by_role("slider")
    slider.focus()
    slider.press("ArrowRight")
    assert drawn("red = 120 and kind = plain") == (120, 0)
    slider.press("End")
    assert drawn("red = 240 and kind = plain") == (240, 0)
    output.locator("select").select_option(label="green")
    assert drawn("red = 240 and kind = green") == (240, 255)
