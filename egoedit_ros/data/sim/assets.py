# SPDX-License-Identifier: Apache-2.0
"""The MuJoCo model: the Adroit hand, a table in a room, and one body for each kind of object.

Everything that varies from clip to clip (poses, colours, textures, lights, camera) is written into
the loaded model, so one process compiles it once.
"""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np

from egoedit_ros.data.sim.vocabulary import KINDS
from egoedit_ros.errors import UserError

TEXTURES = 16
HALF_HEIGHT = {
    "ball": 0.040,
    "cube": 0.036,
    "can": 0.050,
    "mug": 0.042,
    "bottle": 0.070,
    "cone": 0.052,
    "cactus": 0.062,
    "book": 0.055,
}
# Geoms named paint_* take the object's colour, accent_* keep their own.
_OBJECTS = {
    "ball": '<geom name="paint_ball" type="sphere" size=".04"/>',
    "cube": '<geom name="paint_cube" type="box" size=".036 .036 .036"/>',
    "can": (
        '<geom name="paint_can" type="cylinder" size=".033 .047"/>'
        '<geom name="accent_can0" type="cylinder" size=".030 .05" rgba=".75 .75 .78 1"/>'
    ),
    "mug": (
        '<geom name="paint_mug" type="cylinder" size=".036 .041"/>'
        '<geom name="accent_mug0" type="cylinder" size=".031 .0415" pos="0 0 .001"'
        ' rgba=".16 .09 .05 1"/>'
        '<geom name="paint_mug1" type="capsule" fromto="-.034 0 .024 -.056 0 .020" size=".006"/>'
        '<geom name="paint_mug2" type="capsule" fromto="-.056 0 .020 -.056 0 -.016" size=".006"/>'
        '<geom name="paint_mug3" type="capsule" fromto="-.056 0 -.016 -.034 0 -.022" size=".006"/>'
    ),
    "bottle": (
        '<geom name="paint_bottle" type="cylinder" size=".029 .042" pos="0 0 -.028"/>'
        '<geom name="paint_bottle1" type="ellipsoid" size=".029 .029 .026" pos="0 0 .014"/>'
        '<geom name="paint_bottle2" type="cylinder" size=".011 .018" pos="0 0 .044"/>'
        '<geom name="accent_bottle0" type="cylinder" size=".013 .008" pos="0 0 .062"'
        ' rgba=".92 .92 .92 1"/>'
    ),
    "cone": '<geom name="paint_cone" type="mesh" mesh="cone"/>',
    "cactus": (
        '<geom name="paint_cactus" type="cylinder" size=".032 .022" pos="0 0 -.040"/>'
        '<geom name="paint_cactus1" type="cylinder" size=".037 .007" pos="0 0 -.019"/>'
        '<geom name="accent_cactus0" type="capsule" fromto="0 0 -.01 0 0 .044" size=".018"'
        ' rgba=".13 .42 .15 1"/>'
        '<geom name="accent_cactus1" type="capsule" fromto="0 0 .008 -.032 0 .012" size=".009"'
        ' rgba=".13 .42 .15 1"/>'
        '<geom name="accent_cactus2" type="capsule" fromto="-.032 0 .012 -.032 0 .034" size=".009"'
        ' rgba=".13 .42 .15 1"/>'
        '<geom name="accent_cactus3" type="capsule" fromto="0 0 -.002 .030 0 .002" size=".008"'
        ' rgba=".13 .42 .15 1"/>'
        '<geom name="accent_cactus4" type="capsule" fromto=".030 0 .002 .030 0 .020" size=".008"'
        ' rgba=".13 .42 .15 1"/>'
    ),
    "book": (
        '<geom name="accent_book0" type="box" size=".037 .011 .052" rgba=".93 .91 .84 1"/>'
        '<geom name="paint_book" type="box" size=".040 .003 .055" pos="0 -.0125 0"/>'
        '<geom name="paint_book1" type="box" size=".040 .003 .055" pos="0 .0125 0"/>'
        '<geom name="paint_book2" type="box" size=".003 .0155 .055" pos="-.040 0 0"/>'
    ),
}
_HAND_MESHES = "wrist palm lfmetacarpal knuckle F3 F2 F1 TH3_z TH2_z TH1_z".split()


def hand_folder() -> Path:
    """Where ``gymnasium-robotics`` keeps the Adroit hand (Apache-2.0)."""
    spec = importlib.util.find_spec("gymnasium_robotics")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the simulator needs the package gymnasium-robotics: pip install '.[sim]'")
    return Path(spec.submodule_search_locations[0]) / "envs" / "assets" / "adroit_hand"


def _hand_xml(folder: Path) -> str:
    """The hand's body tree with its visible meshes only: no collision geoms, sites or touch."""
    root = ET.parse(folder / "adroit_model.xml").getroot()
    for body in root.iter("body"):
        for child in list(body):
            name = child.get("name", "")
            keep = child.tag in ("body", "inertial", "joint") or (
                child.tag == "geom" and child.get("class") == "D_Vizual"
            )
            if not keep:
                body.remove(child)
            elif child.tag == "geom":
                child.attrib = {
                    k: v for k, v in child.attrib.items() if k in ("mesh", "pos", "quat", "euler")
                } | {"name": f"hand_{name}", "type": "mesh", "material": "skin"}
            elif child.tag == "joint":
                child.attrib = {
                    k: v for k, v in child.attrib.items() if k in ("name", "pos", "axis", "range")
                }
    return "".join(ET.tostring(body, encoding="unicode") for body in root.findall("body"))


