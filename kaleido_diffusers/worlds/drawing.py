"""Draws worlds by OpenGL: all views of a world into one picture, read back at once.

The context is made by EGL, so that no screen is needed; without a graphics card Mesa's software rasteriser draws.
World axes: z up. Cameras: OpenCV axes.
"""

import math
import os
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .assets import Mesh, Part


__all__ = ["Drawing", "Item", "Light", "Renderer", "box_corners", "renderer"]

MAX_VIEWS = 64
MAX_LAMPS = 4
NEAR, FAR = 0.03, 300.0
_SHADOW_SIZE = 512
_SIDES = np.indices((2, 2, 2)).reshape(3, -1) > 0  # of the corners of a box
_MESHES_KEPT, _TEXTURES_KEPT = 768, 1536
_LEAST_GLOSS = 0.02  # what shines less mirrors nothing
_BINDINGS = {"Cameras": 0, "World": 1, "picture": 0, "panorama": 1, "shadow": 2}
_WORLD_FLOATS = 4 * (13 + 2 * MAX_LAMPS)


@dataclass
class Item:
    """A mesh in a world.

    Attributes:
        mesh (`Mesh`): its triangles.
        place (`np.ndarray` of shape `[4, 4]` or `[V, 4, 4]`): world_from_mesh, of each view where it moves.
        picture (`tuple`, *optional*): a key and an image `[H, W, 3]` that replace the textures of the mesh.
        repeat (`tuple` of 2): how often the picture is repeated.
        tint (`tuple` of 3): linear RGB that multiplies the texture.
        gloss (`float`): strength of highlights and reflections, from 0 to 1.
        shininess (`float`): exponent of the highlight.
        glow (`float`): light of its own, as a part of its colour; 1 knows no light and shadow.
        casts (`bool`): whether it casts a shadow.
    """

    mesh: Mesh
    place: np.ndarray
    picture: tuple | None = None
    repeat: tuple[float, float] = (1.0, 1.0)
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gloss: float = 0.05
    shininess: float = 20.0
    glow: float = 0.0
    casts: bool = True


@dataclass
class Light:
    """The light that casts shadows.

    Attributes:
        place (`np.ndarray` of shape `[3]`): of a lamp, or the direction to the sun.
        color (`np.ndarray` of shape `[3]`): linear RGB.
        is_lamp (`bool`): near, rather than like the sun.
        center (`np.ndarray` of shape `[3]`): middle of what may cast shadows.
        radius (`float`): of what may cast shadows.
    """

    place: np.ndarray
    color: np.ndarray
    is_lamp: bool = False
    center: np.ndarray = field(default_factory=lambda: np.zeros(3))
    radius: float = 3.0


@dataclass
class Drawing:
    """A world to draw.

    Attributes:
        items (`list[Item]`): what stands in it.
        light (`Light`): the light that casts shadows.
        ambient (`np.ndarray` of shape `[2, 3]`): linear RGB of light from below and from above.
        lamps (`list[tuple]`): place `[3]` and linear RGB `[3]` of up to 4 lamps without shadows.
        flash (`float`): light at the camera.
        panorama (`tuple`, *optional*): a key and an equirectangular image `[H, W, 3]` around it all.
        turn (`float`): rotation of the panorama, in radians.
        backdrop (`np.ndarray` of shape `[2, 3]`): linear RGB of the background at the bottom and top of the picture,
            without a panorama; reflections see it in either case.
        room (`np.ndarray` of shape `[2, 3]`, *optional*): corners of a room, whose edges are darker.
        haze (`float`): part of the background in things one unit of length away.
    """

    items: list[Item]
    light: Light
    ambient: np.ndarray
    lamps: list[tuple] = field(default_factory=list)
    flash: float = 0.0
    panorama: tuple | None = None
    turn: float = 0.0
    backdrop: np.ndarray = field(default_factory=lambda: np.full((2, 3), 0.5))
    room: np.ndarray | None = None
    haze: float = 0.0


_CAMERAS = """
layout(std140) uniform Cameras {
    mat4 clip_from_world[64];
    mat4 world_from_clip[64];
    vec4 eyes[64];
    vec4 grades[64];
};
uniform int view;
"""

_WORLD = """
layout(std140) uniform World {
    mat4 light_from_world;
    vec4 light;
    vec4 light_color;
    vec4 ambient[2];
    vec4 backdrop[2];
    vec4 room[2];
    vec4 lamps[4];
    vec4 lamp_colors[4];
    float flash;
    float haze;
    float turn;
};
"""

