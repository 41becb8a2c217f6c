"""What the page says and how it looks: pieces of HTML, and the style sheet."""

import html

from .limits import Limits, Progress


__all__ = ["HEADER", "SCRIPT", "STYLE", "footer", "sentence", "status"]

HEADER = """
<h1>Kaleido: the view that nobody took</h1>
<p>Give photos of a scene, choose where to look from, and get that view. Photos and their cameras go into one
transformer; no 3D model is built in between.</p>
"""

STYLE = """
.gradio-container { max-width: min(1280px, 100vw) !important; margin: 0 auto; }
.gradio-container .main, .gradio-container main, .gradio-container .column { min-width: 0; max-width: 100%; }
.gradio-container h1 { font-size: 1.6rem; margin: 0; }
.gradio-container h2 { font-size: 1.05rem; margin: 0.4rem 0 0; }
#status { min-height: 3.2rem; }
#status progress { width: 100%; height: 0.7rem; border: 0; border-radius: 0.35rem; appearance: none;
  overflow: hidden; }
#status progress, #status progress::-webkit-progress-bar { background: rgba(128, 128, 128, 0.25); }
#status progress::-webkit-progress-value { background: #2563eb; }
#status progress::-moz-progress-bar { background: #2563eb; }
#status span.error, #status .clear-status { display: none; }
#status .sentence { margin: 0 0 0.3rem; }
#status .problem { border-left: 4px solid #dc2626; padding: 0.4rem 0.7rem; }
#views .grid-wrap { min-height: 0; max-height: 26rem; }
#views .grid-container { padding-top: 1.8rem; grid-template-columns: repeat(auto-fill, minmax(90px, 1fr)); }
#compare { max-width: 460px; }
.footer p { font-size: 0.85rem; opacity: 0.85; margin: 0.2rem 0; }
:focus-visible { outline: 3px solid #2563eb !important; outline-offset: 2px; }
footer { display: none !important; }
"""

# What Gradio's components lack: words for pictures, and a divider that keys move.
SCRIPT = """
<script>
function kaleidoNames() {
  const names = ["Left: the generated view", "Right: the photo to compare with"];
  document.querySelectorAll("#compare img").forEach((image, i) => { if (!image.alt) image.alt = names[i]; });
  const plot = document.querySelector("#space .js-plotly-plot");
  const said = document.querySelector("#caption .prose");
  if (plot && said) { plot.setAttribute("role", "img"); plot.setAttribute("aria-label", said.innerText); }
  const handle = document.querySelector("#compare [data-testid=slider]");
  if (!handle || handle.tabIndex === 0) return;
  handle.tabIndex = 0;
  handle.setAttribute("role", "slider");
  handle.setAttribute("aria-label", "Divider between the generated view and the photo");
  handle.addEventListener("keydown", event => {
    const step = {ArrowLeft: -20, ArrowRight: 20}[event.key];
    if (!step) return;
    event.preventDefault();
    const box = handle.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
    const move = (type, target, at) => target.dispatchEvent(
      new MouseEvent(type, {bubbles: true, view: window, clientX: at, clientY: y}));
    move("mousedown", handle, x); move("mousemove", window, x + step); move("mouseup", window, x + step);
  });
}
new MutationObserver(kaleidoNames).observe(document, {subtree: true, childList: true, characterData: true});
</script>
"""


def status(progress: Progress) -> str:
    """A line and a bar that say how far along work is, read aloud by screen readers as they change.

    Args:
        progress (`Progress`): how far work is.
    """
    text = html.escape(progress.text)
    line = f'<p class="sentence" role="status" aria-live="polite">{text}</p>'
    if not progress.total:
        return line
    bar = f'<progress aria-label="{text}" max="{progress.total}" value="{progress.done}"></progress>'
    return line + bar


def sentence(text: str, is_problem: bool = False) -> str:
    """A sentence for the visitor.

    Args:
        text (`str`): what it says.
        is_problem (`bool`, defaults to `False`): whether it tells of something that went wrong.
    """
    role, kind = ("alert", "sentence problem") if is_problem else ("status", "sentence")
    return f'<p class="{kind}" role="{role}">{html.escape(text)}</p>'


def footer(limits: Limits, side: int, expectation: str) -> str:
    """What to expect, and what is allowed.

    Args:
        limits (`Limits`): what is allowed.
        side (`int`): pixels a side of the views.
        expectation (`str`): what kind of pictures to expect.
    """
    private = "Nothing is sent elsewhere, and nothing is counted."
    return (
        f'<div class="footer"><p><strong>What to expect.</strong> {html.escape(expectation)}</p>'
        f"<p><strong>Limits.</strong> {html.escape(limits.sentence(side))} {private}</p></div>"
    )