def texture_bank(size: int = 256) -> np.ndarray:
    """Procedural surfaces: uint8 ``[TEXTURES, size, size, 3]``, the same on every machine."""
    rng = np.random.default_rng(20260101)
    y, x = np.mgrid[0:size, 0:size] / size
    bank = []
    for index in range(TEXTURES):
        noise = np.zeros((size, size))
        for octave in range(1, 6):
            cells = 2**octave
            grid = rng.standard_normal((cells + 1, cells + 1))
            grid[-1], grid[:, -1] = grid[0], grid[:, 0]
            fx, fy = x * cells, y * cells
            ix, iy = fx.astype(int), fy.astype(int)
            u, v = fx - ix, fy - iy
            u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
            top = grid[iy, ix] * (1 - u) + grid[iy, ix + 1] * u
            low = grid[iy + 1, ix] * (1 - u) + grid[iy + 1, ix + 1] * u
            noise += (top * (1 - v) + low * v) / cells**0.7
        family = index % 4
        if family == 0:  # wood: stretched rings
            value = 0.5 + 0.5 * np.sin(2 * np.pi * (6 * y + 0.35 * noise))
            value = 0.75 + 0.18 * value + 0.05 * noise
        elif family == 1:  # stone
            value = 0.8 + 0.14 * noise
        elif family == 2:  # tiles or cloth checks
            cells = int(rng.integers(4, 9))
            checks = (np.floor(x * cells) + np.floor(y * cells)) % 2
            value = 0.78 + 0.16 * checks + 0.03 * noise
        else:  # nearly plain
            value = 0.9 + 0.03 * noise
        tint = 1 + 0.12 * rng.standard_normal(3) * (0.3 + 0.7 * (noise[..., None] > 0.2))
        bank.append(np.clip(value[..., None] * tint * 255, 0, 255))
    return np.asarray(bank).astype(np.uint8)


def model_xml(folder: Path) -> str:
    """The whole scene as MJCF text; meshes are named relative to ``folder``."""
    meshes = "".join(
        f'<mesh name="{m}" file="{m}.stl" scale=".001 .001 .001"/>' for m in _HAND_MESHES
    )
    ring = [(0.042 * np.cos(a), 0.042 * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 40)[:-1]]
    cone = " ".join(f"{x:.5f} {y:.5f} -.052" for x, y in ring) + " 0 0 .052"
    textures = "".join(
        f'<texture name="bank{i}" type="2d" builtin="flat" width="256" height="256"/>'
        for i in range(TEXTURES)
    )
    surfaces = "".join(
        f'<material name="{name}" texture="bank0" texrepeat="4 4" specular=".1" shininess=".1"/>'
        for name in ("table", "floor", "wall")
    )
    objects = "".join(
        f'<body name="{kind}" mocap="true" pos="0 0 -5">{_OBJECTS[kind]}</body>' for kind in KINDS
    )
    return f"""
<mujoco model="egoedit_table">
  <compiler angle="radian" meshdir="{folder / "resources" / "meshes"}" autolimits="true"/>
  <statistic center="0 0 0" extent="1"/>
  <visual>
    <global offwidth="1280" offheight="960"/>
    <quality shadowsize="1024" offsamples="0"/>
    <map znear=".02" zfar="20" shadowclip=".55"/>
    <headlight ambient=".3 .3 .3" diffuse=".3 .3 .3" specular="0 0 0"/>
  </visual>
  <default><geom contype="0" conaffinity="0"/></default>
  <asset>
    {meshes}<mesh name="cone" vertex="{cone}"/>{textures}{surfaces}
    <material name="skin" specular=".2" shininess=".2"/>
    <material name="sleeve" specular=".05" shininess=".05"/>
    <material name="paint" specular=".3" shininess=".4"/>
    <texture name="sky" type="skybox" builtin="gradient" rgb1=".8 .85 .9" rgb2=".5 .55 .6"
      width="64" height="64"/>
  </asset>
  <worldbody>
    <light name="key" directional="true" castshadow="true" pos="0 0 2" dir="0 0 -1"/>
    <light name="fill" directional="true" castshadow="false" pos="0 0 2" dir="0 1 -1"/>
    <camera name="head" mode="fixed" pos="0 -.4 .5" fovy="62"/>
    <geom name="table" type="box" size=".6 .45 .02" pos="0 .15 -.02" material="table"/>
    <geom name="floor" type="plane" size="4 4 .1" pos="0 0 -.75" material="floor"/>
    <geom name="wall" type="box" size="4 .05 2" pos="0 1.6 .5" material="wall"/>
    <body name="forearm" mocap="true" pos="0 -.7 .2">
      <geom name="hand_forearm" type="capsule" fromto="0 0 .2 0 0 .39" size=".027" material="skin"/>
      <geom name="hand_sleeve" type="capsule" fromto="0 0 -.4 0 0 .27" size=".042"
        material="sleeve"/>
      <geom name="hand_cuff" type="cylinder" fromto="0 0 .26 0 0 .305" size=".041"
        material="sleeve"/>
      {_hand_xml(folder)}
    </body>
    {objects}
  </worldbody>
</mujoco>"""