_VERTEX = (
    _CAMERAS
    + _WORLD
    + """
uniform mat4 place;
uniform mat3 turned;
in vec3 point;
in vec3 normal;
in vec2 uv;
out vec3 v_point;
out vec3 v_normal;
out vec2 v_uv;
out vec4 v_light;
void main() {
    vec4 world = place * vec4(point, 1.0);
    v_point = world.xyz;
    v_normal = turned * normal;
    v_uv = uv;
    v_light = light_from_world * world;
    gl_Position = clip_from_world[view] * world;
}
"""
)

_SURROUNDINGS = """
#ifdef PANORAMA
uniform sampler2D panorama;
vec3 around(vec3 direction, float level) {
    float u = (atan(direction.y, direction.x) + turn) * 0.15915494;
    float v = acos(clamp(direction.z, -1.0, 1.0)) * 0.31830989;
    return textureLod(panorama, vec2(u, v), level).rgb;
}
#else
vec3 around(vec3 direction, float level) {
    return mix(backdrop[0].rgb, backdrop[1].rgb, 0.5 + 0.5 * direction.z);
}
#endif
vec4 develop(vec3 color, vec4 grade) {
    color *= grade.rgb;
    color = mix(color, 1.0 - 0.2 * exp(-(color - 0.8) / 0.2), step(0.8, color));
    color = clamp(color, 0.0, 1.0);
    return vec4(mix(12.92 * color, 1.055 * pow(color, vec3(1.0 / 2.4)) - 0.055, step(0.0031308, color)), 1.0);
}
"""

_FRAGMENT = (
    _CAMERAS
    + _WORLD
    + _SURROUNDINGS
    + """
uniform sampler2D picture;
uniform sampler2DShadow shadow;
uniform vec3 tint;
uniform vec2 repeat;
uniform vec3 finish;
in vec3 v_point;
in vec3 v_normal;
in vec2 v_uv;
in vec4 v_light;
out vec4 color;
vec3 shine(vec3 n, vec3 e, vec3 l, vec3 albedo, vec3 radiance) {
    float d = max(dot(n, l), 0.0);
    float s = finish.x * pow(max(dot(n, normalize(l + e)), 0.0), finish.y) * (finish.y + 8.0) * 0.04;
    return radiance * d * (albedo + s);
}
void main() {
    vec3 albedo = texture(picture, v_uv * repeat).rgb * tint;
    vec3 to_eye = eyes[view].xyz - v_point;
    float far = length(to_eye);
    vec3 e = to_eye / far;
    vec3 n = normalize(v_normal);
    if (dot(n, e) < 0.0) n = -n;
#ifdef NEAR_LIGHT
    vec3 l = light.xyz - v_point;
    float fall = 9.0 / (3.0 + dot(l, l));
#else
    vec3 l = light.xyz;
    float fall = 1.0;
#endif
    l = normalize(l);
    vec3 at = v_light.xyz / v_light.w * 0.5 + 0.5;
    float lit = 1.0;
    if (v_light.w > 0.0 && all(greaterThan(at, vec3(0.0))) && all(lessThan(at, vec3(1.0)))) {
        lit = 0.0;
        for (int i = 0; i < 4; i++) {
            vec2 step_ = (vec2(i & 1, i >> 1) - 0.5) * 1.8 / 512.0;
            lit += 0.25 * texture(shadow, vec3(at.xy + step_, at.z - 0.002 - 0.004 * (1.0 - max(dot(n, l), 0.0))));
        }
    }
    vec3 sum = albedo * mix(ambient[0].rgb, ambient[1].rgb, 0.5 + 0.5 * n.z);
#ifdef ROOM
    vec3 below = max(v_point - room[0].xyz, 0.0), above = max(room[1].xyz - v_point, 0.0);
    vec3 edge = exp(-below / 0.35) + exp(-above / 0.35);
    sum *= 1.0 - 0.22 * clamp(edge.x + edge.y + edge.z - 1.0, 0.0, 1.5);
#endif
    sum += shine(n, e, l, albedo, light_color.rgb * lit * fall);
    for (int i = 0; i < LAMPS; i++) {
        vec3 to_lamp = lamps[i].xyz - v_point;
        sum += shine(n, e, normalize(to_lamp), albedo, lamp_colors[i].rgb * 9.0 / (3.0 + dot(to_lamp, to_lamp)));
    }
#ifdef FLASH
    sum += shine(n, e, e, albedo, vec3(flash));
#endif
#ifdef GLOSS
    float grazing = pow(1.0 - max(dot(n, e), 0.0), 5.0);
    sum += finish.x * (0.12 + 0.8 * grazing) * around(reflect(-e, n), clamp(6.0 - finish.y * 0.05, 1.5, 5.0));
#endif
    sum = mix(sum, albedo, finish.z);
#ifdef HAZE
    sum = mix(around(-e, 4.0), sum, exp(-haze * far));
#endif
    color = develop(sum, grades[view]);
}
"""
)

