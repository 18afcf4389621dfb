# SPDX-License-Identifier: Apache-2.0
"""Renders scenes headless through EGL: the picture, and which pixels are the hand's."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from egoedit_ros.data.sim.assets import TEXTURES, hand_folder, model_xml, texture_bank
from egoedit_ros.data.sim.edits import dressed
from egoedit_ros.data.sim.effects import GLOWS, ICE, glow, specks
from egoedit_ros.data.sim.looks import apply_look, needs_depth
from egoedit_ros.data.sim.scene import Edit, Scene, camera_at, hand_at, thing_at
from egoedit_ros.data.sim.vocabulary import KINDS
from egoedit_ros.errors import UserError

FPS = 16
_FLEXION = {"3": 0.0, "2": 1.15, "1": 0.95, "0": 0.7}
_THUMB = {"THJ4": 0.95, "THJ3": 0.55, "THJ2": 0.1, "THJ1": -0.25, "THJ0": -0.55}


@dataclass(slots=True)
class Clip:
    """source, targets: uint8 ``[t, h, w, 3]``; hand: bool ``[t, h, w]``, the source's hand."""

    scene: Scene
    edits: list[Edit]
    source: np.ndarray
    targets: list[np.ndarray]
    hand: np.ndarray


@dataclass(slots=True)
class _Take:
    """pictures: uint8 ``[t, h, w, 3]``; hand: bool and depth: float32 in m, ``[t, h, w]``."""

    pictures: np.ndarray
    hand: np.ndarray | None = None
    depth: np.ndarray | None = None


