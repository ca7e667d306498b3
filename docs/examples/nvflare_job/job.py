"""Four clients, three rounds, in NVIDIA FLARE's simulator; the server writes down what it sees."""

from pathlib import Path

from net import Net
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.app_opt.pt.job_config.base_fed_job import BaseFedJob
from nvflare.job_config.defs import FilterType
from nvflare.job_config.script_runner import ScriptRunner

from pplleak.federation.capture.nvflare import Recorder

here = str(Path(__file__).resolve().parent)

if __name__ == "__main__":
    job = BaseFedJob(name="seen", initial_model=Net(), min_clients=4)
    job.to_server(FedAvg(num_clients=4, num_rounds=3))
    for kind in (FilterType.TASK_DATA, FilterType.TASK_RESULT):  # what goes out, and what comes back
        seen = Recorder(f"{here}/seen", f"{here}/net.py:Net", [1, 8, 8], 10, lr=0.05, epochs=2, examples=4,
                        optimizer="sgd:momentum=0.9")  # fmt: skip
        job.to_server(seen, filter_type=kind, tasks=["train"])
    for k in range(4):
        job.to(ScriptRunner(script=f"{here}/client.py", script_args=here), f"site-{k}")
    job.simulator_run(f"{here}/workspace")