_SKY_VERTEX = """
in vec2 corner;
out vec2 at;
void main() {
    at = corner;
    gl_Position = vec4(corner, 0.999999, 1.0);
}
"""

_SKY_FRAGMENT = (
    _CAMERAS
    + _WORLD
    + _SURROUNDINGS
    + """
in vec2 at;
out vec4 color;
void main() {
#ifdef PANORAMA
    vec4 far = world_from_clip[view] * vec4(at, 1.0, 1.0);
    color = develop(around(normalize(far.xyz / far.w - eyes[view].xyz), 0.0), grades[view]);
#else
    color = develop(mix(backdrop[1].rgb, backdrop[0].rgb, 0.5 + 0.5 * at.y), vec4(1.0));
#endif
}
"""
)

_SHADOW_VERTEX = (
    _WORLD
    + """
uniform mat4 place;
in vec3 point;
void main() { gl_Position = light_from_world * place * vec4(point, 1.0); }
"""
)

_SOURCES = {
    "surface": (_VERTEX, _FRAGMENT),
    "sky": (_SKY_VERTEX, _SKY_FRAGMENT),
    "shadow": (_SHADOW_VERTEX, "void main() {}"),
}


class _Kept(OrderedDict):
    """What was used last, released beyond a number."""

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def fetch(self, key, make):
        if key in self:
            self.move_to_end(key)
            return self[key]
        self[key] = value = make()
        while len(self) > self.most:
            _, old = self.popitem(last=False)
            for thing in old if isinstance(old, (tuple, list)) else [old]:
                thing.release()
        return value


class _Part:
    """A part of a mesh in the memory of OpenGL, with a vertex array for each program that has drawn it."""

    def __init__(self, context, part: Part):
        self.context, self.arrays = context, {}
        self.vertices, self.faces = context.buffer(part.vertices), context.buffer(part.faces)

    def array(self, program):
        if program.glo not in self.arrays:
            whole = ("3f 3f 2f", "point", "normal", "uv") if "normal" in program else ("3f 20x", "point")
            self.arrays[program.glo] = self.context.vertex_array(program, [(self.vertices, *whole)], self.faces)
        return self.arrays[program.glo]

    def release(self) -> None:
        for thing in (*self.arrays.values(), self.vertices, self.faces):
            thing.release()


