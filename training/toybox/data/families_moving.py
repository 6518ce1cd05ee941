"""Toybox families that travel: by road, water, air and space. Front is -y, right is +x, up is +z."""

from __future__ import annotations

import math

from .shapes import Part, Proportions, limb, taper, turned

_ACROSS = turned("y", 90)  # an axis along x: wheels
_CAR_FLOOR = -0.20

ROCKET = {
    "radius": (0.125, 0.165),
    "body": (0.26, 0.32),
    "nose": (0.22, 0.30),
    "fin": (0.13, 0.18),
    "window": (0.07, 0.09),
}


def rocket(p: Proportions) -> list[Part]:
    """A standing rocket: round window on the front, a fin at the back, two at the sides towards the front."""
    r, shoulder = p["radius"], 0.48 - p["nose"]
    base = -0.38
    fins = []
    for angle in (90, 205, 335):
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        middle = r + p["fin"] / 2 - 0.02
        fins.append(
            Part(
                "frustum",
                (0.018, p["fin"] / 2 + 0.02, 0.012, 0.03, 0.14, -0.05 - p["fin"] / 4),
                (c * middle, s * middle, base + 0.05),
                "part",
                turned("z", angle - 90),
            )
        )
    return [
        Part("cylinder", (r, (shoulder - base) / 2), (0, 0, (shoulder + base) / 2)),
        taper((0, 0, shoulder), (0, 0, shoulder + p["nose"] * 0.5), (r, r * 0.72)),
        taper((0, 0, shoulder + p["nose"] * 0.5), (0, 0, 0.48), (r * 0.72, 0.01)),
        Part("cylinder", (r + 0.008, 0.02), (0, 0, shoulder), "tint"),
        Part("cone", (r * 0.85, r * 0.55, 0.05), (0, 0, base - 0.05), "dark"),
        Part("ellipsoid", (p["window"] + 0.02, 0.05, p["window"] + 0.02), (0, -r + 0.01, 0.06), "accent"),
        Part("ellipsoid", (p["window"] - 0.01, 0.05, p["window"] - 0.01), (0, -r - 0.015, 0.06), "glass"),
        *fins,
    ]


AIRPLANE = {
    "radius": (0.125, 0.155),
    "length": (0.30, 0.34),
    "span": (0.43, 0.48),
    "chord": (0.09, 0.13),
    "tail": (0.20, 0.28),
}


def airplane(p: Proportions) -> list[Part]:
    """A chubby plane that flies to the front: glass cockpit, low wings with engines, tall fin at the back."""
    r, length, tail = p["radius"], p["length"], p["tail"]
    z = -0.06
    rear = length + 0.02
    return [
        limb((0, -length + 0.02, z), (0, 0.10, z), r),
        taper((0, 0.05, z), (0, length + 0.13, z + 0.05), (r, 0.04)),
        Part("ellipsoid", (r * 0.72, 0.13, r * 0.6), (0, -length + 0.02, z + r * 0.66), "glass"),
        Part("box", (p["span"], p["chord"], 0.02, 0.015), (0, 0.0, z - r * 0.35), "part"),
        *[
            limb((x * 0.26, -p["chord"] - 0.03, z - r * 0.5), (x * 0.26, 0.04, z - r * 0.5), 0.05, "dark")
            for x in (-1, 1)
        ],
        Part("frustum", (0.02, 0.10, 0.015, 0.05, tail / 2, 0.06), (0, rear - 0.02, z + 0.06 + tail / 2)),
        Part("box", (0.19, 0.055, 0.016, 0.01), (0, rear + 0.03, z + 0.07), "part"),
    ]


CAR = {
    "width": (0.18, 0.22),
    "length": (0.42, 0.47),
    "hood": (0.130, 0.155),
    "roof": (0.22, 0.27),
    "wheel": (0.095, 0.12),
}


def car(p: Proportions) -> list[Part]:
    """A car that drives to the front: long bonnet, cabin towards the back, lamps at both ends."""
    w, length, hood, roof = p["width"], p["length"], p["hood"], p["roof"]
    deck = _CAR_FLOOR + 2 * hood
    glass = (roof - deck) / 2
    middle = deck + glass
    cabin = (w - 0.02, length * 0.52, w - 0.06, length * 0.34, glass, 0.03)
    return [
        Part("box", (w, length, hood, 0.06), (0, 0, _CAR_FLOOR + hood)),
        Part("frustum", cabin, (0, length * 0.22, middle), "glass"),
        Part("box", (w - 0.04, length * 0.36, 0.035, 0.03), (0, length * 0.22 + 0.03, roof)),
        Part("frustum", (w - 0.01, 0.03, w - 0.045, 0.03, glass, 0.0), (0, length * 0.25, middle)),
        Part("frustum", (w - 0.02, 0.05, w - 0.055, 0.04, glass, -0.04), (0, length * 0.64, middle)),
        *_car_ends(w, length, hood),
        *_car_wheels(w, length, p["wheel"]),
    ]


