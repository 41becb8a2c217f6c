"""Builds worlds to draw out of assets: things on a table, rooms, places outdoors, scene files, photos in depth."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from .assets import Assets, Mesh, MeshFile, load_mesh, load_picture, shape
from .drawing import Drawing, Item, Light, box_corners


__all__ = ["KINDS", "Stage", "build_stage"]

# Words in names of meshes: what a thing is for, and how long its longest side is, in metres. The first that fits.
# fmt: off
_THINGS = (
    (("ceiling", "roomwall", "floor_01_walls", "roof",
      "track_0", "walkway", "roomwindow", "elevator", "passage"), "", 0),
    (("garage_door", "foldingdoor", "turn_window",
      "box_room", "retailshopwall", "internal_unity", "islandext"), "", 0),
    (("apartment", "fire_station", "police_station", "post_office",
      "salon", "thrift", "reactor", "house_"), "building", 14),
    (("water_tower", "gazebo__gazebo", "pier", "childhut", "stairs"), "building", 7),
    (("contemp_living", "dining_room"), "set", 3.2),
    (("ambulance", "truck", "ranger", "scenic", "swimming_pool"), "vehicle", 4.6),
    (("yamaha", "bicycle", "mower"), "vehicle", 1.9),
    (("cypress", "palmeto", "hedge", "yucca"), "plant", 2.6),
    (("fountain", "billboard", "fence", "parque", "stop_light", "racestart"), "outdoor", 3.0),
    (("barrier", "hydrant", "postbox", "pipe", "stopsign",
      "cone", "stonepier", "lantern", "cinder", "dumpster"), "outdoor", 1.1),
    (("rock", "crate", "barrel", "ammobox", "brick_box", "bucket", "clutter", "basketball_net"), "outdoor", 0.9),
    (("child_swing", "sandpit", "umbrella", "hammock", "beach_chair", "deckchair", "chair_deck"), "outdoor", 1.8),
    (("boylying", "lyingdown"), "person", 1.6),
    (("sitting", "sitfemale", "sitmale", "boysitting"), "person", 1.25),
    (("boystanding", "girlstanding"), "person", 1.25),
    (("female", "male0", "holdingmale"), "person", 1.72),
    (("siamesecat", "__cat", "chicken"), "animal", 0.5),
    (("dog",), "animal", 0.8),
    (("horse",), "animal", 2.2),
    (("portrait", "frame1", "frame2", "flat_tv",
      "bookstorelogo", "kalender", "dart_game", "water_heater"), "wall", 0.8),
    (("curtain", "rangehood", "air_cond"), "wall", 1.6),
    (("coffeetable", "rattantable", "bedside", "children_table", "balconytable"), "table", 0.9),
    (("table_tennis",), "table", 2.5),
    (("table_lamp", "littlebank", "tablet", "table_lamp"), "small", 0.4),
    (("table", "desk", "bench"), "table", 1.5),
    (("bed1", "bed_01", "futon", "convertible_sofa"), "furniture", 2.1),
    (("sofa", "couch"), "furniture", 1.9),
    (("chair", "seat"), "furniture", 0.95),
    (("wardrobe", "bookcase", "shelf", "refrigerator",
      "cabinet", "japanese_style", "livingroom_lamp", "door"), "furniture", 1.9),
    (("fireplace", "cookingbench", "counter", "fitness",
      "shoerack", "chest", "water_cooler", "flipper"), "furniture", 1.3),
    (("nursesstation", "hanging_clothes", "punching", "aquarium", "doll_house"), "furniture", 1.5),
    (("mat", "carpet", "tatami", "sock", "jupe", "robe", "gant", "chaussette"), "flat", 0.9),
    (("trash", "basket", "broom", "heater", "plant",
      "maceta", "bin", "robot", "console", "steampunk"), "furniture", 0.8),
)
# fmt: on
# Words in names of pictures that suit a ground, a floor, a wall, and that do not repeat.
_GROUNDS = (
    "grass",
    "gravel",
    "mud",
    "tarmac",
    "rock",
    "brick",
    "concrete",
    "rubble",
    "sand",
    "pavement",
    "dji_",
    "sp2_dn",
    "simple_box",
    "auto_21_2",
    "auto_23",
    "bark",
)  # fmt: skip
_FLOORS = (
    "wood", "floor", "tile", "marble", "plywood", "concrete", "carpet", "parquet", "auto_37", "auto_21_2", "auto_23",
    "metal_grill", "rock_1",
)  # fmt: skip
_WALLS = (
    "wall", "brick", "concrete", "marble", "plaster", "wood", "simple_box", "auto_20", "auto_22", "auto_26", "jersey",
    "fountain_d", "market", "panels", "plates", "garage_red", "bark", "rock_1",
)  # fmt: skip
_ATLASES = (
    "sh3d_",
    "_diffuse",
    "wheels",
    "webxr_",
    "rover",
    "console",
    "car_wheel",
    "furniture_",
    "forearm",
    "_doorway",
)
_TILES_ALL_THE_SAME = ("bark_diffuse", "fountain_diffuse", "rubble_diffuse", "pier_diffuse")
_INDOORS = (
    "studio", "workshop", "shop", "interior", "hall", "cellar", "arena", "chapel", "rotunda", "warehouse", "room",
    "powerplant", "apartment", "lebombo", "courtyard", "market", "kitchen",
)  # fmt: skip
_UP = np.array([0.0, 0.0, 1.0])


@dataclass
class Stage:
    """A world, and where cameras may stand.

    Attributes:
        drawing (`Drawing`): the world.
        stand (`Callable`): draws the place of a camera and the point that it looks at from a random generator.
        fov (`tuple`): least and greatest field of view in degrees.
        low (`np.ndarray` of shape `[3]`): least corner of where cameras may be.
        high (`np.ndarray` of shape `[3]`): greatest corner.
        movers (`list[int]`): items that may move.
        needs_search (`bool`): whether most places are bad, so that many are tried at a small size first.
    """

    drawing: Drawing
    stand: Callable
    fov: tuple[float, float] = (30.0, 65.0)
    low: np.ndarray = field(default_factory=lambda: np.full(3, -1e3))
    high: np.ndarray = field(default_factory=lambda: np.full(3, 1e3))
    movers: list[int] = field(default_factory=list)
    needs_search: bool = False


def build_stage(kind: str, assets: Assets, rng: np.random.Generator, pixels: int = 256) -> Stage:
    """
    A world of a kind.

    Args:
        kind (`str`): one of `KINDS`.
        assets (`Assets`): what it may show; plain colours and simple shapes stand in for what is missing.
        rng (`np.random.Generator`): decides it.
        pixels (`int`, defaults to `256`): most pixels along a texture.
    """
    return KINDS[kind](_Builder(assets, rng, pixels))


def _place(position, angle: float = 0.0, scale=1.0, tilt: float = 0.0) -> np.ndarray:
    """world_from_mesh: scaled, leaned about x, turned about z, moved."""
    c, s, ct, st = math.cos(angle), math.sin(angle), math.cos(tilt), math.sin(tilt)
    matrix = np.eye(4)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, ct, -st], [0, st, ct]])
    matrix[:3, :3] = turn * np.broadcast_to(np.asarray(scale, float), 3)
    matrix[:3, 3] = position
    return matrix


def _upright(position, right, width: float, height: float) -> np.ndarray:
    """world_from_mesh of a plane that stands: `right` is its horizontal direction, its picture upright."""
    matrix = np.eye(4)
    right = np.asarray(right, float)
    matrix[:3, 0], matrix[:3, 1] = right * width, _UP * height
    matrix[:3, 2] = np.cross(right, _UP)
    matrix[:3, 3] = position
    return matrix


@cache
def thing_of(file: MeshFile) -> tuple[str, float]:
    """What a mesh is for, by its name, and the length of its longest side in metres."""
    name = file.path.stem.lower()
    for words, role, length in _THINGS:
        if any(word in name for word in words):
            return role, length
    return "small", 0.25


@lru_cache(maxsize=64)
def _tiles(assets: Assets, words: tuple[str, ...] = ()) -> list[Path]:
    """Pictures that may cover a surface: no sheets of many small pictures; with `words`, those of such a name."""
    pictures = assets.textures + assets.photos if words else assets.textures
    fine = [p for p in pictures if not any(w in p.stem for w in _ATLASES) or p.stem.endswith(_TILES_ALL_THE_SAME)]
    return [p for p in fine if not words or any(w in p.stem for w in words)]


@lru_cache(maxsize=64)
def _meshes(assets: Assets, roles: tuple[str, ...]) -> list[MeshFile]:
    """Meshes of these roles."""
    return [file for file in assets.meshes if thing_of(file)[0] in roles]


class _Builder:
    """Draws of one world from its assets."""

    def __init__(self, assets: Assets, rng: np.random.Generator, pixels: int):
        self.assets, self.rng, self.pixels = assets, rng, pixels
        self.items: list[Item] = []
        self.boxes: list[np.ndarray] = []  # [2, 3] low and high, of what stands

    # Random draws

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def one_of(self, things):
        return things[int(self.rng.integers(len(things)))]

    def color(self, low: float = 0.05, high: float = 0.9, calm: bool = False) -> np.ndarray:
        """Linear RGB: a grey level with some hue."""
        level = self.between(low**0.5, high**0.5) ** 2
        hue = self.rng.normal(0, 0.12 if calm else 0.22 if self.chance(0.75) else 0.5, 3)
        return np.clip(level * np.exp(hue - hue.mean()), 0.01, 0.95)

    # Pictures

    def picture(self, path: Path, longest: int | None = None) -> tuple:
        longest = longest or self.pixels
        image = load_picture(path, longest)
        return (str(path), longest), image[::-1]

    def surface(self, words: tuple[str, ...] = (), strict: float = 0.92) -> tuple | None:
        """A picture for a surface, mostly one with such a name."""
        pool = _tiles(self.assets)
        if words and self.chance(strict):
            pool = _tiles(self.assets, words) or pool
        elif self.chance(0.35):
            pool = self.assets.photos or pool
        pool = pool or self.assets.photos
        return self.mirrored(self.picture(self.one_of(pool))) if pool else None

    def mirrored(self, picture: tuple) -> tuple:
        """A picture beside its mirror images, so that it repeats without seams."""
        key, image = picture
        image = np.concatenate([image, image[:, ::-1]], axis=1)
        return ("mirrored", key), np.concatenate([image, image[::-1]], axis=0)

    def photo(self) -> tuple | None:
        pool = self.assets.photos or self.assets.textures
        return self.picture(self.one_of(pool)) if pool else None

    def panorama(self, outdoors: bool = False) -> tuple | None:
        if not self.assets.panoramas:
            return None
        pool = self.assets.panoramas
        if outdoors:
            pool = [path for path in pool if not any(word in path.stem for word in _INDOORS)] or pool
        path = self.one_of(pool)
        return (str(path), "panorama"), load_picture(path, 1024)

    # Things

    def finish(self) -> dict:
        """Gloss and shininess: mostly dull, sometimes shiny."""
        kind = self.rng.random()
        if kind < 0.6:
            return {"gloss": self.between(0.0, 0.08), "shininess": self.between(5, 20)}
        if kind < 0.88:
            return {"gloss": self.between(0.08, 0.3), "shininess": self.between(15, 60)}
        return {"gloss": self.between(0.3, 0.8), "shininess": self.between(30, 100)}

    def solid(self, photo_share: float = 0.8) -> tuple[Mesh, dict]:
        """A simple shape in a photo or a colour."""
        name = self.one_of(("box", "box", "ball", "can", "cone", "ring", "lathe", "lathe", "blob", "blob"))
        picture = self.surface() if self.chance(photo_share) else None
        look = {"picture": picture, **self.finish()}
        look["tint"] = tuple(self.color(0.1, 0.9)) if picture is None else (1.0, 1.0, 1.0)
        if picture is not None and self.chance(0.4):
            look["repeat"] = (self.between(0.4, 2.0),) * 2
        return shape(name, int(self.rng.integers(24)) if name in ("lathe", "blob") else 0), look

    def thing(self, roles: tuple[str, ...], solids: float = 0.0) -> tuple[Mesh, dict, float]:
        """A mesh of some role, or a simple shape, with its length in metres."""
        pool = _meshes(self.assets, roles)
        if not pool or self.chance(solids):
            mesh, look = self.solid()
            return mesh, look, self.between(0.2, 0.5)
        file = self.one_of(pool)
        look = {"gloss": self.between(0, 0.25), "shininess": self.between(8, 50)}
        if self.chance(0.25):
            look["tint"] = tuple(np.clip(self.rng.normal(0.9, 0.15, 3), 0.3, 1.3))
        return load_mesh(file, self.pixels), look, thing_of(file)[1] * self.between(0.85, 1.15)

    def stand_on(
        self, mesh: Mesh, look: dict, position, length: float, angle: float, fixed: bool = False
    ) -> np.ndarray:
        """Puts a mesh on a point, its longest side `length`; returns its box in the world `[2, 3]`."""
        extent = mesh.high - mesh.low
        scale = length / max(extent.max(), 1e-9)
        if mesh.key.split(":")[0] in ("box", "can", "lathe", "ring") and not fixed:
            scale = scale * self.rng.uniform(0.45, 1.0, 3)
        place = _place((0, 0, 0), angle, scale)
        middle = np.array([*(mesh.low + mesh.high)[:2] / 2, mesh.low[2]])
        place[:3, 3] = np.asarray(position, float) - place[:3, :3] @ middle
        self.items.append(Item(mesh, place, **look))
        box = _box_of(mesh, place)
        self.boxes.append(box)
        return box

    def fits(self, center, radius: float, slack: float = 0.0) -> bool:
        """Whether a disc around a point keeps away from the boxes of what stands."""
        for low, high in self.boxes:
            nearest = np.clip(center[:2], low[:2], high[:2])
            if np.linalg.norm(nearest - center[:2]) < radius - slack:
                return False
        return True

    def block(self, low, high, **look) -> Item:
        """A box with these corners."""
        low, high = np.asarray(low, float), np.asarray(high, float)
        item = Item(shape("box"), _place((low + high) / 2, 0.0, high - low), **look)
        self.items.append(item)
        return item

    # Light

    def daylight(self, panorama: tuple | None, center, radius: float) -> tuple[Light, np.ndarray]:
        """A sun and the light of the sky, tinted like the surroundings."""
        azimuth, height = self.between(0, 2 * math.pi), self.between(0.35, 1.3)
        towards = np.array(
            [math.cos(azimuth) * math.cos(height), math.sin(azimuth) * math.cos(height), math.sin(height)]
        )
        mean = np.ones(3)
        if panorama is not None:
            mean = (panorama[1][::8, ::8].reshape(-1, 3) / 255.0).mean(0) ** 2.2
            mean = np.clip(mean / mean.mean(), 0.75, 1.3)
        soft = self.rng.random()  # from hard sun to an overcast sky
        sun = (0.25 + 1.0 * (1 - soft)) * np.clip(self.rng.normal([1.03, 1.0, 0.95], 0.03), 0.7, 1.3)
        sky = (0.35 + 0.35 * soft) * mean
        ambient = np.stack([sky * self.between(0.45, 0.8), sky])
        return Light(towards, sun, False, np.asarray(center, float), radius), ambient

    def lamps_around(self, reach: float, count: int) -> list[tuple]:
        lamps = []
        for _ in range(count):
            angle, strength = self.between(0, 2 * math.pi), self.between(0.1, 0.45)
            warm = np.clip(self.rng.normal([1.0, 0.92, 0.82], 0.08), 0.4, 1.2)
            place = (reach * math.cos(angle), reach * math.sin(angle), self.between(0.5, 1.5) * reach)
            lamps.append((np.array(place), strength * warm))
        return lamps


def _box_of(mesh: Mesh, place: np.ndarray) -> np.ndarray:
    corners = box_corners(place, mesh)[:3]
    return np.stack([corners.min(-1), corners.max(-1)])


# Things on the ground, on a table, or on a plain background


def _objects(b: _Builder) -> Stage:
    style = b.rng.choice(["ground", "table", "corner", "sheet", "void"], p=[0.22, 0.3, 0.16, 0.1, 0.22])
    crowd = (
        1
        if style == "void" and b.chance(0.7)
        else int(b.rng.choice([1, 2, 3, 4, 6, 9], p=[0.25, 0.2, 0.2, 0.15, 0.1, 0.1]))
    )
    _scatter(b, crowd)
    boxes = np.array(b.boxes)
    low, high = boxes[:, 0].min(0), boxes[:, 1].max(0)
    movers = list(range(len(b.items)))
    panorama = b.panorama() if b.chance(0.7 if style != "void" else 0.3) else None
    backdrop = _plain_backdrop(b) if panorama is None else np.full((2, 3), 0.4)
    walled = panorama is None or b.chance(0.5)
    if style == "ground" and panorama is None:
        _sweep(b, backdrop)
    elif style != "void":
        {"ground": _ground, "table": _table, "corner": _corner, "sheet": _sheet}[style](b, low, high, walled)
    reach = float(np.linalg.norm(high - low) / 2)
    center = (low + high) / 2
    light, ambient = b.daylight(panorama, center, max(reach * 1.8, 0.6))
    flash = b.between(0.3, 0.8) if b.chance(0.12) else 0.0
    if flash:
        light.color, ambient = light.color * 0.3, ambient * 0.5
    drawing = Drawing(
        b.items, light, ambient, b.lamps_around(3 * reach, int(b.rng.integers(0, 3))), flash, panorama,
        b.between(0, 6.28), backdrop,
    )  # fmt: skip
    close = b.between(0.62, 1.35)
    elevations = (-0.15, 0.9) if style == "void" else (0.12, 0.9)

    def stand(rng, fov):
        azimuth, elevation = rng.uniform(0, 2 * math.pi), rng.uniform(*elevations)
        direction = [
            math.cos(azimuth) * math.cos(elevation),
            math.sin(azimuth) * math.cos(elevation),
            math.sin(elevation),
        ]
        distance = close * reach / math.tan(math.radians(fov) / 2) + 0.3 * reach
        focus = center + rng.uniform(-0.25, 0.25, 3) * reach * [1, 1, 0.5]
        return focus + distance * np.array(direction), focus

    floor = -1e3 if style == "void" else 0.05
    return Stage(drawing, stand, (25, 62), np.array([-1e3, -1e3, floor]), movers=movers)


def _scatter(b: _Builder, count: int) -> None:
    """Things of tabletop size around the origin, standing on z = 0, the first the largest."""
    scale = b.between(0.8, 1.2)
    big = ("small", "animal", "person", "furniture", "outdoor", "plant", "vehicle", "table", "building")
    for number in range(count):
        mesh, look, _ = b.thing(big if number == 0 or b.chance(0.3) else ("small",), 0.3)
        length = scale * (b.between(0.8, 1.1) if number == 0 else b.between(0.25, 0.8))
        spin = b.between(0, 2 * math.pi)
        extent = (mesh.high - mesh.low) / max((mesh.high - mesh.low).max(), 1e-9) * length
        radius = float(np.linalg.norm(extent[:2]) / 2)
        for attempt in range(30):
            away = 0.0 if number == 0 else b.between(0.2, 0.5 + 0.04 * attempt)
            angle = b.between(0, 2 * math.pi)
            position = np.array([away * math.cos(angle), away * math.sin(angle), 0.0])
            if b.fits(position, radius, 0.15 * radius):
                b.stand_on(mesh, look, position, length, spin)
                break


def _plain_backdrop(b: _Builder) -> np.ndarray:
    kind = b.rng.random()
    if kind < 0.35:
        return np.full((2, 3), b.between(0.85, 2.5))
    if kind < 0.6:
        return np.full((2, 3), b.between(0.0, 0.02))
    color = b.color(0.05, 0.8)
    return np.stack([color, color * b.between(0.5, 1.3)])


def _plane_look(b: _Builder, words: tuple[str, ...], size: float, plain: float = 0.12, period=None) -> dict:
    """A floor or a wall: a picture repeated every so many units, or a plain colour."""
    picture = None if b.chance(plain) else b.surface(words)
    if picture is None:
        return {"tint": tuple(b.color(0.2, 0.85, b.chance(0.85))), "gloss": b.between(0, 0.15), "shininess": 30.0}
    height, width = picture[1].shape[:2]
    period = 2 * (period or b.between(0.8, 2.2))  # the picture and its mirror image
    repeat = (size / period * min(1.0, height / width), size / period * min(1.0, width / height))
    tint = tuple(np.clip(b.between(0.7, 1.3) * np.exp(b.rng.normal(0, 0.1, 3)), 0.3, 1.5))
    return {
        "picture": picture, "repeat": repeat, "tint": tint, "gloss": b.between(0, 0.12),
        "shininess": b.between(10, 60),
    }  # fmt: skip


def _ground(b: _Builder, low, high, _walled) -> None:
    size = 60.0 if b.chance(0.6) else b.between(2.5, 6.0) * float(np.linalg.norm((high - low)[:2]))
    look = _plane_look(b, _GROUNDS + _FLOORS, size)
    b.items.append(Item(shape("plane"), _place((0, 0, 0), b.between(0, 6.28), size), **look, casts=False))


def _sweep(b: _Builder, backdrop: np.ndarray) -> None:
    """A ground of the colour of the background, as under photos of products."""
    tint = tuple(np.clip(backdrop[0] * 1.15, 0.02, 1.2))
    b.items.append(Item(shape("plane"), _place((0, 0, 0), 0, 60.0), tint=tint, gloss=0.02, glow=0.4, casts=False))


def _table(b: _Builder, low, high, walled: bool) -> None:
    reach = float(np.abs(np.concatenate([low[:2], high[:2]])).max())
    wide, deep, thick = reach + b.between(0.1, 1.2), reach + b.between(0.1, 0.8), b.between(0.03, 0.1)
    look = _plane_look(b, _FLOORS, 1.0, 0.2)
    look["repeat"] = (b.between(0.8, 2.0),) * 2
    round_top = b.chance(0.3)
    top = Item(
        shape("can" if round_top else "box"), _place((0, 0, -thick / 2), 0, (2 * wide, 2 * deep, thick)), **look
    )
    b.items.append(top)
    tall = b.between(1.2, 2.0)
    legs = [(0, 0)] if round_top else [(x * 0.9, y * 0.9) for x in (-1, 1) for y in (-1, 1)]
    for x, y in legs:
        x, y, half = x * wide, y * deep, 0.12 if round_top else 0.05
        b.block((x - half, y - half, -tall), (x + half, y + half, -thick), **{**look, "repeat": (0.2, 1.0)})
    floor = _plane_look(b, _FLOORS, 16.0, 0.2)
    b.items.append(Item(shape("plane"), _place((0, 0, -tall), b.between(0, 6.28), 16.0), **floor, casts=False))
    if walled:
        _two_walls(b, 3.5 + reach, -tall, 5.0)
    for _ in range(int(b.rng.integers(0, 4))):
        mesh, look, length = b.thing(("furniture", "table", "plant"), 0.0)
        angle = b.between(0, 6.28)
        away = np.array([math.cos(angle), math.sin(angle)]) * (max(wide, deep) * 1.4 + length)
        b.stand_on(mesh, look, (*away, -tall), length * 1.5, b.between(0, 6.28))


def _two_walls(b: _Builder, away: float, floor: float, tall: float) -> None:
    angle = b.between(0, 2 * math.pi)
    for turn in (0.0, math.pi / 2):
        right = np.array([math.cos(angle + turn), math.sin(angle + turn), 0.0])
        back = np.array([right[1], -right[0], 0.0])
        look = _plane_look(b, _WALLS, 2 * away, 0.5)
        look["repeat"] = (look.get("repeat", (1, 1))[0], look.get("repeat", (1, 1))[1] * tall / (2 * away))
        place = _upright(-back * away * (1 if turn else -1) + _UP * (floor + tall / 2), right, 3 * away, tall)
        b.items.append(Item(shape("plane"), place, **look, casts=False))
        for _ in range(int(b.rng.integers(0, 3))):
            _hang(b, -back * (away - 0.03) * (1 if turn else -1), right, away, floor + tall * b.between(0.45, 0.7))


def _hang(b: _Builder, wall, right, reach: float, height: float, largest: float = 1.0) -> None:
    """A photo in a frame on a wall."""
    picture = b.photo()
    if picture is None:
        return
    tall = b.between(0.35, 1.0) * largest
    wide = tall * picture[1].shape[1] / picture[1].shape[0]
    middle = wall + right * b.between(-0.7, 0.7) * reach + _UP * height
    inward = -wall / max(np.linalg.norm(wall), 1e-9)
    frame = np.eye(4)
    frame[:3, 0], frame[:3, 1], frame[:3, 2] = right * (wide + 0.08), _UP * (tall + 0.08), inward * 0.03
    frame[:3, 3] = middle
    b.items.append(Item(shape("box"), frame, tint=tuple(b.color(0.02, 0.8)), gloss=0.1, casts=False))
    mirrored = right if np.cross(right, _UP) @ inward > 0 else -right
    b.items.append(
        Item(shape("plane"), _upright(middle + inward * 0.02, mirrored, wide, tall), picture, gloss=0.05, casts=False)
    )


def _corner(b: _Builder, low, high, _walled) -> None:
    away = float(np.abs(np.concatenate([low[:2], high[:2]])).max()) + b.between(0.3, 2.0)
    look = _plane_look(b, _FLOORS, 20.0)
    b.items.append(Item(shape("plane"), _place((0, 0, 0), b.between(0, 6.28), 20.0), **look, casts=False))
    _two_walls(b, away, 0.0, b.between(2.0, 4.0))


def _sheet(b: _Builder, low, high, walled: bool) -> None:
    """A cushioned surface, like a bed: a plane with soft bumps under the things."""
    reach = float(np.abs(np.concatenate([low[:2], high[:2]])).max()) * b.between(1.8, 3.5)
    look = _plane_look(b, (), 2 * reach, 0.3)
    place = _place((0, 0, -0.02), b.between(0, 6.28), (2 * reach, 2 * reach, reach * 0.16))
    b.items.append(Item(shape("sheet", int(b.rng.integers(24))), place, **look, casts=False))
    floor = _plane_look(b, _FLOORS, 16.0, 0.2)
    b.items.append(Item(shape("plane"), _place((0, 0, -0.6), 0, 16.0), **floor, casts=False))
    if walled:
        _two_walls(b, 1.2 * reach + 0.5, -0.6, 4.0)


# Rooms


def _rooms(b: _Builder) -> Stage:
    half, tall = np.array([b.between(1.6, 3.6), b.between(1.6, 3.6)]), b.between(2.35, 3.1)
    panorama = b.panorama()
    windows = _shell(b, half, tall)
    shell = len(b.items)
    _furnish(b, half)
    movers = [n for n in range(shell, len(b.items)) if b.items[n].casts]
    for wall, right, reach in _walls_of(half):
        for _ in range(int(b.rng.choice([0, 1, 2, 3], p=[0.3, 0.35, 0.25, 0.1]))):
            if all(np.linalg.norm(wall - other) > 0.1 for other in windows):
                _hang(b, wall * (1 - 0.02 / np.linalg.norm(wall)), right, reach, b.between(1.3, 1.8), 0.9)
    lamp = np.array([b.between(-0.5, 0.5), b.between(-0.5, 0.5), 0]) * [*half, 0] + _UP * (tall - 0.15)
    color = np.clip(b.rng.normal([1.0, 0.95, 0.88], 0.05), 0.5, 1.2)
    light = Light(lamp, color * b.between(0.3, 0.8), True, np.array([0, 0, 0.4]), float(half.max()) * 1.2)
    sky = color * b.between(0.4, 0.65)
    lamps = [(wall * 0.85 + _UP * 1.6, np.array([0.95, 1.0, 1.05]) * b.between(0.25, 0.6)) for wall in windows]
    if b.chance(0.4):
        corner = np.array([*(half * 0.8 * b.rng.choice([-1, 1], 2)), 1.3])
        lamps.append((corner, np.array([1.0, 0.85, 0.65]) * b.between(0.1, 0.4)))
    room = np.array([[*-half, 0], [*half, tall]])
    drawing = Drawing(
        b.items, light, np.stack([sky * 0.75, sky]), lamps, 0.0, panorama, b.between(0, 6.28), room=room,
        backdrop=np.full((2, 3), b.between(0.5, 0.9)),
    )  # fmt: skip
    inside = np.array([*(half - 0.25), 0])
    targets = [box.mean(0) for box in b.boxes] or [np.array([0, 0, 0.8])]
    boxes = np.array(b.boxes).reshape(-1, 2, 3)

    def stand(rng, _fov):
        eye = np.append(rng.uniform(-1, 1, 2) * inside[:2], rng.uniform(0.7, 1.75))
        for _ in range(20):
            if not ((eye > boxes[:, 0] - 0.2) & (eye < boxes[:, 1] + 0.2)).all(-1).any():
                break
            eye = np.append(rng.uniform(-1, 1, 2) * inside[:2], rng.uniform(0.7, 1.75))
        far = [target for target in targets if np.linalg.norm(target - eye) > 1.0] or targets
        focus = far[int(rng.integers(len(far)))] + rng.normal(0, 0.2, 3)
        return eye, np.clip(focus, -np.append(half, -0.2), np.append(half, tall))

    low, high = np.append(-half + 0.15, 0.3), np.append(half - 0.15, tall - 0.2)
    return Stage(drawing, stand, (40, 85), low, high, movers, needs_search=True)


def _walls_of(half):
    """Middle of the foot of each wall, its horizontal direction, and half its length."""
    for axis in range(2):
        for sign in (-1, 1):
            wall, right = np.zeros(3), np.zeros(3)
            wall[axis], right[1 - axis] = sign * half[axis], 1.0
            yield wall, right, float(half[1 - axis])


def _shell(b: _Builder, half, tall: float) -> list[np.ndarray]:
    """Floor, ceiling and walls, some with windows; the walls that have one."""
    floor = _plane_look(b, _FLOORS, 2 * half.max(), 0.08)
    b.items.append(Item(shape("plane"), _place((0, 0, 0), 0, 2 * half.max()), **floor, casts=False))
    white = tuple(np.clip(b.rng.normal(0.8, 0.06) * np.ones(3), 0.5, 0.95))
    b.items.append(Item(shape("plane"), _place((0, 0, tall), 0, 2 * half.max()), tint=white, gloss=0, casts=False))
    common = _plane_look(b, _WALLS, 1.0, 0.55, period=1.0)
    period, windows = b.between(1.2, 3.0), []
    skirting = tuple(b.color(0.3, 0.9, True))
    for wall, right, reach in _walls_of(half):
        look = _plane_look(b, _WALLS, 1.0, 0.4, period=1.0) if b.chance(0.2) else common
        hole = None
        if len(windows) < 2 and b.chance(0.4):
            wide = b.between(0.35, min(0.95, reach * 0.7))
            middle = b.between(-1, 1) * (reach - wide - 0.2)
            hole = (middle - wide, middle + wide, b.between(0.5, 1.0), b.between(1.9, tall - 0.15))
            windows.append(wall)
            _window_frame(b, wall, right, hole)
        _wall(b, wall, right, reach, tall, hole, look, period)
        low, high = wall - right * reach, wall + right * reach + _UP * 0.09
        out = wall / np.linalg.norm(wall) * 0.015
        b.block(np.minimum(low, high) - abs(out), np.maximum(low, high) + abs(out), tint=skirting, casts=False)
    return windows


def _wall(b: _Builder, wall, right, reach: float, tall: float, hole, look: dict, period: float) -> None:
    """A wall as one plane, or four around a hole; the picture goes on over them."""
    pieces = [(-reach, reach, 0.0, tall)]
    if hole is not None:
        left, end, sill, head = hole
        pieces = [(-reach, left, 0, tall), (end, reach, 0, tall), (left, end, 0, sill), (left, end, head, tall)]
    for left, end, low, high in pieces:
        middle = wall + right * (left + end) / 2 + _UP * (low + high) / 2
        here = dict(look)
        if "picture" in look:
            ratio = look["picture"][1].shape[1] / look["picture"][1].shape[0]
            here["repeat"] = ((end - left) / period / max(ratio, 1), (high - low) / period * min(ratio, 1))
        b.items.append(Item(shape("plane"), _upright(middle, right, end - left, high - low), **here, casts=False))


def _window_frame(b: _Builder, wall, right, hole) -> None:
    left, end, sill, head = hole
    out, tint = wall / np.linalg.norm(wall), tuple(b.color(0.4, 0.95))
    bars = [(left, left, sill, head), (end, end, sill, head), (left, end, sill, sill), (left, end, head, head)]
    bars.append(((left + end) / 2, (left + end) / 2, sill, head))
    for a, z, low, high in bars:
        corners = np.stack([wall + right * a + _UP * low, wall + right * z + _UP * high])
        pad = 0.03 * (np.abs(right) + _UP) + 0.05 * np.abs(out)
        b.block(corners.min(0) - pad, corners.max(0) + pad, tint=tint, gloss=0.1, casts=False)


def _furnish(b: _Builder, half) -> None:
    """Furniture along the walls and in the middle, small things on what is like a table."""
    if b.chance(0.4):
        look = _plane_look(b, (), 1.0, 0.2)
        look["repeat"] = (1.0, 1.0)
        size = (b.between(1.2, 2.4), b.between(0.9, 1.8), 1)
        b.items.append(
            Item(shape("plane"), _place((0, 0, 0.006), b.one_of((0, math.pi / 2)), size), **look, casts=False)
        )
    for number in range(int(b.rng.integers(4, 11))):
        roles = (
            ("table",) if number in (0, 3) else ("furniture", "furniture", "table", "plant", "person", "animal", "set")
        )
        mesh, look, length = b.thing(tuple(roles) if number == 0 else (b.one_of(roles),), 0.05)
        extent = (mesh.high - mesh.low) / max((mesh.high - mesh.low).max(), 1e-9) * length
        quarter = int(b.rng.integers(4))
        wide = extent[[1, 0]] / 2 if quarter % 2 else extent[:2] / 2
        for _ in range(12):
            position = b.rng.uniform(-1, 1, 2) * np.maximum(half - wide - 0.05, 0)
            if number and b.chance(0.75):
                axis, sign = int(b.rng.integers(2)), b.one_of((-1, 1))
                position[axis] = sign * max(half[axis] - wide[axis] - 0.03, 0)
            if (wide < half).all() and _clear(b, position, wide):
                box = b.stand_on(mesh, look, (*position, 0.0), length, quarter * math.pi / 2, fixed=True)
                if roles == ("table",) or (extent[2] < 1.1 and b.chance(0.3)):
                    _clutter(b, box)
                break


def _clear(b: _Builder, position, half_size) -> bool:
    low, high = position - half_size, position + half_size
    return not any((low < box[1][:2]).all() and (high > box[0][:2]).all() for box in b.boxes)


def _clutter(b: _Builder, table: np.ndarray) -> None:
    """Small things on the top of a box."""
    placed: list[tuple] = []
    room = (table[1] - table[0])[:2] / 2
    for _ in range(int(b.rng.integers(1, 7))):
        mesh, look, length = b.thing(("small",), 0.3)
        length = min(length * b.between(0.7, 1.6), 0.5)
        position = table.mean(0)[:2] + b.rng.uniform(-0.75, 0.75, 2) * room
        if all(np.linalg.norm(position - other) > 0.55 * (length + size) for other, size in placed):
            placed.append((position, length))
            b.stand_on(mesh, look, (*position, table[1][2]), length, b.between(0, 6.28))
            b.boxes.pop()


# Outdoors


def _outdoors(b: _Builder) -> Stage:
    panorama = b.panorama(outdoors=True) if b.chance(0.92) else None
    size = 120.0
    look = _plane_look(b, _GROUNDS, size, 0.03, period=b.between(1.5, 5.0))
    b.items.append(Item(shape("plane"), _place((0, 0, 0), b.between(0, 6.28), size), **look, casts=False))
    first = len(b.items)
    region = b.between(2.0, 7.0)
    near = ("outdoor", "person", "animal", "plant", "vehicle", "outdoor", "furniture", "small")
    for _ in range(int(b.rng.integers(3, 12))):
        mesh, look, length = b.thing((b.one_of(near),), 0.12)
        angle, away = b.between(0, 6.28), region * math.sqrt(b.between(0, 1))
        position = np.array([away * math.cos(angle), away * math.sin(angle), 0.0])
        length = max(length, 0.4) if length > 0.3 else length * 2.5
        if b.fits(position, length / 2, 0.1):
            b.stand_on(mesh, look, position, length, b.between(0, 6.28))
    movers = list(range(first, len(b.items)))
    for _ in range(int(b.rng.integers(0, 4))):
        mesh, look, length = b.thing((b.one_of(("building", "plant", "vehicle")),), 0.0)
        length = max(length * b.between(1, 1.3), 3.0)
        angle, away = b.between(0, 6.28), region + length / 2 + b.between(2, 9)
        position = np.array([away * math.cos(angle), away * math.sin(angle), 0.0])
        if b.fits(position, length / 2, 0.5):
            b.stand_on(mesh, look, position, length, b.between(0, 6.28))
    light, ambient = b.daylight(panorama, (0, 0, 0.5), region * 1.3)
    backdrop = np.array([[0.55, 0.62, 0.7], [0.2, 0.38, 0.7]]) * b.between(0.6, 1.3)
    drawing = Drawing(
        b.items, light, ambient, [], 0.0, panorama, b.between(0, 6.28), backdrop, haze=b.between(0.004, 0.02)
    )
    boxes = np.array(b.boxes).reshape(-1, 2, 3)
    near_boxes = boxes[np.linalg.norm(boxes.mean(1)[:, :2], axis=-1) < region + 0.1] if len(boxes) else boxes

    def stand(rng, fov):
        box = near_boxes[int(rng.integers(len(near_boxes)))] if len(near_boxes) else np.zeros((2, 3))
        focus = box.mean(0) + rng.normal(0, 0.15, 3)
        reach = max(float(np.linalg.norm(box[1] - box[0]) / 2), 0.4)
        distance = rng.uniform(1.0, 2.6) * reach / math.tan(math.radians(fov) / 2)
        for _ in range(20):
            angle = rng.uniform(0, 2 * math.pi)
            height = rng.uniform(0.5, 1.9) if rng.random() < 0.8 else rng.uniform(2, 5)
            eye = np.array([*(focus[:2] + distance * np.array([math.cos(angle), math.sin(angle)])), height])
            if not ((eye > boxes[:, 0] - 0.2) & (eye < boxes[:, 1] + 0.2)).all(-1).any():
                break
        return eye, focus

    return Stage(drawing, stand, (28, 75), np.array([-50, -50, 0.3]), movers=movers, needs_search=True)


# Scene files


def _scenes(b: _Builder) -> Stage:
    if not b.assets.scenes:
        return _rooms(b)
    weights = np.array([_furnished(file, b.pixels) for file in b.assets.scenes])
    file = b.assets.scenes[int(b.rng.choice(len(weights), p=weights / weights.sum()))]
    mesh = load_mesh(file, b.pixels)
    b.items.append(Item(mesh, np.eye(4), gloss=b.between(0, 0.15), shininess=b.between(10, 50)))
    color = np.clip(b.rng.normal([1.0, 0.97, 0.92], 0.05), 0.6, 1.2)
    panorama = b.panorama()
    low, high = mesh.low, mesh.high
    middle = np.array([*b.rng.uniform(low[:2] * 0.7, high[:2] * 0.7), file.floor + 2.3])
    # No shadow map over a whole house: lamps do not reach through its walls either way
    ambient = np.stack([color * 0.5, color * 0.62])
    light = Light(b.rng.normal(0, 0.6, 3) + [0, 0, 1.0], color * b.between(0.2, 0.5), False, middle, 0.01)
    lamps = [(middle + np.append(b.rng.uniform(-4, 4, 2), 0.0), color * b.between(0.05, 0.2)) for _ in range(2)]
    drawing = Drawing(b.items, light, ambient, lamps, 0.0, panorama, b.between(0, 6.28))
    floor = file.floor

    def stand(rng, _fov):
        eye = np.append(rng.uniform(low[:2] + 0.5, high[:2] - 0.5), floor + rng.uniform(1.1, 1.7))
        angle, distance = rng.uniform(0, 2 * math.pi), rng.uniform(1.5, 4.0)
        return eye, eye + distance * np.array([math.cos(angle), math.sin(angle), rng.normal(-0.12, 0.1)])

    reach = np.array([*low[:2], floor + 0.4]), np.array([*high[:2], min(floor + 2.3, high[2])])
    return Stage(drawing, stand, (45, 85), *reach, needs_search=True)


def _furnished(file: MeshFile, pixels: int) -> float:
    """How much there is to see: things for their room, not corridors without end."""
    mesh = load_mesh(file, pixels)
    return len(mesh.parts) ** 0.5 / float(np.prod((mesh.high - mesh.low)[:2])) ** 0.25


# Photos as planes and reliefs


def _photos(b: _Builder) -> Stage:
    light = Light(np.array([0.2, 1.0, 0.7]), np.full(3, 0.2), False, np.zeros(3), 4.0)
    photo = b.photo()
    drawing = Drawing(b.items, light, np.full((2, 3), 0.9), panorama=b.panorama(), turn=b.between(0, 6.28))
    if photo is None or b.chance(0.22):
        _cards(b)
        fov, distance = (30, 60), b.between(3.0, 4.5)
    else:
        wide = 4.0 * photo[1].shape[1] / max(photo[1].shape[:2])
        tall = 4.0 * photo[1].shape[0] / max(photo[1].shape[:2])
        place = _upright((0, 0, 0), (1.0, 0, 0), wide, tall)
        place[:3, 2] = [0, -b.between(0.6, 2.0), 0]
        relief = shape("relief", int(b.rng.integers(64)))
        b.items.append(Item(relief, place, photo, glow=1.0, gloss=0.0, casts=False))
        fov, distance = (25, 45), b.between(2.6, 4.0)

    def stand(rng, fov):
        near = min(distance, 1.5 / math.tan(math.radians(fov) / 2) + 0.9)
        focus = np.array([rng.uniform(-0.5, 0.5), 0.0, rng.uniform(-0.4, 0.4)])
        return np.array([focus[0] + rng.normal(0, 0.15), -near - 0.4, focus[2] + rng.normal(0, 0.15)]), focus

    return Stage(drawing, stand, fov, np.array([-1e3, -1e3, -1e3]), np.array([1e3, -0.3, 1e3]))


def _cards(b: _Builder) -> None:
    """Photos that stand behind and beside each other, turned a little, in front of a large one."""
    back = b.photo()
    look = {"picture": back} if back is not None else {"tint": tuple(b.color())}
    b.items.append(Item(shape("plane"), _upright((0, 1.5, 0), (1.0, 0, 0), 12, 9), **look, glow=0.5, casts=False))
    for _ in range(int(b.rng.integers(4, 10))):
        picture = b.photo()
        tall = b.between(0.5, 1.8)
        wide = tall * (1.0 if picture is None else picture[1].shape[1] / picture[1].shape[0])
        angle = b.rng.normal(0, 0.35)
        position = (b.between(-1.9, 1.9), b.between(-1.2, 1.3), b.between(-1.4, 1.4))
        place = _upright(position, (math.cos(angle), math.sin(angle), 0.0), wide, tall)
        look = {"picture": picture} if picture is not None else {"tint": tuple(b.color())}
        b.items.append(Item(shape("plane"), place, **look, glow=b.between(0.3, 1.0)))


KINDS = {
    "objects": _objects,
    "rooms": _rooms,
    "outdoors": _outdoors,
    "scenes": _scenes,
    "photos": _photos,
}
