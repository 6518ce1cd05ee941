"""Toybox families found outdoors: buildings, plants, animals. Front is -y, right is +x, up is +z."""

from __future__ import annotations

import math

from .shapes import Part, Proportions, limb, taper, turned

HOUSE = {
    "width": (0.30, 0.37),
    "depth": (0.26, 0.31),
    "walls": (0.50, 0.58),
    "roof": (0.22, 0.30),
    "chimney": (0.10, 0.20),
}


def house(p: Proportions) -> list[Part]:
    """A gabled house: door and two windows on the front, chimney at the back right, a window on the left."""
    w, d, walls, roof = p["width"], p["depth"], p["walls"], p["roof"]
    floor = -(walls + roof) / 2
    eaves = floor + walls
    window = (0.065, 0.02, 0.065, 0.005)
    side = (0.02, 0.075, 0.075, 0.005)
    return [
        Part("box", (w, d, walls / 2, 0.005), (0, 0, floor + walls / 2)),
        Part(
            "frustum", (w + 0.05, d + 0.04, 0.02, d + 0.04, roof / 2, 0.0), (0, 0, eaves + roof / 2), "part"
        ),
        Part("box", (0.05, 0.05, 0.13, 0.005), (p["chimney"], d * 0.45, eaves + roof - 0.10), "brick"),
        Part("box", (0.075, 0.02, 0.14, 0.005), (0, -d, floor + 0.14), "wood"),
        *[Part("box", window, (x * w * 0.62, -d, eaves - 0.14), "glass") for x in (-1, 1)],
        Part("box", (0.09, 0.02, 0.065, 0.005), (0, d, eaves - 0.18), "glass"),
        Part("box", side, (-w, 0, eaves - 0.20), "glass"),
        *[Part("box", (0.02, 0.05, 0.075, 0.005), (w, y * d * 0.5, eaves - 0.20), "glass") for y in (-1, 1)],
    ]


WINDMILL = {
    "base": (0.23, 0.29),
    "top": (0.14, 0.18),
    "blade": (0.23, 0.27),
    "width": (0.038, 0.052),
    "spin_deg": (25.0, 65.0),
}


def windmill(p: Proportions) -> list[Part]:
    """A tower with four blades turning on its front."""
    hub = 0.20
    reach = -(p["top"] + 0.09)
    blades = []
    for quarter in range(4):
        angle = p["spin_deg"] + 90 * quarter
        out = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        centre = (out[0] * (p["blade"] / 2 + 0.025), reach, hub + out[1] * (p["blade"] / 2 + 0.025))
        blades.append(
            Part("box", (p["blade"] / 2, 0.014, p["width"], 0.004), centre, "part", turned("y", -angle))
        )
    return [
        taper((0, 0, -0.47), (0, 0, 0.22), (p["base"], p["top"])),
        Part("dome", (p["top"] + 0.025, p["top"] + 0.025, 0.20), (0, 0, 0.21), "tint"),
        limb((0, 0, hub), (0, reach - 0.01, hub), 0.035, "dark"),
        *blades,
        Part("box", (0.065, 0.05, 0.11, 0.01), (0, -p["base"] + 0.025, -0.36), "wood"),
    ]


TREE = {
    "radius": (0.30, 0.40),
    "taper": (0.66, 0.80),
    "trunk": (0.05, 0.08),
    "crown": (-0.28, -0.18),
    "tip": (0.42, 0.48),
}


def tree(p: Proportions) -> list[Part]:
    """A fir: three stacked cones on a trunk."""
    low, tip = p["crown"], p["tip"]
    step = (tip - low) / 4
    cones = [
        taper(
            (0, 0, low + k * step),
            (0, 0, low + (k + 2) * step),
            (p["radius"] * p["taper"] ** k, 0.02 if k == 2 else 0.10),
        )
        for k in range(3)
    ]
    return [*cones, Part("cylinder", (p["trunk"], (low + 0.48) / 2), (0, 0, (low - 0.46) / 2), "part")]


MUSHROOM = {
    "radius": (0.38, 0.47),
    "height": (0.34, 0.46),
    "rim": (-0.06, 0.03),
    "stem": (0.09, 0.13),
    "spot": (0.06, 0.085),
}


def mushroom(p: Proportions) -> list[Part]:
    """A round cap with pale spots on a thick stem."""
    r, h, rim = p["radius"], p["height"], p["rim"]
    spots = []
    for k in range(8):
        turn, lift = math.radians(45 * k + 22.5), math.radians(24 if k % 2 else 52)
        ring = math.cos(lift)
        at = (math.cos(turn) * ring * r, math.sin(turn) * ring * r, rim + math.sin(lift) * h)
        spots.append(
            Part("ellipsoid", (p["spot"],) * 3, (at[0] * 0.93, at[1] * 0.93, at[2] - 0.02), "accent")
        )
    return [
        Part("dome", (r, r, h), (0, 0, rim)),
        Part("cone", (p["stem"] * 1.3, p["stem"], (rim + 0.46) / 2 + 0.01), (0, 0, (rim - 0.46) / 2), "part"),
        *spots,
    ]


