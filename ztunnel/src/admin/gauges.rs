//! Metrics that are looked up when they are scraped: pods, runtimes, the capture programs' counters.
//!
//! In: [`Handles`]. Out: gauges and counters under Istio's names.

use metrics::{counter, gauge};
use tokio::runtime::RuntimeMetrics;

use super::{Handles, PodState};

/// Brings them up to date.
pub(super) fn record(handles: &Handles) {
    for (event, count) in (handles.capture_counters)() {
        counter!("aquifer_capture_total", "event" => event).absolute(count);
    }
    handles.certificate_metrics.update(&handles.identities);
    let mut pods = (handles.pods)();
    pods.retain(|pod| !pod.is_daemon);
    let up = pods.iter().filter(|pod| matches!(pod.state, PodState::Up)).count();
    gauge!("workload_manager_active_proxy_count").set(up as f64);
    gauge!("workload_manager_pending_proxy_count").set((pods.len() - up) as f64);
    runtimes(&handles.runtimes);
}

/// Every data thread has a runtime with one worker: Istio's metrics of one runtime with many are their sums.
fn runtimes(runtimes: &[RuntimeMetrics]) {
    let sum = |of: fn(&RuntimeMetrics) -> usize| runtimes.iter().map(of).sum::<usize>() as f64;
    gauge!("tokio_num_workers").set(sum(RuntimeMetrics::num_workers));
    gauge!("tokio_num_alive_tasks").set(sum(RuntimeMetrics::num_alive_tasks));
    gauge!("tokio_global_queue_depth").set(sum(RuntimeMetrics::global_queue_depth));
    for (worker, runtime) in runtimes.iter().enumerate() {
        let label = [("worker", worker.to_string())];
        gauge!("tokio_worker_total_busy_duration_seconds", &label)
            .set(runtime.worker_total_busy_duration(0).as_secs_f64());
        counter!("tokio_worker_park_total", &label).absolute(runtime.worker_park_count(0));
        counter!("tokio_worker_park_unpark_total", &label)
            .absolute(runtime.worker_park_unpark_count(0));
    }
}
