"""CPU, memory, disk, network and GPU of the machine, as MLflow's own page for them shows them."""

import logging
import time

_EVERY_S = 10.0
_log = logging.getLogger(__name__)


class SystemMetrics:
    """Reads MLflow's monitors. Their values go the way of all metrics, so that an outage of MLflow loses none."""

    def __init__(self) -> None:
        from mlflow.system_metrics.metrics import cpu_monitor, disk_monitor, gpu_monitor, network_monitor

        self._monitors = [cpu_monitor.CPUMonitor(), disk_monitor.DiskMonitor(), network_monitor.NetworkMonitor()]
        try:
            self._monitors.append(gpu_monitor.GPUMonitor())
        except Exception as error:  # pynvml or an NVIDIA driver is missing
            _log.debug("no GPU metrics: %s", error)
        self._due_s = time.monotonic() + _EVERY_S
        self.samples = 0

    def sample(self) -> dict[str, float]:
        """The values of now by the names that MLflow gives them; nothing until ten seconds after the last ones."""
        if time.monotonic() < self._due_s:
            return {}
        self._due_s = time.monotonic() + _EVERY_S
        self.samples += 1
        found: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            found |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return found
