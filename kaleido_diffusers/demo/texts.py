"""What the page says and how it looks: pieces of HTML, and the style sheet."""

import html

from .limits import Limits, Progress
from .views import Plan


__all__ = ["HEADER", "SCRIPT", "SPEED", "STYLE", "TOKEN", "TO_WORK", "advice", "film", "footer", "sentence", "status"]

HEADER = """
<h1>Kaleido: the view that nobody took</h1>
<p>Give photos of a scene, choose where to look from, and get that view. {expectation}</p>
"""

STYLE = """
.gradio-container { max-width: min(1400px, 100vw) !important; margin: 0 auto; }
.gradio-container .main, .gradio-container main, .gradio-container .column { min-width: 0; max-width: 100%; }
.gradio-container main.app { padding-top: 0.6rem; }
#header h1 { font-size: 1.4rem; margin: 0; }
#header p { margin: 0.2rem 0 0; }
.gradio-container h2 { font-size: 1.05rem; margin: 0; }
#files .icon-wrap { display: none; }
#pick p, #give p { font-size: 0.85rem; }
#photos .thumbnail-item { aspect-ratio: 1; height: auto; }
#photos .grid-container { padding: 0; gap: 4px; grid-template: none / repeat(auto-fill, minmax(52px, 1fr));
  grid-auto-rows: max-content; align-content: start; }
#photos .caption-label { display: none; }
#path .wrap { gap: 4px; }
#path label { flex: 1 1 22%; min-width: 74px; flex-direction: column; gap: 0; padding: 0.2rem; text-align: center;
  font-size: 0.75rem; line-height: 1.15; }
#path label span { margin: 0; }
#path label::before { flex: none; }
#path label input { position: absolute; opacity: 0; }
#path label::before { content: ""; width: 40px; height: 26px; background: currentColor;
  mask: var(--drawn) center/contain no-repeat; }
#path label.selected, #path label:has(input:checked) { outline: 2px solid #2563eb; }
#path label:focus-within { outline: 3px solid #2563eb; outline-offset: 2px; }
#make { flex-wrap: nowrap; }
#status { min-height: 2.6rem; }
#status progress { width: 100%; height: 0.7rem; border: 0; border-radius: 0.35rem; appearance: none;
  overflow: hidden; }
#status progress, #status progress::-webkit-progress-bar { background: rgba(128, 128, 128, 0.25); }
#status progress::-webkit-progress-value { background: #2563eb; }
#status progress::-moz-progress-bar { background: #2563eb; }
#status span.error, #status .clear-status { display: none; }
#status .sentence { margin: 0 0 0.3rem; }
#status .problem { border-left: 4px solid #dc2626; padding: 0.4rem 0.7rem; }
#film video { display: block; width: min(100%, 25rem); aspect-ratio: 1; margin: 0 auto; background: #000;
  border-radius: 0.4rem; }
#film figcaption, #advice p { font-size: 0.85rem; margin: 0.3rem 0 0; }
#film figcaption { text-align: center; }
#advice .old { border-left: 4px solid #d97706; padding: 0.2rem 0.6rem; font-weight: 600; }
body:has(#stop:not([disabled])) #advice .old { display: none; } /* it is being done */
#views .preview img { width: 100%; height: 100%; object-fit: contain; }
#speed .wrap { justify-content: center; }
#compare { max-width: 400px; margin: 0 auto; }
@media (max-width: 700px) {
  .gradio-container main.app { padding: 0.4rem 0.8rem; }
  #header h1 { font-size: 1.1rem; }
  #header p { font-size: 0.85rem; }
  #result .tab-container button { padding: 0 0.5rem; font-size: 0.85rem; }
  #left, #right { height: 190px !important; }
}
#token, #eye { display: none; }
.footer p { font-size: 0.85rem; opacity: 0.85; margin: 0.2rem 0; }
:focus-visible { outline: 3px solid #2563eb !important; outline-offset: 2px; }
footer { display: none !important; }
"""

# Gives a window a name of its own, which it keeps when the page is loaded again.
TOKEN = """() => {
  if (!sessionStorage.kaleido) {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    sessionStorage.kaleido = Array.from(bytes, byte => byte.toString(16).padStart(2, "0")).join("");
  }
  return sessionStorage.kaleido;
}"""

SPEED = """speed => {
  window.kaleidoSpeed = speed;
  document.querySelectorAll("#film video").forEach(video => { video.playbackRate = speed; });
}"""

# On a phone, the button, what is being done and the result fill the screen.
TO_WORK = """() => {
  if (innerWidth < 700) document.querySelector("#make").scrollIntoView({block: "start"});
}"""

# What Gradio's components lack: words for pictures, a divider that keys move, cameras that are dragged.
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
let kaleidoEye = "";
function kaleidoDragged(event) {
  const plot = document.querySelector("#space .js-plotly-plot");
  if (!plot || !plot.contains(event.target)) return;
  setTimeout(() => {  // by then plotly has noted where its camera is
    const camera = plot.layout.scene.camera, box = document.querySelector("#eye textarea, #eye input");
    const eye = JSON.stringify(["x", "y", "z"].map(axis => camera.eye[axis] - (camera.center || {})[axis] || 0));
    if (!box || eye === kaleidoEye) return;
    box.value = kaleidoEye = eye;
    box.dispatchEvent(new Event("input", {bubbles: true}));
  }, 100);
}
for (const end of ["mouseup", "touchend"]) document.addEventListener(end, kaleidoDragged, {capture: true});
function kaleidoPlays(event) {  // a player that Gradio drew again would begin at normal speed
  if (event.target.closest("#film")) event.target.playbackRate = window.kaleidoSpeed || 1;
}
document.addEventListener("play", kaleidoPlays, {capture: true});
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


def film(source: str, caption: str) -> str:
    """A player that begins at once and goes round and round.

    Args:
        source (`str`): address of the film.
        caption (`str`): what it shows.
    """
    player = f'<video src="{html.escape(source)}" controls autoplay loop muted playsinline></video>'
    return f"<figure>{player}<figcaption>{html.escape(caption)}</figcaption></figure>"


def advice(plan: Plan, is_old: bool) -> str:
    """What to expect of a plan, beside its result.

    Args:
        plan (`Plan`): cameras and references.
        is_old (`bool`): whether the views that are shown were generated for another plan.
    """
    count, invented = len(plan.targets), len(plan.invented)
    if len(plan.references) == 1:
        said = "From one photo, all but what it shows is invented."
    elif invented:
        which = "This view looks" if count == 1 else f"{invented} of {count} views look"
        said = f"{which} where hardly a photo does (grey in the picture of the cameras): invented there."
    elif plan.melts:
        which = "" if count == 1 else f" for {len(plan.melts)} of {count} views"
        said = f"The nearest photo is far away{which}: shapes melt there. Photos closer together help."
    else:
        said = "The photos see what is looked at: expect outlines and colours, soft, and not the fine detail."
    old = '<p class="old" role="status">What you see was made for an earlier choice: generate again.</p>'
    return old * is_old + f"<p>{said}</p>"


def footer(limits: Limits, side: int) -> str:
    """What is allowed.

    Args:
        limits (`Limits`): what is allowed.
        side (`int`): pixels a side of the views.
    """
    private = "Nothing is sent elsewhere, and nothing is counted."
    return f'<div class="footer"><p><strong>Limits.</strong> {html.escape(limits.sentence(side))} {private}</p></div>'