class Renderer:
    """
    A context of OpenGL with what it has been given to draw. It belongs to the process and thread that made it; see
    [`renderer`].
    """

    def __init__(self):
        self.context = _context()
        self._programs: dict[tuple, Any] = {}
        self._cameras = self.context.buffer(reserve=MAX_VIEWS * 160)
        self._world = self.context.buffer(reserve=_WORLD_FLOATS * 4)
        corners = self.context.buffer(np.array([-1, -1, 3, -1, -1, 3], dtype="f4"))
        self._skies = {
            flags: self.context.vertex_array(self._program("sky", flags), [(corners, "2f", "corner")])
            for flags in ((), ("PANORAMA",))
        }
        self._shadow_map = self.context.depth_texture((_SHADOW_SIZE, _SHADOW_SIZE))
        self._shadow_map.compare_func = "<="
        self._shadow_map.repeat_x = self._shadow_map.repeat_y = False
        self._shadow_frame = self.context.framebuffer(depth_attachment=self._shadow_map)
        self._white = self._texture(np.full((1, 1, 3), 255, dtype=np.uint8))
        self._frames, self._meshes, self._textures = _Kept(6), _Kept(_MESHES_KEPT), _Kept(_TEXTURES_KEPT)

    def draw(
        self,
        drawing: Drawing,
        poses: np.ndarray,
        intrinsics: np.ndarray,
        size: tuple[int, int],
        grades: np.ndarray | None = None,
        smooth: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Draws all views of a world.

        Args:
            drawing (`Drawing`): the world.
            poses (`np.ndarray` of shape `[V, 4, 4]`): world_from_camera, OpenCV axes; at most 64.
            intrinsics (`np.ndarray` of shape `[V, 3, 3]`): normalised by width and height.
            size (`tuple`): height and width in pixels.
            grades (`np.ndarray` of shape `[V, 3]`, *optional*): factors of linear RGB: exposure and white balance.
            smooth (`bool`, defaults to `True`): each pixel is the mean of four. (A software rasteriser is faster at
                four times the pixels than at four samples a pixel.)

        Returns:
            `tuple` of views `[V, H, W, 3]`, uint8, and depth `[V, H, W]`, float32: along the optical axis, infinite
            where nothing stands.
        """
        views, (height, width) = len(poses), size
        if not 0 < views <= MAX_VIEWS:
            raise ValueError(f"`poses` must hold 1 to {MAX_VIEWS} views, got {views}.")
        finer = 2 if smooth else 1
        columns = math.ceil(math.sqrt(views))
        rows = math.ceil(views / columns)
        height, width = height * finer, width * finer
        sides = columns * width, rows * height
        frame = self._frames.fetch(sides, lambda: self._frame(*sides))
        clip = self._set_cameras(poses, intrinsics, grades)
        tiles = [((v % columns) * width, (v // columns) * height, width, height) for v in range(views)]
        flags = self._set_world(drawing)
        frame.use()
        frame.clear(depth=1.0)
        moving = any(item.place.ndim == 3 for item in drawing.items)
        for moment in [[v] for v in range(views)] if moving else [list(range(views))]:
            self._draw_shadows(drawing, moment[0])
            frame.use()
            self._draw_items(drawing, flags, poses, clip, tiles, moment)
            self._draw_sky(flags, tiles, moment)
        pixels = np.frombuffer(frame.read(components=3, alignment=1), dtype=np.uint8)
        depth = np.frombuffer(frame.read(components=1, attachment=-1, dtype="f4", alignment=1), dtype=np.float32)

        def cut(picture):
            picture = picture.reshape(rows, height, columns, width, -1).swapaxes(1, 2)
            return picture.reshape(rows * columns, height, width, -1)[:views]

        pictures, depth = cut(pixels), 2.0 * cut(depth)[:, ::finer, ::finer, 0] - 1.0
        if smooth:
            halves = pictures[:, 0::2].astype(np.uint16) + pictures[:, 1::2]
            pictures = ((halves[:, :, 0::2] + halves[:, :, 1::2] + 2) >> 2).astype(np.uint8)
        with np.errstate(divide="ignore"):
            metric = 2 * NEAR * FAR / (FAR + NEAR - depth * (FAR - NEAR))
        return np.ascontiguousarray(pictures), np.where(depth >= 0.999998, np.inf, metric).astype(np.float32)

    def _frame(self, width: int, height: int):
        context = self.context
        return context.framebuffer(
            [context.renderbuffer((width, height))], context.depth_renderbuffer((width, height))
        )

    def _texture(self, image: np.ndarray, mirrored: bool = True):
        height, width = image.shape[:2]
        if image.shape[-1] == 3:
            image = np.concatenate([image, np.full((height, width, 1), 255, dtype=np.uint8)], axis=-1)
        texture = self.context.texture((width, height), 4, image.tobytes(), internal_format=0x8C43)  # SRGB8_ALPHA8
        texture.build_mipmaps()
        texture.filter = (0x2703, 0x2601)  # linear between mip maps, linear within them
        texture.repeat_x = texture.repeat_y = mirrored
        return texture

    def _set_cameras(self, poses, intrinsics, grades) -> np.ndarray:
        views = len(poses)
        project = np.zeros((views, 4, 4))
        project[:, :2, :3] = 2 * intrinsics[:, :2]
        project[:, :2, 2] -= 1
        project[:, 2, 2], project[:, 2, 3] = (FAR + NEAR) / (FAR - NEAR), -2 * FAR * NEAR / (FAR - NEAR)
        project[:, 3, 2] = 1
        clip = project @ np.linalg.inv(poses)
        block = [np.zeros((MAX_VIEWS, 4, 4), "f4"), np.zeros((MAX_VIEWS, 4, 4), "f4")]
        block += [np.ones((MAX_VIEWS, 4), "f4"), np.ones((MAX_VIEWS, 4), "f4")]
        block[0][:views] = clip.swapaxes(1, 2)
        block[1][:views] = np.linalg.inv(clip).swapaxes(1, 2)
        block[2][:views, :3] = poses[:, :3, 3]
        if grades is not None:
            block[3][:views, :3] = grades
        self._cameras.write(b"".join(x.tobytes() for x in block))
        self._cameras.bind_to_uniform_block(0)
        return clip

    def _program(self, kind: str, flags: tuple[str, ...] = ()):
        """A program that computes what a world has and nothing else: a software rasteriser takes both ways at every
        branch."""
        if (kind, flags) not in self._programs:
            head = "#version 330\n" + "".join(f"#define {flag}\n" for flag in flags)
            vertex, fragment = (head + source for source in _SOURCES[kind])
            program = self.context.program(vertex_shader=vertex, fragment_shader=fragment)
            for name, number in _BINDINGS.items():
                if name in program:
                    binds = "binding" if name in ("Cameras", "World") else "value"
                    setattr(program[name], binds, number)
            self._programs[kind, flags] = program
        return self._programs[kind, flags]

    def _set_world(self, drawing: Drawing) -> tuple[str, ...]:
        """What programs are told of a world; returns what they have to compute."""
        light, lamps = drawing.light, drawing.lamps[:MAX_LAMPS]
        block = np.zeros((_WORLD_FLOATS // 4, 4), dtype="f4")
        block[:4] = _light_matrix(light).T
        block[4, :3], block[5, :3] = light.place, light.color
        block[6:8, :3], block[8:10, :3] = drawing.ambient, drawing.backdrop
        if drawing.room is not None:
            block[10:12, :3] = drawing.room
        for number, (place, color) in enumerate(lamps):
            block[12 + number, :3], block[12 + MAX_LAMPS + number, :3] = place, color
        block[12 + 2 * MAX_LAMPS, :3] = drawing.flash, drawing.haze, drawing.turn
        self._world.write(block.tobytes())
        self._world.bind_to_uniform_block(1)
        if drawing.panorama is not None:
            key, image = drawing.panorama
            self._textures.fetch(key, lambda: self._texture(image)).use(1)
        self._shadow_map.use(2)
        has = {
            "NEAR_LIGHT": light.is_lamp,
            "ROOM": drawing.room is not None,
            "FLASH": drawing.flash > 0,
            "HAZE": drawing.haze > 0,
            "PANORAMA": drawing.panorama is not None,
        }
        return (f"LAMPS {len(lamps)}", *(flag for flag, there in has.items() if there))

    def _parts(self, mesh: Mesh) -> list[_Part]:
        return self._meshes.fetch(mesh.key, lambda: [_Part(self.context, part) for part in mesh.parts])

    def _draw_shadows(self, drawing: Drawing, view: int) -> None:
        context = self.context
        self._shadow_frame.use()
        self._shadow_frame.clear(depth=1.0)
        context.enable_only(context.DEPTH_TEST)
        program = self._program("shadow")
        for item in drawing.items:
            if not item.casts:
                continue
            place = item.place if item.place.ndim == 2 else item.place[view]
            program["place"].write(place.T.astype("f4").tobytes())
            for part in self._parts(item.mesh):
                part.array(program).render()

    def _draw_sky(self, flags: tuple[str, ...], tiles: list[tuple], moment: list[int]) -> None:
        """Where nothing else is."""
        self.context.enable_only(self.context.DEPTH_TEST)
        self._render(self._skies[tuple(flag for flag in flags if flag == "PANORAMA")], tiles, moment)

    def _draw_items(
        self, drawing: Drawing, flags: tuple[str, ...], poses, clip: np.ndarray, tiles: list[tuple], moment: list[int]
    ) -> None:
        """From front to back: what is hidden is not coloured in."""
        self.context.enable_only(self.context.DEPTH_TEST)
        places = [item.place if item.place.ndim == 2 else item.place[moment[0]] for item in drawing.items]
        eye = poses[moment, :3, 3].mean(0)
        reaches = [_reach(eye, place, item.mesh) for place, item in zip(places, drawing.items)]
        for order in np.argsort(reaches, kind="stable"):
            item, place = drawing.items[order], places[order]
            if not _may_see(clip[moment], place, item.mesh).any():
                continue
            surface = self._program("surface", (*flags, "GLOSS") if item.gloss > _LEAST_GLOSS else flags)
            surface["place"].write(place.T.astype("f4").tobytes())
            surface["turned"].write(np.linalg.inv(place[:3, :3]).astype("f4").tobytes())
            surface["repeat"].value = item.repeat
            surface["finish"].value = (item.gloss, item.shininess, item.glow)
            for number, (part, kept) in enumerate(zip(item.mesh.parts, self._parts(item.mesh))):
                seen = [view for view, inside in zip(moment, _may_see(clip[moment], place, part)) if inside]
                if not seen:
                    continue
                self._picture_of(item, part, number).use(0)
                surface["tint"].value = tuple(float(a * b) for a, b in zip(item.tint, part.color))
                self._render(kept.array(surface), tiles, seen)

    def _render(self, array, tiles: list[tuple], views: list[int]) -> None:
        frame, number = self.context.fbo, array.program.get("view", None)
        for view in views:
            frame.viewport = tiles[view]
            if number is not None:  # a plain sky is the same in all
                number.value = view
            array.render()

    def _picture_of(self, item: Item, part, number: int):
        if item.picture is not None:
            key, image = item.picture
            return self._textures.fetch(key, lambda: self._texture(image))
        if part.image is None:
            return self._white
        return self._textures.fetch((item.mesh.key, number), lambda: self._texture(part.image[::-1]))


def box_corners(place: np.ndarray, mesh: Mesh | Part) -> np.ndarray:
    """Corners of the box of a mesh, or of its part, in the world: `[4, 8]`, homogeneous.

    Args:
        place (`np.ndarray` of shape `[4, 4]`): world_from_mesh.
        mesh (`Mesh` or `Part`): what the box is of.
    """
    return place[:, :3] @ np.where(_SIDES, mesh.high[:, None], mesh.low[:, None]) + place[:, 3:]


def _reach(eye: np.ndarray, place: np.ndarray, mesh: Mesh) -> float:
    """How far the farthest corner of a mesh is: walls come after what stands before them."""
    return float(np.linalg.norm(box_corners(place, mesh)[:3] - eye[:, None], axis=0).max())


def _may_see(clip: np.ndarray, place: np.ndarray, mesh: Mesh | Part) -> np.ndarray:
    """Whether the box of a mesh, or of its part, reaches into each view: not if all corners lie beyond one side."""
    points = clip @ box_corners(place, mesh)  # [V, 4, 8]
    x, y, z, w = points.swapaxes(0, 1)
    outside = [(x > w), (x < -w), (y > w), (y < -w), (z < -w)]
    return ~np.any([side.all(-1) for side in outside], axis=0)


def _light_matrix(light: Light) -> np.ndarray:
    """light_from_world `[4, 4]`, in clip space."""
    center, radius = np.asarray(light.center, float), light.radius
    towards = np.asarray(light.place, float) - (center if light.is_lamp else 0.0)
    distance = np.linalg.norm(towards) if light.is_lamp else 2 * radius
    back = towards / max(np.linalg.norm(towards), 1e-9)
    right = np.cross([0.0, 1.0, 0.0] if abs(back[2]) > 0.9 else [0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(back, right), -back])
    view = np.eye(4)
    view[:3, :3], view[:3, 3] = rotation, -rotation @ (center + back * distance)
    near, far = max(distance - 1.5 * radius, 0.1), distance + 1.5 * radius
    matrix = np.zeros((4, 4))
    if light.is_lamp:
        focal = 1 / math.tan(min(math.radians(70), math.atan2(radius, distance)))
        matrix[0, 0] = matrix[1, 1] = focal
        matrix[2, 2:] = (far + near) / (far - near), -2 * far * near / (far - near)
        matrix[3, 2] = 1
    else:
        matrix[0, 0] = matrix[1, 1] = 1 / radius
        matrix[2, 2:] = 2 / (far - near), -(far + near) / (far - near)
        matrix[3, 3] = 1
    return matrix @ view


def _context():
    try:
        import moderngl
    except ImportError as error:
        raise ImportError("Drawn worlds need OpenGL: pip install 'kaleido-diffusers[worlds]'.") from error
    os.environ.setdefault("LP_NUM_THREADS", "0")  # one core for each process that draws
    try:
        return moderngl.create_standalone_context(backend="egl", require=330)
    except Exception as error:  # moderngl raises bare exceptions
        raise ImportError(
            f"Drawn worlds need EGL: on Debian and Ubuntu, apt install libegl1 libgl1-mesa-dri ({error})."
        ) from error


_RENDERERS: dict[int, Renderer] = {}


def renderer() -> Renderer:
    """The renderer of this process, made at the first call. Raises `ImportError` that says what to install."""
    process = os.getpid()
    if process not in _RENDERERS:
        _RENDERERS.clear()
        _RENDERERS[process] = Renderer()
    return _RENDERERS[process]