SNOWMAN = {
    "bottom": (0.21, 0.25),
    "middle": (0.150, 0.175),
    "head": (0.105, 0.125),
    "nose": (0.12, 0.17),
    "hat": (0.05, 0.07),
}


def snowman(p: Proportions) -> list[Part]:
    """Three balls with a hat; carrot nose, eyes and buttons on the front; stick arms."""
    a, b, c = p["bottom"], p["middle"], p["head"]
    low = -0.48 + a
    mid = low + a * 0.72 + b * 0.72
    top = mid + b * 0.70 + c * 0.75
    brim = top + c * 0.75
    buttons = [
        Part("ellipsoid", (0.032,) * 3, (0, -math.sqrt(max(b * b - dz * dz, 0.0)), mid + dz), "coal")
        for dz in (-0.07, 0.05)
    ]
    return [
        Part("ellipsoid", (a, a, a), (0, 0, low)),
        Part("ellipsoid", (b, b, b), (0, 0, mid)),
        Part("ellipsoid", (c, c, c), (0, 0, top)),
        taper((0, -c * 0.85, top), (0, -c - p["nose"], top - 0.01), (0.042, 0.008), "amber"),
        *[
            Part("ellipsoid", (0.024,) * 3, (x * c * 0.45, -c * 0.82, top + c * 0.38), "coal")
            for x in (-1, 1)
        ],
        *buttons,
        Part("cylinder", (c * 1.25, 0.014), (0, 0, brim), "part"),
        Part("cylinder", (c * 0.8, p["hat"]), (0, 0, brim + p["hat"]), "part"),
        *[
            limb((x * b * 0.8, 0, mid + 0.03), (x * (b + 0.20), -0.05, mid + 0.15), 0.016, "wood")
            for x in (-1, 1)
        ],
    ]


DUCK = {
    "width": (0.20, 0.25),
    "length": (0.30, 0.36),
    "height": (0.19, 0.23),
    "head": (0.14, 0.17),
    "beak": (0.08, 0.12),
}


def duck(p: Proportions) -> list[Part]:
    """A swimming duck that looks to the front, with a raised tail."""
    w, d, h, r = p["width"], p["length"], p["height"], p["head"]
    low = -0.20
    head = low + h + r * 0.95
    front = -d * 0.55
    return [
        Part("ellipsoid", (w, d, h), (0, 0.05, low)),
        Part("ellipsoid", (r, r, r), (0, front, head)),
        limb((0, front * 0.8, low), (0, front, head), r * 0.62),
        Part(
            "ellipsoid", (r * 0.62, p["beak"], 0.038), (0, front - r - p["beak"] * 0.45, head - 0.035), "part"
        ),
        *[
            Part("ellipsoid", (0.028,) * 3, (x * r * 0.66, front - r * 0.62, head + r * 0.40), "coal")
            for x in (-1, 1)
        ],
        *[
            Part("ellipsoid", (0.05, d * 0.48, h * 0.5), (x * w * 0.93, 0.10, low + 0.05), "tint")
            for x in (-1, 1)
        ],
        taper((0, d * 0.7, low + 0.02), (0, d + 0.11, low + h + 0.06), (h * 0.62, 0.02)),
    ]


DOG = {
    "girth": (0.105, 0.135),
    "length": (0.18, 0.22),
    "leg": (0.038, 0.05),
    "head": (0.125, 0.15),
    "tail": (0.20, 0.30),
}


def dog(p: Proportions) -> list[Part]:
    """A dog that looks to the front: hanging ears, a muzzle, a raised tail at the back."""
    g, length, head = p["girth"], p["length"], p["head"]
    back, face, nose = -0.02, -length - 0.06, 0.22
    legs = [
        limb((x * g * 0.62, y * length * 0.92, back), (x * g * 0.68, y * length * 0.92, -0.40), p["leg"])
        for x in (-1, 1)
        for y in (-1, 1)
    ]
    return [
        limb((0, -length, back + 0.01), (0, length, back), g),
        limb((0, -length, back), (0, face, nose), g * 0.75),
        Part("ellipsoid", (head, head, head * 0.95), (0, face, nose)),
        Part(
            "ellipsoid",
            (head * 0.5, head * 0.6, head * 0.42),
            (0, face - head * 0.85, nose - head * 0.3),
            "tint",
        ),
        Part("ellipsoid", (0.034,) * 3, (0, face - head * 1.42, nose - head * 0.18), "coal"),
        *[
            Part("ellipsoid", (0.024,) * 3, (x * head * 0.45, face - head * 0.84, nose + head * 0.3), "coal")
            for x in (-1, 1)
        ],
        *[
            Part(
                "ellipsoid",
                (0.04, 0.06, head * 0.85),
                (x * head * 0.98, face + 0.03, nose - 0.01),
                "part",
                turned("y", -x * 14),
            )
            for x in (-1, 1)
        ],
        limb((0, length + g * 0.7, back + 0.03), (0, length + g + 0.08, back + p["tail"]), 0.03),
        *legs,
    ]
