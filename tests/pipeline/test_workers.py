"""Worker processes leave the other cores alone."""

from threadpoolctl import threadpool_info

from pipeline.workers import start_workers


def test_a_worker_has_one_thread() -> None:
    with start_workers(1) as pool:
        found = pool.submit(threadpool_info).result()
    assert found
    assert {library["num_threads"] for library in found} == {1}
