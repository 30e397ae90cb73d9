"""The Prometheus page."""

from __future__ import annotations

import time

from prometheus_client.parser import text_string_to_metric_families

from varvel.apps.model import AppId
from varvel.metrics.meter import Meter, Traffic
from varvel.metrics.page import AppSample, page
from varvel.runners.model import RunnerInfo, RunnerState

OCR = AppId("me", "ocr")


def runner(state: RunnerState, machine_type: str = "S") -> RunnerInfo:
    return RunnerInfo(
        runner_id="r",
        app=OCR,
        revision_id="rev",
        machine_type=machine_type,
        state=state,
        in_flight=0,
        started_at=0.0,
        pid=1,
        cpu_percent=12.5,
        memory_bytes=1000,
    )


async def lines(*samples: AppSample) -> list[str]:
    text = await page(samples, version="1", telemetry_up=True)
    assert text.endswith("\n")
    return text.splitlines()


async def test_the_documented_gauges_have_their_labels_and_values() -> None:
    meter = Meter()
    for _ in range(3):
        meter.received("me/ocr", "POST")
    meter.completed("me/ocr", "POST", 200, 0.7)
    meter.completed("me/ocr", "POST", 503, 700.0)
    text = await lines(
        AppSample(
            application="me/ocr",
            machine_type="S",
            queued=7,
            in_flight=1,
            runners=[runner(RunnerState.IDLE), runner(RunnerState.RUNNING), runner(RunnerState.SETUP)],
            minute=meter.last_minute()["me/ocr"],
            total=meter.totals()["me/ocr"],
        )
    )
    for line in (
        "# TYPE fal_app_runners gauge",
        'fal_app_runners{application="me/ocr",machine_type="S",state="running"} 2',
        'fal_app_runners{application="me/ocr",machine_type="S",state="pending"} 1',
        'fal_app_runners{application="me/ocr",machine_type="S",state="dead"} 0',
        "# TYPE fal_app_queue_size gauge",
        'fal_app_queue_size{application="me/ocr"} 7',
        "# TYPE fal_app_concurrent_requests gauge",
        'fal_app_concurrent_requests{application="me/ocr"} 1',
        "# TYPE fal_app_requests_completed gauge",
        'fal_app_requests_completed{application="me/ocr",method="POST",status="200"} 1',
        'fal_app_requests_completed{application="me/ocr",method="POST",status="503"} 1',
        "# TYPE fal_app_requests_received gauge",
        'fal_app_requests_received{application="me/ocr",method="POST"} 3',
        "# TYPE fal_app_request_latency gauge",
        'fal_app_request_latency{application="me/ocr",le="0.5"} 0',
        'fal_app_request_latency{application="me/ocr",le="1.0"} 1',
        'fal_app_request_latency{application="me/ocr",le="+Inf"} 2',
        'fal_app_runner_cpu_usage_percent{application="me/ocr"} 37.5',
        'fal_app_runner_memory_usage_bytes{application="me/ocr"} 3000',
        'varvel_requests_received_total{application="me/ocr",method="POST"} 3',
        "# TYPE varvel_request_duration_seconds histogram",
        'varvel_request_duration_seconds_sum{application="me/ocr"} 700.7',
        'varvel_request_duration_seconds_count{application="me/ocr"} 2',
    ):
        assert line in text


async def test_an_app_without_gpus_has_no_gpu_series() -> None:
    assert not [line for line in await lines(AppSample(application="me/ocr", machine_type="S")) if "gpu" in line]
    gpu = AppSample(application="me/ocr", machine_type="G", gpus=2, runners=[runner(RunnerState.IDLE, "G")])
    assert 'fal_app_runner_gpu_count{application="me/ocr"} 2' in await lines(gpu)


async def test_another_parser_reads_every_family() -> None:
    meter = Meter()
    meter.received('me/"odd"\\', "POST")
    meter.completed('me/"odd"\\', "POST", 200, 0.1)
    sample = AppSample(
        application='me/"odd"\\', machine_type="S", minute=meter.last_minute()['me/"odd"\\'], total=Traffic()
    )
    text = await page([sample], version="1", telemetry_up=False)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["fal_app_queue_size"].samples[0].labels == {"application": 'me/"odd"\\'}
    assert families["varvel_request_duration_seconds"].type == "histogram"
    assert families["varvel_telemetry_up"].samples[0].value == 0


async def test_a_thousand_apps_are_written_in_well_under_a_second() -> None:
    meter = Meter()
    names = [f"me/app-{number}" for number in range(1000)]
    for name in names:
        meter.received(name, "POST")
        meter.completed(name, "POST", 200, 0.1)
    minute, total = meter.last_minute(), meter.totals()
    began = time.process_time()
    text = await page(
        [AppSample(application=name, machine_type="S", minute=minute[name], total=total[name]) for name in names],
        version="1",
        telemetry_up=True,
    )
    took = time.process_time() - began
    assert text.count("fal_app_queue_size{") == 1000
    assert took < 0.5
    print(f"{len(text)} bytes in {took * 1000:.1f} ms")
