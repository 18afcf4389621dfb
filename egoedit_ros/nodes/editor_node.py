# SPDX-License-Identifier: Apache-2.0
"""The editor: camera topic in, edited topic out.

The executor's thread only stores what comes in and answers services. The worker's thread owns the
model: it decodes, edits and publishes. See :mod:`egoedit_ros.stream.worker`.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable

import rclpy
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from egoedit_ros.errors import UserError
from egoedit_ros.msg import EditInstruction
from egoedit_ros.nodes import parameters, qos
from egoedit_ros.nodes.lifecycle import ManagedNode
from egoedit_ros.nodes.output import EditedPublisher
from egoedit_ros.nodes.parameters import EDITOR_PARAMETERS
from egoedit_ros.nodes.raw_image import RawImage, read_image
from egoedit_ros.nodes.reports import EditorReports
from egoedit_ros.nodes.running import run_node
from egoedit_ros.stream import names
from egoedit_ros.stream.editor import StreamEditor
from egoedit_ros.stream.images import compressed_to_rgb, to_rgb
from egoedit_ros.stream.instructions import check_text
from egoedit_ros.stream.intake import Arrival, Intake
from egoedit_ros.stream.latency import chunk_period_ms, transport_ms
from egoedit_ros.stream.session import ChunkSession, forget_models, open_session
from egoedit_ros.stream.types import EditedFrame, Frame, Instruction, StreamSettings, parse_size
from egoedit_ros.stream.worker import StreamWorker, WorkerHooks

NODE_NAME = "editor"
WARN_EVERY_S = 5.0
# A worker that a frame wakes gets the interpreter after this long; Python's own 5 ms is late.
SWITCH_INTERVAL_S = 1e-4


class EditorNode(ManagedNode):
    """Lifecycle node around one :class:`StreamEditor`.

    open_model: makes the session from the parameters, :func:`open_session` unless a test says
    otherwise. Raises UserError if a parameter's value is not allowed.
    """

    def __init__(self, open_model: Callable[..., ChunkSession] = open_session, **kwargs) -> None:
        super().__init__(NODE_NAME, **kwargs)
        self._open_model = open_model
        self.worker: StreamWorker | None = None
        self.editor: StreamEditor | None = None
        self.add_on_set_parameters_callback(self._check_parameters)
        parameters.declare(self, EDITOR_PARAMETERS)
        self.add_post_set_parameters_callback(self._apply_parameters)
        self._output: EditedPublisher | None = None
        self._camera_info: CameraInfo | None = None
        self._subscriptions_of_stream: list = []
        self._instruction_subscriptions: list = []
        self._sequence = 0
        self._logged: dict[str, float] = {}
        image = self.resolve_topic_name(names.TOPIC_IMAGE)
        compressed = self.get_parameter("input_transport").value == "compressed"
        self.image_topic = names.compressed_topic(image) if compressed else image
        self.reports = EditorReports(self)
        # In a group of its own: a flush that waits for the worker must not hold up the images.
        self._flush_group = MutuallyExclusiveCallbackGroup()
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_service(Trigger, "~/flush", self._on_flush, callback_group=self._flush_group)
        self.create_service(SetBool, "~/set_bypass", self._on_set_bypass)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1.0, self.reports.publish, clock=steady)

    @property
    def receiving(self) -> bool:
        """Whether frames are taken: from activate to deactivate."""
        return bool(self._subscriptions_of_stream)

    # Transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and take instructions."""
        result = self.guarded("configure", self._configure)
        if result != TransitionCallbackReturn.SUCCESS:
            self.free()
            return result
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Warm up and take frames."""
        result = self.guarded("activate", self._activate)
        return super().on_activate(state) if result == TransitionCallbackReturn.SUCCESS else result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Take no more frames; what is inside is dropped."""
        result = self.guarded("deactivate", self._deactivate)
        return (
            super().on_deactivate(state) if result == TransitionCallbackReturn.SUCCESS else result
        )

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model."""
        result = self.guarded("clean up", self.free)
        return super().on_cleanup(state) if result == TransitionCallbackReturn.SUCCESS else result

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything."""
        result = self.guarded("shut down", self.free)
        return super().on_shutdown(state) if result == TransitionCallbackReturn.SUCCESS else result

    def _configure(self) -> None:
        values = parameters.values(self, EDITOR_PARAMETERS)
        settings = StreamSettings(
            size=parse_size(values["size"]),
            output_size=values["output_size"],
            fit=values["fit"],
            preserve=values["preserve"],
            emit=values["emit"],
            bypass=values["bypass"],
        )
        hooks = WorkerHooks(
            decode=self._decode,
            publish=self._publish,
            report=self.reports.frame_sent,
            event=lambda line: self.warn_at_times(line.split(":")[0], line),
            dropped=self._on_dropped,
        )
        self.reports.restart()
        intake = Intake(values["policy"], 4, self.reports.figures.counters)
        self.worker = StreamWorker(intake, hooks)
        session = self.worker.call(
            lambda: self._open_model(
                model=values["model"],
                device=values["device"],
                size=settings.size,
                chunk_latents=values["chunk_latents"] or None,
                nfe=values["nfe"] or None,
                preserve=values["preserve"],
                recache=values["recache"],
                blend_chunks=values["blend_chunks"],
                threads=values["threads"] or None,
            )
        ).result()
        intake.capacity = 4 * session.chunk_latents
        depth = max(10, 2 * 4 * session.chunk_latents)
        self._output = EditedPublisher(self, depth, values["jpeg_quality"])
        self.editor = StreamEditor(session, settings, on_event=hooks.event)
        self.worker.editor = self.editor
        self._apply_live()
        if values["instruction"]:
            self._instruct("", values["instruction"], values["seed"])
        self._take_instructions()
        self.get_logger().info(
            f"model {session.name} on {session.device},"
            f" {session.size[0]}x{session.size[1]}, {session.chunk_latents} latents a chunk"
        )

    def _activate(self) -> None:
        self.worker.call(self.editor.warm_up).result()
        self.reports.restart()
        self.worker.intake.counters = self.reports.figures.counters
        self._sequence = 0
        self._take_frames()
        self.get_logger().info(f"editing {self.image_topic}")

    def _deactivate(self) -> None:
        for subscription in self._subscriptions_of_stream:
            self.destroy_subscription(subscription)
        self._subscriptions_of_stream = []
        self._camera_info = None
        if self.worker is not None:
            self.worker.restart()

    def free(self) -> None:
        """Undo configure and activate."""
        self._deactivate()
        for subscription in self._instruction_subscriptions:
            self.destroy_subscription(subscription)
        self._instruction_subscriptions = []
        if self.worker is not None:
            self.worker.stop()
            self.worker.editor = None
        if self._output is not None:
            self._output.destroy()
        self.worker = self.editor = self._output = None
        forget_models()

    # Topics in (executor's thread)

    def _take_frames(self) -> None:
        compressed = self.get_parameter("input_transport").value == "compressed"
        image = self.resolve_topic_name(names.TOPIC_IMAGE)
        self.image_topic = names.compressed_topic(image) if compressed else image
        policy = self.get_parameter("policy").value
        profile = qos.image_subscription(policy, self.editor.session.chunk_latents)
        warn = qos.on_incompatible(
            self, self.image_topic, profile, "publishers", self._on_incompatible
        )
        self._image_subscription = self.create_subscription(
            CompressedImage if compressed else Image,
            self.image_topic,
            self._on_image,
            profile,
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=warn),
            qos_overriding_options=qos.overridable(),
            raw=not compressed,
        )
        info = self.create_subscription(
            CameraInfo,
            names.camera_info_topic(image),
            self._on_camera_info,
            qos_profile_sensor_data,
            qos_overriding_options=qos.overridable(),
        )
        self._subscriptions_of_stream = [self._image_subscription, info]

    def _take_instructions(self) -> None:
        self._instruction_subscriptions = [
            self.create_subscription(
                EditInstruction,
                names.TOPIC_INSTRUCTION,
                self._on_instruction,
                qos.latched(qos.INSTRUCTION_DEPTH),
                qos_overriding_options=qos.overridable(),
            ),
            self.create_subscription(
                String, names.TOPIC_INSTRUCTION_TEXT, self._on_instruction_text, 10
            ),
        ]

    def _on_image(self, message: bytes | CompressedImage, info: dict) -> None:
        arrival_ns, wall_ns = time.perf_counter_ns(), time.time_ns()
        self._count_lost(info.get("publication_sequence_number") or 0)
        size = None
        if isinstance(message, bytes):
            try:
                message = read_image(message)
            except UserError as error:
                self.worker.intake.counters.came_in()
                self.worker.intake.counters.drop("error")
                self.warn_at_times("frame dropped", f"frame dropped: {error}")
                return
            size = (message.width, message.height)
        stamp = message.header.stamp
        broken = self.worker.intake.offer(
            stamp.sec * 1_000_000_000 + stamp.nanosec,
            message,
            size,
            transport_ms(info.get("source_timestamp") or 0, wall_ns),
            arrival_ns,
        )
        self.reports.figures.fps_in.add(arrival_ns)
        if broken:
            self.get_logger().warning(f"new stream: {broken}")

    def _count_lost(self, sequence: int) -> None:
        """Frames missing between two of one publisher's were lost on the way."""
        missing = sequence - self._sequence - 1
        if self._sequence and missing > 0 and self._image_subscription.get_publisher_count() == 1:
            self.reports.figures.counters.lost_on_the_way(missing)
            self.warn_at_times(
                "lost",
                "frames lost on the way; large images want config/fastdds_large_images.xml"
                " in both processes, or input_transport compressed",
            )
        self._sequence = sequence

    def _on_camera_info(self, message: CameraInfo) -> None:
        if self._camera_info is not None:
            # Only the stamp changes with most cameras: keep the one that is already scaled.
            message.header = self._camera_info.header
            if message == self._camera_info:
                return
        self._camera_info = message

    def _on_instruction(self, message: EditInstruction) -> None:
        stamp = message.header.stamp
        stamp_ns = stamp.sec * 1_000_000_000 + stamp.nanosec
        self._instruct(message.id, message.text, message.seed, stamp_ns, message.reset)

    def _on_instruction_text(self, message: String) -> None:
        self._instruct("", message.data, self.get_parameter("seed").value)

    def _instruct(
        self, id: str, text: str, seed: int, stamp_ns: int = 0, reset: bool = False
    ) -> None:
        arrival_ns = time.perf_counter_ns()
        try:
            text = check_text(text)
        except UserError as error:
            self.get_logger().warning(f"instruction refused, the old one stays: {error}")
            return
        given = self.editor.set_instruction(
            Instruction(id, text, seed, stamp_ns, reset, arrival_ns)
        )
        self.get_logger().info(f"instruction {given.id}: {text or '(pass the camera through)'}")

    def _on_incompatible(self, line: str) -> None:
        self.reports.figures.incompatible_qos += 1
        self.get_logger().error(line)

    # Work on frames (worker's thread)

    def _decode(self, arrival: Arrival) -> Frame:
        message = arrival.message
        read = to_rgb if isinstance(message, RawImage) else compressed_to_rgb
        return Frame(
            arrival.stamp_ns,
            read(message),
            arrival.arrival_ns,
            arrival.transport_ms,
            token=message.header,
        )

    def _publish(self, edited: EditedFrame) -> None:
        self._output.publish(edited, self.editor.geometry(edited.frame), self._camera_info)

    def _on_dropped(self) -> None:
        # Who replays without loss waits for each frame, so must hear at once of one that is gone.
        if self.worker is not None and self.worker.intake.policy == "all":
            self.reports.publish_status()

    # Services

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if not self.receiving:
            response.message = "not active"
            return response
        self.worker.restart()
        response.success, response.message = True, "stream forgotten"
        return response

    async def _on_flush(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if not self.receiving:
            response.message = "not active"
            return response
        waiting = rclpy.task.Future()
        executor = self.executor

        def done(flushed) -> None:
            waiting.set_result(flushed)
            executor.wake()

        self.worker.flush().add_done_callback(done)
        flushed = await waiting
        error = flushed.exception()
        response.success = error is None
        response.message = str(error) if error else f"{flushed.result()} frames sent"
        return response

    def _on_set_bypass(
        self, request: SetBool.Request, response: SetBool.Response
    ) -> SetBool.Response:
        result = self.set_parameters([Parameter("bypass", value=request.data)])[0]
        response.success, response.message = result.successful, result.reason
        return response

    # Parameters

    def _check_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        wanted = {p.name: p.value for p in changes}
        fixed = [n for n in wanted if self.has_parameter(n)] if self.worker is not None else []
        try:
            parameters.check(EDITOR_PARAMETERS, wanted)
            parameters.check_changeable(EDITOR_PARAMETERS, fixed)
        except UserError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _apply_parameters(self, changes: list[Parameter]) -> None:
        self._apply_live()
        for parameter in changes:
            if parameter.name == "instruction" and self.editor is not None:
                self._instruct("", parameter.value, self.get_parameter("seed").value)

    def _apply_live(self) -> None:
        """Put the parameters into force that may change at any time."""
        if self.editor is None:
            return
        values = parameters.values(self, EDITOR_PARAMETERS)
        self.editor.settings.bypass = values["bypass"]
        self.worker.flush_timeout = values["flush_timeout"]
        self.worker.paced = values["emit"] == "paced"
        self.worker.frame_period_ns = int(1e9 / values["camera_fps"])
        self._output.jpeg_quality = values["jpeg_quality"]
        self.reports.deadline_ms = values["deadline_ms"] or 100.0 + chunk_period_ms(
            self.editor.session.chunk_latents, values["camera_fps"]
        )

    def warn_at_times(self, key: str, line: str) -> None:
        """Warn, but of one kind of trouble at most every few seconds."""
        now = time.monotonic()
        if now - self._logged.get(key, -WARN_EVERY_S) >= WARN_EVERY_S:
            self._logged[key] = now
            self.get_logger().warning(line)


def _start(node: EditorNode) -> None:
    if node.get_parameter("autostart").value and not node.autostart() and rclpy.ok():
        raise UserError(node.failure)
    # What is loaded by now stays: looking through it all again would stop the stream each time.
    gc.collect()
    gc.freeze()


def main(args: list[str] | None = None) -> int:
    """Run the editor until it is told to stop. Returns the exit code: 2 if it cannot start."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return run_node(NODE_NAME, EditorNode, _start, EditorNode.free, args)


if __name__ == "__main__":
    sys.exit(main())