def _car_ends(w: float, length: float, hood: float) -> list[Part]:
    """Headlamps and grille on the front, tail lamps and a number plate on the back."""
    z, sides = _CAR_FLOOR, (-1, 1)
    lamps = [
        Part("ellipsoid", (0.05, 0.035, 0.05), (x * (w - 0.065), -length + 0.005, z + hood * 1.25), "light")
        for x in sides
    ]
    tails = [
        Part("box", (0.04, 0.02, 0.028, 0.01), (x * (w - 0.055), length - 0.002, z + hood * 1.3), "brick")
        for x in sides
    ]
    return [
        *lamps,
        Part("box", (w * 0.40, 0.02, 0.035, 0.01), (0, -length, z + hood * 0.8), "dark"),
        *tails,
        Part("box", (0.07, 0.015, 0.03, 0.005), (0, length, z + hood * 0.7), "accent"),
    ]


def _car_wheels(w: float, length: float, radius: float) -> list[Part]:
    """Four wheels, each a tyre and a hub cap."""
    wheels = []
    for x in (-1, 1):
        for y in (-1, 1):
            at = (x * (w - 0.02), y * length * 0.60, _CAR_FLOOR)
            wheels.append(Part("cylinder", (radius, 0.05), at, "part", _ACROSS))
            wheels.append(Part("cylinder", (radius * 0.45, 0.056), at, "accent", _ACROSS))
    return wheels


TRUCK = {
    "width": (0.19, 0.23),
    "cab": (0.11, 0.14),
    "cab_height": (0.16, 0.20),
    "cargo": (0.24, 0.29),
    "wheel": (0.08, 0.10),
}


def truck(p: Proportions) -> list[Part]:
    """A lorry that drives to the front: low cab with a windscreen, tall two-door cargo box behind it."""
    w, cab, cab_h, cargo = p["width"], p["cab"], p["cab_height"], p["cargo"]
    floor = -0.26
    nose, rear = -0.46, 0.46
    start = nose + 2 * cab + 0.03
    long = (rear - start) / 2
    wheels = [
        Part("cylinder", (p["wheel"], 0.045), (x * (w - 0.03), y, floor - 0.03), "part", _ACROSS)
        for x in (-1, 1)
        for y in (nose + cab + 0.01, rear - 0.32, rear - 0.11)
    ]
    return [
        Part("box", (w - 0.02, cab, cab_h, 0.04), (0, nose + cab, floor + cab_h)),
        Part("box", (w, long, cargo, 0.012), (0, start + long, floor + cargo + 0.03)),
        Part("box", (w - 0.05, 0.46, 0.03, 0.01), (0, 0, floor + 0.01), "dark"),
        Part("box", (w - 0.06, 0.02, cab_h * 0.36, 0.01), (0, nose - 0.002, floor + cab_h * 1.4), "glass"),
        *[
            Part(
                "box",
                (0.01, cab * 0.55, cab_h * 0.32, 0.005),
                (x * (w - 0.02), nose + cab * 0.85, floor + cab_h * 1.4),
                "glass",
            )
            for x in (-1, 1)
        ],
        *[
            Part("ellipsoid", (0.04, 0.03, 0.04), (x * (w - 0.075), nose, floor + cab_h * 0.45), "light")
            for x in (-1, 1)
        ],
        Part("box", (w * 0.35, 0.015, 0.03, 0.005), (0, nose, floor + cab_h * 0.4), "dark"),
        Part("box", (0.01, 0.012, cargo - 0.03, 0.002), (0, rear, floor + cargo + 0.03), "coal"),
        *[
            Part("box", (0.035, 0.015, 0.025, 0.005), (x * (w - 0.05), rear, floor + 0.07), "brick")
            for x in (-1, 1)
        ],
        *wheels,
    ]


BOAT = {
    "beam": (0.19, 0.24),
    "length": (0.43, 0.48),
    "hull": (0.13, 0.16),
    "cabin": (0.09, 0.12),
    "funnel": (0.12, 0.18),
}


def boat(p: Proportions) -> list[Part]:
    """A steamboat that sails to the front: pointed bow, cabin with a funnel, a flag at the stern."""
    beam, length, hull, cabin = p["beam"], p["length"], p["hull"], p["cabin"]
    deck = -0.34 + 2 * hull
    top = deck + 2 * cabin
    return [
        Part("hull", (beam, length, hull), (0, 0, -0.34 + hull)),
        Part("box", (beam * 0.62, 0.16, cabin, 0.01), (0, 0.05, deck + cabin), "part"),
        *[
            Part(
                "box",
                (beam * 0.22, 0.012, 0.035, 0.005),
                (x * beam * 0.30, -0.11, deck + cabin * 1.2),
                "coal",
            )
            for x in (-1, 1)
        ],
        *[
            Part("cylinder", (0.035, 0.008), (x * beam * 0.62, y, deck + cabin * 1.1), "coal", _ACROSS)
            for x in (-1, 1)
            for y in (-0.03, 0.12)
        ],
        taper((0, 0.08, top), (0, 0.08, top + p["funnel"]), (0.075, 0.065), "body"),
        Part("cylinder", (0.078, 0.025), (0, 0.08, top + p["funnel"]), "dark"),
        limb((0, length - 0.06, deck), (0, length - 0.06, deck + 0.28), 0.012, "dark"),
        Part("box", (0.012, 0.07, 0.05, 0.004), (0, length - 0.14, deck + 0.23), "brick"),
        limb((0, -length + 0.14, deck), (0, -length + 0.04, deck + 0.12), 0.015, "dark"),
        Part("box", (beam * 0.5, 0.02, 0.05, 0.005), (0, length - 0.035, deck - hull * 0.7), "accent"),
    ]
