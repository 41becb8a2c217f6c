"""Pictures of camera paths, seen from above: the subject is a dot, the path an arrow."""

from urllib.parse import quote

from .views import FREE, HELD_OUT


__all__ = ["LABELS", "path_styles"]

LABELS = {  # of the paths, in words of photographers
    "arc": "Arc",
    "keyframes": "Photo to photo",
    "orbit": "Full circle",
    "spiral": "Swing",
    "dolly": "Push in",
    "dolly-zoom": "Vertigo",
    "pan": "Pan",
    "tilt": "Tilt",
    "lemniscate": "Figure of eight",
    HELD_OUT: "Test on kept-back photos",
    FREE: "Free camera",
}

_DOT = '<circle cx="20" cy="8" r="2.5" fill="#000"/>'
_DRAWN = {
    "arc": _DOT + '<path d="M8 16a14 14 0 0 0 24 0"/><path d="M28 16l4 0 0 4"/>',
    "keyframes": _DOT
    + '<path d="M6 20c6-10 10 6 15-1s8-4 12-6"/><path d="M5 19h3v3h-3zM19 17h3v3h-3zM31 11h3v3h-3z"/>',
    "orbit": '<circle cx="20" cy="13" r="2.5" fill="#000"/><path d="M22 4a9 9 0 1 0 4 2"/><path d="M30 5l-4 1 1 4"/>',
    "spiral": _DOT + '<path d="M20 22a3 2 0 1 1 3-2a6 4 0 1 1-6-3.500"/>',
    "dolly": _DOT + '<path d="M20 24v-11"/><path d="M17 16l3-3 3 3"/>',
    "dolly-zoom": _DOT + '<path d="M20 14v10M17 21l3 3 3-3M12 4l-4 18M28 4l4 18"/>',
    "pan": '<path d="M17 22h6v-4h-6zM20 18L8 6M20 18L32 6M12 5a14 14 0 0 1 16 0M25 3l3 2-2 3"/>',
    "tilt": '<path d="M8 20h6v-6h-6zM14 17L32 20M14 17L30 6M33 18a16 16 0 0 0-3-9M34 11l-4-2-2 4"/>',
    "lemniscate": '<path d="M20 14c-4-7-12-7-12 0s8 7 12 0s12-7 12 0s-8 7-12 0"/>',
    HELD_OUT: '<path d="M8 6h10v14h-10zM22 6h10v14h-10zM25 13l2 2 3-4"/>',
    FREE: '<path d="M20 3v20M8 13h24M17 6l3-3 3 3M17 20l3 3 3-3M11 10l-3 3 3 3M29 10l3 3-3 3"/>',
}


def path_styles() -> str:
    """A style sheet that puts its picture before each choice of a path."""
    rules = []
    for path, drawn in _DRAWN.items():
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 26" fill="none" stroke="#000" stroke-width="2"'
            f' stroke-linecap="round" stroke-linejoin="round">{drawn}</svg>'
        )
        rules.append(
            f'#path label:has(input[value="{path}"])::before {{ --drawn: url("data:image/svg+xml,{quote(svg)}"); }}'
        )
    return "\n".join(rules)
