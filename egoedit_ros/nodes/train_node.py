# SPDX-License-Identifier: Apache-2.0
"""Offline training on replayed bags: a stage in a thread of its own, its progress as a topic.

However it ends there is a checkpoint: a signal stops it after the step in work, and a failure
saves what was learnt before it. Started again with the same parameters it goes on.
"""

from __future__ import annotations

import math
import sys
import threading
from pathlib import Path

from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from egoedit_ros.data.pairs import BagTopics
from egoedit_ros.errors import UserError
from egoedit_ros.msg import TrainingStatus
from egoedit_ros.nodes import qos
from egoedit_ros.nodes.process import EXIT_WRONG_INPUT, declare, run_process
from egoedit_ros.train.bag_clips import CLIPS, LATENTS, prepare_bags
from egoedit_ros.train.stages import STAGES, read_recipe, recipe_config, run_stage
from egoedit_ros.train.watch import Progress

TOPIC_STATUS = "training_status"
BUNDLED_AUTOENCODER = (
    Path(__file__).resolve().parents[1] / "weights" / "edge" / "autoencoder.safetensors"
)
# A stage that only learns from latents; the others need clips, which the recipe names.
FROM_LATENTS = ("flow", "flow_whole", "causal", "dmd", "self_forcing")
SPIN_S = 0.1


class TrainNode(Node):
    """Runs one stage; :attr:`failure` and :attr:`made` tell how it ended.

    A :class:`~egoedit_ros.train.watch.Watch` of its own training.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__("train", **kwargs)
        self.stage = declare(self, "stage", "flow", "the stage of egoedit train")
        config = declare(self, "config", "", "YAML file of the recipe")
        bags = declare(self, "bags", [""], "rosbag2s with source and edited frames; empty: none")
        output = declare(self, "output", "", "folder to train in; empty: the recipe's")
        topics = [
            declare(self, f"{half}_topic", "", f"topic of the {half} in the bags; empty: find it")
            for half in ("source", "edited", "instruction")
        ]
        text = declare(self, "instruction", "", "for bags without an instruction topic")
        autoencoder = declare(
            self, "autoencoder", "", "weights to encode bags with; empty: the bundled ones"
        )
        minutes = declare(
            self, "minutes", 0.0, "stop after so long; 0: as the recipe says", 0.0, 1e6
        )
        period = declare(self, "status_period", 1.0, "seconds between statuses", 0.05, 3600.0)
        if not config:
            raise UserError("parameter config is empty; give the YAML file of a recipe")
        if self.stage not in STAGES:
            raise UserError(f"no stage called {self.stage!r}; use one of: {', '.join(STAGES)}")
        self.recipe = read_recipe(Path(config))
        self.config_name, self.minutes = config, minutes or None
        self.bags = [Path(bag) for bag in bags if bag]
        if self.bags and self.stage not in FROM_LATENTS:
            raise UserError(
                f"the stage {self.stage} does not learn from bags; leave out bags, or use one of: "
                f"{', '.join(FROM_LATENTS)}"
            )
        self.topics = BagTopics(*(t or None for t in topics), text or None)
        self.autoencoder = Path(autoencoder) if autoencoder else BUNDLED_AUTOENCODER
        folders = self.recipe.setdefault("folders", {})
        if output:
            folders["output"] = output
        if self.bags:
            if "output" not in folders:
                raise UserError(f"{config} names no folder 'output'; give the parameter output")
            self.work_folder = Path(folders["output"])
            folders["clips"] = str(self.work_folder / CLIPS)
            folders["latents"] = str(self.work_folder / LATENTS)
        self.made: Path | None = None
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._progress = Progress(self.stage, "starting", 0, 0, math.nan, 0.0, -1.0, "")
        self._losses: list[float] = []
        self._publisher = self.create_publisher(TrainingStatus, TOPIC_STATUS, qos.latched(10))
        self.create_timer(period, self.publish)
        self.thread = threading.Thread(target=self._train, name="training", daemon=True)

    # --- in the training's thread ------------------------------------------------------

    def _train(self) -> None:
        try:
            if self.bags:
                for line in prepare_bags(
                    self.bags,
                    self.topics,
                    recipe_config(self.recipe),
                    self.autoencoder,
                    self.work_folder,
                ):
                    self.get_logger().info(line)
                    if self._stop.is_set():
                        return
            self.made = run_stage(self.stage, self.recipe, self.config_name, self.minutes, self)
        except BaseException as error:
            self.failure = error

    def report(self, progress: Progress) -> None:
        with self._lock:
            self._progress = progress
            if math.isfinite(progress.loss):
                self._losses.append(progress.loss)

    def stopped(self) -> bool:
        return self._stop.is_set()

    # --- in the node's thread ----------------------------------------------------------

    def stop(self) -> None:
        """End the training after the step in work."""
        self._stop.set()

    def publish(self, state: str | None = None) -> None:
        """Send the status; state: in place of the run's own."""
        with self._lock:
            progress, losses = self._progress, self._losses
            self._losses = []
        message = TrainingStatus(
            stage=progress.stage,
            state=state or progress.state,
            step=progress.step,
            total_steps=progress.total_steps,
            loss=sum(losses) / len(losses) if losses else math.nan,
            steps_per_second=progress.steps_per_second,
            eta_s=progress.eta_s,
            checkpoint=progress.checkpoint,
        )
        message.header.stamp = self.get_clock().now().to_msg()
        self._publisher.publish(message)

    def finish(self) -> int:
        """Send the last status and say how it ended. Returns the exit code."""
        self.publish("failed" if self.failure is not None else "done")
        if isinstance(self.failure, UserError):
            print(f"train_node: error: {self.failure}", file=sys.stderr, flush=True)
            return EXIT_WRONG_INPUT
        if self.failure is not None:
            self.get_logger().error(f"training failed: {self.failure!r}")
            return 1
        if self.made is not None:
            self.get_logger().info(f"left {self.made}")
        return 0


def _work(stop: threading.Event) -> int:
    node = TrainNode()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    node.thread.start()
    try:
        while node.thread.is_alive():
            executor.spin_once(timeout_sec=SPIN_S)
            if stop.is_set():
                node.stop()
    except ExternalShutdownException:
        node.stop()
    finally:
        node.thread.join()
        code = node.finish()
        executor.shutdown()
        node.destroy_node()
    return code


def main(args: list[str] | None = None) -> int:
    """Entry point. Exit code 2: wrong input; 1: the training failed."""
    return run_process(Path(__file__).stem, _work, args)


if __name__ == "__main__":
    sys.exit(main())
