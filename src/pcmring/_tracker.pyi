from collections.abc import Callable
from typing import Any, Protocol, SupportsIndex, TypedDict, TypeVar, type_check_only

from typing_extensions import disjoint_base

_T = TypeVar("_T")

@type_check_only
class _Monitor(Protocol):
    def add_cleanup_callback(self, callback: Callable[[], Any], /) -> Any: ...

@type_check_only
class _BufferInfo(TypedDict):
    buffer_count: int
    total_memory_mb: float
    total_memory_bytes: int
    average_buffer_size_kb: float

@disjoint_base
class AudioBufferTracker:
    def __init__(self, monitor: _Monitor | None = None) -> None: ...
    def track_buffer(
        self, obj: _T, size_bytes: SupportsIndex, on_evict: Callable[[_T], object] | None = None
    ) -> None: ...
    def untrack_buffer(self, obj: object) -> bool: ...
    def get_total_buffer_memory(self) -> int: ...
    def get_buffer_info(self) -> _BufferInfo: ...
    def evict(self, wanted_bytes: SupportsIndex | None = None) -> int: ...
    def _cleanup_buffers(self) -> int: ...
