# SPDX-License-Identifier: Apache-2.0
"""What the editor tells of itself: latency, active instruction, status and diagnostics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from diagnostic_msgs.msg import DiagnosticArray

from egoedit_ros.msg import ActiveInstruction, FrameLatency, StreamStatus
from egoedit_ros.nodes import qos
from egoedit_ros.nodes.status import Figures, Snapshot, diagnostics_message, status_message
from egoedit_ros.stream import names
from egoedit_ros.stream.latency import finish, overhead_ms
from egoedit_ros.stream.types import EditedFrame

if TYPE_CHECKING:
    from egoedit_ros.nodes.editor_node import EditorNode


class EditorReports:
    """Publishers of ``latency``, ``instruction/active``, ``status`` and ``/diagnostics``."""

    def __init__(self, node: EditorNode) -> None:
        self._node = node
        self.figures = Figures()
        self.deadline_ms = 0.0
        self._last_stamp = None
        self._drops_told = 0
        options = {"qos_overriding_options": qos.overridable()}
        report = qos.reliable(qos.REPORT_DEPTH)
        self._latency = node.create_publisher(FrameLatency, names.TOPIC_LATENCY, report, **options)
        self._active = node.create_publisher(
            ActiveInstruction, names.TOPIC_ACTIVE, qos.latched(1), **options
        )
        self._status = node.create_publisher(
            StreamStatus, names.TOPIC_STATUS, qos.reliable(10), **options
        )
        self._diagnostics = node.create_publisher(DiagnosticArray, names.TOPIC_DIAGNOSTICS, 10)

    def restart(self) -> None:
        """Count and measure anew, from an activation on."""
        self.figures = Figures()
        self._drops_told = 0
        self._last_stamp = None

    def frame_sent(self, edited: EditedFrame, begin_ns: int, end_ns: int) -> None:
        """Report a frame whose publication took from begin to end (worker's thread)."""
        figures = self.figures
        stages, total = finish(edited, begin_ns, end_ns)
        missed = total > self.deadline_ms
        figures.deadline_misses += missed
        figures.latency.add(total)
        figures.overhead.add(overhead_ms(edited, end_ns))
        figures.fps_out.add(end_ns)
        header = edited.frame.token
        self._last_stamp = header.stamp
        instruction = edited.instruction
        message = FrameLatency(
            header=header,
            frame_index=edited.frame_index,
            chunk_index=edited.chunk_index,
            instruction_id=instruction.id if instruction else "",
            outcome=names.OUTCOME_EDITED if edited.edited else names.OUTCOME_PASSTHROUGH,
            total_ms=total,
            deadline_missed=missed,
            **{f"{stage}_ms": value for stage, value in stages.items()},
        )
        self._latency.publish(message)
        if edited.first_of_instruction:
            self._announce(edited, end_ns)

    def _announce(self, edited: EditedFrame, end_ns: int) -> None:
        instruction = edited.instruction
        since_ns = instruction.arrival_ns
        # One given ahead, or before there was a camera, is not late while its frame is not there.
        if instruction.stamp_ns or edited.frame_index == 0:
            since_ns = max(since_ns, edited.frame.arrival_ns)
        self._active.publish(
            ActiveInstruction(
                header=edited.frame.token,
                id=instruction.id,
                text=instruction.text,
                seed=instruction.seed,
                chunk_index=edited.chunk_index,
                switch_latency_ms=(end_ns - since_ns) / 1e6,
            )
        )

    def publish_status(self) -> StreamStatus:
        """Publish the status of this moment."""
        message = status_message(self.figures, self._snapshot(), self._now())
        self._status.publish(message)
        return message

    def publish(self) -> None:
        """Publish status and diagnostics: once a second."""
        status = self.publish_status()
        drops = sum(self.figures.counters.snapshot()[2].values())
        new_drops, self._drops_told = drops - self._drops_told, drops
        self._diagnostics.publish(
            diagnostics_message(
                self._node.get_fully_qualified_name(),
                self.figures,
                self._snapshot(),
                status,
                new_drops,
            )
        )

    def _now(self):
        return self._node.get_clock().now().to_msg()

    def _snapshot(self) -> Snapshot:
        node = self._node
        snapshot = Snapshot(
            model=node.get_parameter("model").value,
            device=node.get_parameter("device").value,
            deadline_ms=self.deadline_ms,
            image_topic=node.image_topic,
            reason=node.failure,
        )
        editor, worker = node.editor, node.worker
        if editor is None or worker is None:
            return snapshot
        session = editor.session
        snapshot.model, snapshot.device, snapshot.size = session.name, session.device, session.size
        snapshot.device_memory_bytes = _device_memory(editor)
        snapshot.queue_depth = len(worker.intake) + editor.waiting
        snapshot.pending_instructions = editor.pending
        if editor.instruction is not None:
            snapshot.instruction_id = editor.instruction.id
            snapshot.instruction_text = editor.instruction.text
        if not node.receiving:
            return snapshot
        snapshot.state = editor.state
        snapshot.reason = editor.fault or ""
        snapshot.publishers = node.count_publishers(node.image_topic)
        if worker.intake.last_arrival_ns:
            snapshot.silence_s = (time.perf_counter_ns() - worker.intake.last_arrival_ns) / 1e9
        if self._last_stamp is not None:
            # In plain numbers: rclpy's Time refuses stamps before 1970, which a camera may send.
            sent_ns = self._last_stamp.sec * 1_000_000_000 + self._last_stamp.nanosec
            snapshot.stamp_age_s = (node.get_clock().now().nanoseconds - sent_ns) / 1e9
        return snapshot


def _device_memory(editor) -> int:
    try:
        return int(editor.memory_bytes())
    except Exception:  # a session in trouble must not take the report of it down
        return 0
