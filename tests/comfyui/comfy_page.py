"""ComfyUI's page in headless Chromium, driven as people drive it, for tests and docs/workflows/make.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import ComfyServer
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / "example_workflows"
LATER_CORE = Path(__file__).parent / "later_core"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CLASSIC, NEW = "classic", "new"  # litegraph draws the nodes, or Vue does ("Nodes 2.0")
DESIGNS = (CLASSIC, NEW)
FIRST_NEW = (1, 40)  # the first frontend whose new design is no trial
TIMEOUT_MS = 300_000
VIEWPORT = {"width": 1800, "height": 1300}
# The page opens with a workflow of its own; ours has to come after it.
READY = "window.LiteGraph?.registered_node_types.T2MVLoadModel && window.app?.graph?._nodes.length > 0"
BROKEN_NODES = """() => window.app.graph._nodes
    .filter(node => node.has_errors || !(node.type in LiteGraph.registered_node_types))
    .map(node => node.type)"""
SETTINGS = {  # a new user is greeted with a dialogue over the canvas, and with another one over an app
    "Comfy.TutorialCompleted": True,
    "Comfy.OnboardingCoachmarks.Seen": ["appMode"],
}


def find_browser() -> str | None:
    """Return the path of a Chromium, None if this machine has none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Run a headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        yield browser
        browser.close()


def write_base(base: Path, pack_name: str, settings: dict[str, Any], files: set[str]) -> Path:
    """Write a base folder of ComfyUI's: this pack, a user's settings, empty files in place of models.

    A node that workflow 11 needs and an older core lacks stands in it with its sockets only.
    """
    for name in ("custom_nodes", "user/default"):
        (base / name).mkdir(parents=True, exist_ok=True)
    pack = base / "custom_nodes" / pack_name
    if not pack.exists():
        pack.symlink_to(ROOT, target_is_directory=True)
    shutil.copytree(LATER_CORE, base / "custom_nodes" / LATER_CORE.name, dirs_exist_ok=True)
    settings_file = base / "user" / "default" / "comfy.settings.json"
    settings_file.write_text(json.dumps({**SETTINGS, **settings}), "utf-8")
    # ComfyUI comes with a picture of this name, which examples show until people choose one.
    (base / "input").mkdir(exist_ok=True)
    shutil.copy(WORKFLOWS / "input" / "duck.png", base / "input" / "example.png")
    for file in files:
        (base / "models" / file).parent.mkdir(parents=True, exist_ok=True)
        (base / "models" / file).touch()
    return base


def named_models(workflow: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return what the page can download for a workflow: name -> its url and directory."""
    nodes = [*workflow["nodes"]]
    for subgraph in workflow.get("definitions", {}).get("subgraphs", []):
        nodes += subgraph["nodes"]
    return {model["name"]: model for node in nodes for model in node.get("properties", {}).get("models", [])}


def has_new_design(server: ComfyServer) -> bool:
    """Return whether the server's page can draw nodes in the new design."""
    version = json.loads(server.get("/system_stats"))["system"]["required_frontend_version"]
    return tuple(map(int, version.split(".")[:2])) >= FIRST_NEW


COVER, COVER_MS = ".p-blockui-mask-document", 10_000


class ComfyPage:
    """ComfyUI's page in one of its node designs."""

    def __init__(
        self,
        browser: Browser,
        server: ComfyServer,
        design: str = CLASSIC,
        viewport: dict[str, int] = VIEWPORT,
    ) -> None:
        """Open the page and wait until it takes a workflow."""
        self.server, self.design = server, design
        self.failures: list[str] = []
        server.post("/settings/Comfy.VueNodes.Enabled", design == NEW)
        self.page: Page = browser.new_page(viewport=viewport)  # type: ignore[arg-type]
        self.page.set_default_timeout(TIMEOUT_MS)
        self.page.on("response", self._note_failure)
        self.page.goto(server.url)
        self.page.wait_for_function(READY)
        self.page.evaluate((Path(__file__).parent / "comfy_page.js").read_text("utf-8"))
        self._uncover()

    def _uncover(self) -> None:
        """Wait for the cover that the page has while it loads; take it away when it stays.

        On a busy machine the page's 1.49 misses the end of the cover's animation and keeps it for ever.
        """
        from playwright.sync_api import TimeoutError as StillCovered

        try:
            self.page.wait_for_function(f"!document.querySelector('{COVER}')", timeout=COVER_MS)
        except StillCovered:
            self.page.evaluate(f"document.querySelectorAll('{COVER}').forEach(cover => cover.remove())")

    def _note_failure(self, response: Any) -> None:
        if response.status >= 400:
            self.failures.append(f"{response.status} {response.url}")

    def ask(self, method: str, *args: Any) -> Any:
        """Call a function of comfy_page.js."""
        return self.page.evaluate(
            "([method, args]) => window.t2mvPage[method](...args)", [method, list(args)]
        )

    def wait_until(self, condition: str, arg: Any = None) -> None:
        """Wait for a condition in JavaScript."""
        self.page.wait_for_function(condition, arg=arg)

    def drop(self, name: str) -> None:
        """Let an example's file go over the canvas and wait until it is open."""
        loads = self.page.evaluate("window.t2mvPage.loads")
        self.ask("drop", f"{name}.json", (WORKFLOWS / f"{name}.json").read_text("utf-8"))
        self.wait_until("loads => window.t2mvPage.loads > loads", loads)
        self.ask("settled")

    def set_widget(self, node_type: str, name: str, value: Any) -> None:
        """Change a widget of the first node of a type."""
        self.page.evaluate(
            "([type, name, value]) => {"
            " window.t2mvPage.find(type).widgets.find(widget => widget.name === name).value = value }",
            [node_type, name, value],
        )

    def start_run(self) -> None:
        """Press Run."""
        self.page.evaluate("window.t2mvPage.seen.length = 0")
        # The test id stood at a group with the button in it until 1.4x, at the button itself since.
        button = self.page.get_by_test_id("queue-button").locator("xpath=descendant-or-self::button")
        button.first.click()

    def wait_for(self, event: str) -> list[str]:
        """Wait for the end of a run; return what the page reported until then."""
        self.wait_until("window.t2mvPage.seen.some(name => name.startsWith('execution_'))")
        seen: list[str] = self.page.evaluate("window.t2mvPage.seen")
        assert event in seen, seen[-1]
        return seen

    def collisions(self) -> list[str]:
        """Say which nodes and groups overlap, and which nodes are not inside one group."""
        self.ask("settled")
        boxes = self.ask("boxes")
        nodes, groups = boxes["nodes"], boxes["groups"]
        overlaps = [
            f"{one['name']} {one['box']} overlaps {other['name']} {other['box']}"
            for items in (nodes, groups)
            for one, other in combinations(items, 2)
            if _overlap(one["box"], other["box"])
        ]
        homeless = [
            f"{node['name']} {node['box']} is inside no group"
            for node in nodes
            if not any(_is_inside(node["box"], group["box"]) for group in groups)
        ]
        return overlaps + homeless


def _overlap(one: list[float], other: list[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _is_inside(inner: list[float], outer: list[float]) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and inner[2] <= outer[2] and inner[3] <= outer[3]