class Simulator:
    """One compiled model and one rendering context; not for several threads."""

    def __init__(self, width: int = 256, height: int = 192, samples: int = 0) -> None:
        os.environ.setdefault("MUJOCO_GL", "egl")
        try:
            import mujoco

            self._mj = mujoco
            self.model = mujoco.MjModel.from_xml_string(model_xml(hand_folder()))
            self.model.vis.quality.offsamples = samples
            bank = texture_bank()
            for index in range(TEXTURES):
                texture = self.model.texture(f"bank{index}")
                start = self.model.tex_adr[texture.id]
                flat = bank[index].reshape(-1)
                self.model.tex_data[start : start + flat.size] = flat
            self.data = mujoco.MjData(self.model)
            self._renderer = mujoco.Renderer(self.model, height, width)
        except (ImportError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"the simulator cannot render ({error}); install it with: pip install '.[sim]' and "
                "apt-get install libegl1 libgl1-mesa-dri"
            ) from error
        self._own_rgba = self.model.geom_rgba.copy()
        self._hand_geoms = [
            g for g in range(self.model.ngeom) if (self._name(g) or "").startswith("hand_")
        ]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of its pictures."""
        return self._renderer.width, self._renderer.height

    def _name(self, geom: int) -> str:
        return self._mj.mj_id2name(self.model, self._mj.mjtObj.mjOBJ_GEOM, geom)

    def close(self) -> None:
        """Free the rendering context."""
        self._renderer.close()

    def render_clip(self, scene: Scene, edits: list[Edit], frames: int, fps: int = FPS) -> Clip:
        """The scene and each of its edits over the same motion, ``frames`` at ``fps``.

        Edits of one clip share its source. With a source look (a map to make a video of) the
        source shows what the canonical scene's map is. Raises ValueError for several.
        """
        views = {(e.source_look, e.background if e.source_look else "") for e in edits}
        if len(views) > 1:
            raise ValueError("edits of one clip must have the same source")
        look, background = views.pop() if views else ("", "")
        scene = dressed(scene, background)
        deep = any(needs_depth(name) for e in edits for name in (e.look, e.source_look))
        before = self._take(scene, frames, fps, hand=True, depth=deep)
        source = apply_look(look, before.pictures, before.depth)
        targets = []
        for edit in edits:
            after = before
            if edit.changes or (edit.background and not edit.source_look):
                shown = dressed(scene.edited(edit), edit.background)
                after = self._take(shown, frames, fps, depth=needs_depth(edit.look))
            targets.append(apply_look(edit.look, after.pictures, after.depth))
        return Clip(scene, edits, source, targets, before.hand)

    def _take(
        self, scene: Scene, frames: int, fps: int, hand: bool = False, depth: bool = False
    ) -> _Take:
        """Film a scene, with the hand's mask and the depth where they are asked for."""
        shape = (frames, self._renderer.height, self._renderer.width)
        take = _Take(np.empty((*shape, 3), np.uint8))
        take.hand = np.empty(shape, bool) if hand else None
        take.depth = np.empty(shape, np.float32) if depth else None
        self._dress(scene)
        for index in range(frames):
            time = scene.start + index / fps
            self._pose(scene, time)
            self._renderer.update_scene(self.data, camera="head")
            self._add_specks(scene, time)
            self._renderer.render(out=take.pictures[index])
            for thing in scene.things:
                if thing.visible and thing.effect in GLOWS:
                    mask = self._mask(self._geoms_of(thing.kind))
                    take.pictures[index] = glow(take.pictures[index], mask, GLOWS[thing.effect])
            if hand:
                take.hand[index] = self._mask(self._hand_geoms)
            if depth:
                self._renderer.enable_depth_rendering()
                self._renderer.update_scene(self.data, camera="head")
                self._renderer.render(out=take.depth[index])
                self._renderer.disable_depth_rendering()
        return take

    def _add_specks(self, scene: Scene, time: float) -> None:
        """Fire and frost: geoms for this picture only, which the model knows nothing of."""
        shown = self._renderer.scene
        for number, thing in enumerate(scene.things):
            if not thing.visible or not thing.effect:
                continue
            place, turn = thing_at(scene, number, time)
            for speck in specks(thing.effect, thing.kind, place, turn, time - scene.start):
                geom = shown.geoms[shown.ngeom]
                self._mj.mjv_initGeom(
                    geom,
                    self._mj.mjtGeom.mjGEOM_ELLIPSOID,
                    np.array(speck.size),
                    speck.place,
                    np.ascontiguousarray(speck.turn).reshape(-1),
                    np.array(speck.rgba, np.float32),
                )
                geom.emission = speck.emission
                shown.ngeom += 1

    def render_frame(self, scene: Scene, time: float) -> np.ndarray:
        """One picture of the scene at ``time`` (s): uint8 ``[h, w, 3]``."""
        self._dress(scene)
        self._pose(scene, time)
        self._renderer.update_scene(self.data, camera="head")
        return self._renderer.render().copy()

    def _mask(self, geoms: list[int]) -> np.ndarray:
        """Where these geoms are seen: bool ``[h, w]``."""
        return np.isin(self._segments(), geoms)

    def _segments(self) -> np.ndarray:
        """Which geom each pixel shows: int ``[h, w]``, -1 for none."""
        self._renderer.enable_segmentation_rendering()
        self._renderer.update_scene(self.data, camera="head")
        segments = self._renderer.render()
        self._renderer.disable_segmentation_rendering()
        is_geom = segments[..., 1] == int(self._mj.mjtObj.mjOBJ_GEOM)
        return np.where(is_geom, segments[..., 0], -1)

    def film_body(self, scene: Scene, time: float, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """One body alone as the head camera sees it, a kind of thing or ``hand``: which geom each
        pixel shows (int ``[h, w]``, -1: another body's or none) and how far ahead it is (m)."""
        self.model.cam_fovy[self.model.camera("head").id] = scene.camera["fovy"]
        self._pose(scene, time)
        away = np.array([0, 0, -5.0])
        if kind != "hand":
            self._mocap("forearm", away, np.eye(3))
        for other in KINDS:
            if other != kind:
                self._mocap(other, away, np.eye(3))
        self._mj.mj_kinematics(self.model, self.data)
        geoms = self._hand_geoms if kind == "hand" else self._geoms_of(kind)
        seen = self._segments()
        renderer = self._renderer
        renderer.enable_depth_rendering()
        renderer.update_scene(self.data, camera="head")
        depth = renderer.render().copy()
        renderer.disable_depth_rendering()
        return np.where(np.isin(seen, geoms), seen, -1), depth

    def of_second_material(self, geoms: np.ndarray) -> np.ndarray:
        """Which of these geoms keep their own colour whatever their thing's is: bool."""
        names = [self._name(g) or "" for g in range(self.model.ngeom)]
        second = np.array([name.startswith("accent_") for name in names])
        return (geoms >= 0) & second[np.maximum(geoms, 0)]

    def _geoms_of(self, kind: str) -> list[int]:
        body = self.model.body(kind).id
        return list(np.flatnonzero(self.model.geom_bodyid == body))

    def _dress(self, scene: Scene) -> None:
        """Write all that does not move: surfaces, lights, skin and paint."""
        m = self.model
        for name, (texture, repeat, rgb) in scene.surfaces.items():
            material = m.material(name).id
            m.mat_texid[material, self._mj.mjtTextureRole.mjTEXROLE_RGB] = m.texture(
                f"bank{texture}"
            ).id
            m.mat_texrepeat[material] = repeat
            m.mat_rgba[material] = (*rgb, 1.0)
        m.mat_rgba[m.material("skin").id] = (*scene.skin, 1.0)
        m.mat_rgba[m.material("sleeve").id] = (*scene.sleeve, 1.0)
        key, fill = m.light("key").id, m.light("fill").id
        direction = np.array(scene.light["dir"])
        m.light_dir[key] = direction / np.linalg.norm(direction)
        m.light_pos[key] = -1.5 * m.light_dir[key]
        m.light_diffuse[key] = scene.light["key"]
        m.light_diffuse[fill] = scene.light["fill"]
        m.light_specular[key] = 0.3
        m.light_specular[fill] = 0.0
        m.vis.headlight.ambient[:] = scene.light["ambient"]
        m.cam_fovy[m.camera("head").id] = scene.camera["fovy"]
        shown = {t.kind: t for t in scene.things if t.visible}
        for geom in range(m.ngeom):
            part = self._name(geom) or ""
            if not part.startswith(("paint_", "accent_")):
                continue
            thing = shown.get(part.partition("_")[2].rstrip("0123456789"))
            if thing is None:
                continue
            if thing.effect == "frost":
                m.geom_rgba[geom] = ICE
            elif part.startswith("paint_"):
                m.geom_rgba[geom] = (*thing.rgb, 1.0)
            else:
                m.geom_rgba[geom] = self._own_rgba[geom]
            if part.startswith("paint_"):
                m.geom_matid[geom] = m.material("paint").id
        if scene.things:
            m.mat_specular[m.material("paint").id] = 0.3

    def _pose(self, scene: Scene, time: float) -> None:
        """Put hand, things and head where they are at ``time``, without physics."""
        m, d = self.model, self.data
        position, rotation, curl = hand_at(scene, time)
        self._mocap("forearm", position, rotation)
        for joint in range(m.njnt):
            name = m.joint(joint).name
            if name.startswith("TH"):
                angle = _THUMB[name] * (0.35 + 0.65 * curl)
            elif name.startswith("WR"):
                angle = 0.0
            elif name == "LFJ4":
                angle = 0.1
            elif name.endswith("3"):
                angle = scene.spread["FMRL".index(name[0])]
            else:
                angle = _FLEXION[name[-1]] * (0.12 + 0.66 * curl)
            d.qpos[m.jnt_qposadr[joint]] = np.clip(angle, *m.jnt_range[joint])
        kinds = {}
        for index, thing in enumerate(scene.things):
            if thing.visible:
                kinds[thing.kind] = thing_at(scene, index, time)
        for kind in KINDS:
            self._mocap(kind, *kinds.get(kind, (np.array([0, 0, -5.0]), np.eye(3))))
        camera, turn = camera_at(scene, time)
        head = m.camera("head").id
        m.cam_pos[head] = camera
        self._mj.mju_mat2Quat(m.cam_quat[head], np.ascontiguousarray(turn).reshape(-1))
        self._mj.mj_kinematics(m, d)
        self._mj.mj_camlight(m, d)

    def _mocap(self, body: str, position: np.ndarray, rotation: np.ndarray) -> None:
        index = self.model.body(body).mocapid[0]
        self.data.mocap_pos[index] = position
        self._mj.mju_mat2Quat(
            self.data.mocap_quat[index], np.ascontiguousarray(rotation).reshape(-1)
        )
