# SPDX-License-Identifier: Apache-2.0
"""Renders scenes headless through EGL: the picture, and which pixels are the hand's."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from egoedit_ros.data.sim.assets import TEXTURES, hand_folder, model_xml, texture_bank
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
        self._hand_geoms = [
            g for g in range(self.model.ngeom) if (self._name(g) or "").startswith("hand_")
        ]

    def _name(self, geom: int) -> str:
        return self._mj.mj_id2name(self.model, self._mj.mjtObj.mjOBJ_GEOM, geom)

    def close(self) -> None:
        """Free the rendering context."""
        self._renderer.close()

    def render_clip(self, scene: Scene, edits: list[Edit], frames: int, fps: int = FPS) -> Clip:
        """The scene and each of its edits over the same motion, ``frames`` at ``fps``."""
        shape = (frames, self._renderer.height, self._renderer.width)
        source = np.empty((*shape, 3), np.uint8)
        hand = np.empty(shape, bool)
        targets = [np.empty((*shape, 3), np.uint8) for _ in edits]
        for version, picture in enumerate([source, *targets]):
            shown = scene if version == 0 else scene.edited(edits[version - 1])
            self._dress(shown)
            for index in range(frames):
                self._pose(shown, scene.start + index / fps)
                self._renderer.update_scene(self.data, camera="head")
                self._renderer.render(out=picture[index])
                if version == 0:
                    hand[index] = self._hand_mask()
        return Clip(scene, edits, source, targets, hand)

    def render_frame(self, scene: Scene, time: float) -> np.ndarray:
        """One picture of the scene at ``time`` (s): uint8 ``[h, w, 3]``."""
        self._dress(scene)
        self._pose(scene, time)
        self._renderer.update_scene(self.data, camera="head")
        return self._renderer.render().copy()

    def _hand_mask(self) -> np.ndarray:
        self._renderer.enable_segmentation_rendering()
        self._renderer.update_scene(self.data, camera="head")
        segments = self._renderer.render()
        self._renderer.disable_segmentation_rendering()
        is_geom = segments[..., 1] == int(self._mj.mjtObj.mjOBJ_GEOM)
        return is_geom & np.isin(segments[..., 0], self._hand_geoms)

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
            if part.startswith("paint_"):
                thing = shown.get(part[len("paint_") :].rstrip("0123456789"))
                if thing is not None:
                    m.geom_rgba[geom] = (*thing.rgb, 1.0)
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
